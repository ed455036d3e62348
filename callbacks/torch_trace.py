"""A trace of some iterations: which operation took how long, and what for."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.profiler import profile


class TorchTrace(Callback):
    """Writes `traces/env_steps=N.json` into the run folder, for `chrome://tracing` or https://ui.perfetto.dev.

    Lightning's own `PyTorchProfiler` traces the first iterations of a run, in which an algorithm with a replay makes no
    update yet. This one waits for updates, and traces whole iterations, collecting included. Tracing slows these
    iterations down.

    Args:
        after_updates: updates before the trace begins, so that nothing is measured that happens once.
        iterations: in the trace.
        record_shapes: of the operands of each operation.

    Raises:
        ValueError: where there would be nothing to trace.
    """

    def __init__(self, *, after_updates: int = 10, iterations: int = 3, record_shapes: bool = False) -> None:
        if iterations < 1 or after_updates < 0:
            raise ValueError(
                f"got iterations = {iterations} and after_updates = {after_updates}, expected at least 1 and 0"
            )
        self.after_updates = after_updates
        self.iterations = iterations
        self.record_shapes = record_shapes
        self._profile: profile | None = None
        self._left = iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Begin when enough updates were made; write when enough iterations have gone by."""
        if self._profile is not None:
            self._left -= 1
            if self._left == 0:
                self._write(trainer, self._profile)
        elif self._left > 0 and getattr(pl_module, "update_steps", self.after_updates) >= self.after_updates:
            self._profile = profile(record_shapes=self.record_shapes)
            self._profile.start()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what there is of a run that ends before."""
        if self._profile is not None:
            self._write(trainer, self._profile)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop tracing, and write nothing."""
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, trainer: Trainer, trace: profile) -> None:
        trace.stop()
        self._profile, self._left = None, 0
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "traces"
        folder.mkdir(parents=True, exist_ok=True)
        env_steps = getattr(trainer.datamodule, "env_steps", trainer.global_step)  # type: ignore[attr-defined]
        path = folder / f"env_steps={env_steps}.json"
        trace.export_chrome_trace(str(path))
        rank_zero_info(f"the trace is in {path}: open it in chrome://tracing or https://ui.perfetto.dev")
