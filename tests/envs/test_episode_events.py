"""Events as environments report them: plain ones in their infos, vectorised by Gymnasium or by themselves."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlmods.envs.environments import Environments
from rlmods.envs.events import read_events, read_reported_rates, read_sums
from rlmods.types import EnvSpec, StepResult

SPEC: EnvSpec = {
    "env_id": "Says-v0",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}


class Says(gym.Env[Any, Any]):
    """Says the same at every step; the episode ends after the second."""

    observation_space = gym.spaces.Box(-1, 9, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        self.count = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return np.full(1, self.count, np.float32), 0.0, self.count == 2, False, dict(self.info)


def second_step(mode: AutoresetMode, *infos: dict[str, Any]) -> tuple[StepResult, StepResult]:
    """What environments that say this give at their first step, and at their second, which ends the episodes."""
    makers = [lambda info=info: Says(info) for info in infos]
    vector_env: SyncVectorEnv[Any, Any] = SyncVectorEnv(makers, autoreset_mode=mode)
    environments = Environments(vector_env, SPEC)
    environments.reset(seed=0)
    first, second = (environments.step(np.zeros(len(infos), np.int64)) for _ in range(2))
    return first, second


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("happened", [True, np.True_, 1, 1.0, np.float32(1.0)])
def test_events_are_those_of_the_step_that_ends_the_episode(mode: AutoresetMode, happened: Any) -> None:
    first, second = second_step(mode, {"is_success": happened, "collision": False}, {"collision": True}, {})
    assert all(np.isnan(event).all() for event in first.events.values())
    np.testing.assert_array_equal(second.events["success"], np.array([1.0, np.nan, np.nan], np.float32))
    np.testing.assert_array_equal(second.events["collision"], np.array([0.0, 1.0, np.nan], np.float32))
    assert np.isnan(second.events["out_of_bounds"]).all()


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("value", [894.0, 0.5, -1, math.nan, math.inf])
def test_an_event_that_is_neither_0_nor_1_is_refused(mode: AutoresetMode, value: float) -> None:
    with pytest.raises(ValueError, match=r'got infos\["is_success"\] = \S+ from Says-v0 .* expected 0 or 1'):
        second_step(mode, {"is_success": value})


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_a_rate_that_the_environment_computes_itself_is_passed_on_apart(mode: AutoresetMode) -> None:
    first, second = second_step(mode, {"success_rate": 894.5, "spawn_rate": 7.0}, {"is_success": False})
    assert not first.reported_rates
    assert list(second.reported_rates) == ["success_rate"]
    np.testing.assert_array_equal(second.reported_rates["success_rate"], np.array([894.5, np.nan], np.float32))
    np.testing.assert_array_equal(second.events["success"], np.array([np.nan, 0.0], np.float32))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_sums_are_those_of_the_step_that_ends_the_episode(mode: AutoresetMode) -> None:
    first, second = second_step(mode, {"episode_sums": {"points": 12.5, "death": -1}}, {"is_success": True})
    assert not first.sums
    assert sorted(second.sums) == ["death", "points"]
    np.testing.assert_array_equal(second.sums["points"], np.array([12.5, np.nan], np.float32))
    np.testing.assert_array_equal(second.sums["death"], np.array([-1.0, np.nan], np.float32))


def test_only_the_rows_that_ended_are_read() -> None:
    """A vector environment of one's own may write whole arrays: the other rows are of episodes that go on."""
    ended = np.array([True, False, True])
    assert read_sums(ended, {"episode_sums": {"points": np.arange(3.0)}})["points"].tolist()[::2] == [0.0, 2.0]
    infos = {"final_info": {"collision": np.array([1.0, 7.0, 0.0]), "collision_rate": np.array([3.0, 7.0, 2.0])}}
    np.testing.assert_array_equal(read_events("Own-v0", ended, infos)["collision"], [1.0, np.nan, 0.0])
    np.testing.assert_array_equal(read_reported_rates(ended, infos)["collision_rate"], [3.0, np.nan, 2.0])
