"""Two tasks of the bench, and Pendulum with broken rewards. Importing this module registers them."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Step = tuple[Array, float, bool, bool, dict[str, Any]]


class Ledge(gym.Env[Array, Array]):
    """A point is blown about on [-1, 1]; beyond the ends it falls, which terminates. Time limit 50.

    The action is its push, in [-0.1, 0.3]: a box that is neither ±1 nor centred. The wind adds N(-0.1, 0.05²), so that
    an actor that does nothing falls. Rewards are 1 a step, or 1 where |x| < 0.1 and else 0 (`is_sparse`).
    """

    def __init__(self, *, is_sparse: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.action_space = gym.spaces.Box(-0.1, 0.3, (1,), np.float32)
        self.is_sparse = is_sparse
        self.x = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Somewhere in the middle half."""
        super().reset(seed=seed)
        self.x = float(self.np_random.uniform(-0.5, 0.5))
        return self._observation(), {}

    def step(self, action: Array) -> Step:
        """Push, and wind."""
        low, high = float(self.action_space.low[0]), float(self.action_space.high[0])  # type: ignore[attr-defined]
        push = min(max(float(action[0]), low), high)
        self.x += push + float(self.np_random.normal(-0.1, 0.05))
        reward = float(abs(self.x) < 0.1) if self.is_sparse else 1.0
        return self._observation(), reward, abs(self.x) > 1.0, False, {}

    def _observation(self) -> Array:
        return np.array([self.x], np.float32)


class ChangedReward(gym.Wrapper[Array, Array, Array, Array]):
    """Pendulum, all rewards times `factor` from a step of this environment on.

    Args:
        factor: NaN breaks one reward alone.
        onset: steps before which it is intact.
    """

    def __init__(self, *, factor: float, onset: int) -> None:
        super().__init__(gym.make("Pendulum-v1"))
        self.factor, self.onset, self.steps = factor, onset, 0

    def step(self, action: Array) -> Step:
        """Step, and break the reward."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        is_broken = self.steps == self.onset if np.isnan(self.factor) else self.steps >= self.onset
        return observation, float(reward) * (self.factor if is_broken else 1.0), terminated, truncated, info


gym.register("rlmods-bench/Ledge-v0", entry_point=f"{__name__}:Ledge", max_episode_steps=50)
gym.register("rlmods-bench/ChangedReward-v0", entry_point=f"{__name__}:ChangedReward")
