"""Stop when the evaluation says so: solved and held, or no longer improving."""

import math
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info

from rlmods.callbacks.events import append_event


class Evaluation(NamedTuple):
    """What one evaluation measured."""

    mean: float
    std: float  # over the episodes, population
    episodes: int


class Verdict(NamedTuple):
    """Whether to stop, and why."""

    stop: bool
    reason: str


class EvaluationHistory:
    """The pure detector: takes evaluations one after the other, and says when to stop.

    The arguments, and what they raise, are those of `EvalEarlyStopping`.
    """

    def __init__(
        self, *, threshold: float | None, hold: int, patience: int | None, min_delta: float, confidence: float
    ) -> None:
        if threshold is None and patience is None:
            raise ValueError("got neither threshold nor patience, expected at least one of them")
        if hold < 1 or (patience is not None and patience < 1):
            raise ValueError(f"got hold = {hold} and patience = {patience}, expected numbers of evaluations from 1 on")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"got confidence = {confidence}, expected a probability in (0, 1), for example 0.95")
        self.threshold = threshold
        self.hold = hold
        self.patience = patience
        self.min_delta = min_delta
        self.confidence = confidence
        self.best = -math.inf
        self.held = 0
        self.without_improvement = 0

    def update(self, evaluation: Evaluation) -> Verdict:
        """Take in an evaluation."""
        low = evaluation.mean - interval_half_width(evaluation, self.confidence)
        solved = self.threshold is not None and low >= self.threshold
        self.held = self.held + 1 if solved else 0
        if evaluation.mean > self.best + self.min_delta:
            self.best = evaluation.mean
            self.without_improvement = 0
        else:
            self.without_improvement += 1
        if self.held >= self.hold:
            return Verdict(
                True,
                f"solved and held: the {self.confidence:.0%} interval of the mean return lay above {self.threshold} in "
                f"{self.held} evaluations in a row, last {evaluation.mean:.1f}, from {low:.1f}",
            )
        if self.patience is not None and self.without_improvement >= self.patience:
            return Verdict(
                True,
                f"no improvement over {self.best:.1f} in {self.without_improvement} evaluations, "
                f"last {evaluation.mean:.1f}",
            )
        return Verdict(False, "")

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"best": self.best, "held": self.held, "without_improvement": self.without_improvement}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.best = state_dict["best"]
        self.held = state_dict["held"]
        self.without_improvement = state_dict["without_improvement"]


def interval_half_width(evaluation: Evaluation, confidence: float) -> float:
    """Half the two-sided Student interval of the mean; infinite for one episode, which shows no spread."""
    # Late: scipy takes as long to import as the rest of this package.
    from scipy.special import stdtrit

    freedom = evaluation.episodes - 1
    if freedom < 1:
        return math.inf
    return float(stdtrit(freedom, (1.0 + confidence) / 2.0)) * evaluation.std / math.sqrt(freedom)


class EvalEarlyStopping(Callback):
    """Stops training when the evaluations show that the task is solved and stays solved, or that nothing improves.

    It watches evaluations only: a training metric is measured on an exploring, changing policy.

    Args:
        threshold: value that solves the task; None never stops for it.
        hold: evaluations in a row whose confidence interval must lie at or above the threshold.
        patience: evaluations without improvement before stopping; None never stops for it.
        min_delta: improvement that counts.
        confidence: of the two-sided interval of the mean over the episodes, in (0, 1).
        monitor: `eval/mean_reward` or `eval/success_rate`.

    Raises:
        ValueError: where an argument is outside its range, or `monitor` is no evaluation metric.
        RuntimeError: at an evaluation that did not log what is watched.
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
    ) -> None:
        if monitor not in ("eval/mean_reward", "eval/success_rate"):
            raise ValueError(
                f"got monitor = {monitor!r}, expected 'eval/mean_reward' or 'eval/success_rate': a training metric is "
                "measured while the policy explores and changes, and says nothing of when to stop"
            )
        self.monitor = monitor
        self.history = EvaluationHistory(
            threshold=threshold, hold=hold, patience=patience, min_delta=min_delta, confidence=confidence
        )

    @property
    def state_key(self) -> str:
        """Several of these may watch one run."""
        return self._generate_state_key(monitor=self.monitor, threshold=self.history.threshold)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the evaluation. Its numbers are those of all processes, so all decide alike."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        verdict = self.history.update(self._evaluation(trainer))
        if verdict.stop:
            trainer.should_stop = True
            message = f"EvalEarlyStopping: {verdict.reason}"
            rank_zero_info(message)
            append_event(trainer, "stop", message, {"best": self.history.best, "held": float(self.history.held)})

    def _evaluation(self, trainer: Trainer) -> Evaluation:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        needed = [self.monitor, "eval/episodes", "eval/std_reward"]
        missing = [name for name in needed if name not in metrics]
        if missing:
            raise RuntimeError(
                f"EvalEarlyStopping needs {missing}, but validation_step logged only {sorted(metrics)}: log them there"
            )
        mean = metrics[self.monitor]
        is_rate = self.monitor == "eval/success_rate"
        std = math.sqrt(mean * (1.0 - mean)) if is_rate else metrics["eval/std_reward"]
        return Evaluation(mean=mean, std=std, episodes=int(metrics["eval/episodes"]))

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return self.history.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the history."""
        self.history.load_state_dict(state_dict)
