"""Return and length of the training episodes, as they end."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.aggregation import CatMetric

from rlmods.types import StepResult

EPISODE_WINDOW = 100


class EpisodeStatistics:
    """What the running episodes of N environments have got so far, and how the last 100 ended.

    Args:
        num_envs: N.
    """

    def __init__(self, num_envs: int) -> None:
        self.episode_return = np.zeros(num_envs)
        self.episode_length = np.zeros(num_envs, dtype=np.int64)
        self.returns = _EpisodeWindow()
        self.lengths = _EpisodeWindow()

    def count(self, results: list[StepResult]) -> None:
        """Take in steps of the N environments, in the order of time."""
        returns, lengths = [], []
        for result in results:
            self.episode_return += result.reward
            self.episode_length += result.valid
            ended = result.terminated | result.truncated
            if np.count_nonzero(ended):
                returns.append(self.episode_return[ended])
                lengths.append(self.episode_length[ended])
                self.episode_return[ended] = 0.0
                self.episode_length[ended] = 0
        if returns:
            self.returns.append(np.concatenate(returns))
            self.lengths.append(np.concatenate(lengths))

    def abandon(self) -> None:
        """The running episodes will never end."""
        self.episode_return[:] = 0.0
        self.episode_length[:] = 0

    def means(self) -> dict[str, float]:
        """Means over the last 100 finished episodes, by tag; empty before the first."""
        returns, lengths = self.returns.values(), self.lengths.values()
        if not len(returns):
            return {}
        return {"rollout/ep_rew_mean": float(returns.mean()), "rollout/ep_len_mean": float(lengths.mean())}

    def state_dict(self) -> dict[str, Any]:
        """The running episodes and the window."""
        return {
            "episode_return": torch.from_numpy(self.episode_return.copy()),
            "episode_length": torch.from_numpy(self.episode_length.copy()),
            "returns": self.returns.values(),
            "lengths": self.lengths.values(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.episode_return = state["episode_return"].numpy().copy()
        self.episode_length = state["episode_length"].numpy().copy()
        self.returns.restore(state["returns"])
        self.lengths.restore(state["lengths"])


class _EpisodeWindow:
    """A number of each of the last 100 finished episodes."""

    def __init__(self) -> None:
        # By default torchmetrics drops a NaN, so that a broken run looks healthy, and waits for the other processes.
        self.metric = CatMetric(nan_strategy="disable", sync_on_compute=False)

    def append(self, values: Any) -> None:
        self.metric.update(torch.from_numpy(values))

    def values(self) -> Tensor:
        """`[E]` float32, at most the last 100; also forgets the older ones."""
        if self.metric.update_count == 0:
            return torch.zeros(0)
        window = torch.as_tensor(self.metric.compute()).reshape(-1)[-EPISODE_WINDOW:].clone()
        self.restore(window)
        return window

    def restore(self, window: Tensor) -> None:
        self.metric.reset()
        if len(window):
            self.metric.update(window)
