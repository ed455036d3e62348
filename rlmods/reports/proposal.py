"""What a rule for the next run answers with."""

from typing import Any, Literal, NamedTuple

Start = Literal["best", "ancestor", "fresh", "last"]


class Proposal(NamedTuple):
    """One change, and how to tell whether it was right.

    Attributes:
        knob: setting by dotted name; empty where the settings stay as they are.
        effective: value that the knob had in the run, as it was in effect.
        to: value to give it.
        start: from the best healthy checkpoint of the chain, from that of the ancestors alone, from the run's own last
            one, or from nothing.
        expected: signature of success.
        stop: when to give the hypothesis up.
    """

    knob: str
    effective: Any
    to: Any
    start: Start
    expected: str
    stop: str


class Finding(NamedTuple):
    """The answer of one rule.

    Attributes:
        reason: in words.
        evidence: sentences with numbers.
        proposal: None for an observation that only guards against wrong conclusions.
        probe: a command that gives the evidence that is missing; then nothing is concluded.
    """

    rule: str
    reason: str
    evidence: tuple[str, ...]
    proposal: Proposal | None = None
    probe: str = ""
