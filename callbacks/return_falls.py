"""Whether an evaluation lies below an earlier level by more than noise and the run's own swings: pure."""

from typing import Any

from rlmods.callbacks.evaluations import Evaluation, Interval, difference_interval


class ReturnFalls:
    """Remembers where the run began, what it held, and how far it had swung by then.

    A level is what was held: the lower one of two evaluations in a row. An evaluation lies below it where all of these
    are true:

    - the Student interval of the difference lies below 0;
    - the fall exceeds `share` of what was learned, from the first evaluation to the level, and there is something
      learned: that difference's interval lies above 0;
    - the fall exceeds the largest one between any two evaluations up to the level: a run that swings is no other run
      when it swings again.

    Args:
        share: of what was learned, in (0, 1].
        confidence: of the two-sided intervals, in (0, 1).
    """

    def __init__(self, *, share: float, confidence: float) -> None:
        if not 0.0 < share <= 1.0:
            raise ValueError(f"got share = {share}, expected a share of what was learned in (0, 1], for example 0.2")
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"got confidence = {confidence}, expected a probability in (0, 1), for example 0.99")
        self.share = share
        self.confidence = confidence
        self.first: Evaluation | None = None
        self.recent: list[Evaluation] = []  # the last two
        self.highest = 0.0
        self.swing = 0.0  # the largest fall so far

    def add(self, evaluation: Evaluation) -> None:
        """Remember an evaluation."""
        if self.first is None:
            self.first, self.highest = evaluation, evaluation.mean
        self.highest = max(self.highest, evaluation.mean)
        self.swing = max(self.swing, self.highest - evaluation.mean)
        self.recent = [*self.recent, evaluation][-2:]

    def held(self) -> Evaluation | None:
        """The lower one of the last two evaluations; None before there are two."""
        return min(self.recent, key=lambda evaluation: evaluation.mean) if len(self.recent) == 2 else None

    def fall(self, evaluation: Evaluation, level: Evaluation, swing: float) -> Interval | None:
        """The interval of the difference to a level, where the evaluation has fallen below it; else None.

        Args:
            evaluation: the present one.
            level: that it is held against.
            swing: the largest fall when the level was held.
        """
        if self.first is None:
            return None
        interval = difference_interval(evaluation, level, self.confidence)
        has_learned = difference_interval(level, self.first, self.confidence).low > 0.0
        enough = max(self.share * (level.mean - self.first.mean), swing)
        return interval if has_learned and interval.high < 0.0 and level.mean - evaluation.mean > enough else None

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {
            "first": None if self.first is None else to_fields(self.first),
            "recent": [to_fields(evaluation) for evaluation in self.recent],
            "highest": self.highest,
            "swing": self.swing,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.first = None if state["first"] is None else Evaluation(*state["first"])
        self.recent = [Evaluation(*fields) for fields in state["recent"]]
        self.highest, self.swing = state["highest"], state["swing"]


def to_fields(evaluation: Evaluation) -> list[Any]:
    """For a checkpoint, which holds no tuples of ours."""
    return [*evaluation[:3], list(evaluation.returns), evaluation.env_steps]
