"""Whether a critic stands still while all returns lie on one side of it: pure."""

from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict

# Share of the advantages on one side, and of the gap that a critic must close in the time it is given.
_ONE_SIDE, _CLOSED = 0.98, 0.25


class SignWindow(NamedTuple):
    """What one window measured."""

    updates: float  # so far, at its end
    positive: float  # share of the advantages above 0
    value: float  # mean
    target: float  # mean return that the advantages are made of


class AdvantageSignDetector:
    """See `AdvantageSignGuard`.

    Args:
        updates: that the critic is given to follow.
        learning_updates: before which nothing is counted.
    """

    def __init__(self, *, updates: int, learning_updates: int) -> None:
        if updates < 1 or learning_updates < 0:
            raise ValueError(
                f"AdvantageSignGuard got updates = {updates} and learning_updates = {learning_updates}, expected at "
                "least 1 and 0"
            )
        self.updates = updates
        self.learning_updates = learning_updates
        self.windows: list[SignWindow] = []  # in a row with advantages on one side, the oldest first

    def reset(self) -> None:
        """Start anew."""
        self.windows = []

    def update(self, window: SignWindow) -> list[Verdict]:
        """Take in a window."""
        is_one_sided = window.positive > _ONE_SIDE or window.positive < 1.0 - _ONE_SIDE
        if window.updates < self.learning_updates or not is_one_sided:
            self.reset()
            return []
        if self.windows and (self.windows[-1].positive > 0.5) != (window.positive > 0.5):
            self.windows = []
        self.windows.append(window)
        # The oldest that lies the whole time back, and all after it.
        while len(self.windows) > 1 and self.windows[1].updates <= window.updates - self.updates:
            self.windows.pop(0)
        first = self.windows[0]
        if window.updates - first.updates < self.updates:
            return []
        gap = abs(sum(each.target - each.value for each in self.windows) / len(self.windows))
        moved = abs(window.value - first.value)
        if not moved < _CLOSED * gap:
            return []
        side = "above" if window.positive > 0.5 else "below"
        message = (
            f"{max(window.positive, 1.0 - window.positive):.0%} of the returns lie {side} the critic, by {gap:.4g} in "
            f"the mean, and in {window.updates - first.updates:.0f} updates it moved by {moved:.4g}: every action "
            "looks good (or bad), and the actor learns nothing but to be sure of what it does. Does the critic stand "
            "at the end of its bins, or learn too slowly?"
        )
        evidence: dict[str, Any] = {
            "positive": window.positive,
            "one_side": _ONE_SIDE,
            "gap": gap,
            "moved": moved,
            "share_to_close": _CLOSED,
            "value": window.value,
            "target": window.target,
            "updates": self.updates,
        }
        return [Verdict("advantages_on_one_side", Severity.WARN, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """The windows."""
        return {"windows": [list(window) for window in self.windows]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.windows = [SignWindow(*fields) for fields in state_dict["windows"]]
