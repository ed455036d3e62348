"""SIGTERM and Ctrl-C end a run at the end of its iteration, with a checkpoint."""

import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from rlmods.callbacks.events import append_event

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class GracefulStop(Checkpoint):
    """On SIGTERM or Ctrl-C: finish the iteration, save a checkpoint, leave with 143 or 130.

    A second signal of the same kind ends the process at once. Where several processes train, a signal to any one of
    them stops all. Lightning alone saves nothing, and leaves with 0 or 1.

    It is a `Checkpoint`, so that Lightning runs it after the other callbacks, whose state it saves: list it after the
    `ModelCheckpoint`, and do list one, because Lightning adds its own only where there is no other `Checkpoint`.

    Where the run ends by itself before that, it ends as it would have, and `received` tells.

    Attributes:
        received: number of the signal that came, 0 where none did.

    Raises:
        SystemExit: with 128 plus the number of the signal, once the checkpoint is written.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install the handlers, after Lightning's own."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                self._previous[number] = signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        signal.signal(number, signal.SIG_DFL)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Leave, unless an evaluation is due: a checkpoint written now would skip it."""
        if not _evaluation_is_due(trainer, batch_idx):
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave after an evaluation."""
        if not (trainer.sanity_checking or trainer.should_stop):
            self._leave_if_asked(trainer)

    def _leave_if_asked(self, trainer: Trainer) -> None:
        number = _maximum_over_processes(self.received, trainer)
        if number == 0:
            return
        # One name, so that a run that is stopped often keeps one such checkpoint and its replay, not all of them.
        path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "interrupted.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        name = signal.Signals(number).name
        append_event(trainer, "stop", f"{name} received, saved {path.name}", {"signal": number})
        rank_zero_info(f"{name} received: saved {path}; to go on, repeat the command with --ckpt_path last")
        self._restore()
        raise SystemExit(128 + number)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the handlers back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the handlers back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()


def _evaluation_is_due(trainer: Trainer, batch_idx: int) -> bool:
    every = trainer.val_check_batch
    return trainer.should_stop or (isinstance(every, int) and (batch_idx + 1) % every == 0)


def _maximum_over_processes(number: int, trainer: Trainer) -> int:
    if trainer.world_size == 1:
        return number
    maximum = torch.tensor(number, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(maximum, torch.distributed.ReduceOp.MAX)
    return int(maximum)
