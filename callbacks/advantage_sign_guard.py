"""A critic that stands still while all returns lie on one side of it."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.advantage_sign_detector import AdvantageSignDetector, SignWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals

_SIGNALS = ("advantage", "value", "imagined_return", "update_steps")


class AdvantageSignGuard(Safeguard):
    """Watches that advantages have both signs, where the critic does not move either.

    Needs the signals `advantage`, `value` and `imagined_return` `[K, N]`, and `update_steps` `[]`. That all advantages
    are positive is no defect in itself: a policy that gets better is ahead of its critic for most of a training. It is
    one where the critic does not follow.

    - `advantages_on_one_side`, a warning: in all windows of `updates` updates more than 98 % of the advantages had the
      same sign, and the mean value moved by less than a quarter of the mean gap between returns and values.

    Args:
        updates: that the critic is given to follow.
        learning_updates: before which nothing is counted.
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
        updates: int = 1_000,
        learning_updates: int = 2_000,
        every_n_iterations: int = 8,
        name: str = "advantage_sign",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"AdvantageSignGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = AdvantageSignDetector(updates=updates, learning_updates=learning_updates)
        self._checked = False
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, measure."""
        if not (isinstance(outputs, Mapping) and outputs):
            return
        if not self._checked:
            require_signals(self, outputs, _SIGNALS)
            self._checked = True
        if not is_window(self.every_n_iterations, batch_idx):
            return
        advantage = outputs["advantage"].detach()
        means = [outputs[name].float().mean() for name in ("value", "imagined_return")]
        numbers = [outputs["update_steps"], (advantage > 0.0).float().mean(), *means]
        arrived = self._readings.exchange(
            trainer, torch.stack([number.float().to(advantage.device) for number in numbers])
        )
        if arrived is not None:
            rows = arrived[0]
            window = SignWindow(*[sum(column) / len(rows) for column in zip(*rows, strict=True)])
            self.report(trainer, self.detector.update(window))
            self.draw(trainer, {"positive": window.positive, "gap": window.target - window.value})

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        return {**super().state_dict(), "detector": self.detector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
