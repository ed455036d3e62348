"""How far the run of this process is: the overlays ask it whether their onset has come."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlmods.types import ExperienceSource


class Clock(Callback):
    """The part of the budget that is spent, 0 to 1. A fault begins with the first block of updates after its onset."""

    def __init__(self) -> None:
        self.progress = 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A new run."""
        self.progress = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The collection of this iteration is over."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, ExperienceSource):
            self.progress = source.env_steps / source.total_env_steps


CLOCK = Clock()  # environments are made from an id: there is no other way to reach them
