"""What a data module's settings must satisfy, said before anything is built."""

from collections.abc import Mapping
from math import ceil, inf, isfinite
from typing import Any

from rlmods.types import EnvSpec


def check_settings(settings: Mapping[str, Any]) -> None:
    """Refuse settings that cannot work, each with a sentence.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    _check_counts(settings, ("total_env_steps", "num_envs", "eval_episodes", "eval_every"))
    if not 0.0 <= settings["gamma"] < 1.0:
        _refuse(f"gamma = {settings['gamma']}", "a discount in [0, 1)", "gamma 0.99")


def check_replay_settings(settings: Mapping[str, Any]) -> None:
    """The same, of a data module with a replay."""
    counts = ("n_steps", "buffer_size", "batch_size", "steps_per_iteration", "updates_per_iteration", "frame_stack")
    _check_counts(settings, counts)
    if settings["batch_size"] > settings["buffer_size"]:
        _refuse(
            f"batch_size = {settings['batch_size']} with buffer_size = {settings['buffer_size']}",
            "a batch that fits in the buffer",
            f"buffer_size {settings['batch_size']} or more",
        )
    _check_iterations(settings)
    if settings["replay_strata"] is not None and settings["prioritized_replay"]:
        _refuse("replay_strata with prioritized_replay = True", "one of them", "prioritized_replay false")
    limit = settings["max_replay_ratio"]
    if limit is not None and not 0.0 < limit < inf:
        _refuse(f"max_replay_ratio = {limit}", "a finite ratio above 0, or null for none", "max_replay_ratio 8")


def check_expert_settings(settings: Mapping[str, Any], spec: EnvSpec) -> None:
    """The same, of a data module with an expert."""
    if spec["action"]["kind"] != "discrete":
        raise ValueError(
            f"got the {spec['action']['kind']} actions of {spec['env_id']}, expected discrete ones, which are an "
            "expert's as they are the network's: type --data.class_path rlmods.data.ReplayDataModule"
        )
    share, floor = settings["expert_share"], settings["expert_share_floor"]
    if not 0.0 <= share <= 1.0:
        _refuse(f"expert_share = {share}", "a probability in [0, 1]", "expert_share 0.95")
    if not 0.0 <= floor <= share:
        _refuse(
            f"expert_share_floor = {floor} with expert_share = {share}",
            "a floor in [0, expert_share]: the share falls to it and never rises",
            f"expert_share_floor {min(0.1, share):g}",
        )
    if not 0.0 < settings["expert_share_decay"] <= 1.0:
        _refuse(
            f"expert_share_decay = {settings['expert_share_decay']}", "a factor in (0, 1]", "expert_share_decay 0.996"
        )
    _check_counts(settings, ("expert_share_decay_steps",))
    if not 0.0 <= settings["expert_care_scale"] < inf:
        _refuse(f"expert_care_scale = {settings['expert_care_scale']}", "a factor from 0", "expert_care_scale 2")


def with_reward_bounds(spec: EnvSpec, bounds: list[float]) -> EnvSpec:
    """The spec with hard bounds of the reward of one step.

    Raises:
        ValueError: where they are none, or the environment states others itself.
    """
    if len(bounds) != 2 or not all(isfinite(bound) for bound in bounds) or bounds[0] > bounds[1]:
        _refuse(f"reward_bounds = {bounds}", "two finite numbers, the lower one first", "reward_bounds '[-1, 1]'")
    settings = spec.get("settings", {})
    stated = settings.get("reward_bounds")
    if stated is not None and [float(bound) for bound in stated] != [float(bound) for bound in bounds]:
        raise ValueError(
            f"got reward_bounds = {bounds}, but {spec['env_id']} itself states {stated}: leave "
            "--data.init_args.reward_bounds out"
        )
    return EnvSpec(**{**spec, "settings": {**settings, "reward_bounds": [float(bound) for bound in bounds]}})


def check_sequence_settings(settings: Mapping[str, Any], num_agents: int) -> None:
    """The same, of a data module that replays sequences.

    Args:
        settings: of the data module.
        num_agents: agents of a swarm, which only one worker can step.
    """
    _check_counts(settings, ("buffer_size", "batch_size", "batch_length", "steps_per_iteration", "frame_stack"))
    _check_iterations(settings)
    if not (settings["train_ratio"] > 0.0 and isfinite(settings["train_ratio"])):
        _refuse(
            f"train_ratio = {settings['train_ratio']}",
            "replayed steps for each environment step, a finite number above 0",
            "train_ratio 256",
        )
    num_envs, length = settings["num_envs"], settings["batch_length"] + 1
    if settings["buffer_size"] < num_envs * length:
        _refuse(
            f"buffer_size = {settings['buffer_size']} with num_envs = {num_envs} and batch_length = {length - 1}",
            f"a replay that holds a sequence of {length} rows of each environment",
            f"buffer_size {num_envs * length} or more, or a smaller batch_length",
        )
    check_sequence_budget(settings, 1)
    update_steps = settings["batch_size"] * (length - 1)
    if settings["train_ratio"] * settings["steps_per_iteration"] < update_steps:
        steps = ceil(update_steps / settings["train_ratio"] / num_envs) * num_envs
        _refuse(
            f"steps_per_iteration = {settings['steps_per_iteration']} with train_ratio = {settings['train_ratio']:g}, "
            f"batch_size = {settings['batch_size']} and batch_length = {length - 1}",
            f"an update in each iteration, which replays {update_steps} steps",
            f"steps_per_iteration {steps} or more, which leaves the number of updates as it is",
        )
    if settings["grayscale"] and settings["resize"] is None:
        _refuse("grayscale = True without resize", "a size, because only resize makes images grey", "resize '[64, 64]'")
    _check_workers(settings, num_agents)


def check_sequence_budget(settings: Mapping[str, Any], num_processes: int) -> None:
    """Whether a training of so many processes, each with a replay of its own, reaches its first update.

    Raises:
        ValueError: where it does not.
    """
    needed = num_processes * steps_before_sequences(
        settings["num_envs"], settings["batch_size"], settings["batch_length"]
    )
    if settings["total_env_steps"] < needed:
        processes = f" in each of {num_processes} processes" if num_processes > 1 else ""
        _refuse(
            f"total_env_steps = {settings['total_env_steps']} with batch_size = {settings['batch_size']}, "
            f"batch_length = {settings['batch_length']} and num_envs = {settings['num_envs']}{processes}",
            "a budget that reaches the first update",
            f"total_env_steps {needed} or more, or a smaller batch_size or batch_length",
        )


def steps_before_sequences(num_envs: int, batch_size: int, batch_length: int) -> int:
    """Environment steps of a process after which its replay holds a batch, B · T rows, and a sequence, T + 1 rows."""
    return max(batch_size * batch_length, num_envs * (batch_length + 1))


def check_rollout_settings(settings: Mapping[str, Any], num_agents: int) -> None:
    """The same, of a data module that collects rollouts.

    Args:
        settings: of the data module.
        num_agents: agents of a swarm, which only one worker can step.
    """
    _check_counts(settings, ("n_steps",))
    rollout = settings["num_envs"] * settings["n_steps"]
    if settings["total_env_steps"] < rollout:
        _refuse(
            f"total_env_steps = {settings['total_env_steps']} with num_envs = {settings['num_envs']} and "
            f"n_steps = {settings['n_steps']}",
            "at least one rollout, num_envs x n_steps",
            f"total_env_steps {rollout} or more, or a smaller n_steps",
        )
    _check_workers(settings, num_agents)


def _check_iterations(settings: Mapping[str, Any]) -> None:
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


def _check_workers(settings: Mapping[str, Any], num_agents: int) -> None:
    num_envs, num_workers = settings["num_envs"], settings["num_workers"]
    if settings["vectorization"] != "workers":
        for name in ("num_workers", "double_buffering"):
            if settings[name]:
                _refuse(
                    f"{name} = {settings[name]} with vectorization = {settings['vectorization']}",
                    "worker processes, which alone have it",
                    f"vectorization workers, or leave {name} out",
                )
        return
    if num_workers is None or num_workers < 1:
        _refuse(f'num_workers = {num_workers} with vectorization = "workers"', "at least 1", "num_workers 1")
    groups = 2 if settings["double_buffering"] else 1
    unit = num_workers * groups * num_agents
    if num_envs % unit:
        factors = f"{num_workers} workers" + (" x 2 groups" if groups == 2 else "")
        factors += f" x {num_agents} agents of a swarm" if num_agents > 1 else ""
        below, above = num_envs // unit * unit, -(-num_envs // unit) * unit
        mends = [f"num_envs {above}" if below == 0 else f"num_envs {below} or {above}"]
        if num_envs % (groups * num_agents) == 0:  # else no number of workers mends it
            mends.append(f"num_workers {_largest_divisor(num_envs // (groups * num_agents), num_workers)}")
        if groups == 2 and num_envs % (num_workers * num_agents) == 0:
            mends.append("double_buffering false")
        _refuse(f"num_envs = {num_envs} with {factors}", f"a multiple of {unit}", ", or ".join(mends))


def _largest_divisor(number: int, limit: int) -> int:
    """Of a number, not above a limit."""
    return next(divisor for divisor in range(min(limit, number), 0, -1) if number % divisor == 0)


def _check_counts(settings: Mapping[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        if settings[name] < 1:
            _refuse(f"{name} = {settings[name]}", "at least 1", f"{name} 1")


def _refuse(got: str, expected: str, option: str) -> None:
    raise ValueError(f"got {got}, expected {expected}: type --data.init_args.{option}")
