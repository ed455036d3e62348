"""Images of any layout and dtype become uint8 channel-first pixels, and are stacked."""

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box

from rlmods.envs.images import StackFrames, ToPixels
from rlmods.envs.make import env_spec, make_envs

UINT8 = Box(0, 255, (3, 40, 50), np.uint8)
FLOAT = Box(-1.0, 1.0, (40, 50, 3), np.float32)


class Camera(gym.Env[Any, Any]):
    """Shows random images of a space, alone or next to a speed; its episodes end after `length` steps."""

    def __init__(self, image: Box = UINT8, *, is_dict: bool = True, length: int = 7, missing_from: int = 1000) -> None:
        speed = Box(-1, 1, (2,), np.float32)
        self.observation_space: Any = gym.spaces.Dict(camera=image, speed=speed) if is_dict else image
        self.action_space = Box(-1, 1, (2,), np.float32)
        self.length, self.missing_from, self.count = length, missing_from, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        return self.observe(), float(self.count), self.count == self.length, False, {}

    def observe(self) -> Any:
        if not isinstance(self.observation_space, gym.spaces.Dict):
            return self.image(self.observation_space)
        observation = {key: self.image(box) for key, box in self.observation_space.items()}
        return observation if self.count < self.missing_from else {"speed": observation["speed"]}

    def image(self, box: Any) -> Any:
        shown = self.np_random.random(box.shape) * (box.high - box.low) + box.low
        return shown.astype(box.dtype)


def make_camera(**kwargs: Any) -> Camera:
    return Camera(**kwargs)


gym.register("Camera-v0", make_camera)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((40, 50), [1, 40, 50]), ((40, 50, 3), [3, 40, 50]), ((3, 40, 50), [3, 40, 50]), ((40, 50, 1), [1, 40, 50])],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("is_dict", [False, True])
def test_images_become_pixels(shape: tuple[int, ...], expected: list[int], dtype: Any, is_dict: bool) -> None:
    image = Box(0, 255 if dtype is np.uint8 else 1, shape, dtype)
    kwargs = {"image": image, "is_dict": is_dict}
    pixels = {"shape": expected, "dtype": "uint8"}
    speed = {"shape": [2], "dtype": "float32"}
    spec = env_spec("Camera-v0", kwargs)
    assert spec["observation"] == ({"camera": pixels, "speed": speed} if is_dict else pixels)
    environments = make_envs("Camera-v0", 2, env_kwargs=kwargs)
    assert environments.spec == spec
    observation = environments.reset(seed=0)
    shown = observation["camera"] if isinstance(observation, dict) else observation
    assert list(shown.shape) == [2, *expected]
    assert shown.dtype == np.uint8


def test_floats_are_spread_over_the_stated_range_and_channels_come_first() -> None:
    env = ToPixels(Camera(FLOAT, is_dict=False))
    image = np.full((40, 50, 3), -1.0, np.float32)
    image[1, 2] = [0.0, 1.0, 0.5]
    pixels = env.observation(image)
    assert pixels in env.observation_space
    assert pixels[:, 1, 2].tolist() == [128, 255, 191]  # 127.5 to the even level, 191.25
    assert pixels[:, 0].max() == 0


def test_other_arrays_are_left_alone() -> None:
    for box in (
        Box(-np.inf, np.inf, (35, 90), np.float32),
        Box(0, 255, (7, 7, 3), np.uint8),
        Box(0, 9, (50, 50), np.int64),
    ):
        spec = env_spec("Camera-v0", {"image": box, "is_dict": False})
        assert spec["observation"] == {"shape": list(box.shape), "dtype": box.dtype.name}


@pytest.mark.parametrize(("low", "high"), [(-np.inf, np.inf), (0.0, np.inf)])
@pytest.mark.parametrize("is_dict", [False, True])
def test_floats_without_a_range_are_refused_at_once(low: float, high: float, is_dict: bool) -> None:
    box = Box(low, high, (3, 40, 40), np.float32)
    for make in (env_spec, lambda env_id, kwargs: make_envs(env_id, 2, env_kwargs=kwargs)):
        with pytest.raises(
            ValueError, match=r"images of floats \[3, 40, 40\].*expected a finite one.*type Box\(0.0, 1"
        ):
            make("Camera-v0", {"image": box, "is_dict": is_dict})


@pytest.mark.parametrize("value", [1.01, -1.01, np.nan, np.inf, 255.0])
def test_a_value_outside_the_stated_range_is_refused(value: float) -> None:
    env = ToPixels(Camera(FLOAT, is_dict=False))
    image = np.zeros((40, 50, 3), np.float32)
    image[3, 4, 1] = value
    seen = f"{min(value, 0.0):g} to {max(value, 0.0):g}" if np.isfinite(value) else "from"
    with pytest.raises(ValueError, match=rf"values .*{seen}.*expected \[-1, 1\].*type the range"):
        env.observation(image)


def test_rounding_beyond_the_range_is_none() -> None:
    image = np.full((40, 50, 3), np.float32(1.0 + 1e-5))
    assert (ToPixels(Camera(FLOAT, is_dict=False)).observation(image) == 255).all()


@pytest.mark.parametrize("missing_from", [0, 1, 3])
@pytest.mark.parametrize("frame_stack", [1, 3])
def test_a_missing_image_is_named(missing_from: int, frame_stack: int) -> None:
    kwargs = {"missing_from": missing_from}
    environments = make_envs("Camera-v0", 1, env_kwargs=kwargs, frame_stack=frame_stack)

    def play() -> None:
        environments.reset(seed=0)
        for _ in range(3):
            environments.step(np.zeros((1, 2), np.float32))

    with pytest.raises(ValueError, match=r"keys.*\['speed'\].*camera.*leave (it|them) out"):
        play()


@pytest.mark.parametrize("image", [UINT8, FLOAT])
@pytest.mark.parametrize("resize", [None, (36, 38)])
def test_one_image_of_a_dict_is_stacked_as_gymnasium_would(image: Box, resize: tuple[int, int] | None) -> None:
    stacked, single = (
        make_envs("Camera-v0", 2, env_kwargs={"image": image}, resize=resize, grayscale=False, frame_stack=n)
        for n in (3, 1)
    )
    height, width = resize or (40, 50)
    assert stacked.spec["observation"] == {
        "camera": {"shape": [9, height, width], "dtype": "uint8", "frame_stack": 3},
        "speed": {"shape": [2], "dtype": "float32"},
    }
    observation, frame = stacked.reset(seed=0), single.reset(seed=0)
    assert isinstance(observation, dict)
    assert isinstance(frame, dict)
    frames = deque([frame["camera"]] * 3, maxlen=3)
    np.testing.assert_equal(observation["camera"], np.concatenate(frames, axis=1))
    for _ in range(16):
        one, other = (environments.step(np.zeros((2, 2), np.float32)) for environments in (stacked, single))
        assert isinstance(one.observation, dict)
        assert isinstance(one.next_observation, dict)
        assert isinstance(other.observation, dict)
        assert isinstance(other.next_observation, dict)
        frames.append(other.next_observation["camera"])
        np.testing.assert_equal(one.next_observation["camera"], np.concatenate(frames, axis=1))
        if other.terminated.all():
            frames.extend([other.observation["camera"]] * 3)
        np.testing.assert_equal(one.observation["camera"], np.concatenate(frames, axis=1))
        np.testing.assert_equal(one.observation["speed"], other.observation["speed"])


class OneBuffer(Camera):
    """Draws every image into the same memory."""

    def observe(self) -> Any:
        self.buffer = getattr(self, "buffer", np.zeros(UINT8.shape, np.uint8))
        self.buffer[:] = self.count
        return self.buffer


def test_an_environment_may_draw_into_one_buffer() -> None:
    env = StackFrames(OneBuffer(is_dict=False), "", 3)
    env.reset(seed=0)
    stacks = [env.step(np.zeros(2, np.float32))[0] for _ in range(3)]
    assert [stack[::3, 0, 0].tolist() for stack in stacks] == [[0, 0, 1], [0, 1, 2], [1, 2, 3]]


def test_a_stack_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"frame_stack 8 and episodes of 5 steps.*type frame_stack 5 or less"):
        env_spec("Camera-v0", {"max_episode_steps": 5}, frame_stack=8)
    assert env_spec("Camera-v0", {"max_episode_steps": 5}, frame_stack=5)
    for frame_stack in (0, -1):
        with pytest.raises(ValueError, match=f"got frame_stack {frame_stack} .*at least 1"):
            env_spec("Camera-v0", frame_stack=frame_stack)
    with pytest.raises(ValueError, match=r"got frame_stack 2 .*not exactly one image"):
        env_spec("Pendulum-v1", frame_stack=2)
