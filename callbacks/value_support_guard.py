"""The bins of a distributional value against the values that the task can have."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.callbacks.seen_values import SeenValues
from rlmods.callbacks.sequences import require_fields
from rlmods.callbacks.value_support_detector import SupportDetector, SupportWindow

_SIGNALS = ("value", "imagined_return", "end_bin_mass", "value_bin_bound")


class ValueSupportGuard(Safeguard):
    """Watches that the bins of the value can hold it, as those of DreamerV3's critic.

    Needs the signals `value` and `imagined_return` `[K, N]`, `end_bin_mass` `[K]` and `value_bin_bound` `[]`, and
    batches with `reward` and `discount`.

    - `support_too_small`, a bound, told at the first update: the rewards and discounts seen so far allow values beyond
      the last bin.
    - `targets_beyond_support`, a bound: some targets lie beyond the last bin, in three windows.
    - `value_at_support_end`, a warning: more than `end_mass` of the probability in the two end bins, or a mean of
      |value| or |target| beyond `near` of the bound, in three windows. A critic begins with mass in all bins: the first
      waits until that has gone.

    Args:
        end_mass: probability of the two end bins that is told.
        near: share of the bound that the mean value or target may reach.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: at the first batch or the first signals, where something is missing.
    """

    def __init__(
        self,
        *,
        end_mass: float = 0.01,
        near: float = 0.9,
        every_n_iterations: int = 8,
        name: str = "value_support",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"ValueSupportGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = SupportDetector(end_mass=end_mass, near=near)
        self._seen = SeenValues()
        self._unseen: list[tuple[Tensor, Tensor]] = []  # rewards and discounts since the last window
        self._checked = False
        self._readings = Readings()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what this batch says of the values."""
        require_fields(self, batch, ["reward", "discount"])
        if batch.reward.numel():
            # Copies: a view would keep the whole batch.
            self._unseen.append((batch.reward.flatten().clone(), batch.discount.flatten().clone()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, and after the first update, measure."""
        if not (isinstance(outputs, Mapping) and outputs):
            return
        is_first = not self._checked
        if is_first:
            require_signals(self, outputs, _SIGNALS)
            self._checked = True
        if not (is_first or is_window(self.every_n_iterations, batch_idx)):
            return
        with torch.no_grad():
            self._see()
            statistics = self._measure(outputs)
        arrived = self._readings.exchange(trainer, statistics.to(pl_module.device))
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _see(self) -> None:
        if self._unseen:
            reward, discount = (torch.cat(column) for column in zip(*self._unseen, strict=True))
            self._seen.see(reward, discount)
        self._unseen = []

    def _measure(self, outputs: Mapping[str, Tensor]) -> Tensor:
        value, target = outputs["value"].float(), outputs["imagined_return"].float()
        bound = outputs["value_bin_bound"].to(value)
        interval = self._seen.interval
        nothing = torch.full_like(bound, math.nan)
        low, high = (nothing, nothing) if interval is None else (end.to(bound) for end in interval)
        means = [outputs["end_bin_mass"].float().mean(), value.abs().mean(), target.abs().mean()]
        return torch.stack([bound, low, high, *means, (target.abs() > bound).float().mean()])

    def _decide(self, trainer: Trainer, window: SupportWindow) -> None:
        self.report(trainer, self.detector.update(window))
        self.draw(trainer, {"end_mass": window.end_mass, "of_bound": window.value / window.bound})

    def rearm(self) -> None:
        """Start the windows anew; what the transitions allow stays."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The values that are possible, and the detector."""
        self._see()
        return {
            **super().state_dict(),
            "seen": self._seen.state_dict(),
            "detector": self.detector.state_dict(),
            "checked": self._checked,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self._seen.load_state_dict(state_dict["seen"])
        self.detector.load_state_dict(state_dict["detector"])
        self._checked = state_dict["checked"]


def _of_all_processes(rows: list[list[float]]) -> SupportWindow:
    """Means; the widest interval, because each process has seen transitions of its own."""
    windows = [SupportWindow(*row) for row in rows]
    means = SupportWindow(*(sum(column) / len(windows) for column in zip(*windows, strict=True)))
    return means._replace(low=min(window.low for window in windows), high=max(window.high for window in windows))
