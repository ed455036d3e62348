"""Gymnasium's environments without the velocities: what a policy then needs of them it has to remember."""

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv, PendulumEnv
from gymnasium.spaces import Box


class NoVelocity(gym.ObservationWrapper[npt.NDArray[np.float32], Any, npt.NDArray[np.float32]]):
    """The observation's entries of some indices."""

    def __init__(self, env: gym.Env[npt.NDArray[np.float32], Any], kept: list[int]) -> None:
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, Box):
            raise TypeError(f"got observations {space}, expected a Box")
        self.kept = kept
        self.observation_space = Box(space.low[kept], space.high[kept], dtype=np.float32)

    def observation(self, observation: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """`[len(kept)]`."""
        return observation[self.kept]


def cart_pole(**kwargs: Any) -> gym.Env[Any, Any]:
    """Position and angle."""
    return NoVelocity(CartPoleEnv(**kwargs), [0, 2])


def pendulum(**kwargs: Any) -> gym.Env[Any, Any]:
    """Cosine and sine of the angle."""
    return NoVelocity(PendulumEnv(**kwargs), [0, 1])
