"""Whether importance ratios can be density ratios, and of what use they are: the pure detector of `RatioGuard`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict
from rlmods.functional.gaussian_policy import ratio_tail_index

# The largest ratios of a window that are kept: the last one is the threshold of Hill's estimate.
NUM_LARGEST = 65

_MIN_SAMPLES = 100  # ratios in a window, below which nothing is said of their mean
# Standard errors: with both tails at most 1e-5 false alarms a window where the ratio is bounded.
_STANDARD_ERRORS = 4.5
# n · P(ρ > largest of n) is exponential with mean 1: above 9.2 in 1e-4 of all windows.
_TAIL_WINDOWS = 9.5
# Below this tail index a sample says next to nothing of its mean from below.
_MIN_TAIL_INDEX = 1.5
_HILL_ERRORS = 3.0


class RatioWindow(NamedTuple):
    """What one window measured, of all processes."""

    samples: float  # n, ratios
    excess: float  # Σ (ρ − 1)
    square: float  # Σ (ρ − 1)²
    largest: Sequence[float]  # the largest ratios in descending order, NUM_LARGEST or as many as there are
    behaviour_std: float  # NaN where it is not published
    target_std: float  # NaN where it is not published

    @property
    def mean(self) -> float:
        """Sample mean of ρ."""
        return 1.0 + self.excess / self.samples

    @property
    def second_moment(self) -> float:
        """Sample mean of ρ²."""
        return 1.0 + (2.0 * self.excess + self.square) / self.samples

    @property
    def effective_fraction(self) -> float:
        """Effective sample size as a share of n: (Σρ)² / (n Σρ²), in [1/n, 1]."""
        return self.mean**2 / self.second_moment if self.second_moment > 0.0 else 0.0


def hill_tail_index(largest: Sequence[float]) -> float:
    """Hill's estimate of α in P(ρ > x) ~ x^−α, from the largest values in descending order (Hill 1975).

    The last value is the threshold. Its relative standard error is 1/√k for k values above the threshold. ∞ where all
    are equal; NaN for fewer than three values, or where one is not positive.
    """
    if len(largest) < 3 or not largest[-1] > 0.0:
        return math.nan
    threshold = math.log(largest[-1])
    mean_excess = sum(math.log(value) - threshold for value in largest[:-1]) / (len(largest) - 1)
    return 1.0 / mean_excess if mean_excess > 0.0 else math.inf


def mean_ratio_interval(samples: float, mean_square: float, largest: float, tail_index: float) -> tuple[float, float]:
    """Where the mean of n ratios lies in all but about 1e-4 of the samples, if E_μ[ρ] = 1, as it must be.

    ρ − 1 is a martingale difference, along a trajectory too, so its standard error is √(mean (ρ − 1)²/n). With a heavy
    tail that is deceptive from below: the sample has not seen what lies above its largest value m, which carries
    E[ρ; ρ > m] = α/(α − 1) · m · P(ρ > m) of the mean, where P(ρ > m) is up to 9.5/n. From above it is not: a single
    large value that raises the mean raises the standard error with it.

    Args:
        samples: n.
        mean_square: mean of (ρ − 1)², about 1 and not about the mean of the sample.
        largest: m.
        tail_index: α; ∞ for a bounded ratio. Up to 1.5 nothing is said from below.

    Returns:
        low (−∞ where nothing can be said) and high.
    """
    error = _STANDARD_ERRORS * math.sqrt(mean_square / samples)
    if not tail_index > _MIN_TAIL_INDEX:
        return -math.inf, 1.0 + error
    factor = 1.0 if math.isinf(tail_index) else tail_index / (tail_index - 1.0)
    return 1.0 - error - _TAIL_WINDOWS * factor * largest / samples, 1.0 + error


class RatioDetector:
    """See `RatioGuard` for what each cause means.

    Args:
        tolerance: deviation of the mean ratio from 1 that is never alarmed, in (0, 1).
        min_effective_fraction: effective sample size as a share of the samples, in [0, 1).
    """

    def __init__(self, *, tolerance: float, min_effective_fraction: float) -> None:
        if not 0.0 < tolerance < 1.0:
            raise ValueError(f"RatioGuard got tolerance = {tolerance}, expected a value in (0, 1), for example 0.01")
        if not 0.0 <= min_effective_fraction < 1.0:
            raise ValueError(
                f"RatioGuard got min_effective_fraction = {min_effective_fraction}, expected a value in [0, 1), for "
                "example 0.1"
            )
        self.tolerance = tolerance
        self.min_effective_fraction = min_effective_fraction
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.identity = Confirmation(2, 2)
        self.heavy_tail = Confirmation(3, 3)
        self.few_effective = Confirmation(2, 2)

    def update(self, window: RatioWindow) -> list[Verdict]:
        """Take in a window. One with numbers that are not finite says nothing here; `NonFiniteGuard` names them."""
        if not window.samples or not math.isfinite(window.square):
            return []
        verdicts = self._variance(window)
        if window.samples >= _MIN_SAMPLES:
            verdicts += [*self._identity(window), *self._effective(window)]
        return verdicts

    def _tail_index(self, window: RatioWindow) -> float:
        """α, with the benefit of the doubt."""
        largest = window.largest[: min(NUM_LARGEST, int(0.3 * window.samples) + 1)]
        # Large on purpose, by 3 of its standard errors, is the tail; small is α.
        low = hill_tail_index(largest) / (1.0 + _HILL_ERRORS / math.sqrt(max(len(largest) - 1, 1)))
        known = ratio_tail_index(window.behaviour_std, window.target_std)
        # A sample without any tail where its densities have one is the defect itself: actions that were clipped.
        return low if math.isnan(known) or low > 2.0 * known else min(low, known)

    def _identity(self, window: RatioWindow) -> list[Verdict]:
        tail_index = self._tail_index(window)
        low, high = mean_ratio_interval(window.samples, window.square / window.samples, window.largest[0], tail_index)
        low, high = min(low, 1.0 - self.tolerance), max(high, 1.0 + self.tolerance)
        is_outside = not low <= window.mean <= high
        is_confirmed = self.identity.update(is_outside)
        if not (is_outside or is_confirmed):
            return []
        message = (
            f"the mean importance ratio is {window.mean:.4f} over {window.samples:.0f} samples, where a ratio of "
            f"densities has the mean 1 (samples of this kind lie in [{low:.4f}, {high:.4f}])"
        )
        if window.second_moment < 1.0:
            message += f", and its second moment {window.second_moment:.4f} lies below 1, which no such ratio has"
        message += (
            ": the actions were not drawn from the behaviour density in the denominator. Are they clipped, squashed or "
            "projected after the draw? Evaluate both densities at the action before that; are the means, the standard "
            "deviations and the order of numerator and denominator those of the collection?"
        )
        evidence = {
            "mean_ratio": window.mean,
            "second_moment": window.second_moment,
            "interval": [low, high],
            "samples": window.samples,
            "largest": window.largest[0],
            "tail_index": tail_index,
        }
        return [Verdict("ratio_identity", Severity.ACT if is_confirmed else Severity.WARN, message, evidence)]

    def _variance(self, window: RatioWindow) -> list[Verdict]:
        behaviour, target = window.behaviour_std, window.target_std
        cure = "Narrow the target policy, widen the behaviour, or clip the ratio and say so"
        if not math.isnan(behaviour + target):
            if target**2 < 2.0 * behaviour**2:
                return []
            message = (
                f"the variance of the importance ratio is infinite: the target's standard deviation {target:.4g} is at "
                f"least √2 times the behaviour's, {behaviour:.4g}, so single samples decide every update. {cure}"
            )
            evidence = {"behaviour_std": behaviour, "target_std": target, "threshold": math.sqrt(2.0) * behaviour}
            return [Verdict("ratio_variance_infinite", Severity.ACT, message, evidence)]
        # At two depths: few large values far above all others, as discrete actions give, look heavy at one alone.
        whole, near = hill_tail_index(window.largest), hill_tail_index(window.largest[:17])
        is_heavy = len(window.largest) == NUM_LARGEST and whole * (1.0 + 2.0 / 8.0) < 2.0 and near < 2.0
        if not self.heavy_tail.update(is_heavy):
            return []
        message = (
            f"the largest importance ratios fall like a power, P(ρ > x) ~ x^−{whole:.2f}, in 3 windows: up to an "
            f"exponent of 2 the variance is infinite, and single samples decide every update. {cure}"
        )
        evidence = {"tail_index": whole, "tail_index_of_16": near, "threshold": 2.0, "largest": window.largest[0]}
        return [Verdict("ratio_variance_infinite", Severity.WARN, message, evidence)]

    def _effective(self, window: RatioWindow) -> list[Verdict]:
        fraction = window.effective_fraction
        if not self.few_effective.update(fraction < self.min_effective_fraction):
            return []
        message = (
            f"the {window.samples:.0f} samples of a window weigh as much as {fraction * window.samples:.0f} equal ones "
            f"({fraction:.1%}, expected {self.min_effective_fraction:.0%}) in 2 windows: a few ratios, up to "
            f"{window.largest[0]:.3g}, decide the updates. Bring the behaviour closer to the target, or clip the ratio"
        )
        evidence = {
            "effective_fraction": fraction,
            "threshold": self.min_effective_fraction,
            "samples": window.samples,
            "largest": window.largest[0],
        }
        return [Verdict("low_effective_sample_size", Severity.WARN, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """What is confirmed."""
        return {
            "identity": self.identity.state_dict(),
            "heavy_tail": self.heavy_tail.state_dict(),
            "few_effective": self.few_effective.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.identity.load_state_dict(state_dict["identity"])
        self.heavy_tail.load_state_dict(state_dict["heavy_tail"])
        self.few_effective.load_state_dict(state_dict["few_effective"])
