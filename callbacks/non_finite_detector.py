"""What is not finite, what that means, and how much of it a training survives."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict

REWARD, OBSERVATION, BATCH, PARAMETER, LOSS, GRADIENT = CAUSES = (
    "non_finite_reward",
    "non_finite_observation",
    "non_finite_batch",
    "non_finite_parameter",
    "non_finite_loss",
    "non_finite_gradient",
)

_ADVICE = {
    REWARD: "look for a division by zero or a missing value in the environment's reward, or clip it there",
    OBSERVATION: "look for a missing or overflowing value in the environment or its wrappers",
    BATCH: "look where this field is made",
    PARAMETER: "it never becomes finite again: go back to a checkpoint from before",
    LOSS: "look for a logarithm, a division or an overflow between the batch and the loss, or lower the learning rate",
    GRADIENT: "look for a root, a norm or a division at 0 right after that parameter, or for an overflow",
}

# So that what comes once in a while is one alarm, and not one a time.
_QUIET_WINDOWS = 10


class Bad(NamedTuple):
    """A tensor that is not finite."""

    cause: str
    where: str
    value: str  # of its first bad element
    element: list[int]  # its index


class Finding(NamedTuple):
    """The first thing in causal order that is not finite: batch, parameters, signals, gradients."""

    cause: str
    where: str  # an expression or a name
    value: str  # "nan", "inf" or "-inf"; "" where it is not known
    element: list[int]  # index of the first one
    also: list[str]  # what else is not finite
    update: int  # of the iteration, from 0

    @property
    def message(self) -> str:
        """In words."""
        element = str(self.element) if self.element else ""
        also = f" (as are {', '.join(self.also[:4])}{' and others' * (len(self.also) > 4)})" if self.also else ""
        return f"{self.where}{element} is {self.value or 'not finite'}{also}: {_ADVICE[self.cause]}"


class NonFiniteDetector:
    """Counts the updates that were not finite, and gives what was found its severity.

    Args:
        max_skips_in_window: bad updates of one optimiser among its last `window` with which training cannot go on.
        window: updates of one optimiser.
        skips: whether bad updates are left out, for the message.

    Attributes:
        must_stop: whether training cannot go on after the last iteration.
    """

    def __init__(self, *, max_skips_in_window: int, window: int, skips: bool) -> None:
        if not 1 <= max_skips_in_window <= window:
            raise ValueError(
                f"NonFiniteGuard got max_skips_in_window = {max_skips_in_window} and window = {window}, expected "
                "1 ≤ max_skips_in_window ≤ window"
            )
        self.max_skips_in_window = max_skips_in_window
        self.window = window
        self.skips = skips
        self.must_stop = False
        self.updates: list[int] = []  # of each optimiser
        self.bad: list[list[int]] = []  # the numbers of its bad updates in the window
        self.total_bad = 0
        self.lasting: dict[str, list[int]] = {}  # by cause: severity, and updates until it counts as over

    def update(self, flags: Sequence[Sequence[bool]], finding: Finding | None) -> list[Verdict]:
        """Take in an iteration.

        Args:
            flags: of each optimiser its updates of the iteration, True for those that were not finite.
            finding: the cause of the first of them; None where there is none, or a loss scaler deals with it.

        Returns:
            At most one verdict, on this iteration.
        """
        was_there = PARAMETER in self.lasting
        self._count(flags)
        worst = max(map(len, self.bad), default=0)
        over_limit = worst >= self.max_skips_in_window and any(map(any, flags))
        if finding is None and not over_limit:
            return []
        cause = GRADIENT if finding is None else finding.cause
        severity = Severity.FATAL if over_limit or cause == PARAMETER else Severity.ACT
        message = _ADVICE[GRADIENT] if finding is None else finding.message
        if self.skips and any(map(any, flags)):
            message += ". Updates from such values are left out"
        if over_limit:
            message += f"; {worst} of the last {self.window} updates were not finite, training cannot go on like this"
        evidence = {
            **({} if finding is None else finding._asdict()),
            "bad_updates_in_window": worst,
            "max_skips_in_window": self.max_skips_in_window,
            "window": self.window,
            "bad_updates": self.total_bad,
        }
        self.must_stop = over_limit or (cause == PARAMETER and was_there)
        self.lasting[cause] = [int(severity), _QUIET_WINDOWS * self.window]
        return [Verdict(cause, severity, message, evidence)]

    def _count(self, flags: Sequence[Sequence[bool]]) -> None:
        missing = len(flags) - len(self.updates)
        self.updates += [0] * missing
        self.bad += [[] for _ in range(missing)]
        for number, of_optimizer in enumerate(flags):
            first = self.updates[number]
            self.updates[number] += len(of_optimizer)
            new = [first + position for position, is_bad in enumerate(of_optimizer) if is_bad]
            self.total_bad += len(new)
            if new or self.bad[number]:
                oldest = self.updates[number] - self.window
                self.bad[number] = [update for update in self.bad[number] + new if update >= oldest]
        if self.lasting:
            made = max(map(len, flags), default=0)
            self.lasting = {cause: [severity, left - made] for cause, (severity, left) in self.lasting.items()}
            self.lasting = {cause: state for cause, state in self.lasting.items() if state[1] > 0}

    def still_active(self) -> list[Verdict]:
        """The causes that were there not long ago."""
        message = f"seen within the last {_QUIET_WINDOWS * self.window} updates"
        return [Verdict(cause, Severity(severity), message, {}) for cause, (severity, _) in self.lasting.items()]

    def reset(self) -> None:
        """Forget the windows."""
        self.bad, self.lasting = [[] for _ in self.updates], {}

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        bad = [list(updates) for updates in self.bad]
        lasting = {cause: list(state) for cause, state in self.lasting.items()}
        return {"updates": list(self.updates), "bad": bad, "total_bad": self.total_bad, "lasting": lasting}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.updates, self.total_bad = list(state_dict["updates"]), state_dict["total_bad"]
        self.bad = [list(updates) for updates in state_dict["bad"]]
        self.lasting = {cause: list(state) for cause, state in state_dict["lasting"].items()}


def cause_of_field(name: str) -> str:
    """By the name of a batch's field."""
    if "obs" in name.lower():
        return OBSERVATION
    return REWARD if "reward" in name.lower() else BATCH


def bad_tensors(cause: str, named: Iterable[tuple[str, Tensor]]) -> Iterator[Bad]:
    """Those of the tensors that are not finite."""
    for name, tensor in named:
        is_bad = tensor.isfinite().logical_not()
        if is_bad.any():
            index = is_bad.nonzero()[0].tolist()
            yield Bad(cause, name, str(tensor[tuple(index)].item()), index)
