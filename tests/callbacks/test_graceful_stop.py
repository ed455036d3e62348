import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_data, make_trainer

from rlmods.algorithms import DQN
from rlmods.callbacks import GracefulStop
from rlmods.checkpoint_io import AtomicCheckpointIO

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])


class Signal(Callback):
    """Sends its own process a signal during the given iteration, or during the evaluation after it."""

    def __init__(self, number: int, iteration: int, *, evaluating: bool = False) -> None:
        self.number = number
        self.iteration = iteration
        self.evaluating = evaluating

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration and not self.evaluating:
            os.kill(os.getpid(), self.number)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == self.iteration and self.evaluating:
            os.kill(os.getpid(), self.number)


def fit(folder: Path, signalled: Signal) -> GracefulStop:
    """Eight iterations with an evaluation after every fourth."""
    seed_everything(0)
    data = make_data()
    graceful = GracefulStop()
    make_trainer(folder, signalled, graceful).fit(DQN(spec=data.spec), datamodule=data)
    return graceful


def saved_step(folder: Path) -> int:
    checkpoint = folder / "lightning_logs/version_0/checkpoints/interrupted.ckpt"
    return int(AtomicCheckpointIO().load_checkpoint(checkpoint)["global_step"])


@SIGNALS
def test_finishes_the_iteration_saves_and_leaves(number: int, code: int, tmp_path: Path) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, Signal(number, 3))
    assert end.value.code == code
    assert saved_step(tmp_path) == 3
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("evaluating", [True, False])
def test_waits_for_the_evaluation_that_is_due(evaluating: bool, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="143"):
        fit(tmp_path, Signal(signal.SIGTERM, 4, evaluating=evaluating))
    checkpoint = tmp_path / "lightning_logs/version_0/checkpoints/interrupted.ckpt"
    validation = AtomicCheckpointIO().load_checkpoint(checkpoint)["loops"]["fit_loop"]
    assert validation["epoch_loop.val_loop.batch_progress"]["total"]["completed"] == 1
    assert saved_step(tmp_path) == 4


def test_a_run_that_is_over_ends_as_it_would_have(tmp_path: Path) -> None:
    graceful = fit(tmp_path, Signal(signal.SIGTERM, 8))
    assert graceful.received == signal.SIGTERM
    assert not list(tmp_path.rglob("interrupted*"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Twice(Signal):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            fit(tmp_path, Twice(signal.SIGTERM, 3))
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert not list(tmp_path.rglob("*.ckpt"))
