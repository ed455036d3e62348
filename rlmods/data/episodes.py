"""Return, length, events and sums of the training episodes, as they end."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torchmetrics.aggregation import CatMetric

from rlmods.envs.events import EVENTS, RATES
from rlmods.functional.proportions import rate_metrics
from rlmods.types import StepResult

EPISODE_WINDOW = 100


class EpisodeStatistics:
    """What the running episodes of N environments have got so far, and how the last ones ended.

    These are the last 100, or N where it is larger, so that one end of all of them counts each.

    A rate that the environment computes itself is shown and never used. From its first value outside [0, 1] on it is
    quarantined: it is a count or a sum, and the tag says so.

    Args:
        num_envs: N.

    Attributes:
        quarantined: names of such rates.
        terminations: episodes that have ended by themselves since the beginning, and not by a limit.
    """

    def __init__(self, num_envs: int) -> None:
        self.episode_return = np.zeros(num_envs)
        self.episode_length = np.zeros(num_envs, dtype=np.int64)
        size = max(EPISODE_WINDOW, num_envs)
        self.returns = _EpisodeWindow(size)
        self.lengths = _EpisodeWindow(size)
        self.events = {name: _EpisodeWindow(size) for name in EVENTS}
        self.reported_rates = {name: _EpisodeWindow(size) for name in RATES}
        self.sums: dict[str, _EpisodeWindow] = {}
        self.quarantined: list[str] = []
        self.terminations = 0

    def count(self, results: list[StepResult]) -> None:
        """Take in steps of the N environments, in the order of time."""
        returns, lengths = [], []
        for result in results:
            self.episode_return += result.reward
            self.episode_length += result.valid
            ended = result.terminated | result.truncated
            if np.count_nonzero(ended):
                self.terminations += int(np.count_nonzero(result.terminated))
                returns.append(self.episode_return[ended])
                lengths.append(self.episode_length[ended])
                self.episode_return[ended] = 0.0
                self.episode_length[ended] = 0
                self._count_events(result, ended)
        if returns:
            self.returns.append(np.concatenate(returns))
            self.lengths.append(np.concatenate(lengths))

    def _count_events(self, result: StepResult, ended: npt.NDArray[np.bool_]) -> None:
        for name, window in self.events.items():
            happened = result.events[name][ended]
            window.append(happened[~np.isnan(happened)])
        for name, summed in result.sums.items():
            values = summed[ended]
            self._sum_window(name).append(values[~np.isnan(values)])
        for name, rates in result.reported_rates.items():
            values = rates[ended]
            self.reported_rates[name].append(values)
            outside = values[~((values >= 0.0) & (values <= 1.0))]
            if len(outside) and name not in self.quarantined:
                self.quarantined.append(name)
                rank_zero_warn(
                    f"the environment reports {name} = {outside[0]:g} at the end of an episode, which must lie in "
                    "[0, 1]: it is a count, a sum or a percentage and no rate. It is drawn as "
                    f"rollout/quarantined/{name} for the rest of the run, and nothing is decided by it; report the "
                    'event itself, infos["is_success"], "collision" or "out_of_bounds"'
                )

    def _sum_window(self, name: str) -> "_EpisodeWindow":
        return self.sums.setdefault(name, _EpisodeWindow(self.returns.size))

    def abandon(self) -> None:
        """The running episodes will never end."""
        self.episode_return[:] = 0.0
        self.episode_length[:] = 0

    def means(self) -> dict[str, float]:
        """Means over the last finished episodes, by tag; empty before the first.

        Rates of events come with their interval, and with `rollout/episodes`, of how many episodes all these are.
        """
        returns, lengths = self.returns.values(), self.lengths.values()
        if not len(returns):
            return {}
        means = {"rollout/ep_rew_mean": float(returns.mean()), "rollout/ep_len_mean": float(lengths.mean())}
        rates = {tag: rate for name, window in self.events.items() for tag, rate in _rates(name, window).items()}
        if rates:
            means |= {"rollout/episodes": float(len(returns)), **rates}
        means |= {f"rollout/{name}_mean": float(window.values().mean()) for name, window in self.sums.items()}
        for name, window in self.reported_rates.items():
            values = window.values()
            if len(values):
                group = "quarantined" if name in self.quarantined else "reported"
                means[f"rollout/{group}/{name}"] = float(values.mean())
        return means

    def state_dict(self) -> dict[str, Any]:
        """The running episodes and the windows."""
        return {
            "episode_return": torch.from_numpy(self.episode_return.copy()),
            "episode_length": torch.from_numpy(self.episode_length.copy()),
            "returns": self.returns.values(),
            "lengths": self.lengths.values(),
            "events": {name: window.values() for name, window in self.events.items()},
            "reported_rates": {name: window.values() for name, window in self.reported_rates.items()},
            "sums": {name: window.values() for name, window in self.sums.items()},
            "quarantined": list(self.quarantined),
            "terminations": self.terminations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.episode_return = state["episode_return"].numpy().copy()
        self.episode_length = state["episode_length"].numpy().copy()
        self.returns.restore(state["returns"])
        self.lengths.restore(state["lengths"])
        for name, window in self.events.items():
            window.restore(state["events"][name])
        for name, window in self.reported_rates.items():
            window.restore(state["reported_rates"][name])
        for name, values in state["sums"].items():
            self._sum_window(name).restore(values)
        self.quarantined = list(state["quarantined"])
        self.terminations = state.get("terminations", 0)


def _rates(name: str, window: "_EpisodeWindow") -> dict[str, float]:
    return {f"rollout/{metric}": rate for metric, rate in rate_metrics(name, window.values()).items()}


class _EpisodeWindow:
    """A number of each of the last finished episodes, at most `size`."""

    def __init__(self, size: int) -> None:
        self.size = size
        # By default torchmetrics drops a NaN, so that a broken run looks healthy, and waits for the other processes.
        self.metric = CatMetric(nan_strategy="disable", sync_on_compute=False)

    def append(self, values: Any) -> None:
        if len(values):
            self.metric.update(torch.from_numpy(values))

    def values(self) -> Tensor:
        """`[E]` float32; also forgets the older ones."""
        if self.metric.update_count == 0:
            return torch.zeros(0)
        window = torch.as_tensor(self.metric.compute()).reshape(-1)[-self.size :].clone()
        self.restore(window)
        return window

    def restore(self, window: Tensor) -> None:
        self.metric.reset()
        if len(window):
            self.metric.update(window)
