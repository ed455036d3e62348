"""What a policy expects of its dreams, against what evaluations get."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.dream_gap_detector import DreamEvaluation, DreamGapDetector
from rlmods.callbacks.evaluation_safeguard import EvaluationSafeguard
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.safeguard import Mode, require_signals


class DreamGapGuard(EvaluationSafeguard):
    """Holds the value and the dreamt returns of each evaluation against the returns that it got.

    Needs the signal `imagined_return` `[K, N]`, and evaluations; uses `eval/q_gap` with `eval/q_gap_sem` (the value at
    the start states minus the discounted return that followed) and `eval/mean_discounted_reward`, where they are
    logged. The evaluation is of the policy as it is now, replayed episodes are not.

    - `value_exceeds_return`, a warning: the gap is certain by three standard errors, above `gap` of the return (of 1
      where that is smaller, as in the authors' scale of returns), and half as large again as at the first evaluation
      after an update, in three evaluations in a row.
    - `dreams_go_on_promising`, a warning: two evaluations in a row have lost more than half of the best return, by
      three standard errors, while the mean dreamt return is within a tenth of what it was then, or above.

    Args:
        gap: share of the discounted return, or of 1, by which the value may exceed it, above 0.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: at the first signals or the first evaluation, where something is missing.
    """

    def __init__(self, *, gap: float = 0.5, name: str = "dream_gap", mode: Mode = "act") -> None:
        super().__init__(monitor="eval/mean_reward", name=name, mode=mode)
        self.detector = DreamGapDetector(gap=gap)
        self._imagined = torch.zeros(2, dtype=torch.float64)  # sum and number since the last evaluation
        self._has_gap: bool | None = None  # whether an evaluation logged it; None before the first

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the dreamt returns."""
        if isinstance(outputs, Mapping) and outputs:
            require_signals(self, outputs, ["imagined_return"])
            mean = outputs["imagined_return"].detach().double().mean()
            self._imagined = self._imagined.to(mean.device) + torch.stack([mean, torch.ones_like(mean)])

    def on_evaluation(self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation) -> None:
        """Compare. The metrics are those of all processes, so all decide alike."""
        total, number = trainer.strategy.all_gather(self._imagined.to(pl_module.device)).reshape(-1, 2).sum(0).tolist()
        self._imagined = torch.zeros_like(self._imagined)
        logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        self._has_gap = bool(self._has_gap) or "eval/q_gap" in logged
        now = DreamEvaluation(
            mean=evaluation.mean,
            sem=evaluation.std / math.sqrt(max(evaluation.episodes - 1, 1)),
            discounted=logged.get("eval/mean_discounted_reward", math.nan),
            gap=logged.get("eval/q_gap", math.nan),
            gap_sem=logged.get("eval/q_gap_sem", math.nan),
            imagined=total / number if number else math.nan,
        )
        self.report(trainer, self.detector.update(now))
        curves = {"imagined": now.imagined, "gap": now.gap}
        self.draw(trainer, {name: value for name, value in curves.items() if not math.isnan(value)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where no evaluation said what the value was."""
        if self._has_gap is False:
            message = (
                f"the gap was not measured: validation_step of {type(pl_module).__name__} logged no eval/q_gap, the "
                "value at the start states minus the discounted return; only what dreams promise was compared"
            )
            self.report(trainer, [Verdict("no_gap_logged", Severity.INFO, message, {})])

    def rearm(self) -> None:
        """Start counting anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector, and the returns since the last evaluation."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "imagined": self._imagined.tolist(),
            "has_gap": self._has_gap,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._imagined = torch.tensor(state_dict["imagined"], dtype=torch.float64)
        self._has_gap = state_dict["has_gap"]
