"""The surprise of a world model's whole loss, measured once an iteration and the same on all processes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlmods.callbacks.behaviour_schedule import ModelSurprise
from rlmods.callbacks.safeguard import Readings, require_signals
from rlmods.callbacks.surprise_monitor import WORLD_MODEL_LOSSES


class MeasuredSurprise:
    """ln(loss / its moving average), of the sum of a world model's losses.

    Args:
        losses: names of signals; None takes those of a world model that the module gives.

    Attributes:
        of_loss: the average, and `smoothed`, which jumps up and decays.
    """

    def __init__(self, losses: Sequence[str] | None) -> None:
        self.losses = None if losses is None else list(losses)
        self.of_loss = ModelSurprise()
        self._readings = Readings()

    def take(self, callback: Callback, trainer: Trainer, pl_module: LightningModule, outputs: Any) -> bool:
        """Take in an iteration; whether there is a new measurement.

        Raises:
            MissingInputError: where a loss is missing.
        """
        if not isinstance(outputs, Mapping) or not outputs:
            return False
        names = self.losses or [name for name in WORLD_MODEL_LOSSES if name in outputs] or list(WORLD_MODEL_LOSSES)
        require_signals(callback, outputs, names)
        total = torch.stack([outputs[name].detach().float().mean() for name in names]).sum()
        arrived = self._readings.exchange(trainer, total.to(pl_module.device))
        if arrived is None:
            return False
        rows = [row[0] for row in arrived[0]]
        self.of_loss.update(sum(rows) / len(rows))
        return True
