"""The vocabulary of training signals: what `training_step` returns, by name, with shape, unit and analytic bounds.

`K` is the number of updates of an iteration, `B` the mini-batch size. Bounds hold for every healthy run, whatever the
task; the tighter ones of a task (those of the rewards and γ) are computed by the safeguards that need them.
A user's own module that returns the same names gets the same curves and the same safeguards.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


def _mean(signal: Tensor) -> Tensor:
    return signal.float().mean()


def _absolute_mean(signal: Tensor) -> Tensor:
    return signal.float().abs().mean()


def _maximum(signal: Tensor) -> Tensor:
    return signal.float().amax()


class Signal(NamedTuple):
    """One word of the vocabulary."""

    shape: str
    unit: str
    low: float
    high: float
    curves: Mapping[str, Callable[[Tensor], Tensor]]  # TensorBoard tag → reduction of one iteration


SIGNALS: dict[str, Signal] = {
    "loss": Signal("[K]", "loss", -math.inf, math.inf, {"train/loss": _mean}),
    "q_value": Signal("[K, B]", "return", -math.inf, math.inf, {"train/q_mean": _mean, "stability/q_max": _maximum}),
    "td_target": Signal("[K, B]", "return", -math.inf, math.inf, {"train/td_target": _mean}),
    "td_error": Signal("[K, B]", "return", -math.inf, math.inf, {"train/td_error_abs": _absolute_mean}),
    "importance_weight": Signal("[K, B]", "1", 0.0, 1.0, {}),
    "grad_norm": Signal("[K]", "L2 norm before the clip", 0.0, math.inf, {"stability/grad_norm": _mean}),
    "learning_rate": Signal("[]", "1", 0.0, math.inf, {"train/learning_rate": _mean}),
    "exploration_rate": Signal("[]", "probability", 0.0, 1.0, {"rollout/exploration_rate": _mean}),
    "update_steps": Signal("[]", "updates", 0.0, math.inf, {"train/n_updates": _maximum}),
}


def curves(name: str) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """Tags and reductions of a signal, empty for a name outside the vocabulary.

    A signal that exists once for each optimiser carries its name after a slash, and so do its curves:
    `grad_norm/q` is drawn as `stability/grad_norm/q`.
    """
    family, slash, group = name.partition("/")
    if family not in SIGNALS:
        return {}
    return {f"{tag}{slash}{group}": reduction for tag, reduction in SIGNALS[family].curves.items()}


def stack_signals(updates: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The signals of K updates, each stacked along a new first axis, detached."""
    return {name: torch.stack([update[name].detach() for update in updates]) for name in updates[0]}
