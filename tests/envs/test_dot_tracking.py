"""The tracked dot: what its pixels show, that the known optimum is one, and that its state can be saved."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.envs.dot_tracking import DotTracking
from rlmods.envs.make import env_spec, make_envs

ID = "rlmods/DotTracking-v0"


def put(env: DotTracking, dot: Any, marker: Any, dot_velocity: Any = (0.0, 0.0)) -> None:
    env.reset(seed=0)
    env.dot, env.marker, env.dot_velocity = np.array(dot), np.array(marker), np.array(dot_velocity)


def image_of(env: DotTracking) -> npt.NDArray[np.float64]:
    """The image after a step in which the marker stays where it is."""
    observation: Any = env.step([-2.0, -1.0] + 4.0 * env.marker)[0]
    return np.asarray(observation["image"][0], np.float64)


def centre(image: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Centre of the light, in units of the square: across, down."""
    places = (np.arange(len(image)) + 0.5) / len(image)
    return float((image.sum(0) * places).sum() / image.sum()), float((image.sum(1) * places).sum() / image.sum())


@pytest.mark.filterwarnings("ignore:.*we recommend using a symmetric and normalized space")
def test_gymnasium_finds_nothing_to_complain_about() -> None:
    check_env(gym.make(ID).unwrapped, skip_render_check=True)
    check_env(gym.make(ID, dict_observation=False).unwrapped, skip_render_check=True)


def test_what_an_algorithm_is_told() -> None:
    image = {"shape": [1, 42, 42], "dtype": "uint8"}
    assert env_spec(ID) == {
        "env_id": ID,
        "observation": {"image": image, "vector": {"shape": [2], "dtype": "float32"}},
        "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-2.0, -1.0], "high": [2.0, 3.0]},
    }
    assert env_spec(ID, {"dict_observation": False, "image_size": 84})["observation"] == image | {"shape": [1, 84, 84]}


def test_a_step_by_hand() -> None:
    """The dot goes 0.02 to the right and turns round 0.12 before the lower edge; the marker is sent to (0.5, 1)."""
    env = DotTracking()
    put(env, dot=(0.48, 0.87), marker=(0.6, 0.2), dot_velocity=(0.02, 0.03))
    observation, reward, terminated, truncated, _ = env.step(np.array([0.0, 9.0]))
    assert env.dot == pytest.approx([0.5, 0.84])
    assert env.dot_velocity.tolist() == [0.02, -0.03]
    assert env.marker == pytest.approx([0.55, 0.6])
    assert reward == pytest.approx(-math.hypot(0.05, 0.24) / math.sqrt(2))
    assert not terminated
    assert not truncated
    assert isinstance(observation, dict)
    assert observation["vector"] == pytest.approx([-0.05, 0.4])


def test_the_image_by_hand() -> None:
    """Side 0.12 of 50 pixels: 6 pixels. The dot's begin at a pixel's edge, the marker's half of a pixel later."""
    env = DotTracking(image_size=50)
    put(env, dot=(0.5, 0.2), marker=(0.31, 0.7))
    image = image_of(env)
    assert image[7:13, 22:28].tolist() == [[255.0] * 6] * 6
    assert image[32:38, 12:19].tolist() == [[60.0, *[120.0] * 5, 60.0]] * 6
    assert image.sum() == 36 * 255.0 + 36 * 120.0
    put(env, dot=(0.5, 0.5), marker=(0.5, 0.5))
    assert image_of(env).sum() == 36 * 255.0  # the dot hides the marker


@settings(deadline=None, max_examples=50)
@given(st.floats(0.1, 0.9), st.floats(0.1, 0.9))
def test_the_image_shows_more_than_whole_pixels(across: float, down: float) -> None:
    """The light's centre lies where the dot is, to a twentieth of a pixel."""
    env = DotTracking()
    put(env, dot=(across, down), marker=(across, down))
    assert centre(image_of(env)) == pytest.approx((across, down), abs=0.05 / 42)


def test_one_image_hides_where_the_dot_goes() -> None:
    env = DotTracking()
    images = []
    for velocity in (np.array([0.06, 0.04]), np.array([-0.04, 0.06])):
        put(env, dot=0.5 - velocity, marker=(0.2, 0.2), dot_velocity=velocity)
        images.append(image_of(env))
    np.testing.assert_array_equal(images[0], images[1])
    assert (image_of(env) != images[1]).any()


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31 - 1))
def test_no_actions_track_better_at_any_step(seed: int) -> None:
    """The controller's distance is the least in each coordinate, whatever the others did before."""
    perfect, other = DotTracking(dict_observation=False), DotTracking(dict_observation=False)
    perfect.reset(seed=seed)
    other.reset(seed=seed)
    generator = np.random.default_rng(seed)
    for step in range(50):
        action = other.tracking_action() if step % 3 else generator.uniform([-2, -1], [2, 3])
        other.step(action)
        perfect.step(perfect.tracking_action())
        distances = [np.abs(env.dot - env.marker) for env in (perfect, other)]
        assert (distances[0] <= distances[1] + 1e-6).all()  # actions are single precision


def test_the_returns_that_the_docstring_states() -> None:
    """Over 25 episodes; the spreads of the means are 0.02, 0.06, 0.09 and 0.23."""

    def mean_return(policy: Any) -> float:
        env = gym.make(ID, dict_observation=False, image_size=16)
        env.reset(seed=0)
        env.action_space.seed(0)
        total = 0.0
        for _ in range(25):
            env.reset()
            ended = False
            while not ended:
                _, reward, _, ended, _ = env.step(policy(env))
                total += float(reward)
        return total / 25

    def lagging(env: Any) -> Any:
        place = 2.0 * env.unwrapped.dot - env.unwrapped.marker
        return np.clip([-2, -1] + 4.0 * place, [-2, -1], [2, 3]).astype(np.float32)

    assert mean_return(lambda env: env.unwrapped.tracking_action()) == pytest.approx(-0.06, abs=0.07)
    assert mean_return(lagging) == pytest.approx(-2.3, abs=0.25)
    assert mean_return(lambda env: np.array([0.0, 1.0], np.float32)) == pytest.approx(-9.8, abs=0.4)
    assert mean_return(lambda env: env.action_space.sample()) == pytest.approx(-12.1, abs=0.9)


def test_all_stays_in_its_bounds() -> None:
    env = gym.make(ID)
    env.reset(seed=3)
    env.action_space.seed(3)
    for step in range(1, 51):
        observation, reward, _, truncated, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        assert -1.0 <= float(reward) <= 0.0
        assert truncated == (step == 50)


def test_a_saved_state_has_the_same_future() -> None:
    environments = make_envs(ID, 3)
    environments.reset(seed=1)
    actions = np.random.default_rng(0).uniform([-2, -1], [2, 3], (90, 3, 2)).astype(np.float32)
    for action in actions[:30]:
        environments.step(action)
    state = environments.state_dict()
    assert state is not None
    expected = [environments.step(action) for action in actions[30:]]
    restored = make_envs(ID, 3)
    restored.reset(seed=2)
    restored.load_state_dict(state)
    for action, result in zip(actions[30:], expected, strict=True):
        again = restored.step(action)
        assert isinstance(again.next_observation, dict)
        assert isinstance(result.next_observation, dict)
        np.testing.assert_array_equal(again.next_observation["image"], result.next_observation["image"])
        np.testing.assert_array_equal(again.reward, result.reward)
        np.testing.assert_array_equal(again.truncated, result.truncated)


def test_rendering_enlarges_what_the_agent_sees() -> None:
    environments = make_envs(ID, 1, render=True)
    observation = environments.reset(seed=0)
    assert isinstance(observation, dict)
    (frame,) = environments.render()
    assert frame.shape == (336, 336, 3)
    assert frame.dtype == np.uint8
    np.testing.assert_array_equal(frame[4::8, 4::8, 0], observation["image"][0, 0])
    assert DotTracking().render() is None


def test_an_offset_is_added_to_each_reward() -> None:
    plain, shifted = DotTracking(), DotTracking(reward_offset=1.0)
    for env in (plain, shifted):
        put(env, dot=(0.3, 0.4), marker=(0.8, 0.2))
    action = np.array([1.0, 1.0])
    assert shifted.step(action)[1] == pytest.approx(1.0 + plain.step(action)[1])


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 8), ("dot_speed", 0.3), ("dot_speed", -0.1), ("reward_offset", float("nan"))]
)
def test_a_setting_outside_its_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"got {name} = {value}, expected .*: type --data.init_args.env_kwargs"):
        DotTracking(**{name: value})
