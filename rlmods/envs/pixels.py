"""Shrinks image observations next to the step, so that only small images are passed on and stored."""

from typing import Any, Final

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box

from rlmods.envs.images import boxes_of, replace_boxes

try:
    import cv2
except ImportError as error:  # OpenCV's package is there, but a server without a screen lacks libGL
    raise ImportError(
        f"OpenCV cannot be imported: {error}. Pixel observations need it; without a screen type "
        "pip uninstall opencv-python && pip install opencv-python-headless."
    ) from error


_CHANNELS: Final = (1, 3)


class EarlyResize(gym.ObservationWrapper[Any, Any, Any]):
    """Shrinks an image observation, or the one image of a Dict, to uint8 `[C, height, width]`.

    The image is uint8 `[H, W]`, or has one or three channels, which come last or first. Areas are averaged, so that
    thin things do not vanish.
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
        images = {key: box for key, box in boxes_of(space).items() if _is_image(box.shape) and box.dtype == np.uint8}
        if len(images) != 1:
            raise ValueError(
                f"resize needs one image, got {len(images)} in {space}. Expected a uint8 Box [H, W], [H, W, 1] or "
                "[H, W, 3], or channels first, or a Dict with one; without an image leave resize out."
            )
        ((self.key, image),) = images.items()
        self.channels_first = len(image.shape) == 3 and image.shape[2] not in _CHANNELS
        self.has_colours = (image.shape[0] if self.channels_first else (*image.shape, 1)[2]) == 3
        self.grayscale = grayscale and self.has_colours
        shape = (3 if self.has_colours and not grayscale else 1, *size)
        self.observation_space = replace_boxes(space, {self.key: Box(0, 255, shape, np.uint8)})

    def observation(self, observation: Any) -> Any:
        """Shrink the image and leave a Dict's other entries as they are."""
        if not self.key:
            return self._shrink(observation)
        return {**observation, self.key: self._shrink(observation[self.key])}

    def _shrink(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        if self.channels_first:
            image = np.ascontiguousarray(np.moveaxis(image, 0, -1))
        if self.grayscale:
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        height, width = self.size
        small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small.reshape(height, width, -1).transpose(2, 0, 1))


def _is_image(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 or (len(shape) == 3 and (shape[2] in _CHANNELS or shape[0] in _CHANNELS))
