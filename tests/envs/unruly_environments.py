"""Environments for workers, which import them by their name: one that tells much, and some that misbehave."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Told(gym.Env[Any, Any]):
    """Observes a dict, has episodes of different lengths, and reports events, a rate of its own and a sum."""

    observation_space = spaces.Dict(
        {"position": spaces.Box(-1e3, 1e3, (2,), np.float32), "light": spaces.Box(0, 255, (3,), np.uint8)}
    )
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(2, 6))
        self.position = self.np_random.random(2, np.float32)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        self.position = self.position + action
        ends = self.left == 0
        happened = bool(self.position[0] > 0)
        info: dict[str, Any] = {}
        if ends:
            sums = {"way": float(self.position[1])}
            info = {"is_success": happened, "success_rate": 3.0 * happened, "episode_sums": sums}
        return self._observe(), float(self.position.sum()), ends and happened, ends and not happened, info

    def _observe(self) -> dict[str, Any]:
        return {"position": self.position.copy(), "light": np.full(3, self.left, np.uint8)}


class Unruly(gym.Env[Any, Any]):
    """Does what `manner` says in its third step.

    Args:
        manner: raise, die, leave (with exit code 7), hang, or refuse to be made in a worker.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, manner: str) -> None:
        if manner == "refuse":
            raise RuntimeError("no display")
        self.manner = manner

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 3:
            self._misbehave()
        return np.zeros(1, np.float32), 0.0, False, self.steps == 50, {}

    def _misbehave(self) -> None:
        if self.manner == "raise":
            raise ZeroDivisionError("the rotor has no blades")
        if self.manner == "die":
            os.kill(os.getpid(), 9)
        if self.manner == "leave":
            os._exit(7)
        if self.manner == "hang":
            time.sleep(1_000)


gym.register("Told-v0", entry_point="unruly_environments:Told")
gym.register("Unruly-v0", entry_point="unruly_environments:Unruly")
