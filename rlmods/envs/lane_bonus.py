"""A reward for actions that have not been tried yet, which fades and changes with what the player does."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from rlmods.envs.lane_board import Array

_BITS: Final = 14
NUM_CLUSTERS: Final = 1 << _BITS  # of a game
NUM_FEATURES: Final = 20  # of an observation, from its beginning
_ODD: Final = np.arange(1, 2 * NUM_FEATURES, 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)


class DiversityBonus:
    """Pays `bonus`/√k the first time that an action is tried in a cluster of states, where k actions were tried then.

    A cluster is the first 20 numbers of an observation, rounded to tenths. Each game remembers across its episodes, so
    the same step is paid once and never again: this reward is not stationary. Where two of the clusters
    fall on the same of a game's 16,384 places, they are one.

    Args:
        num_games: N.
        bonus: of the first action in a cluster.
    """

    def __init__(self, num_games: int, bonus: float) -> None:
        self.bonus = bonus
        self.tried = np.zeros((num_games, NUM_CLUSTERS), np.uint32)  # bit a is action a
        self.cluster = np.zeros(num_games, np.intp)

    def forget(self) -> None:
        """Nothing was tried."""
        self.tried[:] = 0

    def see(self, observation: Array) -> None:
        """Be in the states `[N, D]`."""
        tenths = np.rint(observation[:, :NUM_FEATURES] * 10.0).astype(np.int64).view(np.uint64)
        self.cluster = ((tenths * _ODD).sum(1) >> np.uint64(64 - _BITS)).astype(np.intp)

    def pay(self, action: Array) -> npt.NDArray[np.float64]:
        """`[N]`, for the actions `[N]` in these states."""
        place = (np.arange(len(action)), self.cluster)
        before = self.tried[place]
        self.tried[place] = after = before | np.uint32(1) << action.astype(np.uint32)
        num_tried = np.bitwise_count(after).astype(np.float64)
        paid: npt.NDArray[np.float64] = self.bonus * (after != before) / np.sqrt(num_tried)
        return paid

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        return {"tried": self.tried.view(np.int32).copy(), "cluster": self.cluster.copy()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        self.tried, self.cluster = state["tried"].view(np.uint32).copy(), state["cluster"].copy()
