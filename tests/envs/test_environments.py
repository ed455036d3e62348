"""What `Environments` returns, against an oracle: a counter whose every observation says where it was taken."""

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlmods.envs.environments import Environments
from rlmods.envs.make import make_envs
from rlmods.types import ArrayObservation, EnvSpec

SPEC: EnvSpec = {
    "env_id": "Counter-v0",
    "observation": {"shape": [2], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}
NUM_STEPS = 30
ENDS = ("terminated", "truncated", "both")


class Counter(gym.Env[Any, Any]):
    """Observes [episode, step]; episode e ends after `length` + e % 2 steps, in the given way."""

    def __init__(self, length: int, end: str, is_dict: bool) -> None:
        box = gym.spaces.Box(0, 1000, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"a": box, "b": box}) if is_dict else box
        self.action_space = gym.spaces.Discrete(2, start=5)
        self.length, self.end, self.is_dict = length, end, is_dict
        self.episode, self.count = -1, 0
        self.last_action = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.count = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count, self.last_action = self.count + 1, int(action)
        is_end = self.count >= self.length + self.episode % 2
        info = {"is_success": self.episode % 2 == 0} if is_end else {}
        terminated, truncated = is_end and self.end != "truncated", is_end and self.end != "terminated"
        return self._observe(), float(self.count), terminated, truncated, info

    def _observe(self) -> Any:
        array = np.array([self.episode, self.count], np.float32)
        return {"a": array, "b": array + 1} if self.is_dict else array


def make_counters(mode: AutoresetMode, *, is_dict: bool = False) -> tuple[Environments, "SyncVectorEnv[Any, Any]"]:
    """Three counters of lengths 2 to 4, one for each way to end; the buffers of the vector environment are reused."""
    counters = [lambda n=n, end=end: Counter(n + 2, end, is_dict) for n, end in enumerate(ENDS)]
    vector_env: SyncVectorEnv[Any, Any] = SyncVectorEnv(counters, copy=False, autoreset_mode=mode)
    return Environments(vector_env, SPEC), vector_env


def plain(observation: ArrayObservation) -> npt.NDArray[Any]:
    """The array, or the Dict's first one after checking that the second goes with it."""
    if not isinstance(observation, dict):
        return observation
    np.testing.assert_array_equal(observation["a"] + 1, observation["b"])
    return observation["a"]


Row = tuple[list[float], float, bool, bool, list[float], float]


def oracle(length: int, end: str) -> list[Row]:
    """The transitions of one counter, stepped alone."""
    env = Counter(length, end, False)
    rows: list[Row] = []
    observation, _ = env.reset()
    while len(rows) < NUM_STEPS:
        successor, reward, terminated, truncated, info = env.step(5)
        success = float(info.get("is_success", np.nan))
        rows.append((list(observation), reward, terminated, truncated and not terminated, list(successor), success))
        observation = env.reset()[0] if terminated or truncated else successor
    return rows


@pytest.mark.parametrize("is_dict", [False, True])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_transitions_are_those_of_environments_stepped_alone(mode: AutoresetMode, is_dict: bool) -> None:
    environments, _ = make_counters(mode, is_dict=is_dict)
    observation, results = environments.reset(seed=0), []
    for _ in range(NUM_STEPS):
        result = environments.step(np.zeros(3, np.int64))
        results.append((observation, result))
        observation = result.observation
    for i, end in enumerate(ENDS):  # read at the end: nothing may have been overwritten
        rows = [
            (
                list(plain(seen)[i]),
                float(result.reward[i]),
                bool(result.terminated[i]),
                bool(result.truncated[i]),
                list(plain(result.next_observation)[i]),
                float(result.events["success"][i]),
            )
            for seen, result in results
            if result.valid[i]
        ]
        np.testing.assert_equal(rows, oracle(i + 2, end)[: len(rows)])


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_only_next_step_has_reset_frames_and_they_follow_an_end(mode: AutoresetMode) -> None:
    environments, _ = make_counters(mode)
    environments.reset(seed=0)
    ended = np.zeros(3, np.bool_)
    for _ in range(NUM_STEPS):
        result = environments.step(np.zeros(3, np.int64))
        expected = ~ended if mode is AutoresetMode.NEXT_STEP else np.ones(3, np.bool_)
        np.testing.assert_array_equal(result.valid, expected)
        ended = result.terminated | result.truncated
        assert not (result.terminated & result.truncated).any()
        assert result.reward.dtype == np.float32
        assert {event.dtype for event in result.events.values()} == {np.dtype(np.float32)}
        assert np.isnan(result.events["collision"]).all()
        assert not result.reported_rates


def test_reset_forgets_a_pending_reset_frame() -> None:
    environments, _ = make_counters(AutoresetMode.NEXT_STEP)
    environments.reset(seed=0)
    for _ in range(2):
        result = environments.step(np.zeros(3, np.int64))
    assert result.terminated[0]
    environments.reset(seed=0)
    assert environments.step(np.zeros(3, np.int64)).valid.all()


def test_the_first_action_is_the_discrete_space_s_start() -> None:
    environments, vector_env = make_counters(AutoresetMode.SAME_STEP)
    environments.reset(seed=0)
    environments.step(np.array([0, 1, 0]))
    assert vector_env.get_attr("last_action") == (5, 6, 5)


def test_a_vector_environment_that_does_not_say_how_it_resets_is_refused() -> None:
    _, vector_env = make_counters(AutoresetMode.SAME_STEP)
    vector_env.metadata.pop("autoreset_mode")
    with pytest.raises(ValueError, match="does not say how it resets"):
        Environments(vector_env, SPEC)


def test_a_final_observation_that_is_missing_is_an_error_and_not_a_wrong_transition(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environments, vector_env = make_counters(AutoresetMode.SAME_STEP)
    environments.reset(seed=0)
    environments.step(np.zeros(3, np.int64))
    step = vector_env.step
    monkeypatch.setattr(vector_env, "step", lambda action: (*step(action)[:4], {}))
    with pytest.raises(RuntimeError, match="final_obs"):
        environments.step(np.zeros(3, np.int64))


@pytest.mark.parametrize("vectorization", ["native", "sync"])
def test_render_gives_a_frame_of_each_environment(vectorization: Any) -> None:
    environments = make_envs("CartPole-v1", 2, vectorization=vectorization, render=True)
    environments.reset(seed=0)
    frames = environments.render()
    assert [frame.shape for frame in frames] == [(400, 600, 3)] * 2
    environments.close()


def test_render_of_environments_made_without_it_says_what_to_type() -> None:
    environments = make_envs("CartPole-v1", 2)
    environments.reset(seed=0)
    with pytest.raises(RuntimeError, match="render=True"):
        environments.render()


def test_an_experts_actions_count_from_0_as_all_others_do() -> None:
    class WithExpert(SyncVectorEnv[Any, Any]):
        def expert_action(self) -> npt.NDArray[np.int64]:
            return np.array([5, 6, 5])  # of Discrete(2, start=5)

    counters = [Counter(4, "truncated", False) for _ in range(3)]
    environments = Environments(WithExpert([partial(next, iter([counter])) for counter in counters]), SPEC)
    environments.reset(seed=0)
    action = environments.expert_action()
    assert action is not None
    assert action.tolist() == [0, 1, 0]
    environments.step(action)
    assert [counter.last_action for counter in counters] == [5, 6, 5]
