"""Where a world model expects episodes to end, against where they do."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.continuation_detector import ContinuationDetector, ContinuationWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, clock, is_window, require_signals
from rlmods.callbacks.sequences import require_fields
from rlmods.types import ExperienceSource

_FIELDS = ("is_first", "is_last", "is_terminal")
_SIGNALS = ("continuation", "discount")
_NUMBERS = ContinuationWindow._fields
# The last four are no sums: shortest, longest, and env_steps and episode_length, which no batch knows.
_SUMS = len(_NUMBERS) - 4


class ContinuationGuard(Safeguard):
    """Watches the continue head of a world model, and what it learns from.

    Needs the signals `continuation` and `discount` `[K, T, B]`, and batches of `rlmods.types.SequenceBatch`. It counts
    every batch; the mean over one is noise, because ends are rare.

    Identities, exact in every batch:

    - `bootstraps_through_termination`: the target of a terminal row is 0.
    - `truncation_as_termination`: that of every other row is not.
    - `episode_ends_lost`: an episode begins after the last row of another.

    Of blocks of 256 terminal rows with all others that came with them, or of 262,144 rows of which none is terminal,
    three blocks in a row, as warnings:

    - `continuation_blind`: terminal rows are expected to go on more than nine tenths as much as others, and no less
      with time.
    - `continuation_miscalibrated`: the predicted share that ends is more than three times the true one, or a third, and
      does not come closer.
    - `continuation_above_gamma`: where episodes go on, dreams look more than three times as far as γ.

    And of what was replayed: `ends_not_replayed` and `terminals_stored_as_truncations`, warnings; `no_terminal_seen`,
    for information, because a task may have none.

    Args:
        learning_updates: before anything is said of what the model has learned.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: at the first signals, where something is missing.
    """

    def __init__(
        self,
        *,
        learning_updates: int = 2_000,
        every_n_iterations: int = 8,
        name: str = "continuation",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"ContinuationGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = ContinuationDetector(learning_updates=learning_updates)
        self._counts: Tensor | None = None  # of the window that is open
        self._checked = False
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count this batch; at the end of a window, decide."""
        if isinstance(outputs, Mapping) and outputs:
            if not self._checked:
                require_signals(self, outputs, _SIGNALS)
                require_fields(self, batch, _FIELDS)
                self._checked = True
            counts = count_batch(*(outputs[name] for name in _SIGNALS), *(getattr(batch, name) for name in _FIELDS))
            self._counts = counts if self._counts is None else _together(self._counts.to(counts), counts)
        if not is_window(self.every_n_iterations, batch_idx):
            return
        counts = _nothing() if self._counts is None else self._counts
        self._counts = None
        clocks = torch.tensor([float(clock(trainer)), _episode_length(trainer)])
        statistics = torch.cat([counts.to(pl_module.device), clocks.to(pl_module.device)])
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _decide(self, trainer: Trainer, window: ContinuationWindow) -> None:
        if window.updates == 0.0:
            return  # a warm-up
        self.report(trainer, self.detector.update(window))
        curves = {}
        if window.terminal:
            curves["at_ends"] = window.predicted_terminal / window.terminal
        if window.running:
            curves["elsewhere"] = window.predicted_running / window.running
        self.draw(trainer, {**curves, "terminal_rows": window.terminal})

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()
        self._counts = None

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "counts": None if self._counts is None else self._counts.tolist(),
            "checked": self._checked,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        counts = state_dict["counts"]
        self._counts = None if counts is None else torch.tensor(counts)
        self._checked = state_dict["checked"]


@torch.no_grad()
def count_batch(predicted: Tensor, target: Tensor, is_first: Tensor, is_last: Tensor, is_terminal: Tensor) -> Tensor:
    """The numbers of `ContinuationWindow` but for the last two, of one iteration.

    Args:
        predicted: `[K, T, B]`, γ·P(goes on).
        target: `[K, T, B]`.
        is_first: `[K, T, B]` bool.
        is_last: `[K, T, B]` bool.
        is_terminal: `[K, T, B]` bool.
    """
    predicted, target = predicted.detach().float(), target.detach().float()
    running = ~is_terminal
    row = torch.arange(is_first.shape[1], device=is_first.device).view(1, -1, 1)
    # The row in which the episode of each row began; below 0 where that lies before the sequence.
    began = torch.where(is_first, row, -(is_first.shape[1] + 1)).cummax(1).values
    length = row - began + 1.0
    is_cut = is_last & running & (began >= 0)
    counts = [
        running.sum(),
        (predicted * running).sum(),
        (target * running).sum(),
        is_terminal.sum(),
        (predicted * is_terminal).sum(),
        (is_terminal & (target > 0.0)).sum(),
        (running & (target <= 0.0)).sum() * (target > 0.0).any(),  # with a discount of 0 all targets are
        is_last.sum(),
        (is_first[:, 1:] & ~is_last[:, :-1]).sum(),
        is_cut.sum(),
        length.where(is_cut, torch.inf).amin(),
        length.where(is_cut, -torch.inf).amax(),
    ]
    updates = predicted.new_tensor(predicted.shape[0])
    return torch.stack([updates, *(count.to(predicted) for count in counts)])


def _nothing() -> Tensor:
    return torch.tensor([0.0] * _SUMS + [math.inf, -math.inf])


def _together(first: Tensor, second: Tensor) -> Tensor:
    extremes = torch.stack([torch.minimum(first[-2], second[-2]), torch.maximum(first[-1], second[-1])])
    return torch.cat([first[:_SUMS] + second[:_SUMS], extremes])


def _episode_length(trainer: Trainer) -> float:
    source = trainer.datamodule  # type: ignore[attr-defined]
    return (
        source.rollout_statistics().get("rollout/ep_len_mean", math.nan)
        if isinstance(source, ExperienceSource)
        else math.nan
    )


def _of_all_processes(rows: list[list[float]]) -> ContinuationWindow:
    columns = list(zip(*rows, strict=True))
    sums = [sum(column) for column in columns[:_SUMS]]
    lengths = [length for length in columns[-1] if not math.isnan(length)]
    mean = sum(lengths) / len(lengths) if lengths else math.nan
    return ContinuationWindow(*[*sums, min(columns[-4]), max(columns[-3]), columns[-2][0], mean])
