"""What the settings of a drone swarm must satisfy."""

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from rlmods.envs.drone_observations import MAX_STAGES, Layout
from rlmods.envs.drone_tasks import WORLD, RewardWeights, Task, make_stages

_WHOLE = ("num_envs", "num_agents", "level", "num_waypoints", "max_episode_steps")


def check_drone_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    _check_types(settings)
    num_envs, num_agents = settings["num_envs"], settings["num_agents"]
    if num_agents < 1 or num_envs < 1 or num_envs % num_agents:
        rounded = -(-max(num_envs, 1) // max(num_agents, 1)) * max(num_agents, 1)
        raise ValueError(
            f"got num_envs = {num_envs} drones in swarms of num_agents = {num_agents}, expected a multiple: type "
            f"--data.init_args.num_envs {rounded}, or --data.init_args.env_kwargs.num_agents 1"
        )
    arena, half_world = settings["arena"], WORLD[:, 0].tolist()
    is_arena = len(arena) == 3 and all(0.0 < side < most for side, most in zip(arena, half_world, strict=True))
    expectations = {
        "max_episode_steps": (settings["max_episode_steps"] >= 1, "at least 1"),
        "level": (settings["level"] in (0, 1), "0, a point mass, or 1, a quadrotor"),
        "task": (settings["task"] in get_args(Task), f"one of {', '.join(get_args(Task))}"),
        "observation": (settings["observation"] in get_args(Layout), f"one of {', '.join(get_args(Layout))}"),
        "num_waypoints": (1 <= settings["num_waypoints"] <= MAX_STAGES, f"a number in [1, {MAX_STAGES}]"),
        "arena": (is_arena, f"three half sides above 0 and below those of the world, {half_world}"),
        "randomization": (0.0 <= settings["randomization"] < 1.0, "a share in [0, 1)"),
        "curriculum": (0.0 <= settings["curriculum"] <= 1.0, "a share of the training in [0, 1]"),
        "curriculum_scale": (settings["curriculum_scale"] >= 1.0, "at least 1"),
        "reward_radius": (settings["reward_radius"] > 0.0, "a length above 0"),
        "collision_distance": (settings["collision_distance"] >= 0.0, "a distance of at least 0"),
        "render_mode": (settings["render_mode"] in (None, "rgb_array"), "rgb_array or nothing"),
    }
    for name, (is_right, expected) in expectations.items():
        if not is_right:
            _refuse(name, settings[name], expected)
    hold_steps = make_stages(settings["task"], settings["num_waypoints"]).hold_steps
    if settings["max_episode_steps"] < hold_steps:
        expected = f"at least the {hold_steps} steps for which {settings['task']} asks to be held"
        _refuse("max_episode_steps", settings["max_episode_steps"], expected)


def make_reward_weights(changed: Mapping[str, float] | None) -> RewardWeights:
    """The default weights but for the changed ones.

    Raises:
        ValueError: where there is no such weight, or it is no number.
    """
    if not isinstance(changed, Mapping | None):
        _refuse("reward_weights", changed, 'names with numbers, such as {"proximity": 0}')
    weights = dict(changed or {})
    unknown = sorted(weights.keys() - set(RewardWeights._fields))
    if unknown:
        _refuse("reward_weights", unknown, f"names among {', '.join(RewardWeights._fields)}")
    for name, value in weights.items():
        if not _is_number(value):
            _refuse("reward_weights", changed, f"a finite number for {name}")
    return RewardWeights(**weights)


def _check_types(settings: Mapping[str, Any]) -> None:
    """The command line passes on what it cannot check: a word in the place of a number."""
    for name in _WHOLE:
        if not isinstance(settings[name], int) or isinstance(settings[name], bool):
            _refuse(name, settings[name], "a whole number")
    for name in ("randomization", "curriculum", "curriculum_scale", "reward_radius", "collision_distance"):
        if not _is_number(settings[name]):
            _refuse(name, settings[name], "a finite number")
    if not isinstance(settings["arena"], list | tuple) or not all(map(_is_number, settings["arena"])):
        _refuse("arena", settings["arena"], "three numbers")
    if not isinstance(settings["counter_metric"], bool):
        _refuse("counter_metric", settings["counter_metric"], "true or false")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def _refuse(name: str, value: Any, expected: str) -> None:
    raise ValueError(f"got {name} = {value!r}, expected {expected}: type --data.init_args.env_kwargs.{name} VALUE")
