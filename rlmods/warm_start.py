"""What a run that continues another one does at its start, so that the start itself is on record."""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.data.experience import ExperienceDataModule


class WarmStart(Callback):
    """Evaluates the policy that a run begins with, and lets the configuration hold for the optimisers.

    A restored optimiser has the settings of the parent (weight decay, betas), and those of the child would be reverted
    in silence; they are written again. The evaluation has the episodes of all others: it is that of the parent's
    checkpoint, or the weights are not those. It is left out where several processes train.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the optimisers' settings; play the episodes and log them at the step where the run begins."""
        if trainer.ckpt_path is not None:
            apply_settings(trainer.optimizers, optimizers_of(pl_module))
        source = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size > 1 or not isinstance(source, ExperienceDataModule):
            return
        if not isinstance(pl_module, Algorithm):
            return
        (evaluator,) = source.val_dataloader()
        pl_module.eval()
        with torch.inference_mode():
            found = pl_module.evaluation_metrics(evaluator.run(pl_module))
        pl_module.train()
        metrics = {f"eval/{name}": float(value) for name, value in found.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=source.env_steps)


def optimizers_of(module: LightningModule) -> list[Optimizer]:
    """Optimisers as they are configured, new ones."""
    made: Any = module.configure_optimizers()
    return made if isinstance(made, list) else [made]


def apply_settings(restored: Sequence[Optimizer], configured: Sequence[Optimizer]) -> None:
    """Give optimisers the settings of others with the same parameter groups; their state stays."""
    for optimizer, other in zip(restored, configured, strict=True):
        for group, settings in zip(optimizer.param_groups, other.param_groups, strict=True):
            group.update({name: value for name, value in settings.items() if name != "params"})


def group_sizes(optimizer_states: Sequence[dict[str, Any]]) -> list[list[int]]:
    """How many parameters each group of each optimiser has."""
    return [[len(group["params"]) for group in state["param_groups"]] for state in optimizer_states]
