"""Turns image observations into pixels, uint8 `[C, H, W]`, and stacks the last ones."""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Literal, TypeAlias

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

MIN_SIDE: Final = 36  # of an image: the smallest that the Nature CNN takes

Layout: TypeAlias = Literal["HW", "HWC", "CHW"]


class ToPixels(gym.ObservationWrapper[Any, Any, Any]):
    """Turns the images among the observations into uint8 `[C, H, W]`.

    An image is a Box of uint8 or floats, `[H, W]`, `[H, W, C]` or `[C, H, W]`, with sides of 36 and more. Floats are
    spread over the range that their space states: its low becomes 0, its high 255.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        """Wrap an environment.

        Raises:
            ValueError: The space of an image of floats states no range.
        """
        super().__init__(env)
        boxes = boxes_of(env.observation_space)
        self.layouts = {key: layout for key, box in boxes.items() if (layout := _layout(box)) is not None}
        self.ranges = {key: _stated_range(boxes[key]) for key in self.layouts if boxes[key].dtype != np.uint8}
        pixels = {
            key: Box(0, 255, _channels_first(boxes[key].shape, self.layouts[key]), np.uint8) for key in self.layouts
        }
        self.observation_space = replace_boxes(env.observation_space, pixels)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset."""
        with _missing_key_explained():
            return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        with _missing_key_explained():
            return super().step(action)

    def observation(self, observation: Any) -> Any:
        """Turn the images and leave a Dict's other entries as they are.

        Raises:
            ValueError: An image is missing, or a value lies outside the stated range.
        """
        if not isinstance(observation, dict):
            return self._pixels("", observation)
        missing = sorted(self.layouts.keys() - observation.keys())
        if missing:
            raise ValueError(
                f"got an observation with the keys {sorted(observation)}, expected {missing} too, as the observation "
                "space says: return it from reset() and step(), or leave it out of the space"
            )
        return {**observation, **{key: self._pixels(key, observation[key]) for key in self.layouts}}

    def _pixels(self, key: str, image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        if key in self.ranges:
            image = _to_uint8(image, *self.ranges[key])
        if self.layouts[key] == "HW":
            return image[None]
        return image if self.layouts[key] == "CHW" else np.moveaxis(image, -1, 0)


class StackFrames(gym.Wrapper[Any, Any, Any, Any]):
    """Makes the last pixels the channels of one array: `[C, H, W]` to `[S·C, H, W]`, the newest last.

    An episode begins with S times its first frame. A Dict's other entries are left as they are.
    """

    def __init__(self, env: gym.Env[Any, Any], key: str, frame_stack: int) -> None:
        """Wrap an environment.

        Args:
            env: With pixels.
            key: Of the pixels; empty where the observation is one array.
            frame_stack: S.
        """
        super().__init__(env)
        self.key = key
        self.frame_stack = frame_stack
        self.frames: deque[npt.NDArray[np.uint8]] = deque(maxlen=frame_stack)
        channels, height, width = boxes_of(env.observation_space)[key].shape
        stacked = Box(0, 255, (frame_stack * channels, height, width), np.uint8)
        self.observation_space = replace_boxes(env.observation_space, {key: stacked})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; the first frame stands for those before it."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.frames.clear()
        return self._stack(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._stack(observation), reward, terminated, truncated, info

    def _stack(self, observation: Any) -> Any:
        frame = np.array(observation[self.key] if self.key else observation)  # the environment may write into its own
        self.frames.extend([frame] * (1 if self.frames else self.frame_stack))
        stacked = np.concatenate(self.frames)
        return {**observation, self.key: stacked} if self.key else stacked


def to_pixels(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """The environment with its images as pixels; the same one where it has none."""
    return ToPixels(env) if any(map(_layout, boxes_of(env.observation_space).values())) else env


def stack_frames(env: gym.Env[Any, Any], frame_stack: int, max_episode_steps: int | None) -> gym.Env[Any, Any]:
    """The environment with its last pixels stacked.

    Args:
        env: With pixels, alone or as one entry of a Dict.
        frame_stack: Number of frames, at least 1; 1 leaves the environment as it is.
        max_episode_steps: Of the environment; None where it is not known.

    Raises:
        ValueError: There is not exactly one array of pixels, or the stack is longer than an episode.
    """
    if frame_stack == 1:
        return env
    space = env.observation_space
    keys = [key for key, box in boxes_of(space).items() if is_pixels(box)]
    if frame_stack < 1 or len(keys) != 1:
        raise ValueError(
            f"got frame_stack {frame_stack} for {space}, expected at least 1, and 1 where there is not exactly one "
            "image: type frame_stack 1, or resize (84, 84) where the image is too small to be taken for one"
        )
    if max_episode_steps is not None and 0 < max_episode_steps < frame_stack:
        raise ValueError(
            f"got frame_stack {frame_stack} and episodes of {max_episode_steps} steps, expected a stack no longer than "
            f"an episode: type frame_stack {max_episode_steps} or less, or a larger env_kwargs.max_episode_steps"
        )
    return StackFrames(env, keys[0], frame_stack)


def boxes_of(space: gym.Space[Any]) -> dict[str, Box]:
    """The Boxes of an observation by key; the key is empty where the observation is one array."""
    spaces = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
    return {key: box for key, box in spaces.items() if isinstance(box, Box)}


def replace_boxes(space: gym.Space[Any], boxes: Mapping[str, gym.Space[Any]]) -> gym.Space[Any]:
    """The space with some of its Boxes replaced."""
    return gym.spaces.Dict({**space.spaces, **boxes}) if isinstance(space, gym.spaces.Dict) else boxes.get("", space)


def is_pixels(space: gym.Space[Any]) -> bool:
    """Whether it is what replay and encoders take for pixels."""
    return isinstance(space, Box) and space.dtype == np.uint8 and len(space.shape) == 3


def _layout(box: Box) -> Layout | None:
    if box.dtype != np.uint8 and not np.issubdtype(box.dtype, np.floating):
        return None
    if len(box.shape) == 2 and min(box.shape) >= MIN_SIDE:
        return "HW"
    if len(box.shape) == 3 and min(box.shape[1:]) >= MIN_SIDE:
        return "CHW"
    return "HWC" if len(box.shape) == 3 and min(box.shape[:2]) >= MIN_SIDE else None


def _channels_first(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    if layout == "HW":
        return (1, *shape)
    return shape if layout == "CHW" else (shape[2], *shape[:2])


def _stated_range(box: Box) -> tuple[float, float]:
    low, high = float(box.low.min()), float(box.high.max())
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(
            f"got images of floats {list(box.shape)} with the range [{low}, {high}], expected a finite one, over which "
            f"they are stored as uint8: type Box(0.0, 1.0, {box.shape}), or the range that they have, in the "
            "observation space; where they are no images, flatten them with gymnasium.wrappers.FlattenObservation"
        )
    return low, high


def _to_uint8(image: npt.NDArray[np.floating[Any]], low: float, high: float) -> npt.NDArray[np.uint8]:
    seen_low, seen_high = float(image.min()), float(image.max())
    tolerance = (high - low) / 510.0  # half a level, which rounds to the end of the range
    if not (low - tolerance <= seen_low and seen_high <= high + tolerance):  # nor where one is NaN
        raise ValueError(
            f"got an image with values from {seen_low:g} to {seen_high:g}, expected [{low:g}, {high:g}], as its space "
            "says: type the range that the images have in the observation space"
        )
    scaled = (image.astype(np.float32) - low) * (255.0 / (high - low))
    return scaled.clip(0.0, 255.0).round().astype(np.uint8)


@contextmanager
def _missing_key_explained() -> Iterator[None]:
    """Gymnasium's own checker, which looks at the first reset and the first step, asserts."""
    try:
        yield
    except AssertionError as error:
        if "observation keys" not in str(error):
            raise
        raise ValueError(f"{error}: return them from reset() and step(), or leave them out of the space") from error
