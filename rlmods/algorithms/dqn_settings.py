"""What the hyper-parameters of DQN must satisfy, alone and with the settings of the data."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, get_args

from lightning_utilities.core.rank_zero import rank_zero_warn

from rlmods.functional.schedules import Schedule
from rlmods.functional.value_bounds import discounted_value_bounds
from rlmods.types import EnvSpec

Range: TypeAlias = tuple[Callable[[Any], bool], str]


def check_dqn_settings(spec: EnvSpec, settings: Mapping[str, Any]) -> None:
    """Refuse continuous actions, hyper-parameters outside their range, and those that would not be used.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    if spec["action"]["kind"] != "discrete":
        raise ValueError(
            f"DQN got the {spec['action']['kind']} actions of {spec['env_id']}, expected discrete ones: "
            "type --data.init_args.env_id CartPole-v1, or choose an algorithm for continuous actions"
        )
    at_least_0: Range = (lambda value: value >= 0.0, "at least 0")
    above_0: Range = (lambda value: value > 0.0, "above 0")
    at_least_1: Range = (lambda value: value >= 1, "at least 1")
    share: Range = (lambda value: 0.0 <= value <= 1.0, "in [0, 1]")
    ranges: dict[str, Range] = {
        "learning_rate": above_0,
        "final_learning_rate": (at_least_0[0], "at least 0, or null"),
        "learning_rate_schedule": (
            lambda value: value in get_args(Schedule),
            f"out of {', '.join(get_args(Schedule))}, or null",
        ),
        "learning_rate_warmup": (lambda value: 0.0 <= value < 1.0, "in [0, 1)"),
        "num_atoms": at_least_1,
        "noisy_std": above_0,
        "accumulate_grad_batches": at_least_1,
        "tau": (lambda value: 0.0 < value <= 1.0, "in (0, 1]"),
        "target_update_interval": at_least_1,
        "target_hard_update_interval": (at_least_1[0], "at least 1, or null"),
        "exploration_initial_eps": share,
        "exploration_final_eps": share,
        "exploration_fraction": share,
        "exploration_care_scale": share,
        "bc_coef": at_least_0,
        "bc_final_coef": at_least_0,
        "bc_fraction": share,
        "max_grad_norm": (above_0[0], "above 0, or null"),
    }
    for name, (is_inside, expected) in ranges.items():
        value = settings[name]
        if value is not None and not is_inside(value):
            raise ValueError(f"got {name} = {value}, expected a value {expected}: type --model.init_args.{name} VALUE")
    _check_schedule(settings)
    _check_atoms(settings)
    _check_noise(settings)


def _check_schedule(settings: Mapping[str, Any]) -> None:
    """A final learning rate that a constant one overrides, or a schedule that leads nowhere."""
    schedule, final = settings["learning_rate_schedule"], settings["final_learning_rate"]
    if schedule == "constant" and final is not None:
        raise ValueError(
            f"got final_learning_rate = {final} with learning_rate_schedule = constant, which never gets there: type "
            "--model.init_args.learning_rate_schedule linear, or --model.init_args.final_learning_rate null"
        )
    if schedule in ("linear", "cosine") and final is None:
        raise ValueError(
            f"got learning_rate_schedule = {schedule} without a final_learning_rate, expected where it leads: type "
            "--model.init_args.final_learning_rate 0.0"
        )


def _check_atoms(settings: Mapping[str, Any]) -> None:
    """A distribution needs a support; a value has none."""
    num_atoms, v_min, v_max = (settings[name] for name in ("num_atoms", "v_min", "v_max"))
    got = f"got num_atoms = {num_atoms} with v_min = {v_min} and v_max = {v_max}"
    if num_atoms == 1:
        if v_min is not None or v_max is not None:
            raise ValueError(f"{got}, but one value has no support: type --model.init_args.num_atoms 51, or leave both")
        return
    if v_min is None or v_max is None or not v_min < v_max:
        raise ValueError(
            f"{got}, expected a support, v_min < v_max, that holds all returns: type --model.init_args.v_min LOW "
            "--model.init_args.v_max HIGH"
        )
    if settings["loss"] != "huber":
        raise ValueError(
            f"got loss = {settings['loss']} with num_atoms = {num_atoms}, whose loss is the cross-entropy: leave loss "
            "out, or type --model.init_args.num_atoms 1"
        )


def _check_noise(settings: Mapping[str, Any]) -> None:
    """Two explorations at once."""
    first, last = settings["exploration_initial_eps"], settings["exploration_final_eps"]
    if settings["noisy"] and max(first, last) > 0.0:
        warnings.warn(
            f"noisy layers explore, and ε from {first} to {last} does too: where ε draws an action, it wins; for the "
            "noise alone type --model.init_args.exploration_initial_eps 0 --model.init_args.exploration_final_eps 0",
            stacklevel=4,
        )


def check_support(v_min: float, v_max: float, reward_bounds: Sequence[float] | None, gamma: float) -> None:
    """Whether the atoms reach as far as the values can.

    Args:
        v_min: the first atom.
        v_max: the last.
        reward_bounds: lowest and highest reward of a step; None where nobody knows them, which is said.
        gamma: discount of a step.

    Raises:
        ValueError: where the support is narrower, with the numbers to type.
    """
    if reward_bounds is None:
        rank_zero_warn(
            f"the support of the atoms, {v_min:g} to {v_max:g}, could not be checked: nobody knows the bounds of the "
            "rewards, and a return beyond the support would be learned as its end; type --data.init_args.reward_bounds "
            "'[LOW, HIGH]' with those of one step"
        )
        return
    reward_low, reward_high = reward_bounds
    low, high = discounted_value_bounds(reward_low, reward_high, gamma)
    slack = 1e-5 * (high - low)
    if v_min > low + slack or v_max < high - slack:
        raise ValueError(
            f"got atoms from v_min = {v_min:g} to v_max = {v_max:g}, but with rewards from {reward_low:g} to "
            f"{reward_high:g} and gamma = {gamma:g} values reach from {low:.6g} to {high:.6g}, expected a support "
            f"that holds them: type --model.init_args.v_min {min(v_min, low):.6g} --model.init_args.v_max "
            f"{max(v_max, high):.6g}"
        )


def check_accumulation(updates_per_iteration: int, accumulate_grad_batches: int) -> None:
    """Whether the mini-batches of an iteration can be grouped.

    Raises:
        ValueError: where some are left over.
    """
    if updates_per_iteration % accumulate_grad_batches:
        rounded = -(-updates_per_iteration // accumulate_grad_batches) * accumulate_grad_batches
        raise ValueError(
            f"got accumulate_grad_batches = {accumulate_grad_batches} with updates_per_iteration = "
            f"{updates_per_iteration} mini-batches, expected one that divides them: type "
            f"--data.init_args.updates_per_iteration {rounded}"
        )


def check_warmup(learning_rate_warmup: float, learning_starts: int, total_env_steps: int) -> None:
    """Say where the first update comes when the warm-up of the learning rate is over."""
    if 0.0 < learning_rate_warmup * total_env_steps <= learning_starts:
        rank_zero_warn(
            f"learning_rate_warmup = {learning_rate_warmup} ends after {learning_rate_warmup * total_env_steps:g} "
            f"environment steps, before the first update at {learning_starts}: it has no effect; make it longer, or 0"
        )
