"""Q at the policy's own actions against Q at those of the data: the pure detector of `PolicyValueGapGuard`."""

import math
import statistics
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Windows of the start, whose median is the level of a feature norm.
_START = 8
# Windows that the median of the twins' disagreement is taken over, and before anything is said of it.
_TWIN_WINDOWS, _TWIN_MINIMUM = 50, 20
# Disagreement of twins, in spreads of Q, below which it is no matter whatever it was before.
_TWIN_FLOOR = 0.5


class PolicyValueWindow(NamedTuple):
    """What one window measured, over the states of the mini-batches; NaN where it is not known."""

    q_data_mean: float  # Q at the actions of the data
    q_data_std: float
    q_policy_mean: float  # Q at the policy's actions in the same states
    high: float  # of the interval of possible values
    size: float  # of that interval
    twin_gap: float  # mean |Q1 − Q2| at the data
    feature_norm: float


class PolicyValueDetector:
    """See `PolicyValueGapGuard` for what each cause means.

    Args:
        threshold: spreads of Q over the data, above which the gap is told.
        slack: share of the interval's size by which the policy's Q may pass it.
        feature_growth: multiple of its own start, above which a feature norm is told.
        twin_growth: multiple of its own median, above which a disagreement of the twins is told.
    """

    def __init__(self, *, threshold: float, slack: float, feature_growth: float, twin_growth: float) -> None:
        ranges = {
            "threshold": (threshold, threshold > 0.0, "above 0"),
            "slack": (slack, slack >= 0.0, "a share of the interval, at least 0"),
            "feature_growth": (feature_growth, feature_growth > 1.0, "above 1"),
            "twin_growth": (twin_growth, twin_growth > 1.0, "above 1"),
        }
        for argument, (got, is_inside, expected) in ranges.items():
            if not is_inside:
                raise ValueError(f"PolicyValueGapGuard got {argument} = {got}, expected a number {expected}")
        self.threshold = threshold
        self.slack = slack
        self.feature_growth = feature_growth
        self.twin_growth = twin_growth
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.beyond = Confirmation(3, 3)
        self.gap = Confirmation(3, 3)
        self.features = Confirmation(5, 5)
        self.twins = Confirmation(5, 5)
        self.first_excess = math.nan  # of the policy's Q over the interval, in shares of its size
        self.last_gap = math.nan
        self.norms: list[float] = []  # of the first windows
        self.last_norm = math.nan
        self.disagreements: list[float] = []  # that were no outliers

    def update(self, window: PolicyValueWindow, num_actions: int) -> list[Verdict]:
        """Take in a window of a policy with A action dimensions."""
        return [
            *self._bound(window),
            *self._gap(window, num_actions),
            *self._feature_norm(window),
            *self._twin_gap(window),
        ]

    # Bound: no policy has a value there

    def _bound(self, window: PolicyValueWindow) -> list[Verdict]:
        if not (window.size > 0.0 and math.isfinite(window.size + window.high) and _is_number(window.q_policy_mean)):
            return []
        excess = (window.q_policy_mean - window.high) / window.size
        if math.isnan(self.first_excess):
            self.first_excess = excess
        gap = window.q_policy_mean - window.q_data_mean
        # Values that begin outside, because rewards are small against the initial network, say nothing.
        is_beyond = (
            excess > max(self.slack, 2.0 * self.first_excess)
            and window.q_data_mean <= window.high
            and gap > self.slack * window.size
        )
        if not self.beyond.update(is_beyond):
            return []
        message = (
            f"Q at the policy's actions is {window.q_policy_mean:.4g} in the mean, but no policy has a value above "
            f"{window.high:.4g}, and Q at the data's actions is {window.q_data_mean:.4g}, within it: the actor climbs "
            "what the critic was never taught. Look first whether the actor's loss reaches the critic through the "
            "state (GradientPathProbe), then at the target network and the learning rates"
        )
        evidence = {**window._asdict(), "excess": excess, "slack": self.slack, "windows": self.beyond.window}
        return [Verdict("policy_value_out_of_bounds", Severity.ACT, message, evidence)]

    # The gap against the spread

    def _gap(self, window: PolicyValueWindow, num_actions: int) -> list[Verdict]:
        gap = window.q_policy_mean - window.q_data_mean
        if not _is_number(gap):
            return []
        grows = not gap <= self.last_gap  # the first one too
        self.last_gap = gap
        floor = 1e-3 * window.size if math.isfinite(window.size) else 0.0
        spread = max(window.q_data_std, floor, 1e-6)
        limit = gap_limit(self.threshold, num_actions)
        if not self.gap.update(gap > limit * spread and (grows or self.gap.is_on)):
            return []
        message = (
            f"Q at the policy's actions exceeds Q at the data's by {gap:.4g}, {gap / spread:.1f} times the spread of Q "
            f"over the data ({spread:.3g}; {limit:.1f} is what a policy can be better by), and grew in "
            f"{self.gap.window} windows in a row: either the actor's loss reaches the critic through the state "
            "(GradientPathProbe names it), or the critic extrapolates to actions that the data do not have"
        )
        evidence = {**window._asdict(), "gap": gap, "spreads": gap / spread, "threshold": limit, "windows": 3}
        return [Verdict("policy_value_gap", Severity.WARN, message, evidence)]

    # Features

    def _feature_norm(self, window: PolicyValueWindow) -> list[Verdict]:
        norm = window.feature_norm
        if not _is_number(norm):
            return []
        grows, self.last_norm = norm > self.last_norm, norm
        if len(self.norms) < _START:
            self.norms = [*self.norms, norm]
            return []
        level = max(statistics.median(self.norms), 1e-6)
        if not self.features.update(norm > self.feature_growth * level and (grows or self.features.is_on)):
            return []
        message = (
            f"the features of the encoder have a norm of {norm:.4g}, {norm / level:.0f} times that of the start "
            f"({level:.4g}), and still grow: they saturate what comes behind them. Bound them (a LayerNorm and tanh "
            "behind the convolutions: features_dim), and lower the learning rate"
        )
        evidence = {"feature_norm": norm, "start": level, "threshold": self.feature_growth, "windows": 5}
        return [Verdict("feature_norm_grows", Severity.WARN, message, evidence)]

    # Twins

    def _twin_gap(self, window: PolicyValueWindow) -> list[Verdict]:
        if window.twin_gap == 0.0 and window.q_data_std > 0.0:
            message = (
                "the twin critics agree to the last bit, in all states: they began alike or share their parameters, so "
                "the smaller of the two is no safer than one. Give each an initialisation of its own"
            )
            evidence = {"twin_gap": 0.0, "q_data_std": window.q_data_std}
            return [Verdict("twins_equal", Severity.WARN, message, evidence)]
        floor = 1e-3 * window.size if math.isfinite(window.size) else 0.0
        disagreement = window.twin_gap / max(window.q_data_std, floor, 1e-6)
        if not _is_number(disagreement):
            return []
        is_judged = len(self.disagreements) >= _TWIN_MINIMUM
        median = statistics.median(self.disagreements) if self.disagreements else math.nan
        is_outlier = is_judged and disagreement > max(self.twin_growth * median, _TWIN_FLOOR)
        if not is_outlier:
            self.disagreements = [*self.disagreements, disagreement][-_TWIN_WINDOWS:]
        if not self.twins.update(is_outlier):
            return []
        message = (
            f"the twin critics disagree by {window.twin_gap:.4g}, {disagreement:.2f} times the spread of Q, where "
            f"their median was {median:.2f}: one of them has left the data. Look at their gradients one by one, and "
            "whether both are updated and followed by their own targets"
        )
        evidence = {"twin_gap": window.twin_gap, "spreads": disagreement, "median": median, "windows": 5}
        return [Verdict("twin_disagreement", Severity.WARN, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "confirmations": {name: getattr(self, name).state_dict() for name in _CONFIRMATIONS},
            "numbers": {name: getattr(self, name) for name in _NUMBERS},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name in _CONFIRMATIONS:
            getattr(self, name).load_state_dict(state_dict["confirmations"][name])
        for name in _NUMBERS:
            setattr(self, name, state_dict["numbers"][name])


def gap_limit(threshold: float, num_actions: int) -> float:
    """Spreads of Q that its gap may have.

    Where Q is linear in the actions and the data's are uniform in the cube, the best action is √(3A) spreads better
    than the mean of the data, and less where the states differ as well. Twice as much is left for what is not linear.
    """
    return max(threshold, 2.0 * math.sqrt(3.0 * num_actions))


def _is_number(value: float) -> bool:
    return not math.isnan(value)


_CONFIRMATIONS = ("beyond", "gap", "features", "twins")
_NUMBERS = ("first_excess", "last_gap", "norms", "last_norm", "disagreements")
