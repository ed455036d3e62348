"""How surprising each loss of a world model is: curves, and words for information."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Verdict
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.callbacks.surprise_detector import SurpriseDetector

WORLD_MODEL_LOSSES = (
    "vectors_loss",
    "images_loss",
    "reward_loss",
    "continuation_loss",
    "dynamics_loss",
    "representation_loss",
)


class SurpriseMonitor(Safeguard):
    """Draws, for each loss of a world model, ln(loss / its moving average), and says where it is far out.

    The average forgets with 0.99 an iteration. `stability/surprise/<loss>` is the surprise smoothed: it jumps up, and
    decays with 0.9. `stability/surprise/<loss>_score` is the surprise in standard deviations above the median of the
    last fifty, corrected for autocorrelation; it says the same for a noisy loss as for a quiet one, which a threshold
    on the surprise itself does not.

    `surprise`, for information, where a score passes the threshold in two of three iterations. It may be told in at
    most `max_duty` of the iterations; what is beyond that is counted. It never acts: a policy that finds something new
    surprises its model, and should.

    Args:
        losses: names of signals; None takes those of a world model that the module gives.
        threshold: standard deviations.
        warmup_iterations: before the first score, at least 3.
        max_duty: share of the iterations so far in which a surprise may be told, in (0, 1).
        every_n_iterations: how many are fetched together.
        name: of the instance, in curves and events.
        mode: none does more than the others.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: at the first signals, where a loss is missing.
    """

    def __init__(
        self,
        losses: Sequence[str] | None = None,
        *,
        threshold: float = 4.0,
        warmup_iterations: int = 20,
        max_duty: float = 0.2,
        every_n_iterations: int = 8,
        name: str = "surprise",
        mode: Mode = "observe",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if isinstance(losses, str):
            raise ValueError(f"SurpriseMonitor got losses = {losses!r}, expected a list of names of signals")
        for argument, value, least in (
            ("warmup_iterations", warmup_iterations, 3),
            ("every_n_iterations", every_n_iterations, 1),
        ):
            if value < least:
                raise ValueError(f"SurpriseMonitor got {argument} = {value}, expected at least {least}")
        self.losses = None if losses is None else list(losses)
        self.every_n_iterations = every_n_iterations
        self.detector = SurpriseDetector(
            self.losses or [], threshold=threshold, minimum=warmup_iterations, max_duty=max_duty
        )
        self._means: list[Tensor] = []  # [L] of each iteration since the last window
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the means; at the end of a window, look at them one by one."""
        if isinstance(outputs, Mapping) and outputs:
            if not self.detector.of:
                self._choose(outputs)
            names = list(self.detector.of)
            if not self._means:
                require_signals(self, outputs, names)
            self._means.append(torch.stack([outputs[name].detach().float().mean() for name in names]))
        if not is_window(self.every_n_iterations, batch_idx):
            return
        width = max(len(self.detector.of), 1)
        # All processes hand in as many numbers, whatever a resume has cut.
        missing = self.every_n_iterations - len(self._means)
        rows = [*self._means, *[torch.full((width,), math.nan)] * missing]
        self._means = []
        statistics = torch.stack([row.to(pl_module.device) for row in rows]).flatten()
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, arrived[0], width)

    def _choose(self, outputs: Mapping[str, Tensor]) -> None:
        names = self.losses or [name for name in WORLD_MODEL_LOSSES if name in outputs]
        if not names:
            require_signals(self, outputs, WORLD_MODEL_LOSSES)
        self.detector.follow(names)

    def _decide(self, trainer: Trainer, rows: list[list[float]], width: int) -> None:
        means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
        names = list(self.detector.of)
        verdicts: list[Verdict] = []
        for start in range(0, len(means), width):
            losses = dict(zip(names, means[start : start + width], strict=False))
            if losses and not all(math.isnan(loss) for loss in losses.values()):
                verdicts = self.detector.update(losses) or verdicts
        self.report(trainer, verdicts)
        curves = {}
        for name, surprise in self.detector.last.items():
            curves[name] = surprise.smoothed
            if surprise.score is not None:
                curves[f"{name}_score"] = surprise.score
        self.draw(trainer, curves)

    def rearm(self) -> None:
        """Start the averages anew."""
        super().rearm()
        self.detector.reset()
        self._means = []

    def state_dict(self) -> dict[str, Any]:
        """The past of each loss, and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "means": [means.tolist() for means in self._means],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._means = [torch.tensor(means) for means in state_dict["means"]]
