"""Whether a run has begun, and what is left of one that has not."""

import shutil
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_only


class Beginning(Callback):
    """Whether the work has begun: an error before that is the user's to correct, and leaves nothing behind.

    Attributes:
        begun: whether the first epoch, evaluation or prediction has started.
        new_folder: of the run, where there was none before.
    """

    def __init__(self) -> None:
        self.begun = False
        self.new_folder: Path | None = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training begins."""
        self.begun = True

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation begins."""
        self.begun = True

    on_test_start = on_validation_start
    on_predict_start = on_validation_start

    @rank_zero_only
    def undo(self) -> None:
        """Remove the folder of a run that did not begin, and what is empty above it."""
        if self.new_folder is None or not self.new_folder.exists() or any(self.new_folder.rglob("*.ckpt")):
            return
        shutil.rmtree(self.new_folder)
        for folder in (self.new_folder.parent, self.new_folder.parent.parent):
            with suppress(OSError):
                folder.rmdir()
