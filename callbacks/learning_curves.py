"""The learning curves of a run as a table: every iteration, every number, at full precision."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.events import run_folder
from rlmods.callbacks.probe import IterationTable, Probe

# The columns of the published runs of linear off-policy TD, in their order; whatever else there is follows.
_FIRST = (
    "td_loss", "critic_teacher_error", "tracking_gap", "mean_rho", "mean_rho2", "p95_rho2", "p99_rho2", "max_rho2",
    "delta_mean", "delta_std", "delta_p95", "delta_p99", "delta_max", "w_norm", "fixed_point_gap", "fixed_point_drift",
    "fixed_point_drift_defined", "stability_proxy", "dist_mmd2", "dist_mean_l2", "dist_action_kl", "dist_action_tv",
)  # fmt: skip


class LearningCurves(Callback):
    """Writes `learning_curves.csv` of the run folder: a row an iteration, on the disk at its end.

    Columns are `iter`, every scalar (`[]`) that `training_step` returns, and what the probes before it in the list of
    callbacks contribute, NaN where they did not fire; of several probes of a class, the first one's. Iterations
    without signals, those of a warm-up, have no row. Numbers read back bit for bit, and a run that was stopped and
    resumed leaves the file of one that was not: rows beyond the checkpoint are cut.

    The numbers are fetched in every iteration: an accelerator is waited for.

    Raises:
        ValueError: where a probe comes after it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._table: IterationTable | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """See that the probes fire before a row is written."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        later = [type(other).__name__ for other in callbacks[callbacks.index(self) :] if isinstance(other, Probe)]
        if later:
            raise ValueError(
                f"got LearningCurves before {', '.join(later)} in the callbacks, expected it after: its rows take in "
                "what the probes have measured; put it last in the list"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run folder, which all processes must do."""
        self._folder, self._table = run_folder(trainer), None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the row."""
        if self._folder is None or not trainer.is_global_zero:
            return
        if self._table is None:
            # A resume goes on here: whatever the file says of this iteration and later ones never happened.
            self._table = IterationTable(self._folder / "learning_curves.csv", batch_idx)
        scalars = _scalars(outputs)
        if not scalars:
            return
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for probe in reversed([callback for callback in callbacks if isinstance(callback, Probe)]):
            scalars |= probe.curve_values(batch_idx)
        names = [name for name in _FIRST if name in scalars]
        names += sorted(scalars.keys() - set(names))
        self._table.append({"iter": batch_idx, **{name: scalars[name] for name in names}})


def _scalars(outputs: Any) -> dict[str, float]:
    """Every `[]` tensor, in one transfer."""
    if not isinstance(outputs, Mapping):
        return {}
    scalars = {name: value for name, value in outputs.items() if isinstance(value, Tensor) and value.ndim == 0}
    if not scalars:
        return {}
    values: list[float] = torch.stack([value.detach().double() for value in scalars.values()]).tolist()
    return dict(zip(scalars, values, strict=True))
