"""What a data module's settings must satisfy, said before anything is built."""

from collections.abc import Mapping
from typing import Any


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work, each with a sentence.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    _check_counts(settings, ("total_env_steps", "num_envs", "n_steps", "eval_episodes", "eval_every"))
    if not 0.0 <= settings["gamma"] < 1.0:
        _refuse(f"gamma = {settings['gamma']}", "a discount in [0, 1)", "gamma 0.99")


def check_replay_settings(settings: Mapping[str, Any]) -> None:
    """The same, of a data module with a replay."""
    counts = ("buffer_size", "batch_size", "steps_per_iteration", "updates_per_iteration", "frame_stack")
    _check_counts(settings, counts)
    if settings["batch_size"] > settings["buffer_size"]:
        _refuse(
            f"batch_size = {settings['batch_size']} with buffer_size = {settings['buffer_size']}",
            "a batch that fits in the buffer",
            f"buffer_size {settings['batch_size']} or more",
        )
    if settings["steps_per_iteration"] % settings["num_envs"]:
        rounded = -(-settings["steps_per_iteration"] // settings["num_envs"]) * settings["num_envs"]
        _refuse(
            f"steps_per_iteration = {settings['steps_per_iteration']} with num_envs = {settings['num_envs']}",
            "a multiple of num_envs",
            f"steps_per_iteration {rounded}",
        )
    if settings["total_env_steps"] < settings["steps_per_iteration"]:
        _refuse(
            f"total_env_steps = {settings['total_env_steps']} with "
            f"steps_per_iteration = {settings['steps_per_iteration']}",
            "at least one iteration",
            f"total_env_steps {settings['steps_per_iteration']} or more, or a smaller steps_per_iteration",
        )
    if not 0 <= settings["learning_starts"] < settings["total_env_steps"]:
        _refuse(
            f"learning_starts = {settings['learning_starts']} with total_env_steps = {settings['total_env_steps']}",
            "a start within the budget",
            "learning_starts 0 or more, below total_env_steps",
        )


def _check_counts(settings: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if settings[name] < 1:
            _refuse(f"{name} = {settings[name]}", "at least 1", f"{name} 1")


def _refuse(got: str, expected: str, option: str) -> None:
    raise ValueError(f"got {got}, expected {expected}: type --data.init_args.{option}")
