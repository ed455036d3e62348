"""Whether a run learns anything at all, judged from its beginning."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.inert_learning import InertiaDetector, InertiaWindow
from rlmods.callbacks.ownership import all_parameters
from rlmods.callbacks.safeguard import (
    Mode,
    Readings,
    StepSafeguard,
    effective_learning_rates,
    is_window,
    makes_update,
    require_signals,
)
from rlmods.functional.norms import global_norm

_SIGNALS = ("loss", "td_loss")


class InertLearningGuard(StepSafeguard):
    """Says when neither the weights nor the loss will have moved by the end of the run (`inert_learning`).

    `LivenessGuard` judges a single update (`inert_update`); this one the run: by the end, at the largest rate so far,
    all updates together move the weights by less than 1 % of their norm, and the loss has not changed by more than 5 %
    and its noise since the beginning. Needs the signal `loss`, or `td_loss`. One update a window is measured of each
    optimiser, and the one that moves its weights most counts. As soon as it has moved them by 1 % the run is alive, and
    nothing is measured any more; so it is with weights that begin at 0.

    A warning comes after ten windows at the earliest; it is sure after `patience` iterations in a row. Silent while a
    learning rate rises, and below 1 % of its peak: that is the end of a schedule. Where the length of the run is
    unknown, only weights that do not move at all are inert.

    Args:
        patience: iterations in a row over which it must be found before it is sure.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first signals, where there is neither loss.
    """

    def __init__(
        self,
        *,
        patience: int = 20,
        every_n_iterations: int = 2,
        name: str = "inert_learning",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        for argument, value in {"patience": patience, "every_n_iterations": every_n_iterations}.items():
            if value < 1:
                raise ValueError(f"InertLearningGuard got {argument} = {value}, expected iterations, at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = InertiaDetector(needed=math.ceil(patience / every_n_iterations))
        self._losses: list[Tensor] = []  # of the iterations of this window
        self._numbers: dict[int, int] = {}  # by the optimiser's id
        self._updates: dict[int, int] = {}  # by the optimiser's number, in this window
        self._is_sampling = False
        self._before: list[Tensor] = []  # the weights before the update that is measured
        self._ratios: dict[int, Tensor] = {}  # by the optimiser's number: ‖Δθ‖/‖θ‖ of one update
        self._readings = Readings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Number the optimisers: their ids are others after a resume."""
        super().on_train_start(trainer, pl_module)
        self._numbers = {id(optimizer): number for number, optimizer in enumerate(trainer.optimizers)}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure in the last iteration of a window."""
        self._is_sampling = is_window(self.every_n_iterations, batch_idx)

    def before_step(self, optimizer: Optimizer) -> None:
        """Count the update; keep the weights, where it is measured."""
        if self.detector.is_alive or not makes_update(optimizer):
            return
        number = self._numbers[id(optimizer)]
        self._updates[number] = self._updates.get(number, 0) + 1
        if self._is_sampling and number not in self._ratios:
            self._before = [parameter.detach().clone() for parameter in all_parameters(optimizer)]

    def after_step(self, optimizer: Optimizer) -> None:
        """Measure by how much the update moved the weights."""
        if not self._before:
            return
        before, self._before = self._before, []
        with torch.no_grad():
            weights = list(all_parameters(optimizer))
            moved = global_norm(list(torch._foreach_sub(weights, before)))
            self._ratios[self._numbers[id(optimizer)]] = moved / global_norm(weights).clamp(min=1e-12)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, judge the run."""
        if self.detector.is_alive:
            return
        if outputs is not None and not (isinstance(outputs, Mapping) and not outputs):
            name = next((name for name in _SIGNALS if isinstance(outputs, Mapping) and name in outputs), _SIGNALS[0])
            require_signals(self, outputs, [name])
            self._losses.append(outputs[name].detach().float().mean())
        if not is_window(self.every_n_iterations, batch_idx):
            return
        statistics = self._statistics(trainer, pl_module)
        context = (max(effective_learning_rates(trainer).values(), default=0.0), self._remaining(trainer, batch_idx))
        arrived = self._readings.exchange(trainer, statistics, context)
        if arrived is not None:
            rows, (learning_rate, remaining) = arrived
            loss, norm, update = (math.fsum(column) / len(rows) for column in zip(*rows, strict=True))
            self.report(trainer, self.detector.update(InertiaWindow(loss, norm, update, learning_rate, remaining)))
            self.draw(trainer, {"relative_update": update, "weight_norm": norm})

    def _statistics(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        nothing = torch.full((), math.nan, device=pl_module.device)
        with torch.no_grad():
            moves = [ratio * self._updates[number] for number, ratio in self._ratios.items()]
            weights = [weight for optimizer in trainer.optimizers for weight in all_parameters(optimizer)]
            losses = [loss.to(nothing) for loss in self._losses]
            loss = torch.stack(losses).mean() if losses else nothing
            move = torch.stack(moves).amax() if moves else nothing
            statistics = torch.stack([loss, global_norm(weights).to(nothing), move.to(nothing)])
        self._losses, self._ratios = [], {}
        self._updates.clear()
        return statistics

    def _remaining(self, trainer: Trainer, batch_idx: int) -> float:
        """Windows to the end of the run, ∞ where nobody knows."""
        iterations = math.inf
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and math.isfinite(trainer.num_training_batches):
            epochs = trainer.max_epochs - trainer.current_epoch
            iterations = epochs * trainer.num_training_batches - (batch_idx + 1)
        if trainer.max_steps > 0:
            iterations = min(iterations, trainer.max_steps - trainer.global_step)
        return max(iterations, 0) / self.every_n_iterations

    def rearm(self) -> None:
        """The run begins anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "losses": [float(loss) for loss in self._losses],
            "updates": dict(self._updates),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]
        self._updates = dict(state_dict["updates"])
