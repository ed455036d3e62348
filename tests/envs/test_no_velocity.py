"""Environments without velocities."""

import gymnasium as gym
import numpy as np
import pytest

import rlmods.envs  # noqa: F401, registers them


@pytest.mark.parametrize(
    ("name", "original", "kept", "limit"),
    [
        ("rlmods/CartPoleNoVelocity-v0", "CartPole-v1", [0, 2], 500),
        ("rlmods/PendulumNoVelocity-v0", "Pendulum-v1", [0, 1], 200),
    ],
)
def test_they_are_the_originals_with_less_to_see(name: str, original: str, kept: list[int], limit: int) -> None:
    less, more = gym.make(name), gym.make(original)
    seen, everything = less.reset(seed=0)[0], more.reset(seed=0)[0]
    more.action_space.seed(0)
    for _ in range(5):
        np.testing.assert_array_equal(seen, everything[kept])
        assert less.observation_space.contains(seen)
        action = more.action_space.sample()
        seen, everything = less.step(action)[0], more.step(action)[0]
    assert less.spec is not None
    assert less.spec.max_episode_steps == limit
