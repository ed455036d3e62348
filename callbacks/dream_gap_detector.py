"""What a policy expects of its dreams against what it gets: pure."""

import math
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Standard errors that a difference must have.
_CERTAIN = 3.0
# Returns are never scaled by less (Hafner et al. 2025, equation 12), so that smaller ones are noise to the actor too.
_LEAST_SIZE = 1.0
# Of the best evaluation that must be gone, and of the dreams' return then that must be left.
_LOST, _PROMISED = 0.5, 0.9


class DreamEvaluation(NamedTuple):
    """What one evaluation measured; NaN where it is not known."""

    mean: float  # return of the episodes, not discounted
    sem: float  # standard error of it
    discounted: float  # the same, discounted
    gap: float  # value at the start minus the discounted return that followed, mean
    gap_sem: float
    imagined: float  # mean return of the dreams since the evaluation before


class DreamGapDetector:
    """See `DreamGapGuard` for what each cause means.

    Args:
        gap: share of the discounted return by which the value may exceed it, above 0.
    """

    def __init__(self, *, gap: float) -> None:
        if gap <= 0.0:
            raise ValueError(f"DreamGapGuard got gap = {gap}, expected a share of the return, above 0")
        self.gap = gap
        self.best: DreamEvaluation | None = None
        self.first_gap = math.nan
        self.reset()

    def reset(self) -> None:
        """Start counting anew; the best evaluation stays the yardstick."""
        self.exceeds = Confirmation(3, 3)
        self.promises = Confirmation(2, 2)

    def update(self, now: DreamEvaluation) -> list[Verdict]:
        """Take in an evaluation."""
        if math.isnan(self.first_gap) and not math.isnan(now.imagined):  # the first that has learned anything
            self.first_gap = now.gap
        size = max(abs(now.discounted), _LEAST_SIZE)
        # A critic that begins at 0 overestimates a task of costs, and comes closer.
        is_certain = now.gap > _CERTAIN * now.gap_sem and now.gap > 1.5 * self.first_gap
        found = []
        if self.exceeds.update(is_certain and now.gap > self.gap * size):
            found.append(self._exceeds(now))
        best = self.best
        if best is None or now.mean > best.mean:
            self.best = now
        if best is not None and self.promises.update(self._still_promised(best, now)):
            found.append(self._promises(best, now))
        return found

    def _still_promised(self, best: DreamEvaluation, now: DreamEvaluation) -> bool:
        lost = best.mean - now.mean
        is_lost = lost > _LOST * abs(best.mean) and lost > _CERTAIN * math.hypot(best.sem, now.sem)
        return is_lost and now.imagined >= best.imagined - (1.0 - _PROMISED) * abs(best.imagined)

    def _exceeds(self, now: DreamEvaluation) -> Verdict:
        message = (
            f"the value at the start states exceeds the discounted return that followed by {now.gap:.4g} "
            f"(± {now.gap_sem:.2g}), which was {now.discounted:.4g}, in 3 evaluations in a row: dreams are better than "
            "the world. Look at what the model makes of ends (ContinuationGuard) and of dreams in general "
            "(LatentGuard); then replay more, or dream shorter"
        )
        evidence = {**now._asdict(), "threshold": self.gap, "least_size": _LEAST_SIZE, "evaluations": 3}
        return Verdict("value_exceeds_return", Severity.WARN, message, evidence)

    def _promises(self, best: DreamEvaluation, now: DreamEvaluation) -> Verdict:
        message = (
            f"the evaluation has fallen from {best.mean:.4g} to {now.mean:.4g}, while dreams go on promising "
            f"{now.imagined:.4g} ({best.imagined:.4g} at the best), in 2 evaluations in a row: the actor has left the "
            "world for what its model believes, or the value stands at the end of its bins (ValueSupportGuard)"
        )
        evidence: dict[str, Any] = {
            **now._asdict(),
            "best": best.mean,
            "imagined_at_best": best.imagined,
            "lost": _LOST,
            "promised": _PROMISED,
        }
        return Verdict("dreams_go_on_promising", Severity.WARN, message, evidence)

    def state_dict(self) -> dict[str, Any]:
        """What was seen so far."""
        return {
            "exceeds": self.exceeds.state_dict(),
            "promises": self.promises.state_dict(),
            "best": None if self.best is None else list(self.best),
            "first_gap": self.first_gap,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.exceeds.load_state_dict(state_dict["exceeds"])
        self.promises.load_state_dict(state_dict["promises"])
        self.best = None if state_dict["best"] is None else DreamEvaluation(*state_dict["best"])
        self.first_gap = state_dict["first_gap"]
