"""What a rule of health says of a run."""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

Level = Literal["fail", "warn"]


class Check(NamedTuple):
    """The answer of one rule.

    Attributes:
        passed: None where the rule does not apply; that never changes the status.
        severity: what the status becomes where it did not pass.
        reason: in words, with the numbers.
        observed: JSON: values and limits.
        advice: what to do where it did not pass.
    """

    name: str
    passed: bool | None
    severity: Level
    reason: str
    observed: Mapping[str, Any]
    advice: str = ""

    @property
    def failed(self) -> bool:
        """Whether it counts."""
        return self.passed is False

    @property
    def word(self) -> str:
        """For a table."""
        if self.passed is None:
            return "not applicable"
        return "PASS" if self.passed else self.severity.upper()


def not_applicable(
    name: str, reason: str, severity: Level = "fail", observed: Mapping[str, Any] | None = None
) -> Check:
    """The rule has nothing to look at."""
    return Check(name, None, severity, reason, observed or {})
