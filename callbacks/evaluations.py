"""What a sequence of evaluations says: solved, no longer improving, collapsed. Pure: numbers in, decisions out."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict

# Evaluations in a row before a fall is spoken of at all.
WARN_AFTER = 2
# The best level must lie above the starting point by this share of it, or there is nothing to lose yet.
_LEARNED = 0.2


class Evaluation(NamedTuple):
    """What one evaluation measured."""

    mean: float
    std: float  # over the episodes, population
    episodes: int
    returns: Sequence[float] = ()  # of each episode, where they are known
    env_steps: int = 0  # when it was


class Decision(NamedTuple):
    """Whether to stop, and why."""

    stop: bool
    cause: str  # "solved" or "no_improvement"; empty where it goes on
    reason: str


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class EvaluationHistory:
    """Takes evaluations one after the other, and says when to stop.

    The arguments, and what they raise, are those of `EvalEarlyStopping`.
    """

    def __init__(
        self, *, threshold: float | None, hold: int, patience: int | None, min_delta: float, confidence: float
    ) -> None:
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

    def update(self, evaluation: Evaluation) -> Decision:
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
            return Decision(
                True,
                "solved",
                f"solved and held: the {self.confidence:.0%} interval of the mean return lay above {self.threshold} in "
                f"{self.held} evaluations in a row, last {evaluation.mean:.1f}, from {low:.1f}",
            )
        if self.patience is not None and self.without_improvement >= self.patience:
            return Decision(
                True,
                "no_improvement",
                f"no improvement over {self.best:.1f} in {self.without_improvement} evaluations, "
                f"last {evaluation.mean:.1f}",
            )
        return Decision(False, "", "")

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {"best": self.best, "held": self.held, "without_improvement": self.without_improvement}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.best = state_dict["best"]
        self.held = state_dict["held"]
        self.without_improvement = state_dict["without_improvement"]


class CollapseDetector:
    """Finds a fall from the best level that neither the noise of the episodes nor wild learning explains.

    The best is a level that was held: the lower one of two evaluations in a row, the highest of these so far, since a
    single evaluation of 500 between two of 100 is luck. An evaluation is down when the interval of its difference to
    the best lies wholly below 0 and the fall exceeds `share` of the way from the start to the best.

    Args:
        after: evaluations in a row that must be down before the severity is `ACT`; after 2 it is `WARN`.
        share: of the way from the start to the best, in (0, 1].
        start: return of an untrained policy; None takes the first evaluation.
        confidence: of the two-sided interval of the difference.

    Attributes:
        drop: from the best to the last evaluation, in units of the return.
        interval: of the difference now − best.
    """

    def __init__(self, *, after: int, share: float, start: float | None, confidence: float) -> None:
        if after < 1:
            raise ValueError(f"got collapse_after = {after}, expected a number of evaluations from 1 on")
        if not 0.0 < share <= 1.0:
            raise ValueError(f"got collapse_share = {share}, expected a share in (0, 1], for example 0.8")
        self.after = after
        self.share = share
        self.confidence = confidence
        self.start = start
        self.best: Evaluation | None = None
        self.previous: Evaluation | None = None
        self.in_a_row = 0
        self.drop = 0.0
        self.interval = Interval(0.0, 0.0)

    def update(self, evaluation: Evaluation) -> list[Verdict]:
        """Take in an evaluation; one that is not finite is passed over."""
        if not math.isfinite(evaluation.mean):
            return []
        if self.start is None:
            self.start = evaluation.mean
        best = self.best
        if self.previous is not None:
            held = min(self.previous, evaluation, key=lambda candidate: candidate.mean)
            if best is None or held.mean > best.mean:
                self.best = held
        self.previous = evaluation
        if best is None:
            return []
        self.drop = best.mean - evaluation.mean
        self.interval = difference_interval(evaluation, best, self.confidence)
        gain = best.mean - self.start
        has_learned = gain > _LEARNED * abs(self.start)
        is_down = has_learned and self.interval.high < 0.0 and self.drop > self.share * gain
        self.in_a_row = self.in_a_row + 1 if is_down else 0
        if self.in_a_row < min(WARN_AFTER, self.after):
            return []
        return [self._verdict(evaluation, best, self.start)]

    def _verdict(self, evaluation: Evaluation, best: Evaluation, start: float) -> Verdict:
        confirmed = self.in_a_row >= self.after
        advice = (
            "the policy has collapsed: go back to a checkpoint from before, and lower the learning rate"
            if confirmed
            else f"wild learning recovers from this; if it lasts for {self.after} evaluations, the policy has collapsed"
        )
        return Verdict(
            "return_collapse",
            Severity.ACT if confirmed else Severity.WARN,
            f"the evaluation return has fallen from {best.mean:.1f} (held at {best.env_steps} environment steps) to "
            f"{evaluation.mean:.1f}, in {self.in_a_row} evaluations in a row by more than {self.share:.0%} of what was "
            f"learned since {start:.1f}; the {self.confidence:.0%} interval of the difference is "
            f"[{self.interval.low:.1f}, {self.interval.high:.1f}], it should reach 0: {advice}",
            {
                "best": best.mean,
                "best_env_steps": best.env_steps,
                "now": evaluation.mean,
                "start": start,
                "interval": list(self.interval),
                "paired": _is_paired(evaluation, best),
                "evaluations_in_a_row": self.in_a_row,
                "collapse_after": self.after,
                "collapse_share": self.share,
            },
        )

    def reset(self) -> None:
        """Start counting anew; the best stays the yardstick."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "start": self.start,
            "best": _to_list(self.best),
            "previous": _to_list(self.previous),
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.start = state_dict["start"]
        self.best = _from_list(state_dict["best"])
        self.previous = _from_list(state_dict["previous"])
        self.in_a_row = state_dict["in_a_row"]


def interval_half_width(evaluation: Evaluation, confidence: float) -> float:
    """Half the two-sided Student interval of the mean; infinite for one episode, which shows no spread."""
    freedom = evaluation.episodes - 1
    if freedom < 1:
        return math.inf
    return _student(freedom, confidence) * evaluation.std / math.sqrt(freedom)


def difference_interval(now: Evaluation, then: Evaluation, confidence: float) -> Interval:
    """The two-sided interval of the mean difference now − then.

    Paired where both know their E returns: episode i of both started from the same seed. Welch's otherwise, which
    allows for two different spreads.
    """
    difference = now.mean - then.mean
    half_width = math.inf
    if _is_paired(now, then):
        differences = [a - b for a, b in zip(now.returns, then.returns, strict=True)]
        variance = sum((value - difference) ** 2 for value in differences) / len(differences)
        half_width = interval_half_width(Evaluation(difference, math.sqrt(variance), len(differences)), confidence)
    elif now.episodes > 1 and then.episodes > 1:
        squares = [evaluation.std**2 / (evaluation.episodes - 1) for evaluation in (now, then)]
        weights = sum(
            square**2 / (evaluation.episodes - 1) for square, evaluation in zip(squares, (now, then), strict=True)
        )
        total = sum(squares)
        half_width = _student(total**2 / weights, confidence) * math.sqrt(total) if weights > 0.0 else 0.0
    return Interval(difference - half_width, difference + half_width)


def _is_paired(now: Evaluation, then: Evaluation) -> bool:
    return 0 < len(now.returns) == len(then.returns)


def _student(freedom: float, confidence: float) -> float:
    # Late: scipy takes as long to import as the rest of this package.
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1.0 + confidence) / 2.0))


def _to_list(evaluation: Evaluation | None) -> list[Any] | None:
    return None if evaluation is None else [*evaluation[:3], list(evaluation.returns), evaluation.env_steps]


def _from_list(fields: list[Any] | None) -> Evaluation | None:
    return None if fields is None else Evaluation(*fields)
