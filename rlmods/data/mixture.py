"""Who acts in a frame, the network or an expert: a coin for each environment, and what came of it."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rlmods.data.episodes import EPISODE_WINDOW
from rlmods.functional.expert_share import expert_share
from rlmods.types import MixtureTotals, StepResult

Flags: TypeAlias = npt.NDArray[np.bool_]


class ExpertSchedule(NamedTuple):
    """The probability that the expert acts: max(floor, start · decay^⌊env_steps / decay_steps⌋)."""

    start: float
    decay: float
    decay_steps: int
    floor: float
    care_scale: float  # factor where an environment needs care; the product is cut at 1


class ExpertMixture:
    """Throws the coins, and keeps account of frames and rewards by network and by expert.

    The coins come from a generator of its own, which is saved.

    Args:
        schedule: of the share.
        num_envs: N.
        seed: of the coins.

    Attributes:
        override: a share in the place of the schedule's, which goes on with the clock; None is the schedule.
        totals: of all frames so far.
        frames_with_care: those of them in which care was needed.
    """

    def __init__(self, schedule: ExpertSchedule, num_envs: int, *, seed: int) -> None:
        self.schedule = schedule
        self.override: float | None = None
        self.totals = MixtureTotals(0, 0, 0.0, 0.0)
        self.frames_with_care = 0
        self._care: list[Flags | None] = []  # of the steps that are not counted yet
        self._generator = np.random.default_rng(seed)
        self._episode = np.zeros((2, num_envs))  # reward of the running episodes, by network and by expert
        self._episodes = [deque[float](maxlen=max(EPISODE_WINDOW, num_envs)) for _ in range(2)]

    def share(self, env_steps: int) -> float:
        """The probability with which the expert acts where no care is needed."""
        if self.override is not None:
            return self.override
        start, decay, decay_steps, floor, _ = self.schedule
        return expert_share(env_steps, start=start, decay=decay, decay_steps=decay_steps, floor=floor)

    def choose(
        self,
        action: npt.NDArray[Any],
        expert_action: Callable[[], npt.NDArray[np.int64] | None],
        care: Flags | None,
        env_steps: int,
    ) -> tuple[npt.NDArray[Any], Flags]:
        """A coin for each environment.

        Args:
            action: `[N]`, the network's.
            expert_action: asked only where the expert acts somewhere.
            care: `[N]`, where exploration is lethal; None where the environments never say.
            env_steps: of the run so far.

        Returns:
            `[N]`, what is done, and `[N]`, whether the expert chose it.
        """
        self._care.append(care)
        share = self.share(env_steps)
        probability = np.full(len(action), share)
        if care is not None:
            probability[care] = min(1.0, share * self.schedule.care_scale)
        by_expert = self._generator.random(len(action)) < probability
        chosen = expert_action() if np.count_nonzero(by_expert) else None
        return (action, by_expert) if chosen is None else (np.where(by_expert, chosen, action), by_expert)

    def count(self, results: Sequence[StepResult], by_expert: Sequence[Flags]) -> None:
        """Take in steps of the N environments, in the order of time."""
        # Care is known of the steps that `choose` decided.
        for result, care in zip(results, self._care, strict=False):
            self.frames_with_care += 0 if care is None else int(np.count_nonzero(care & result.valid))
        self._care.clear()
        frames, rewards = np.zeros(2, dtype=np.int64), np.zeros(2)
        for result, expert in zip(results, by_expert, strict=True):
            actor = np.stack([~expert, expert])
            reward = actor * result.reward.astype(np.float64)
            frames += np.count_nonzero(actor & result.valid, axis=1)
            rewards += reward.sum(axis=1)
            self._episode += reward
            ended = result.terminated | result.truncated
            if np.count_nonzero(ended):
                for window, returns in zip(self._episodes, self._episode, strict=True):
                    window.extend(returns[ended].tolist())
                self._episode[:, ended] = 0.0
        totals = self.totals
        self.totals = MixtureTotals(
            frames_by_network=totals.frames_by_network + int(frames[0]),
            frames_by_expert=totals.frames_by_expert + int(frames[1]),
            reward_by_network=totals.reward_by_network + float(rewards[0]),
            reward_by_expert=totals.reward_by_expert + float(rewards[1]),
        )

    def means(self) -> dict[str, float]:
        """Of the last 100 finished episodes (N, where more), the mean reward on the frames of each, by tag."""
        names = ("network", "expert")
        return {
            f"rollout/ep_rew_{name}_mean": sum(window) / len(window)
            for name, window in zip(names, self._episodes, strict=True)
            if window
        }

    def abandon(self) -> None:
        """The running episodes will never end."""
        self._episode[:] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """The generator and the accounts; an override belongs to who made it."""
        return {
            "generator": self._generator.bit_generator.state,
            "totals": list(self.totals),
            "frames_with_care": self.frames_with_care,
            "episode": self._episode.tolist(),
            "episodes": [list(window) for window in self._episodes],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self._generator.bit_generator.state = state["generator"]
        self.totals = MixtureTotals(*state["totals"])
        self.frames_with_care = state.get("frames_with_care", 0)
        self._episode = np.array(state["episode"])
        for window, returns in zip(self._episodes, state["episodes"], strict=True):
            window.clear()
            window.extend(returns)
