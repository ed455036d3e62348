"""The grammar of all detectors: statistic → robust score → confirmation → verdict. Pure: numbers in, verdicts out.

A detector is a class with `update(...) -> list[Verdict]`, called once per window, and `state_dict`/`load_state_dict` of
numbers, strings and lists. It knows nothing of Lightning and nothing of what is done about a verdict.
"""

import itertools
import math
import statistics
from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple


class Severity(IntEnum):
    """How much authority a verdict has.

    `ACT` is for identities, bounds and confirmed change-points alone: it may change the training.
    """

    INFO = 0  # worth knowing, nothing is wrong
    WARN = 1  # something is probably wrong; nobody may act on it
    ACT = 2  # something is wrong
    FATAL = 3  # the training cannot go on


class Verdict(NamedTuple):
    """What a detector found in a window."""

    cause: str  # one word_like_this, the same for the same defect in every run
    severity: Severity
    message: str  # in words: what was found, why it is wrong, what to do
    evidence: Mapping[str, Any]  # JSON: values, thresholds, window


def verdict_fields(verdict: Verdict) -> list[Any]:
    """Plain values, for a state; `verdict_of` makes the verdict of them again."""
    return [verdict.cause, int(verdict.severity), verdict.message, dict(verdict.evidence)]


def verdict_of(fields: list[Any]) -> Verdict:
    """What `verdict_fields` was given."""
    cause, severity, message, evidence = fields
    return Verdict(cause, Severity(severity), message, evidence)


class Confirmation:
    """Turns on when `needed` of the last `window` values were positive, off when none was: hysteresis.

    Args:
        needed: from 1 to `window`.
        window: values that are remembered.
    """

    def __init__(self, needed: int, window: int) -> None:
        if not 1 <= needed <= window:
            raise ValueError(f"got needed = {needed} of window = {window}, expected 1 ≤ needed ≤ window")
        self.needed = needed
        self.window = window
        self.recent: list[bool] = []
        self.is_on = False

    def update(self, positive: bool) -> bool:
        """Take in a value; whether it is on now."""
        self.recent = [*self.recent, positive][-self.window :]
        if sum(self.recent) >= self.needed:
            self.is_on = True
        elif not any(self.recent):
            self.is_on = False
        return self.is_on

    def reset(self) -> None:
        """Forget everything."""
        self.recent, self.is_on = [], False

    def state_dict(self) -> dict[str, Any]:
        """What is remembered."""
        return {"recent": list(self.recent), "is_on": self.is_on}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.recent, self.is_on = list(state_dict["recent"]), state_dict["is_on"]


class RobustScore:
    """How many standard deviations a value lies from the median of the values before it.

    The spread is 1.4826 · MAD, at least `floor`, inflated by √((1 + φ)/(1 − φ)), φ the lag-1 autocorrelation of the
    window: on a slowly wandering series an uncorrected score fires a hundred times too often.

    Args:
        window: values that the median is taken over.
        minimum: values before a score is given.
        floor: the smallest spread, in the unit of the values, above 0.
    """

    def __init__(self, *, window: int = 50, minimum: int = 8, floor: float = 0.05) -> None:
        if not 3 <= minimum <= window:
            raise ValueError(f"got minimum = {minimum} of window = {window}, expected 3 ≤ minimum ≤ window")
        if floor <= 0.0:
            raise ValueError(f"got floor = {floor}, expected a spread above 0")
        self.window = window
        self.minimum = minimum
        self.floor = floor
        self.values: list[float] = []

    def score(self, value: float) -> float | None:
        """The score of a value against those before it; None while there are too few."""
        if len(self.values) < self.minimum:
            return None
        center = statistics.median(self.values)
        spread = 1.4826 * statistics.median(abs(past - center) for past in self.values)
        phi = autocorrelation(self.values)
        return (value - center) / (max(spread, self.floor) * math.sqrt((1.0 + phi) / (1.0 - phi)))

    def add(self, value: float) -> None:
        """Remember a value. Leave out those that were found to be outliers: the baseline must not follow them."""
        self.values = [*self.values, value][-self.window :]

    def reset(self) -> None:
        """Forget everything."""
        self.values = []

    def state_dict(self) -> dict[str, Any]:
        """The window."""
        return {"values": list(self.values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the window."""
        self.values = list(state_dict["values"])


def autocorrelation(values: list[float]) -> float:
    """The lag-1 autocorrelation, limited to [0, 0.95]; 0 where the values do not vary."""
    mean = statistics.fmean(values)
    variance = sum((value - mean) ** 2 for value in values)
    if variance == 0.0:
        return 0.0
    covariance = sum((a - mean) * (b - mean) for a, b in itertools.pairwise(values))
    return min(max(covariance / variance, 0.0), 0.95)
