"""What the settings of a lane shooter must satisfy, and what follows from them."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlmods.envs.lane_board import LEVEL_POINTS, MAX_SHOTS, NUM_LANES, NUM_SLOTS, POINTS, SPIKE_POINTS
from rlmods.envs.lane_observation import MAX_LIVES


def check_lane_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    for name in ("num_envs", "max_episode_steps", "lives"):
        if not isinstance(settings[name], int) or isinstance(settings[name], bool):
            _refuse(name, settings[name], "a whole number")
    for name in ("points_scale", "death_penalty", "shaping", "bonus", "expert_mistakes"):
        if not _is_number(settings[name]):
            _refuse(name, settings[name], "a finite number")
    points_clip = settings["points_clip"]
    is_clip = points_clip is None or (_is_number(points_clip) and points_clip > 0.0)
    expectations = {
        "num_lanes": (settings["num_lanes"] == NUM_LANES, f"{NUM_LANES}: there are no other tubes"),
        "num_envs": (settings["num_envs"] >= 1, "at least 1"),
        "max_episode_steps": (settings["max_episode_steps"] >= 1, "at least 1"),
        "lives": (1 <= settings["lives"] <= MAX_LIVES, f"a number in [1, {MAX_LIVES}]"),
        "open": (settings["open"] in (None, True, False), "true, false, or nothing for by level"),
        "points_scale": (settings["points_scale"] > 0.0, "a number above 0"),
        "points_clip": (is_clip, "a number above 0, or nothing"),
        "death_penalty": (settings["death_penalty"] >= 0.0, "at least 0"),
        "shaping": (settings["shaping"] >= 0.0, "at least 0"),
        "bonus": (settings["bonus"] >= 0.0, "at least 0"),
        "expert_mistakes": (0.0 <= settings["expert_mistakes"] <= 1.0, "a probability in [0, 1]"),
        "render_mode": (settings["render_mode"] in (None, "rgb_array"), "rgb_array or nothing"),
    }
    for name, (is_right, expected) in expectations.items():
        if not is_right:
            _refuse(name, settings[name], expected)


def reward_bounds(settings: Mapping[str, Any]) -> list[float]:
    """Between which the reward of every step lies, `[low, high]`.

    A step pays at most for all enemies, be they shot or zapped, and for a cell of spike by each shot; the end of a
    level, when no enemy is left, pays less.
    """
    most = max(NUM_SLOTS * int(POINTS.max()), LEVEL_POINTS) + MAX_SHOTS * SPIKE_POINTS
    points = settings["points_scale"] * most
    if settings["points_clip"] is not None:
        points = min(points, settings["points_clip"])
    # The potential lies in [-1, 0].
    low = -settings["death_penalty"] - settings["shaping"]
    high = points + settings["shaping"] + settings["bonus"]
    return [float(np.float32(low)), float(np.float32(high))]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _refuse(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"got {name} = {value!r}, expected {expected}: type --data.init_args.env_kwargs.{name} VALUE")
