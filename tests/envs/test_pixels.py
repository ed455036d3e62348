"""Images are shrunk next to the step."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.pixels import EarlyResize


class Screen(gym.Env[Any, Any]):
    """Shows the step's number as brightness; the left half is red only."""

    def __init__(self, shape: tuple[int, ...] = (40, 60, 3), is_dict: bool = False) -> None:
        image = gym.spaces.Box(0, 255, shape, np.uint8)
        speed = gym.spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = gym.spaces.Dict({"image": image, "speed": speed}) if is_dict else image
        self.action_space = gym.spaces.Discrete(2)
        self.shape, self.is_dict, self.count = shape, is_dict, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> Any:
        image = np.full(self.shape, 10 * self.count + 10, np.uint8)
        if self.shape[2:] == (3,):
            image[:, : self.shape[1] // 2, 1:] = 0
        return {"image": image, "speed": np.zeros(2, np.float32)} if self.is_dict else image


def make_screen(**kwargs: Any) -> Screen:
    return Screen(**kwargs)


gym.register("Screen-v0", make_screen)


@pytest.mark.parametrize(
    ("shape", "grayscale", "channels"),
    [
        ((40, 60, 3), True, 1),
        ((40, 60, 3), False, 3),
        ((40, 60, 1), True, 1),
        ((40, 60), True, 1),
        ((40, 60), False, 1),
    ],
)
def test_image_is_channel_first_and_small(shape: tuple[int, ...], grayscale: bool, channels: int) -> None:
    env = EarlyResize(Screen(shape), (8, 12), grayscale)
    observation, _ = env.reset()
    assert observation.shape == (channels, 8, 12)
    assert observation in env.observation_space
    assert (observation[0, :, 6:] == 10).all()


def test_colours_keep_their_channels_and_their_weight_in_grey() -> None:
    colour, _ = EarlyResize(Screen(), (8, 12), grayscale=False).reset()
    assert (colour[0] == 10).all()
    assert (colour[1:, :, :6] == 0).all()
    grey, _ = EarlyResize(Screen(), (8, 12)).reset()
    assert (grey[0, :, :6] == 3).all()  # red is 0.299 of grey


def test_areas_are_averaged() -> None:
    env = EarlyResize(Screen((2, 2)), (1, 1))
    assert env.observation(np.array([[0, 100], [200, 100]], np.uint8)) == np.array([[[100]]])


def test_the_one_image_of_a_dict_is_shrunk() -> None:
    env = EarlyResize(Screen(is_dict=True), (8, 12))
    observation, _ = env.reset()
    assert observation in env.observation_space
    assert observation["image"].shape == (1, 8, 12)
    assert observation["speed"].shape == (2,)


def test_an_environment_without_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"needs one image, got 0.*leave resize out"):
        env_spec("CartPole-v1", resize=(84, 84))


def test_frames_are_stacked_as_channels_newest_last_and_their_state_is_saved() -> None:
    made = [make_envs("Screen-v0", 2, resize=(8, 12), frame_stack=3) for _ in range(2)]
    environments, restored = made
    assert environments.spec == env_spec("Screen-v0", resize=(8, 12), frame_stack=3)
    assert environments.spec["observation"] == {"shape": [3, 8, 12], "dtype": "uint8", "frame_stack": 3}
    environments.reset(seed=0)
    for _ in range(3):
        observation = environments.step(np.zeros(2, np.int64)).observation
    assert isinstance(observation, np.ndarray)
    assert observation[0, :, 0, -1].tolist() == [20, 30, 40]
    state = environments.state_dict()
    assert state is not None
    restored.load_state_dict(state)
    expected, got = (each.step(np.zeros(2, np.int64)) for each in made)
    np.testing.assert_equal(got._asdict(), expected._asdict())


def test_channels_may_come_first() -> None:
    image = np.random.default_rng(0).integers(256, size=(40, 60, 3), dtype=np.uint8)
    last, first = EarlyResize(Screen(), (8, 12)), EarlyResize(Screen((3, 40, 60)), (8, 12))
    np.testing.assert_equal(first.observation(np.moveaxis(image, -1, 0)), last.observation(image))


def test_native_environments_cannot_be_resized() -> None:
    with pytest.raises(ValueError, match="no native vector implementation"):
        make_envs("CartPole-v1", 8, vectorization="native", resize=(84, 84))
