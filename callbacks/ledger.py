"""What keeps a safeguard that acts in bounds: how much it may act, and whether that does any good. Pure."""

import math
import statistics
from typing import Any, NamedTuple


class DutyCycle:
    """Counts the updates of one optimiser, and says which of them are left out.

    Args:
        hold: updates that a pause lasts at least.
        max_duty: share of all updates so far that may be left out.
    """

    def __init__(self, *, hold: int, max_duty: float) -> None:
        self.hold = hold
        self.max_duty = max_duty
        self.updates = 0
        self.left_out = 0
        self.held: int | None = None  # updates left out in the pause under way

    def may_begin(self) -> bool:
        """Whether the duty cycle allows a whole pause."""
        return self.left_out + self.hold <= self.max_duty * (self.updates + self.hold)

    def begin(self) -> None:
        """Leave out the next updates."""
        self.held = 0

    def count(self, is_calm: bool) -> bool:
        """Count an update; whether to leave it out."""
        self.updates += 1
        if self.held is None:
            return False
        if self.held >= self.hold and (is_calm or self.left_out + 1 > self.max_duty * self.updates):
            self.held = None
            return False
        self.held += 1
        self.left_out += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """The counters."""
        return {"updates": self.updates, "left_out": self.left_out, "held": self.held}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.updates, self.left_out, self.held = (state_dict[name] for name in ("updates", "left_out", "held"))


class Outcome(NamedTuple):
    """An action with the mean returns around it."""

    before: float
    after: float


class Ledger:
    """Compares the evaluations before an action with those after it.

    Actions between the same two evaluations are one entry, since they share their evaluations.

    Args:
        evaluations: how many are averaged on each side, at most before and exactly after.
        judge_after: entries, without ties, before the ledger judges.
    """

    def __init__(self, *, evaluations: int = 2, judge_after: int = 6) -> None:
        self.evaluations = evaluations
        self.judge_after = judge_after
        self.recent: list[float] = []
        self.pending: list[tuple[float, list[float]]] = []  # the mean before, the evaluations after
        self.outcomes: list[Outcome] = []
        self._has_acted = False  # since the last evaluation

    def add_action(self) -> None:
        """The safeguard has acted. Before the first evaluation there is nothing to compare with."""
        if self.recent and not self._has_acted:
            self.pending.append((statistics.fmean(self.recent), []))
        self._has_acted = True

    def add_evaluation(self, mean: float) -> list[Outcome]:
        """Take in an evaluation; the outcomes that it completes. One that is not finite is passed over."""
        if not math.isfinite(mean):
            return []
        self._has_acted = False
        self.recent = [*self.recent, mean][-self.evaluations :]
        for _, after in self.pending:
            after.append(mean)
        complete = [
            Outcome(before, statistics.fmean(after)) for before, after in self.pending if len(after) >= self.evaluations
        ]
        self.pending = self.pending[len(complete) :]
        self.outcomes += complete
        return complete

    @property
    def improved(self) -> int:
        """Entries after which the return was higher."""
        return sum(after > before for before, after in self.outcomes)

    @property
    def worsened(self) -> int:
        """Entries after which the return was lower."""
        return sum(after < before for before, after in self.outcomes)

    def in_words(self) -> str:
        """For a person."""
        return f"returns rose after {self.improved} actions and fell after {self.worsened}"

    def is_worse_than_chance(self) -> bool:
        """Whether a fair coin would bring so few improvements in less than one of twenty cases."""
        judged = self.improved + self.worsened
        so_few = sum(math.comb(judged, count) for count in range(self.improved + 1))
        return judged >= self.judge_after and so_few / 2**judged < 0.05

    def state_dict(self) -> dict[str, Any]:
        """All entries."""
        return {
            "recent": list(self.recent),
            "pending": [[before, list(after)] for before, after in self.pending],
            "outcomes": [list(outcome) for outcome in self.outcomes],
            "has_acted": self._has_acted,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.recent = list(state_dict["recent"])
        self.pending = [(before, list(after)) for before, after in state_dict["pending"]]
        self.outcomes = [Outcome(*outcome) for outcome in state_dict["outcomes"]]
        self._has_acted = state_dict["has_acted"]
