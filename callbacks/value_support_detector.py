"""Whether the bins of a distributional value can hold the task's values: pure."""

import math
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Of the interval's end, for float32.
_ROUNDING = 1e-5
# Windows after which a critic must have left the uniform distribution of its start, which has mass in all bins.
_START = 50


class SupportWindow(NamedTuple):
    """What one window measured; NaN where it is not known."""

    bound: float  # the largest value that the bins hold; the lowest is its negative
    low: float  # of the values that the transitions seen so far allow
    high: float
    end_mass: float  # mean probability of the first and the last bin together
    value: float  # mean |value|
    target: float  # mean |target|
    target_outside: float  # share of the targets beyond the bins


class SupportDetector:
    """See `ValueSupportGuard` for what each cause means.

    Args:
        end_mass: probability of the two end bins that is told.
        near: share of the bound that the mean value or target may reach.
    """

    def __init__(self, *, end_mass: float, near: float) -> None:
        for name, value in (("end_mass", end_mass), ("near", near)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"ValueSupportGuard got {name} = {value}, expected a share in (0, 1)")
        self.end_mass = end_mass
        self.near = near
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.windows = 0
        self.has_left_start = False
        self.massive = Confirmation(3, 3)
        self.at_end = Confirmation(3, 3)
        self.outside = Confirmation(3, 3)

    def update(self, window: SupportWindow) -> list[Verdict]:
        """Take in a window."""
        self.windows += 1
        self.has_left_start |= window.end_mass < self.end_mass or self.windows > _START
        is_massive = self.massive.update(self.has_left_start and window.end_mass > self.end_mass)
        is_near = self.at_end.update(max(window.value, window.target) > self.near * window.bound)
        is_outside = self.outside.update(window.target_outside > 0.0)
        found = self._too_small(window)
        if is_outside:
            found.append(self._outside(window))
        if is_massive or is_near:
            found.append(self._saturated(window))
        return found

    def _too_small(self, window: SupportWindow) -> list[Verdict]:
        largest = max(-window.low, window.high)
        if not largest > window.bound * (1.0 + _ROUNDING):
            return []
        message = (
            f"the last bin of the value is {window.bound:.4g}, but the rewards and discounts that were seen allow "
            f"values in [{window.low:.4g}, {window.high:.4g}]: a policy that is good enough has a value that the "
            "critic cannot say, its advantages are all positive from there on, and learning turns against it; take "
            f"bins up to symexp({math.log1p(largest):.1f}) or more (log_bound, num_bins)"
        )
        return [Verdict("support_too_small", Severity.ACT, message, self._evidence(window))]

    def _outside(self, window: SupportWindow) -> Verdict:
        message = (
            f"{window.target_outside:.1%} of the value's targets lie beyond its last bin, {window.bound:.4g}, in 3 "
            "windows: they are cut to it, and no critic can learn them. Take wider bins (log_bound), or look for what "
            "makes the targets so large"
        )
        return Verdict("targets_beyond_support", Severity.ACT, message, self._evidence(window))

    def _saturated(self, window: SupportWindow) -> Verdict:
        message = (
            f"the value stands at the end of its bins: {window.end_mass:.1%} of its probability lies in the first and "
            f"the last one (expected below {self.end_mass:.0%}), the mean |value| is {window.value:.4g} and the mean "
            f"|target| {window.target:.4g} of at most {window.bound:.4g} (expected below {self.near:.0%} of it). What "
            "looks like a value that has settled is the edge of what can be said: take wider bins (log_bound), or look "
            "for what makes the targets so large"
        )
        evidence = {**self._evidence(window), "max_end_mass": self.end_mass, "near": self.near}
        return Verdict("value_at_support_end", Severity.WARN, message, evidence)

    def _evidence(self, window: SupportWindow) -> dict[str, Any]:
        return {name: value for name, value in window._asdict().items() if math.isfinite(value)}

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        confirmations = {name: getattr(self, name).state_dict() for name in ("massive", "at_end", "outside")}
        return {**confirmations, "windows": self.windows, "has_left_start": self.has_left_start}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name in ("massive", "at_end", "outside"):
            getattr(self, name).load_state_dict(state_dict[name])
        self.windows, self.has_left_start = state_dict["windows"], state_dict["has_left_start"]
