"""What the hyper-parameters of PPO must satisfy, alone and with those of the rollouts."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

from rlmods.algorithms.optimizers import MuonParameters, OptimizerName
from rlmods.functional.schedules import Schedule
from rlmods.networks.action_heads import ActionDistribution
from rlmods.networks.actor_critic import Activation

Range: TypeAlias = tuple[Callable[[Any], bool], str]


def check_ppo_settings(settings: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters outside their range.

    Raises:
        ValueError: with what was got, what is expected and what to type.
    """
    at_least_0: Range = (lambda value: 0.0 <= value < math.inf, "at least 0 and finite")
    above_0: Range = (lambda value: 0.0 < value < math.inf, "above 0 and finite")
    at_least_1: Range = (lambda value: value >= 1, "at least 1")
    share: Range = (lambda value: 0.0 <= value <= 1.0, "in [0, 1]")

    def one_of(literal: Any) -> Range:
        return (lambda value: value in get_args(literal), f"out of {', '.join(get_args(literal))}")

    ranges: dict[str, Range] = {
        "learning_rate": above_0,
        "learning_rate_schedule": one_of(Schedule),
        "n_epochs": at_least_1,
        "batch_size": at_least_1,
        "gae_lambda": share,
        "clip_range": above_0,
        "clip_range_schedule": one_of(Schedule),
        "clip_range_vf": above_0,
        "ent_coef": at_least_0,
        "vf_coef": at_least_0,
        "max_grad_norm": above_0,
        "target_kl": above_0,
        "vtrace_rho_bar": at_least_1,
        "vtrace_c_bar": at_least_1,
        "prio_alpha": at_least_0,
        "prio_beta0": share,
        "bptt_horizon": at_least_1,
        "lstm_hidden_size": at_least_1,
        "activation": one_of(Activation),
        "action_distribution": one_of(ActionDistribution),
        "optimizer": one_of(OptimizerName),
        "muon_parameters": one_of(MuonParameters),
        "weight_decay": at_least_0,
    }
    for name, (is_inside, expected) in ranges.items():
        value = settings[name]
        if value is not None and not is_inside(value):
            raise ValueError(f"got {name} = {value}, expected a value {expected}: type --model.init_args.{name} VALUE")
    if (settings["vtrace_rho_bar"] is None) != (settings["vtrace_c_bar"] is None):
        raise ValueError(
            f"got vtrace_rho_bar = {settings['vtrace_rho_bar']} with vtrace_c_bar = {settings['vtrace_c_bar']}, "
            "expected both, or neither for plain GAE: type --model.init_args.vtrace_rho_bar 1.0 "
            "--model.init_args.vtrace_c_bar 1.0"
        )
    if settings["vtrace_rho_bar"] is not None and settings["vtrace_c_bar"] > settings["vtrace_rho_bar"]:
        raise ValueError(
            f"got vtrace_c_bar = {settings['vtrace_c_bar']} above vtrace_rho_bar = {settings['vtrace_rho_bar']}, "
            f"expected at most that: type --model.init_args.vtrace_c_bar {settings['vtrace_rho_bar']}"
        )
    if min(settings["hidden_sizes"], default=1) < 1:
        raise ValueError(
            f"got hidden_sizes = {list(settings['hidden_sizes'])}, expected widths of at least 1: type "
            "--model.init_args.hidden_sizes '[64, 64]'"
        )
    _check_optimizer(settings)


def _check_optimizer(settings: Mapping[str, Any]) -> None:
    """Refuse what the chosen optimiser would not read."""
    optimizer = settings["optimizer"]
    if optimizer == "adam" and settings["weight_decay"] > 0.0:
        raise ValueError(
            f"got weight_decay = {settings['weight_decay']} with optimizer adam, which has none: type "
            "--model.init_args.optimizer adamw"
        )
    if optimizer != "muon" and settings["muon_parameters"] != "hidden_matrices":
        raise ValueError(
            f"got muon_parameters = {settings['muon_parameters']} with optimizer {optimizer}, which does not read it: "
            "type --model.init_args.optimizer muon"
        )


def check_batch(num_envs: int, n_steps: int, batch_size: int, bptt_horizon: int) -> int:
    """Whether a rollout can be divided into mini-batches of whole segments; their number.

    Raises:
        ValueError: where it cannot, with the factors and the mend.
    """
    rollout = num_envs * n_steps
    factors = f"num_envs {num_envs} x n_steps {n_steps} = {rollout} steps a rollout"
    if batch_size > rollout:
        raise ValueError(
            f"got batch_size = {batch_size} with {factors}, expected a mini-batch within the rollout: type "
            f"--model.init_args.batch_size {rollout}, or more steps with --data.init_args.n_steps"
        )
    if n_steps % bptt_horizon:
        raise ValueError(
            f"got bptt_horizon = {bptt_horizon} with n_steps = {n_steps}, expected one that divides it: type "
            f"--data.init_args.n_steps {-(-n_steps // bptt_horizon) * bptt_horizon}"
        )
    if rollout % batch_size or batch_size % bptt_horizon:
        fitting = [size for size in range(bptt_horizon, rollout + 1, bptt_horizon) if rollout % size == 0]
        nearest = min(fitting, key=lambda size: abs(size - batch_size))
        raise ValueError(
            f"got batch_size = {batch_size} with {factors} in segments of bptt_horizon = {bptt_horizon}, expected "
            f"whole segments that divide the rollout: type --model.init_args.batch_size {nearest}"
        )
    return rollout // batch_size
