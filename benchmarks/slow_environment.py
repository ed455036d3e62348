"""An environment whose step costs a known amount of CPU time, for `vectorization.py`; workers import it by its name."""

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Slow(gym.Env[Any, Any]):
    """Computes for a while, and observes noise.

    Args:
        milliseconds: of CPU time of a step.
        observation_size: float32 numbers.
    """

    def __init__(self, milliseconds: float = 1.0, observation_size: int = 16) -> None:
        self.seconds = milliseconds / 1_000
        self.observation_space = spaces.Box(-np.inf, np.inf, (observation_size,), np.float32)
        self.action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin."""
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Compute."""
        until = time.thread_time() + self.seconds
        while time.thread_time() < until:
            pass
        return self._observe(), 1.0, False, False, {}

    def _observe(self) -> Any:
        assert self.observation_space.shape is not None  # noqa: S101
        return self.np_random.standard_normal(self.observation_space.shape[0], np.float32)


gym.register("Slow-v0", entry_point="slow_environment:Slow", max_episode_steps=100)
