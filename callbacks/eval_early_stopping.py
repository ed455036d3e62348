"""Stop when the evaluation says so: solved and held, or no longer improving; an alarm when the return collapses."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.evaluation_safeguard import EvaluationSafeguard
from rlmods.callbacks.evaluations import CollapseDetector, Decision, Evaluation, EvaluationHistory
from rlmods.callbacks.events import append_event
from rlmods.callbacks.safeguard import Mode


class EvalEarlyStopping(EvaluationSafeguard):
    """Stops training when the evaluations show that the task is solved and stays solved, or that nothing improves.

    It also raises an alarm, `return_collapse`, when the return has fallen from the best level that was held, further
    than noise can explain. It watches evaluations only: a training metric is measured on an exploring, changing policy.

    Evaluations that play the same seeds are compared in pairs, episode by episode: `validation_step` then returns a
    dict with `returns` `[E]`. Where it does not, or E has changed, Welch's interval of mean and std is used.

    The defaults of the collapse are fitted to 26 runs of DQN on CartPole, of 49 evaluations each, in
    `benchmarks/results`, many of which jump from 500 to 14 and back. A fall by 80 % of what was learned lasted 1
    evaluation in 16 of them, 2 in 7, 3 in none. A fall by 50 % lasted up to 15: those runs recovered all the same.

    Args:
        threshold: value that solves the task; None never stops for it.
        hold: evaluations in a row whose confidence interval must lie at or above the threshold.
        patience: evaluations without improvement before stopping; None never stops for it.
        min_delta: improvement that counts.
        confidence: of the two-sided intervals over the episodes, in (0, 1).
        monitor: `eval/mean_reward` or `eval/success_rate`.
        collapse_after: evaluations in a row that must be down before the collapse is confirmed.
        collapse_share: of the way from the start to the best, by which the return must have fallen.
        reference: what an untrained policy gets, the start of that way; None takes the first evaluation of the run. A
            run that starts from trained weights needs it.
        name: of the instance, in curves and events.
        mode: `observe` never stops, `act` stops when solved or out of patience, `stop` also after a collapse.

    Raises:
        ValueError: where an argument is outside its range, or `monitor` is no evaluation metric.
        MissingInputError: at an evaluation that did not log what is watched.
    """

    def __init__(
        self,
        *,
        threshold: float | None = None,
        hold: int = 3,
        patience: int | None = None,
        min_delta: float = 0.0,
        confidence: float = 0.95,
        monitor: str = "eval/mean_reward",
        collapse_after: int = 4,
        collapse_share: float = 0.8,
        reference: float | None = None,
        name: str = "eval_early_stopping",
        mode: Mode = "act",
    ) -> None:
        super().__init__(monitor=monitor, name=name, mode=mode)
        if monitor not in ("eval/mean_reward", "eval/success_rate"):
            raise ValueError(
                f"got monitor = {monitor!r}, expected 'eval/mean_reward' or 'eval/success_rate': a training metric is "
                "measured while the policy explores and changes, and says nothing of when to stop"
            )
        self.history = EvaluationHistory(
            threshold=threshold, hold=hold, patience=patience, min_delta=min_delta, confidence=confidence
        )
        self.collapse = CollapseDetector(
            after=collapse_after, share=collapse_share, start=reference, confidence=confidence
        )

    def on_evaluation(self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation) -> None:
        """Hold it against the history."""
        decision = self.history.update(evaluation)
        verdicts = self.collapse.update(evaluation)
        if decision.stop and self.mode == "observe":
            verdicts.append(Verdict(decision.cause, Severity.INFO, decision.reason, self._evidence()))
        self.report(trainer, verdicts)
        if decision.stop and self.mode != "observe":
            self._stop_for(trainer, decision)
        low, high = self.collapse.interval
        self.draw(
            trainer,
            {
                "drop": self.collapse.drop,
                "interval_low": low,
                "interval_high": high,
                "evaluations_in_a_row": float(self.collapse.in_a_row),
            },
        )

    def _stop_for(self, trainer: Trainer, decision: Decision) -> None:
        trainer.should_stop = True
        message = f"EvalEarlyStopping: {decision.reason}"
        rank_zero_info(message)
        append_event(trainer, "stop", message, {"safeguard": self.name, **self._evidence()})

    def _evidence(self) -> dict[str, float]:
        return {"best": self.history.best, "held": float(self.history.held)}

    def rearm(self) -> None:
        """Count anew; the best stays the yardstick."""
        super().rearm()
        self.history.held = 0
        self.collapse.reset()

    def state_dict(self) -> dict[str, Any]:
        """The alarms, the history and the best."""
        return {
            **super().state_dict(),
            "history": self.history.state_dict(),
            "collapse": self.collapse.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with them."""
        super().load_state_dict(state_dict)
        self.history.load_state_dict(state_dict["history"])
        self.collapse.load_state_dict(state_dict["collapse"])
