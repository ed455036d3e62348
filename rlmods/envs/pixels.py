"""Shrinks image observations next to the step, so that only small images are passed on and stored."""

from typing import Any, TypeGuard

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

try:
    import cv2
except ImportError as error:  # OpenCV's package is there, but a server without a screen lacks libGL
    raise ImportError(
        f"OpenCV cannot be imported: {error}. Pixel observations need it; without a screen type "
        "pip uninstall opencv-python && pip install opencv-python-headless."
    ) from error


class EarlyResize(gym.ObservationWrapper[Any, Any, Any]):
    """Shrinks an image observation, or the one image of a Dict, to uint8 `[C, height, width]`.

    The image is uint8 `[H, W]`, `[H, W, 1]` or `[H, W, 3]`. Areas are averaged, so that thin things do not vanish.
    """

    def __init__(self, env: gym.Env[Any, Any], size: tuple[int, int] = (84, 84), grayscale: bool = True) -> None:
        """Wrap an environment.

        Args:
            env: Whose observation is an image, or a Dict with one.
            size: Height and width, in pixels.
            grayscale: Whether three colours become one grey: C is 1.

        Raises:
            ValueError: There is not exactly one image.
        """
        super().__init__(env)
        self.size = size
        space = env.observation_space
        spaces = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
        images = {key: image for key, image in spaces.items() if _is_image(image)}
        if len(images) != 1:
            raise ValueError(
                f"resize needs one image, got {len(images)} in {space}. Expected a uint8 Box [H, W], [H, W, 1] or "
                "[H, W, 3], or a Dict with one; without an image leave resize out."
            )
        ((self.key, image),) = images.items()
        self.has_colours = image.shape[2:] == (3,)
        self.grayscale = grayscale and self.has_colours
        shape = (3 if self.has_colours and not grayscale else 1, *size)
        small = Box(0, 255, shape, np.uint8)
        self.observation_space = gym.spaces.Dict({**spaces, self.key: small}) if self.key else small

    def observation(self, observation: Any) -> Any:
        """Shrink the image and leave a Dict's other entries as they are."""
        if not self.key:
            return self._shrink(observation)
        return {**observation, self.key: self._shrink(observation[self.key])}

    def _shrink(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.grayscale:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = self.size
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small.reshape(height, width, -1).transpose(2, 0, 1))


def stack_frames(env: gym.Env[Any, Any], frame_stack: int) -> gym.Env[Any, Any]:
    """Make the last images the channels of one: `[C, H, W]` to `[frame_stack · C, H, W]`, the newest last.

    Raises:
        ValueError: The observation is a Dict, or the number is not positive.
    """
    if frame_stack == 1:
        return env
    space = env.observation_space
    if frame_stack < 1 or not isinstance(space, Box):
        raise ValueError(
            f"frame_stack is {frame_stack} for {space}, expected at least 1, and 1 where the observation is a Dict."
        )
    channels, height, width = space.shape
    stacked = gym.wrappers.FrameStackObservation(env, frame_stack)
    return gym.wrappers.ReshapeObservation(stacked, (frame_stack * channels, height, width))


def _is_image(space: gym.Space[Any]) -> TypeGuard[Box]:
    if not isinstance(space, Box) or space.dtype != np.uint8:
        return False
    return len(space.shape) == 2 or (len(space.shape) == 3 and space.shape[2] in (1, 3))
