"""Whether an actor's actions stand at their ends, and whether it can still leave them: pure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Share of the actions at their ends from which on a policy counts as saturated.
SATURATED = 0.95


class SaturationWindow(NamedTuple):
    """What one window measured; NaN where it is not known."""

    shares: Sequence[float]  # of the actions with |tanh| > 0.99, by dimension
    actor_gradient: float  # L2 norm in an update of the actor
    critic_gradient: float  # L2 norm of everything else that was updated


class SaturationDetector:
    """See `SaturationGuard` for what each cause means.

    Args:
        vanished: share of its own largest norm, below which the actor's gradient counts as gone.
        windows: in a row, until it is told.
    """

    def __init__(self, *, vanished: float, windows: int) -> None:
        if not 0.0 < vanished < 1.0:
            raise ValueError(f"SaturationGuard got vanished = {vanished}, expected a share in (0, 1), for example 1e-6")
        self.vanished = vanished
        self.windows = windows
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.at_ends = Confirmation(self.windows, self.windows)
        self.dead = Confirmation(self.windows, self.windows)
        self.largest = 0.0  # norm of the actor's gradient so far

    def update(self, window: SaturationWindow) -> list[Verdict]:
        """Take in a window in which the actor moved."""
        gradient = window.actor_gradient
        level = self.vanished * self.largest
        share = sum(window.shares) / len(window.shares) if window.shares else math.nan
        # A critic without gradients is a training that stands still, and no matter of the actor.
        is_gone = (gradient == 0.0 or gradient < level) and window.critic_gradient > 0.0
        if gradient > self.largest and math.isfinite(gradient):
            self.largest = gradient
        is_dead = self.dead.update(is_gone and share > SATURATED)
        is_at_ends = self.at_ends.update(any(part > SATURATED for part in window.shares))
        if is_dead:
            return [self._dead(window, share)]
        return [self._at_ends(window)] if is_at_ends else []

    def _dead(self, window: SaturationWindow, share: float) -> Verdict:
        gradient = window.actor_gradient
        norm = "exactly 0" if gradient == 0.0 else f"{gradient:.2g}, where it once was {self.largest:.2g}"
        message = (
            f"the actor cannot change any more: {share:.0%} of its actions stand at their ends, where tanh is flat, "
            f"and its gradient is {norm}, in {self.windows} windows, while the critic still learns. If the returns are "
            "good, it has found a policy of extremes; if not, begin again with a smaller learning rate, bounded "
            "features before the actor and a last layer near zero. A gap between Q at its actions and Q at the data "
            "(PolicyValueGapGuard) comes first, where there is one"
        )
        evidence = {
            **self._evidence(window),
            "share": share,
            "threshold": SATURATED,
            "largest_gradient": self.largest,
            "vanished": self.vanished,
        }
        return Verdict("actor_is_dead", Severity.WARN, message, evidence)

    def _at_ends(self, window: SaturationWindow) -> Verdict:
        found = [dimension for dimension, share in enumerate(window.shares) if share > SATURATED]
        can_leave = window.actor_gradient > 0.0
        then = (
            "the actor can still leave them, and may be" if can_leave else "nothing would move it from there, which is"
        )
        message = (
            f"more than {SATURATED:.0%} of the actions stand at their ends in the dimensions {found}, in "
            f"{self.windows} windows, with an actor's gradient of {window.actor_gradient:.2g}: {then} right where the "
            "best action is an extreme"
        )
        return Verdict("saturated_actions", Severity.INFO, message, self._evidence(window))

    def _evidence(self, window: SaturationWindow) -> dict[str, Any]:
        return {
            "shares": list(window.shares),
            "actor_gradient": window.actor_gradient,
            "critic_gradient": window.critic_gradient,
            "windows": self.windows,
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {"at_ends": self.at_ends.state_dict(), "dead": self.dead.state_dict(), "largest": self.largest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.at_ends.load_state_dict(state_dict["at_ends"])
        self.dead.load_state_dict(state_dict["dead"])
        self.largest = state_dict["largest"]
