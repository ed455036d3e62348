"""The latents of a world model: what they carry, and what its prior foresees of them."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.latent_detector import LatentDetector, LatentWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.types import OpenLoopModel, SequenceBatch

_SIGNALS = ("kl_dynamics", "prior_entropy", "posterior_entropy")


class LatentGuard(Safeguard):
    """Holds the KL between posterior and prior against what dreams are worth.

    Needs the signals `kl_dynamics` `[K, T, B]`, `prior_entropy` and `posterior_entropy` `[K]`, a module that dreams
    (`rlmods.types.OpenLoopModel`) and batches of `rlmods.types.SequenceBatch`. Once a window the module dreams on from
    the first row of the last mini-batch, with the actions that were taken; the training's random numbers stay as they
    are.

    A KL of nearly nothing is the success of a prior that knows the world, or the trace of one that has seen the answer:
    only a dream tells them apart. The KL of the losses and that of the prior from which dreams are drawn are the same
    number, and what one knows alone does not help the other. All errors are relative to predicting the mean of the
    observations.

    - `dreams_of_another_prior`, a warning: in the rows of the last mini-batch the KL of the dreams' prior is more than
      twice that of the losses, and more than a tenth of the free nats, in three windows. It is said from the first
      update on.
    - `prior_does_not_foresee`, a warning: the KL lies below the free nats, dreams leave more than half of the variance
      unexplained, the posterior less, in three windows.
    - `posterior_collapse`, a warning: the KL lies below a tenth of the free nats, and the posterior too leaves more
      than half unexplained.
    - `kl_far_under_free_nats`, for information: the KL alone.

    Args:
        learning_updates: before anything else is said; no model foresees much at its start.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: at the first signals, where one is missing.
    """

    def __init__(
        self,
        *,
        learning_updates: int = 2_000,
        every_n_iterations: int = 32,
        name: str = "latents",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"LatentGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = LatentDetector(learning_updates=learning_updates)
        self._updates = 0  # of the window that is open
        self._has_measured = False
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, dream."""
        if not (isinstance(outputs, Mapping) and outputs):
            return
        if not self._has_measured:
            require_signals(self, outputs, _SIGNALS)
        self._updates += outputs["kl_dynamics"].shape[0]
        if not (isinstance(pl_module, OpenLoopModel) and isinstance(batch, SequenceBatch)):
            return
        if not is_window(self.every_n_iterations, batch_idx):
            return
        self._has_measured = True
        statistics = self._measure(pl_module, outputs, batch)
        self._updates = 0
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    @torch.no_grad()
    def _measure(self, model: OpenLoopModel, outputs: Mapping[str, Tensor], batch: SequenceBatch) -> Tensor:
        kl = outputs["kl_dynamics"].float()
        devices = [kl.device] if kl.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            check = model.open_loop_check(batch.minibatches()[-1])
        error = check.error.float()
        known = kl[-1].masked_fill(check.kl.isnan(), torch.nan)
        numbers = [self._updates, kl.mean(), (kl < model.free_nats).float().mean(), model.free_nats]
        entropies = [outputs[name].float().mean() for name in _SIGNALS[1:]]
        everything = [*numbers, *entropies, error[0], error[1:].nanmean(), known.nanmean(), check.kl.nanmean()]
        return torch.stack([torch.as_tensor(number, dtype=kl.dtype, device=kl.device) for number in everything])

    def _decide(self, trainer: Trainer, window: LatentWindow) -> None:
        self.report(trainer, self.detector.update(window))
        curves = {name: getattr(window, name) for name in ("pinned", "reconstruction", "open_loop", "kl_of_dreams")}
        self.draw(trainer, {name: value for name, value in curves.items() if not math.isnan(value)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the module cannot dream."""
        if self._updates and not self._has_measured and not isinstance(pl_module, OpenLoopModel):
            message = (
                f"nothing was measured: {type(pl_module).__name__} has no free_nats and open_loop_check(sequences), "
                "expected as in rlmods.types.OpenLoopModel; add them, or leave this callback out"
            )
            self.report(trainer, [Verdict("no_signals", Severity.WARN, message, {})])

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "updates": self._updates,
            "has_measured": self._has_measured,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._updates, self._has_measured = state_dict["updates"], state_dict["has_measured"]


def _of_all_processes(rows: list[list[float]]) -> LatentWindow:
    """Means; NaN of one process does not hide the others."""
    columns = [[value for value in column if not math.isnan(value)] for column in zip(*rows, strict=True)]
    return LatentWindow(*[sum(column) / len(column) if column else math.nan for column in columns])
