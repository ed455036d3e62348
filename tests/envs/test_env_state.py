"""Restored environments have the same future, bit for bit, through a file that loads with `weights_only`."""

from collections import deque
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from rlmods.envs.env_state import StatefulEnv
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs
from rlmods.types import StepResult

CLASSIC = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
NUM_ENVS = 3
HALF = 37  # an end of an episode of 6 or 9 steps is in any pair of halves, at a save too


def make_vector(env_id: str, mode: AutoresetMode, vector_class: type[Any]) -> Environments:
    """Environments whose episodes end after 6, 7 and 8 steps at the latest."""

    def make(length: int) -> gym.Env[Any, Any]:
        return StatefulEnv(gym.make(env_id, max_episode_steps=length))

    lengths = range(6, 6 + NUM_ENVS)
    vector_env: VectorEnv[Any, Any, Any] = vector_class(
        [lambda length=length: make(length) for length in lengths], autoreset_mode=mode
    )
    return Environments(vector_env, env_spec(env_id))


def sample_actions(environments: Environments, num_steps: int) -> npt.NDArray[Any]:
    rng, action = np.random.default_rng(7), environments.spec["action"]
    if action["kind"] == "discrete":
        return rng.integers(0, action["n"], (num_steps, environments.num_envs))
    size = (num_steps, environments.num_envs, *action["shape"])
    return rng.uniform(action["low"], action["high"], size).astype(np.float32)


def through_file(state: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    assert state is not None
    torch.save(state, folder / "state.pt")
    loaded: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return loaded


def assert_same(got: list[StepResult], expected: list[StepResult]) -> None:
    for got_step, expected_step in zip(got, expected, strict=True):
        np.testing.assert_equal(got_step._asdict(), expected_step._asdict())


def assert_round_trip(pair: list[Environments], folder: Path, num_steps: int = 2 * HALF) -> None:
    """Save between two halves and at the step after, where one more episode has ended."""
    saved, fresh = pair
    actions = sample_actions(saved, num_steps)
    half = num_steps // 2
    saved.reset(seed=3)
    for cut in (half, half + 1):
        for action in actions[:cut]:
            saved.step(action)
        state = through_file(saved.state_dict(), folder)
        expected = [saved.step(action) for action in actions[cut:]]
        fresh.load_state_dict(state)
        assert_same([fresh.step(action) for action in actions[cut:]], expected)
        assert any((step.terminated | step.truncated).any() for step in expected)
    saved.close()
    fresh.close()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", CLASSIC)
def test_sync_vector_continues_bit_for_bit(env_id: str, mode: AutoresetMode, tmp_path: Path) -> None:
    assert_round_trip([make_vector(env_id, mode, SyncVectorEnv) for _ in range(2)], tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("env_id", CLASSIC)
def test_async_vector_continues_bit_for_bit(env_id: str, mode: AutoresetMode, tmp_path: Path) -> None:
    assert_round_trip([make_vector(env_id, mode, AsyncVectorEnv) for _ in range(2)], tmp_path)


def test_native_vector_continues_bit_for_bit(tmp_path: Path) -> None:
    made = [make_envs("CartPole-v1", NUM_ENVS, vectorization="native") for _ in range(2)]
    assert_round_trip(made, tmp_path)


def test_next_step_vector_continues_from_any_step(tmp_path: Path) -> None:
    """A reset that is due lives in the vector environment, in an async one in its worker."""
    for vector_class in (SyncVectorEnv, AsyncVectorEnv):
        saved, fresh = (make_vector("CartPole-v1", AutoresetMode.NEXT_STEP, vector_class) for _ in range(2))
        actions = sample_actions(saved, 12)
        saved.reset(seed=1)
        was_due = False
        for i in range(8):
            result = saved.step(actions[i])
            was_due |= bool(result.truncated.any())
            fresh.load_state_dict(through_file(saved.state_dict(), tmp_path))
            resaved = through_file(fresh.state_dict(), tmp_path)  # before any step
            expected = [saved.step(action) for action in actions[i + 1 :]]
            assert_same([fresh.step(action) for action in actions[i + 1 :]], expected)
            saved.load_state_dict(resaved)
        assert was_due
        saved.close()
        fresh.close()


def test_a_sync_state_loads_into_an_async_vector(tmp_path: Path) -> None:
    made = [make_vector("Pendulum-v1", AutoresetMode.SAME_STEP, kind) for kind in (SyncVectorEnv, AsyncVectorEnv)]
    assert_round_trip(made, tmp_path)


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Ant-v5", "Humanoid-v5", "Pusher-v5"])
def test_mujoco_continues_bit_for_bit(env_id: str, tmp_path: Path) -> None:
    pytest.importorskip("mujoco")
    made = [make_envs(env_id, 2, env_kwargs={"max_episode_steps": 15}) for _ in range(2)]
    assert_round_trip(made, tmp_path, num_steps=40)


def test_box2d_cannot_be_saved() -> None:
    pytest.importorskip("Box2D")
    environments = make_envs("LunarLander-v3", 2)
    environments.reset(seed=0)
    assert not environments.can_save


class Walk(gym.Env[Any, Any]):
    """Adds a random number to a position, keeping attributes of every kind that can be saved."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.history: deque[tuple[float, int]] = deque(maxlen=3)
        self.table: dict[int | str, Any] = {1: np.float32(0.5), "two": [np.int8(1), None]}
        self.big = 2**100
        self.alias = self.np_random

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.alias = self.np_random
        return np.zeros(1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.history.append((self.alias.normal() + self.np_random.normal(), int(action)))
        self.big += 1
        value = sum(number for number, _ in self.history) * self.table[1] + self.big % 7
        return np.array([value]), 0.0, False, bool(self.np_random.random() < 0.2), {}


class SavesOnlyItself(Walk):
    """Holds an object that cannot be saved, and says itself what its state is."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = object()

    def get_state(self) -> Any:
        return [self.history, self.big, self.np_random]

    def set_state(self, state: Any) -> None:
        self.history, self.big, self.np_random = state
        self.alias = self.np_random


def make_own(environment: type[gym.Env[Any, Any]]) -> Environments:
    vector_env: SyncVectorEnv[Any, Any] = SyncVectorEnv(
        [lambda: StatefulEnv(environment())] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    spec = env_spec("CartPole-v1")
    spec["env_id"] = environment.__name__
    return Environments(vector_env, spec)


@pytest.mark.parametrize("environment", [Walk, SavesOnlyItself])
def test_an_environment_of_ones_own_continues_bit_for_bit(environment: type[Walk], tmp_path: Path) -> None:
    assert_round_trip([make_own(environment) for _ in range(2)], tmp_path)


class Unsavable(Walk):
    """Holds an object whose state nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.unknown = object()


@pytest.mark.parametrize("wrapped", [True, False])
def test_what_cannot_be_saved_has_no_state(wrapped: bool) -> None:
    make = (lambda: StatefulEnv(Unsavable())) if wrapped else Walk
    environments = Environments(SyncVectorEnv([make]), env_spec("CartPole-v1"))
    environments.reset(seed=0)
    assert not environments.can_save
    assert environments.state_dict() is None


def test_an_async_vector_without_our_wrapper_survives_the_question() -> None:
    environments = Environments(AsyncVectorEnv([Walk]), env_spec("CartPole-v1"))
    environments.reset(seed=0)
    assert not environments.can_save
    environments.step(np.zeros(1, np.int64))
    environments.close()


def test_a_state_of_another_environment_or_number_is_refused() -> None:
    state = make_envs("CartPole-v1", 4).state_dict()
    assert state is not None
    for other in (make_envs("CartPole-v1", 5), make_envs("Acrobot-v1", 4)):
        with pytest.raises(ValueError, match=r"of the saved run, \('CartPole-v1', .*, 4\), got"):
            other.load_state_dict(state)


def test_a_state_of_other_wrappers_is_refused() -> None:
    state = make_envs("CartPole-v1", 2, vectorization="sync").state_dict()
    assert state is not None
    with pytest.raises(ValueError, match=r"TimeLimit.*use|TimeLimit.*Use"):
        make_envs("CartPole-v1", 2, vectorization="sync", env_kwargs={"disable_env_checker": True}).load_state_dict(
            state
        )
