"""Games of the lane shooter that are put together by hand."""

from typing import Any

import numpy as np
import numpy.typing as npt

from rlmods.envs.lane_board import CELL, Board
from rlmods.envs.lane_shooter import LaneShooter

STILL, FIRE, ZAP = 8, 10, 9
LEFT, RIGHT = 4, 12


def quiet_game(num_envs: int = 1, *, lane: int = 5, quota: int = 0, **settings: Any) -> LaneShooter:
    """A game without enemies, in which none appear while `quota` is 0: where there never is one, the zoom begins."""
    env = LaneShooter(num_envs, **settings)
    env.reset(seed=0)
    env.board.lane[:] = lane
    env.board.quota[:] = quota
    return env


def put_enemy(
    board: Board, kind: int, lane: int, cell: float, *, slot: int = 0, rise: int = 0, way: int = 1, restless: int = 0
) -> None:
    """The same enemy in all games; by itself it does not move."""
    board.kind[slot] = kind
    board.place[slot] = lane
    board.depth[slot] = round(cell * CELL)
    board.rise[slot] = rise
    board.way[slot] = way
    board.restless[slot] = restless


def frames(env: LaneShooter, *actions: int) -> list[tuple[list[float], list[bool], list[bool]]]:
    """Reward, terminated and truncated of each game, of one frame for each action."""
    results = [env.step(np.full(env.num_envs, action))[1:4] for action in actions]
    return [(reward.tolist(), terminated.tolist(), truncated.tolist()) for reward, terminated, truncated in results]


def rewards(env: LaneShooter, *actions: int) -> list[float]:
    """Of the first game."""
    return [reward[0] for reward, _, _ in frames(env, *actions)]


def enemies(board: Board, game: int = 0) -> list[tuple[int, int, float]]:
    """Kind, lane and cell of those that are there."""
    slots = np.flatnonzero(board.kind[:, game])
    return [(int(board.kind[i, game]), int(board.place[i, game]), board.depth[i, game] / CELL) for i in slots]


def random_actions(num_steps: int, num_envs: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """`[T, N]`."""
    return np.random.default_rng(seed).integers(0, 20, (num_steps, num_envs))
