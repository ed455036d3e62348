"""The bench's own task with continuous actions. Importing this module registers it."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class PointMass(gym.Env[Array, Array]):
    """A point that is to go to the middle of a square and to stay there: 40 steps of 0.1, reward −|x|.

    Args:
        counts: report as `success_rate` in how many steps the point was within 0.2, which is a count and no rate.
        effort: what a full push costs, so that corners of the action box do.
    """

    def __init__(self, *, counts: bool = False, effort: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(-3.0, 3.0, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.counts = counts
        self.effort = effort
        self.position = np.zeros(2)
        self.steps_inside = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Somewhere in the square."""
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1.0, 1.0, 2)
        self.steps_inside = 0
        return self.position.astype(np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Move."""
        self.position = np.clip(self.position + 0.1 * np.clip(action, -1.0, 1.0), -3.0, 3.0)
        distance = float(np.linalg.norm(self.position))
        self.steps_inside += distance < 0.2
        info = {"success_rate": float(self.steps_inside)} if self.counts else {}
        cost = self.effort * float(np.square(np.clip(action, -1.0, 1.0)).mean())
        return self.position.astype(np.float32), -distance - cost, False, False, info


gym.register("rlmods-chain/PointMass-v0", entry_point=f"{__name__}:PointMass", max_episode_steps=40)
