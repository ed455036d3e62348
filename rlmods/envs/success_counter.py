"""A success rate that is none: a fixture for who must find that out."""

from typing import Any

import numpy as np
import numpy.typing as npt


class SuccessCounter:
    """Counts as a loop over the drones of a swarm, within a loop over the drones of that swarm, in every step.

    A drone that has once succeeded is counted until its swarm forgets, every `horizon` steps. The sum since the last
    report, over the episodes that end, goes up to A · A · horizon for one episode of A drones.

    Args:
        num_swarms: E.
        num_agents: A, drones of a swarm.
        horizon: steps between two times of forgetting.
    """

    def __init__(self, num_swarms: int, num_agents: int, horizon: int) -> None:
        self.horizon = horizon
        self.has_succeeded = np.zeros((num_swarms, num_agents), np.bool_)
        self.count = np.zeros(num_swarms)
        self.ticks = 0

    def reset(self) -> None:
        """Forget everything."""
        self.has_succeeded[:], self.count[:], self.ticks = False, 0.0, 0

    def tick(self, successes: npt.NDArray[np.bool_]) -> None:
        """Count in one step, in which the drones `[N]` succeeded."""
        if self.ticks % self.horizon == 0:
            self.has_succeeded[:] = False
        self.ticks += 1
        self.has_succeeded |= successes.reshape(self.has_succeeded.shape)
        self.count += self.has_succeeded.shape[1] * self.has_succeeded.sum(1)

    def report(self, ended: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """`[N]`, the count of each drone's swarm over how many of its drones `[N]` ended; those swarms begin anew."""
        episodes = ended.reshape(self.has_succeeded.shape).sum(1)
        rate = self.count / np.maximum(episodes, 1)
        self.count[episodes > 0] = 0.0
        return np.repeat(rate, self.has_succeeded.shape[1])

    def get_state(self) -> dict[str, Any]:
        """Everything that the future depends on."""
        return {"has_succeeded": self.has_succeeded.copy(), "count": self.count.copy(), "ticks": self.ticks}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        self.has_succeeded, self.count = state["has_succeeded"].copy(), state["count"].copy()
        self.ticks = state["ticks"]
