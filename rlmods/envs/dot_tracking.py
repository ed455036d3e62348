"""A dot to be tracked in small pixels: continuous control from images, small enough for one CPU core."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

GREYS = np.array([255.0, 120.0])  # of the dot and of the marker
HALF_SIDE = 0.06  # of their squares, in sides of the plane, as all lengths below
SHARE = 0.5  # of the way to the place that was asked for, which the marker goes in a step
LOW, SIDE = np.array([-2.0, -1.0]), 4.0  # of the plane, in the units of actions
RENDERED_PIXELS = 336

Array = npt.NDArray[np.float64]
Observation = npt.NDArray[np.uint8] | dict[str, npt.NDArray[Any]]


class DotTracking(gym.Env[Observation, npt.NDArray[np.float32]]):
    """A bright dot moves over a plane and turns round before its edges; the agent sends a grey marker after it.

    An action is a place on the plane, [-2, 2] × [-1, 3], and the marker goes half of the way there. In the same step
    the dot moves on in a straight line, each coordinate with a constant speed of its own. The reward is minus the
    distance of the two after the step, in units of the diagonal: in [-1, 0]. Nothing terminates.

    One image does not show where the dot goes: whoever sees one frame lags behind by a step of the dot.

    Observations are a Dict of `image` uint8 `[1, image_size, image_size]`, with anti-aliased squares, so that it shows
    more than whole pixels, and `vector` float32 `[2]`, the marker's last step. Rows go down with the second coordinate.

    `tracking_action` is the optimum. Until the marker has caught up in a coordinate it was sent to the edge behind the
    dot, and lies at the end of what it could have reached. Afterwards it is on the dot, which keeps two of its steps
    away from the edges, so that half of the way to an edge is never less than a step of the dot. Each coordinate's
    distance is therefore the least possible at every step.

    Mean return of 10,000 episodes of 50 steps, with the spread of an episode: −0.06 ± 0.08 for `tracking_action`,
    −2.3 ± 0.3 for the same without knowledge of the dot's velocity, −9.8 ± 0.5 for staying in the middle of the plane,
    −12.1 ± 1.1 for uniformly random actions.

    Args:
        image_size: height and width of the image in pixels, at least 16.
        dot_speed: largest step of the dot in each coordinate, in sides of the plane, in [0, 0.2]. A coordinate's is
            drawn between half of it and all of it.
        reward_offset: added to each reward; 1 makes them lie in [0, 1].
        dict_observation: false gives the image alone.
        render_mode: "rgb_array", or None.

    Raises:
        ValueError: where a setting lies outside its range.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012, as Gymnasium's

    def __init__(
        self,
        image_size: int = 42,
        dot_speed: float = 0.06,
        *,
        reward_offset: float = 0.0,
        dict_observation: bool = True,
        render_mode: str | None = None,
    ) -> None:
        _check("image_size", image_size, image_size >= 16, "at least 16")
        _check("reward_offset", reward_offset, math.isfinite(reward_offset), "a finite number")
        _check("dot_speed", dot_speed, 0.0 <= dot_speed <= 0.2, "a step in [0, 0.2]")
        self.image_size = image_size
        self.dot_speed = dot_speed
        self.reward_offset = reward_offset
        self.dict_observation = dict_observation
        self.render_mode = render_mode
        image = spaces.Box(0, 255, (1, image_size, image_size), np.uint8)
        vector = spaces.Box(-SHARE, SHARE, (2,), np.float32)
        self.observation_space: Any = spaces.Dict(image=image, vector=vector) if dict_observation else image
        self.action_space = spaces.Box(LOW.astype(np.float32), (LOW + SIDE).astype(np.float32))
        self.dot, self.dot_velocity = np.zeros(2), np.zeros(2)
        self.marker, self.marker_velocity = np.zeros(2), np.zeros(2)
        self._pixel_centres = (np.arange(image_size) + 0.5) / image_size

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Put dot and marker anywhere; the marker stands still."""
        super().reset(seed=seed)
        margin = 2.0 * self.dot_speed
        self.dot = self.np_random.uniform(margin, 1.0 - margin, 2)
        self.dot_velocity = self.dot_speed * self.np_random.uniform(0.5, 1.0, 2) * self.np_random.choice([-1.0, 1.0], 2)
        self.marker, self.marker_velocity = self.np_random.random(2), np.zeros(2)
        return self._observe(), {}

    def step(self, action: npt.NDArray[Any]) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Move both; an action outside the plane is clipped to it."""
        self.dot, self.dot_velocity = self._moved_dot()
        self.marker_velocity = SHARE * (_clip((action - LOW) / SIDE, 0.0, 1.0) - self.marker)
        self.marker = self.marker + self.marker_velocity
        return self._observe(), self._reward(), False, False, {}

    def tracking_action(self) -> npt.NDArray[np.float32]:
        """The action that brings the marker nearest to where the dot will be: the optimum, which knows the state."""
        place = self.marker + (self._moved_dot()[0] - self.marker) / SHARE
        return (LOW + SIDE * _clip(place, 0.0, 1.0)).astype(np.float32)

    def render(self) -> Any:
        """What the agent sees, enlarged, `[336, 336, 3]`; None without a render mode."""
        if self.render_mode is None:
            return None
        nearest = (np.arange(RENDERED_PIXELS) * self.image_size) // RENDERED_PIXELS
        image = self._image()[0][np.ix_(nearest, nearest)]
        return np.repeat(image[..., None], 3, axis=-1)

    def _moved_dot(self) -> tuple[Array, Array]:
        """Place and velocity of the dot after a step; it turns round before it would come too near to an edge."""
        margin, place = 2.0 * self.dot_speed, self.dot + self.dot_velocity
        turns = (place < margin) | (place > 1.0 - margin)
        velocity = np.where(turns, -self.dot_velocity, self.dot_velocity)
        return self.dot + velocity, velocity

    def _reward(self) -> float:
        across, down = (self.dot - self.marker).tolist()
        return self.reward_offset - math.hypot(across, down) / math.sqrt(2.0)

    def _observe(self) -> Observation:
        if not self.dict_observation:
            return self._image()
        return {"image": self._image(), "vector": self.marker_velocity.astype(np.float32)}

    def _image(self) -> npt.NDArray[np.uint8]:
        """Grey of a pixel: that of a square times the share of the pixel that it covers, where both do the larger."""
        distance = np.abs(self._pixel_centres - np.array([self.dot, self.marker])[..., None])
        covered = _clip((HALF_SIDE - distance) * self.image_size + 0.5, 0.0, 1.0)  # [2, 2, size]
        columns, rows = covered[:, 0, None, :], (covered[:, 1] * GREYS[:, None])[..., None]
        squares = (rows * columns + 0.5).astype(np.uint8)
        image: npt.NDArray[np.uint8] = squares.max(0, keepdims=True)
        return image


def _clip(value: npt.NDArray[Any], low: Any, high: Any) -> Array:
    """As `np.clip`, which takes several times as long for few numbers."""
    clipped: Array = np.minimum(np.maximum(value, low), high)
    return clipped


def _check(name: str, value: float, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"got {name} = {value}, expected {expected}: type --data.init_args.env_kwargs.{name} VALUE")
