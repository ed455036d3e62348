"""What `make_envs` chooses, describes and refuses."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rlmods.envs.make import Vectorization, env_spec, make_envs


class Spaces(gym.Env[Any, Any]):
    """Has the spaces it is given."""

    def __init__(self, observation: gym.Space[Any], action: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action


def make_spaces(**kwargs: Any) -> Spaces:
    return Spaces(**kwargs)


gym.register("Spaces-v0", make_spaces)

BOX = gym.spaces.Box(-1, 1, (2, 3), np.float32)
DISCRETE = gym.spaces.Discrete(4, start=-2)


@pytest.mark.parametrize(
    ("vectorization", "num_envs", "mode"),
    [
        ("auto", 1, AutoresetMode.SAME_STEP),
        ("auto", 8, AutoresetMode.NEXT_STEP),  # of the native one
        ("native", 1, AutoresetMode.NEXT_STEP),
        ("sync", 8, AutoresetMode.SAME_STEP),
        ("async", 2, AutoresetMode.SAME_STEP),
    ],
)
def test_vectorization(vectorization: Vectorization, num_envs: int, mode: AutoresetMode) -> None:
    environments = make_envs("CartPole-v1", num_envs, vectorization=vectorization)
    assert environments.autoreset_mode is mode
    assert environments.spec == env_spec("CartPole-v1")
    observation = environments.reset(seed=0)
    assert isinstance(observation, np.ndarray)
    assert observation.shape == (num_envs, 4)
    environments.step(np.zeros(num_envs, np.int64))
    environments.close()


def test_auto_is_not_native_where_native_does_not_take_the_arguments() -> None:
    native = make_envs("CartPole-v1", 8, env_kwargs={"sutton_barto_reward": True, "max_episode_steps": 3})
    assert native.autoreset_mode is AutoresetMode.NEXT_STEP
    sync = make_envs("CartPole-v1", 8, env_kwargs={"disable_env_checker": True, "max_episode_steps": 3})
    assert sync.autoreset_mode is AutoresetMode.SAME_STEP
    for environments in (native, sync):
        environments.reset(seed=0)
        results = [environments.step(np.arange(8) % 2) for _ in range(3)]
        assert results[-1].truncated.all()


def test_spec_holds_plain_values() -> None:
    spec = env_spec("Spaces-v0", {"observation": gym.spaces.Dict(a=BOX, b=BOX), "action": BOX})
    assert json.loads(json.dumps(spec)) == {
        "env_id": "Spaces-v0",
        "observation": {key: {"shape": [2, 3], "dtype": "float32"} for key in "ab"},
        "action": {"kind": "continuous", "n": 0, "shape": [2, 3], "low": [-1.0] * 6, "high": [1.0] * 6},
    }
    discrete = env_spec("Spaces-v0", {"observation": BOX, "action": DISCRETE})["action"]
    assert json.loads(json.dumps(discrete)) == {"kind": "discrete", "n": 4, "shape": [], "low": [], "high": []}
    several = env_spec("Spaces-v0", {"observation": BOX, "action": gym.spaces.MultiDiscrete([2, 3])})["action"]
    expected = {"kind": "multi_discrete", "n": 0, "nvec": [2, 3], "shape": [2], "low": [], "high": []}
    assert json.loads(json.dumps(several)) == expected


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (DISCRETE, DISCRETE, r"observes Discrete.*Expected a Box or a Dict of Boxes.*FlattenObservation"),
        (gym.spaces.Dict(a=gym.spaces.Dict(b=BOX)), DISCRETE, r"observes Dict.*FlattenObservation"),
        (
            BOX,
            gym.spaces.MultiDiscrete(np.array([[2, 2]])),
            r"acts in MultiDiscrete.*Expected a Discrete, a flat MultiDiscrete",
        ),
        (BOX, gym.spaces.MultiDiscrete([2, 2], start=[0, 1]), r"acts in MultiDiscrete.*from 0, or a Box of floats"),
        (BOX, gym.spaces.Box(0, 5, (2,), np.int32), r"acts in Box.*TransformAction"),
    ],
)
def test_other_spaces_are_refused(observation: gym.Space[Any], action: gym.Space[Any], message: str) -> None:
    kwargs = {"observation": observation, "action": action}
    for make in (lambda: env_spec("Spaces-v0", kwargs), lambda: make_envs("Spaces-v0", 2, env_kwargs=kwargs)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPol-v1", r"'CartPol-v1' is registered. Did you mean CartPole-v"),
        ("CartPole", r"Did you mean .*CartPole-v1"),
        ("CartPole-v9", r"Did you mean .*CartPole-v1"),
        ("nonsense", r'No environment \'nonsense\' is registered. Expected a Gymnasium id such as "CartPole-v1"'),
        ("a b!", "No environment 'a b!' is registered"),
        ("no_such_module:CartPole-v1", "needs the module 'no_such_module', which cannot be imported"),
    ],
)
def test_unknown_ids(env_id: str, message: str) -> None:
    for make in (lambda: env_spec(env_id), lambda: make_envs(env_id, 2)):
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("HalfCheetah-v5", "mujoco", "mujoco"), ("LunarLander-v3", "Box2D", "box2d"), ("ALE/Pong-v5", "ale_py", "atari")],
)
def test_an_extra_that_is_not_installed_is_named(env_id: str, module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(ValueError, match=rf'{env_id} needs .*pip install "gymnasium\[{extra}\]"'):
        make_envs(env_id, 2)


@pytest.mark.parametrize("vectorization", ["auto", "native", "sync", "async"])
def test_wrong_env_kwargs(vectorization: Vectorization) -> None:
    with pytest.raises(ValueError, match=r"\{'gravity': 1\} do not fit CartPole-v1.*Expected some of .*sutton_barto"):
        make_envs("CartPole-v1", 8, env_kwargs={"gravity": 1}, vectorization=vectorization)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="num_envs is 0, expected at least 1"):
        make_envs("CartPole-v1", 0)
    with pytest.raises(ValueError, match="Pendulum-v1 has no native vector implementation"):
        make_envs("Pendulum-v1", 8, vectorization="native")
    wrong: Any = "threads"
    with pytest.raises(ValueError, match="vectorization is 'threads', expected"):
        make_envs("CartPole-v1", 8, vectorization=wrong)


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_envs.py").write_text(
        "import gymnasium\n"
        'gymnasium.register("Mine-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=5)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert env_spec("my_envs:Mine-v0")["env_id"] == "my_envs:Mine-v0"
    environments = make_envs("my_envs:Mine-v0", 2)
    environments.reset(seed=0)
    results = [environments.step(np.zeros((2, 1), np.float32)) for _ in range(5)]
    assert results[-1].truncated.all()


def test_opencv_is_imported_only_for_pixels() -> None:
    code = "import sys; from rlmods.envs.make import env_spec; env_spec('CartPole-v1'); sys.exit('cv2' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
