"""When actor and critic may learn beside a world model: how many of its updates go to one of theirs. Pure."""

import math
from typing import Any

from rlmods.callbacks.surprise_detector import LossSurprise

# 1/7 seven times is a little less than 1.
_SLACK = 1e-9


class UpdateRatio:
    """Lets one update in so many pass.

    The ratio may be any number from 1 and may change: each update brings 1/ratio, and where that makes a whole, one
    passes. What is counted is updates, whatever the length of their sequences.

    Attributes:
        updates: that were asked about.
        passed: of them.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.passed = 0
        self._credit = 0.0

    def passes(self, ratio: float) -> bool:
        """Whether this update is one."""
        self.updates += 1
        self._credit += 1.0 / ratio
        if self._credit < 1.0 - _SLACK:
            return False
        self._credit -= 1.0
        self.passed += 1
        return True

    def leave_out(self) -> None:
        """Count an update that passes in no case."""
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """The counts, and what is owed."""
        return {"updates": self.updates, "passed": self.passed, "credit": self._credit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.updates, self.passed = state_dict["updates"], state_dict["passed"]
        self._credit = state_dict["credit"]


class FocusClock:
    """Decides, update by update, whether the world model has the stage to itself.

    Args:
        threshold: smoothed surprise above which a focus begins.
        duration: updates of a focus.
        cooldown: updates after it in which none begins.

    Attributes:
        focuses: that have begun.
    """

    def __init__(self, *, threshold: float, duration: int, cooldown: int) -> None:
        self.threshold = threshold
        self.duration = duration
        self.cooldown = cooldown
        self.focuses = 0
        self._focused = 0  # updates that are left
        self._cooling = 0

    @property
    def is_focused(self) -> bool:
        """Whether the next update belongs to a focus."""
        return self._focused > 0

    def count(self) -> None:
        """An update has been made."""
        if self._focused:
            self._focused -= 1
            if not self._focused:
                self._cooling = self.cooldown
        elif self._cooling:
            self._cooling -= 1

    def update(self, smoothed_surprise: float) -> bool:
        """Take in an iteration; whether a focus begins."""
        if self._focused or self._cooling or not smoothed_surprise > self.threshold:
            return False
        self._focused = self.duration
        self.focuses += 1
        return True

    def state_dict(self) -> dict[str, Any]:
        """The clocks."""
        return {"focuses": self.focuses, "focused": self._focused, "cooling": self._cooling}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.focuses, self._focused = state_dict["focuses"], state_dict["focused"]
        self._cooling = state_dict["cooling"]


class ModelSurprise(LossSurprise):
    """Of a world model's whole loss; only `smoothed` is of interest here, which nothing scores."""

    def __init__(self) -> None:
        super().__init__(threshold=math.inf, minimum=3)

    def learning_rate_factor(self, strength: float) -> float:
        """1 / (1 + strength · smoothed surprise), at most 1."""
        return 1.0 / (1.0 + strength * max(self.smoothed, 0.0))
