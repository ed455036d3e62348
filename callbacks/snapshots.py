"""Copies of what a training consists of, and the way back to one."""

import copy
import random
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.global_rng import GlobalRNG, set_rng_state


class Snapshot(TypedDict):
    """A state of the training, on the CPU. A plain dict of tensors, numbers and lists, to load with `weights_only`."""

    clock: int  # environment steps, else `global_step`
    module: dict[str, Any]
    optimizers: list[dict[str, Any]]
    schedulers: list[dict[str, Any]]
    rng: list[dict[str, Any]]  # one a process
    learning_rate_scale: float  # of the rollbacks before it


def take_snapshot(
    trainer: Trainer, pl_module: LightningModule, *, clock: int, learning_rate_scale: float
) -> Snapshot | None:
    """Copy the state; None where a number of the module is not finite. Every process must call it."""
    module = _copied(dict(pl_module.state_dict()))
    rng = GlobalRNG().state_dict()["processes"]
    is_finite = all(bool(value.isfinite().all()) for value in module.values() if isinstance(value, Tensor))
    if not trainer.strategy.reduce_boolean_decision(is_finite):
        return None
    return Snapshot(
        clock=clock,
        module=module,
        optimizers=[_copied(optimizer.state_dict()) for optimizer in trainer.optimizers],
        schedulers=[_copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
        rng=rng,
        learning_rate_scale=learning_rate_scale,
    )


def restore_snapshot(trainer: Trainer, pl_module: LightningModule, snapshot: Snapshot) -> None:
    """Put weights, optimisers, schedules and random states back to what they were."""
    pl_module.load_state_dict(_copied(snapshot["module"]), strict=pl_module.strict_loading)
    pl_module.zero_grad()
    for optimizer, state in zip(trainer.optimizers, snapshot["optimizers"], strict=True):
        optimizer.load_state_dict(_copied(state))  # it keeps the very tensors it gets
    for config, state in zip(trainer.lr_scheduler_configs, snapshot["schedulers"], strict=True):
        config.scheduler.load_state_dict(_copied(state))
    set_rng_state(snapshot["rng"][trainer.global_rank])


def fold_rng(number: int) -> None:
    """Go over to other random numbers, which depend on the present random state and on a number."""
    seed = (int(torch.randint(2**31, ())) + number) % 2**32
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)


def scale_learning_rates(trainer: Trainer, factor: float) -> None:
    """Multiply the learning rates, and what the schedulers compute them from."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            _scale_items(group, ("lr", "initial_lr", "max_lr", "min_lr"), factor)
    for config in trainer.lr_scheduler_configs:
        _scale_scheduler(config.scheduler, factor)


def _scale_scheduler(scheduler: Any, factor: float) -> None:
    _scale_items(vars(scheduler), ("base_lrs", "max_lrs", "_last_lr"), factor)
    for part in getattr(scheduler, "_schedulers", ()):  # chained and sequential ones
        _scale_scheduler(part, factor)


def _scale_items(items: dict[str, Any], names: tuple[str, ...], factor: float) -> None:
    for name in names:
        if name in items:
            value = items[name]
            items[name] = [one * factor for one in value] if isinstance(value, list) else value * factor


def _copied(value: Any) -> Any:
    """A deep copy on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)
