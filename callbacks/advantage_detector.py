"""Whether advantages and value targets are those of the rollout that they belong to: pure."""

from collections.abc import Sequence
from typing import NamedTuple

from rlmods.callbacks.detectors import Severity, Verdict

# Relative to the root mean square of the advantages, plus the rounding of float32 relative to values and rewards.
_TOLERANCE, _ROUNDING = 1e-3, 1e-5
# A bootstrap value that is smaller than this share of the mean |V| is none.
_NO_VALUE = 1e-4


class AdvantageWindow(NamedTuple):
    """What one rollout measured; NaN where it is not known.

    The fit is A_t = a δ_t + b γ_t A_{t+1} over the steps inside of episodes, with δ_t = r_t + γ_t V(s_{t+1}) − V(s_t)
    and a and b in [0, 1].
    """

    size: float  # root mean square of A
    rounding: float  # mean |V| + mean |r|
    mismatch: float  # largest |A − (target − V)|
    delta: float  # a, 1 but for clipped importance ratios
    trace: float  # b, λ
    residual: float  # root mean square of what the fit leaves
    free: Sequence[float]  # of r, γ V′, V and γ A′, each fitted alone
    terminal_error: float  # largest |A − a (r − V)| where an episode terminates
    value: float  # mean |V|
    truncated_value: float  # largest value with which a time limit is continued
    last_value: float  # the same, where the rollout ends


class AdvantageDetector:
    """See `AdvantageGuard` for what each cause means."""

    def update(self, window: AdvantageWindow) -> list[Verdict]:
        """Take in a rollout. Numbers that are not finite say nothing here; `NonFiniteGuard` names them."""
        limit = _TOLERANCE * window.size + _ROUNDING * window.rounding
        found = [*self._mismatch(window, limit), *self._recursion(window, limit)]
        # Where these are broken, the ends of episodes are too.
        return found or [*self._terminal(window, limit), *self._bootstrap(window)]

    def _mismatch(self, window: AdvantageWindow, limit: float) -> list[Verdict]:
        if not window.mismatch > limit:
            return []
        message = (
            f"an advantage differs from value target minus value by {window.mismatch:.3g} (their size is "
            f"{window.size:.3g}): actor and critic learn from different returns"
        )
        evidence = {"difference": window.mismatch, "size": window.size, "threshold": limit}
        return [Verdict("advantage_mismatch", Severity.ACT, message, evidence)]

    def _terminal(self, window: AdvantageWindow, limit: float) -> list[Verdict]:
        if not window.terminal_error > limit:
            return []
        message = (
            f"where an episode terminates, the return misses the reward by {window.terminal_error:.3g}: what follows a "
            "terminal state is worth 0. Is the next state's value masked by the discount, and does the recursion end "
            "with the episode?"
        )
        evidence = {"terminal_error": window.terminal_error, "size": window.size, "threshold": limit}
        return [Verdict("bootstraps_through_termination", Severity.ACT, message, evidence)]

    def _recursion(self, window: AdvantageWindow, limit: float) -> list[Verdict]:
        if not window.residual > limit:
            return []
        reward, following, value, trace = window.free
        message = (
            "the advantages are not made of this rollout's rewards, discounts and values: A = a δ + λ γ A′ leaves "
            f"{window.residual:.3g} of {window.size:.3g} with a = {window.delta:.3g}, λ = {window.trace:.3g}. Fitted "
            f"one by one, the reward counts {reward:.3g}, the next value {following:.3g}, the value {value:.3g} and "
            f"the next advantage {trace:.3g} times, where the first three are to be alike: look for another discount, "
            "scaled or clipped rewards, and values or rewards of other steps"
        )
        evidence = {
            "residual": window.residual,
            "size": window.size,
            "delta": window.delta,
            "trace": window.trace,
            "coefficients": {"reward": reward, "next_value": following, "value": value, "next_advantage": trace},
            "threshold": limit,
        }
        return [Verdict("advantage_recursion", Severity.ACT, message, evidence)]

    def _bootstrap(self, window: AdvantageWindow) -> list[Verdict]:
        verdicts = []
        least = _NO_VALUE * window.value
        for cause, largest, where in (
            ("no_bootstrap_at_truncation", window.truncated_value, "where a time limit cuts an episode"),
            ("no_bootstrap_at_rollout_end", window.last_value, "where the rollout ends within an episode"),
        ):
            # A critic of zeros continues with 0 in good health.
            if not (largest < least and window.value > _ROUNDING * window.rounding):
                continue
            message = (
                f"{where}, the return ends with the last reward, while values are {window.value:.3g} in the mean: the "
                "discount there is above 0, so V of the true next observation has to continue it"
            )
            evidence = {"bootstrap_value": largest, "value": window.value, "threshold": least}
            verdicts.append(Verdict(cause, Severity.ACT, message, evidence))
        return verdicts
