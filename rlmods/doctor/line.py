"""What a rule of the doctor says of a configuration."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

Status = Literal["PASS", "WARN", "FAIL"]


class Line(NamedTuple):
    """The answer of one rule.

    Attributes:
        arithmetic: the numbers and what follows from them.
        reason: what is wrong with that; of a PASS, what else there is to know.
        advice: what to type.
    """

    status: Status
    name: str
    arithmetic: str
    reason: str = ""
    advice: str = ""

    @property
    def text(self) -> str:
        """For a terminal."""
        sentence = ". ".join(part for part in (self.arithmetic, self.reason) if part)
        return f"{self.status} {self.name}: {sentence}" + (f"; {self.advice}" if self.advice else "")


class Complaint(NamedTuple):
    """What is wrong, and what to type."""

    status: Literal["WARN", "FAIL"]
    reason: str
    advice: str = ""


def line_of(name: str, arithmetic: str, *complaints: Complaint | None, note: str = "") -> Line:
    """A line with the gravest complaint, the first among equals; PASS where there is none, with a note."""
    found = sorted((c for c in complaints if c is not None), key=lambda complaint: complaint.status != "FAIL")
    if not found:
        return Line("PASS", name, arithmetic, note)
    return Line(found[0].status, name, arithmetic, found[0].reason, found[0].advice)


def overall(lines: Sequence[Line]) -> Status:
    """The gravest status."""
    found = {line.status for line in lines}
    return "FAIL" if "FAIL" in found else "WARN" if "WARN" in found else "PASS"


def warn(condition: bool, reason: str, advice: str = "") -> Complaint | None:
    """A warning, where the condition holds."""
    return Complaint("WARN", reason, advice) if condition else None


def fail(condition: bool, reason: str, advice: str = "") -> Complaint | None:
    """A failure, where the condition holds."""
    return Complaint("FAIL", reason, advice) if condition else None


def model_option(name: str, value: object) -> str:
    """A setting of the model, as it is typed."""
    return f"--model.init_args.{name} {value}"


def of_model(name: str, value: object) -> str:
    """The advice to type it."""
    return f"type {model_option(name, value)}"


def of_data(name: str, value: object) -> str:
    """The advice to type a setting of the data module."""
    return f"type --data.init_args.{name} {value}"


def size(num_bytes: float) -> str:
    """Bytes in words."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
