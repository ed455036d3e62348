"""The vocabulary of training signals: what `training_step` returns, by name, with shape, unit and analytic bounds.

`K` is the number of updates of an iteration, `B` the mini-batch size. Bounds hold for every healthy run, whatever the
task; the tighter ones of a task (those of the rewards and γ) are computed by the safeguards that need them.
A user's own module that returns the same names gets the same curves and the same safeguards.
"""

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor


class Curve(NamedTuple):
    """How a signal becomes a point of a curve: a number for each iteration, of these one for the interval of a log."""

    of_iteration: Callable[[Tensor], Tensor]  # any shape → scalar
    of_interval: Callable[[Tensor], Tensor]  # [iterations] → scalar


def _last(values: Tensor) -> Tensor:
    return values[-1]


_MEAN = Curve(lambda signal: signal.float().mean(), torch.mean)
_ABSOLUTE_MEAN = Curve(lambda signal: signal.float().abs().mean(), torch.mean)
_MAXIMUM = Curve(lambda signal: signal.float().amax(), torch.amax)
_STATE = Curve(lambda signal: signal.float().mean(), _last)


class Signal(NamedTuple):
    """One word of the vocabulary."""

    shape: str
    unit: str
    low: float
    high: float
    curves: Mapping[str, Curve]  # by TensorBoard tag


SIGNALS: dict[str, Signal] = {
    "loss": Signal("[K]", "loss", -math.inf, math.inf, {"train/loss": _MEAN}),
    "q_value": Signal("[K, B]", "return", -math.inf, math.inf, {"train/q_mean": _MEAN, "stability/q_max": _MAXIMUM}),
    "td_target": Signal("[K, B]", "return", -math.inf, math.inf, {"train/td_target": _MEAN}),
    "td_error": Signal("[K, B]", "return", -math.inf, math.inf, {"train/td_error_abs": _ABSOLUTE_MEAN}),
    "grad_norm": Signal("[K]", "L2 norm before the clip", 0.0, math.inf, {"stability/grad_norm": _MEAN}),
    "learning_rate": Signal("[]", "1", 0.0, math.inf, {"train/learning_rate": _STATE}),
    "exploration_rate": Signal("[]", "probability", 0.0, 1.0, {"rollout/exploration_rate": _STATE}),
    "update_steps": Signal("[]", "updates", 0.0, math.inf, {"train/n_updates": _STATE}),
    "td_kl": Signal("[K, B]", "nat, KL(target ‖ prediction)", 0.0, math.inf, {"train/td_kl": _MEAN}),
    "target_age_soft": Signal("[]", "updates", 0.0, math.inf, {"stability/target_age_soft": _MAXIMUM}),
    "target_age_hard": Signal("[]", "updates", 0.0, math.inf, {"stability/target_age_hard": _MAXIMUM}),
    # Of imitation; the weight of its loss follows a schedule.
    "bc_loss": Signal("[K]", "nat, mean over B, 0 for who is no expert", 0.0, math.inf, {"train/bc_loss": _MEAN}),
    "bc_coef": Signal("[]", "loss / nat", 0.0, math.inf, {"train/bc_coef": _STATE}),
    "expert_agreement": Signal(
        "[]", "share of the expert's actions that are greedy", 0.0, 1.0, {"train/expert_agreement": _MEAN}
    ),
    # Of actors and critics of continuous actions; K_a of the K updates also moved the actor.
    "critic_loss": Signal("[K]", "return²", 0.0, math.inf, {"train/critic_loss": _MEAN}),
    "actor_loss": Signal("[K_a]", "-return", -math.inf, math.inf, {"train/actor_loss": _MEAN}),
    "twin_gap": Signal("[K, B]", "return, |Q1 - Q2|", 0.0, math.inf, {"stability/twin_gap": _MEAN}),
    "q_policy": Signal(
        "[K_a, B]",
        "return, Q at the policy's action",
        -math.inf,
        math.inf,
        {"train/q_policy_mean": _MEAN, "stability/q_policy_max": _MAXIMUM},
    ),
    "pre_tanh": Signal("[K_a, B, A]", "1", -math.inf, math.inf, {"stability/pre_tanh_abs": _ABSOLUTE_MEAN}),
    "feature_norm": Signal("[K]", "L2 norm, mean over B", 0.0, math.inf, {"stability/feature_norm": _MEAN}),
    "ent_coef": Signal("[K]", "return", 0.0, math.inf, {"train/ent_coef": _MEAN}),
    "ent_coef_loss": Signal("[K]", "1", -math.inf, math.inf, {"train/ent_coef_loss": _MEAN}),
    "entropy": Signal("[K_a]", "nat", -math.inf, math.inf, {"train/entropy": _MEAN}),
    "exploration_noise": Signal("[]", "half the action range", 0.0, math.inf, {"rollout/exploration_noise": _STATE}),
    # Of policies that learn from their own rollouts; M steps of the rollout.
    "policy_loss": Signal("[K]", "standardised advantage", -math.inf, math.inf, {"train/policy_gradient_loss": _MEAN}),
    "value_loss": Signal("[K]", "return²", 0.0, math.inf, {"train/value_loss": _MEAN}),
    "value": Signal(
        "[1, M]", "return", -math.inf, math.inf, {"train/value_mean": _MEAN, "stability/value_max": _MAXIMUM}
    ),
    "value_target": Signal("[1, M]", "return", -math.inf, math.inf, {"train/value_target": _MEAN}),
    "advantage": Signal("[1, M]", "return", -math.inf, math.inf, {"train/advantage_abs": _ABSOLUTE_MEAN}),
    "explained_variance": Signal("[1]", "1", -math.inf, 1.0, {"train/explained_variance": _MEAN}),
    "approx_kl": Signal(
        "[K]", "nat, before the update", 0.0, math.inf, {"train/approx_kl": _MEAN, "stability/approx_kl_max": _MAXIMUM}
    ),
    "clip_range": Signal("[]", "1", 0.0, math.inf, {"train/clip_range": _STATE}),
    "epochs": Signal("[]", "passes over the rollout, begun", 1.0, math.inf, {"train/epochs": _MEAN}),
    "action_std": Signal("[1, A]", "half the action range", 0.0, math.inf, {"train/std": _MEAN}),
    "action_mean_abs": Signal("[1, A]", "half the action range", 0.0, math.inf, {"stability/action_mean_abs": _MEAN}),
    "action_saturation": Signal("[1, A]", "share of the actions", 0.0, 1.0, {"stability/action_saturation": _MEAN}),
    # Of off-policy learning with importance ratios.
    "importance_ratio": Signal("[K, B]", "1, before any clip", 0.0, math.inf, {"stability/importance_ratio": _MEAN}),
    "behaviour_std": Signal("[]", "action", 0.0, math.inf, {}),
    "target_std": Signal("[]", "action", 0.0, math.inf, {}),
    "seconds": Signal("[K]", "s of wall time, by phase of an update", 0.0, math.inf, {"time/seconds": _MEAN}),
    # Of a world model and of what is dreamt with it; N = T·B dreams of H steps.
    "kl_dynamics": Signal(
        "[K, T, B]", "nat, KL(posterior ‖ prior) before the free nats", 0.0, math.inf, {"train/kl_dynamics": _MEAN}
    ),
    "dynamics_loss": Signal("[K]", "nat", 0.0, math.inf, {"train/dynamics_loss": _MEAN}),
    "representation_loss": Signal("[K]", "nat", 0.0, math.inf, {"train/representation_loss": _MEAN}),
    "vectors_loss": Signal("[K]", "symlog², summed over entries", 0.0, math.inf, {"train/vectors_loss": _MEAN}),
    "images_loss": Signal("[K]", "1, summed over pixels in [0, 1]", 0.0, math.inf, {"train/images_loss": _MEAN}),
    "reward_loss": Signal("[K]", "nat", 0.0, math.inf, {"train/reward_loss": _MEAN}),
    "continuation_loss": Signal("[K]", "nat", 0.0, math.inf, {"train/continuation_loss": _MEAN}),
    "replay_critic_loss": Signal("[K]", "nat", 0.0, math.inf, {"train/replay_critic_loss": _MEAN}),
    "prior_entropy": Signal("[K]", "nat, of all latents", 0.0, math.inf, {"train/prior_entropy": _MEAN}),
    "posterior_entropy": Signal("[K]", "nat, of all latents", 0.0, math.inf, {"train/posterior_entropy": _MEAN}),
    "continuation": Signal("[K, T, B]", "γ·P(goes on), predicted", 0.0, 1.0, {"train/continuation": _MEAN}),
    "discount": Signal("[K, T, B]", "γ·(1 − terminated), its target", 0.0, 1.0, {}),
    "end_bin_mass": Signal(
        "[K]", "probability of the two last bins of the value", 0.0, 1.0, {"stability/end_bin_mass": _MAXIMUM}
    ),
    "value_bin_bound": Signal("[]", "return, the largest that the bins hold", 0.0, math.inf, {}),
    "imagined_return": Signal("[K, N]", "return", -math.inf, math.inf, {"train/imagined_return": _MEAN}),
    "imagined_reward": Signal("[K]", "reward", -math.inf, math.inf, {"train/imagined_reward": _MEAN}),
    "imagined_reward_std": Signal("[K]", "reward, over a dream", 0.0, math.inf, {"train/imagined_reward_std": _MEAN}),
    "imagined_discount": Signal("[K]", "γ·P(goes on)", 0.0, 1.0, {"train/imagined_discount": _MEAN}),
    "return_scale": Signal("[K]", "return", 1.0, math.inf, {"train/return_scale": _MEAN}),
    # Of a linear critic that learns from a teacher: an iteration in single numbers.
    "td_loss": Signal("[]", "return²", 0.0, math.inf, {"train/td_loss": _MEAN}),
    "critic_teacher_error": Signal("[]", "‖w − w_R‖²/D", 0.0, math.inf, {"train/critic_teacher_error": _STATE}),
    "tracking_gap": Signal("[]", "‖θ_π − θ_μ‖²/D_a", 0.0, math.inf, {"train/tracking_gap": _STATE}),
    "w_norm": Signal("[]", "‖w‖", 0.0, math.inf, {"train/w_norm": _STATE}),
    "delta_w_norm": Signal("[]", "‖Δw‖ of an update", 0.0, math.inf, {"stability/delta_w_norm": _MEAN}),
    "mean_rho": Signal("[]", "1", 0.0, math.inf, {"train/mean_rho": _MEAN}),
    "mean_rho2": Signal("[]", "1", 0.0, math.inf, {"train/mean_rho2": _MEAN}),
    "max_rho": Signal("[]", "1", 0.0, math.inf, {"stability/max_rho": _MAXIMUM}),
    "clip_fraction": Signal(
        "[] or [K]", "share of the actions, or of the ratios", 0.0, 1.0, {"train/clip_fraction": _MEAN}
    ),
}

# What an evaluation or a training step logs under these names, whatever the group before the slash.
METRIC_BOUNDS: dict[str, tuple[float, float]] = {
    "mean_reward": (-math.inf, math.inf),
    "mean_discounted_reward": (-math.inf, math.inf),
    "std_reward": (0.0, math.inf),
    "expert_mean_reward": (-math.inf, math.inf),
    "expert_mean_reward_sem": (0.0, math.inf),
    "expert_share": (0.0, 1.0),
    "replay_ratio": (0.0, math.inf),
    "mean_ep_length": (0.0, math.inf),
    "episodes": (1.0, math.inf),
    "q_gap_sem": (0.0, math.inf),
    "success_rate": (0.0, 1.0),
    "success_rate_low": (0.0, 1.0),
    "success_rate_high": (0.0, 1.0),
    "collision_rate": (0.0, 1.0),
    "collision_rate_low": (0.0, 1.0),
    "collision_rate_high": (0.0, 1.0),
    "out_of_bounds_rate": (0.0, 1.0),
    "out_of_bounds_rate_low": (0.0, 1.0),
    "out_of_bounds_rate_high": (0.0, 1.0),
    "exploration_rate": (0.0, 1.0),
    "clip_fraction": (0.0, 1.0),
    "clamped_fraction": (0.0, 1.0),
    "dormant_fraction": (0.0, 1.0),
    "explained_variance": (-math.inf, 1.0),
    "approx_kl": (0.0, math.inf),  # of the estimator mean(ratio - 1 - ln ratio); mean(-ln ratio) has any sign
    "grad_norm": (0.0, math.inf),
    "learning_rate": (0.0, math.inf),
}


@cache
def curves(name: str) -> Mapping[str, Curve]:
    """The curves of a signal by tag, empty for a name outside the vocabulary.

    A signal that exists once for each optimiser carries its name after a slash, and so do its curves:
    `grad_norm/q` is drawn as `stability/grad_norm/q`.
    """
    family, slash, group = name.partition("/")
    if family not in SIGNALS:
        return {}
    return {f"{tag}{slash}{group}": curve for tag, curve in SIGNALS[family].curves.items()}


def stack_signals(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The signals of K updates, each stacked along a new first axis, detached.

    One that not every update has, as those of a delayed actor, is stacked over the updates that have it.
    """
    names = dict.fromkeys(name for update in updates for name in update)
    return {name: torch.stack([update[name].detach() for update in updates if name in update]) for name in names}
