"""Whether the updates of one iteration move a policy, and as far as they should: pure."""

import math
import statistics
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# In nats, in the mean of an iteration's updates: what a policy that learns stays far below (0.001 to 0.03).
_WILD_KL = 0.2
_TORN_KL = 1.0  # enough in a single rollout: what comes after it may not move any more
# The surrogate's gradient is 0 for most samples.
_SATURATED = 0.5
# Below both nothing is seen to move; the KL of a small step goes with the square of the learning rate.
_QUIET_KL, _QUIET_CLIP = 1e-4, 1e-2
_STILL_KL = 1e-6
# Share of its peak from which on a learning rate counts as annealed.
_ANNEALED = 0.05
# Half action ranges: with a larger σ most actions are clipped, and the KL is small because of it.
WIDE = 2.0


class PolicyUpdateWindow(NamedTuple):
    """What the updates on one rollout measured; NaN where it is not known."""

    ratio_error: float  # largest |ρ − 1| of the first mini-batch
    kl: float  # mean over the updates after the first, in nats
    clip_fraction: float  # the same
    learning_rate: float  # of the policy
    std: float  # smallest σ of continuous actions, in half action ranges
    updates: float  # K
    batch_size: float  # B, of importance ratios
    steps: float  # M, that count in the rollout
    epochs: float  # begun
    explained_variance: float


class PolicyUpdateDetector:
    """See `PolicyUpdateGuard` for what each cause means.

    Args:
        tolerance: deviation of a first ratio from 1 that rounding may make.
        windows: rollouts in a row, until a policy that stands still is told.
        min_updates: before anything is said of the critic.
    """

    def __init__(self, *, tolerance: float, windows: int, min_updates: int) -> None:
        if not 0.0 < tolerance < 1.0:
            raise ValueError(
                f"PolicyUpdateGuard got tolerance = {tolerance}, expected one in (0, 1), for example 0.001"
            )
        for argument, value in (("windows", windows), ("min_updates", min_updates)):
            if value < 1:
                raise ValueError(f"PolicyUpdateGuard got {argument} = {value}, expected at least 1")
        self.tolerance = tolerance
        self.windows = windows
        self.min_updates = min_updates
        self.peak = 0.0  # of the learning rate
        self.updates = 0.0  # so far
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.wild = Confirmation(3, 5)
        self.still = Confirmation(self.windows, self.windows)
        self.exhausted = Confirmation(self.windows, self.windows)
        self.dropped = Confirmation(3, 3)
        self.unexplained = Confirmation(self.windows, self.windows)
        self.clip_fractions: list[float] = []

    def update(self, window: PolicyUpdateWindow) -> list[Verdict]:
        """Take in the updates on a rollout."""
        self.updates += window.updates
        if math.isfinite(window.learning_rate):
            self.peak = max(self.peak, window.learning_rate)
        return [
            *self._ratio(window),
            *self._dropped(window),
            *self._too_far(window),
            *self._not_at_all(window),
            *self._critic(window),
        ]

    # Identities

    def _ratio(self, window: PolicyUpdateWindow) -> list[Verdict]:
        if not window.ratio_error > self.tolerance:
            return []
        message = (
            f"before the first update on a rollout an importance ratio differs from 1 by {window.ratio_error:.3g}, "
            "where the policy that learns still is the one that acted: the two log-probabilities are not of the same "
            "action, observation, memory or weights. Is the sample stored as it was drawn, before any clip or squash? "
            "Is the rollout the newest, the state of an LSTM the stored one, reset where an episode begins?"
        )
        evidence = {"ratio_error": window.ratio_error, "threshold": self.tolerance}
        return [Verdict("first_ratio_not_one", Severity.ACT, message, evidence)]

    def _dropped(self, window: PolicyUpdateWindow) -> list[Verdict]:
        # The last epoch may have been ended by a KL that was too high.
        whole = (window.epochs - 1.0) * (window.steps // window.batch_size)
        if not self.dropped.update(window.updates < 0.75 * whole):
            return []
        message = (
            f"{window.epochs:.0f} epochs on {window.steps:.0f} steps made {window.updates:.0f} updates of "
            f"{window.batch_size:.0f}, where {whole:.0f} and those of the last epoch were to come: a part of each "
            "rollout is never learned from"
        )
        evidence = {"updates": window.updates, "expected": whole, "threshold": 0.75, "windows": 3}
        return [Verdict("minibatches_dropped", Severity.WARN, message, evidence)]

    # Too far

    def _too_far(self, window: PolicyUpdateWindow) -> list[Verdict]:
        verdicts = []
        if self.wild.update(window.kl > _WILD_KL) or window.kl > _TORN_KL:
            message = (
                f"the updates on a rollout are {window.kl:.3g} nats from the policy that acted, in the mean "
                f"({_TORN_KL:g} at once, or {_WILD_KL:g} in 3 of 5 rollouts, is too far): the "
                "surrogate says nothing there. Lower the learning "
                "rate, make fewer epochs, or set target_kl"
            )
            evidence = {"approx_kl": window.kl, "threshold": [_WILD_KL, _TORN_KL], "windows": 5}
            verdicts.append(Verdict("policy_moves_too_far", Severity.WARN, message, evidence))
        if math.isfinite(window.clip_fraction):
            self.clip_fractions = [*self.clip_fractions, window.clip_fraction][-self.windows :]
        mean = statistics.fmean(self.clip_fractions) if self.clip_fractions else math.nan
        if len(self.clip_fractions) == self.windows and mean > _SATURATED:
            message = (
                f"{mean:.0%} of the ratios were outside the clip range, in the mean of {self.windows} rollouts: most "
                "samples have no gradient any more. Lower the learning rate or make fewer epochs"
            )
            evidence = {"clip_fraction": mean, "threshold": _SATURATED, "windows": self.windows}
            verdicts.append(Verdict("clip_saturation", Severity.WARN, message, evidence))
        return verdicts

    # Not at all

    def _not_at_all(self, window: PolicyUpdateWindow) -> list[Verdict]:
        is_quiet = window.kl < _QUIET_KL and window.clip_fraction < _QUIET_CLIP and not window.std > WIDE
        share = window.learning_rate / self.peak if self.peak > 0.0 else 1.0
        is_annealed = share < _ANNEALED
        expected = window.kl / max(share, _ANNEALED) ** 2
        is_still = self.still.update(is_quiet and not is_annealed and expected < _STILL_KL)
        is_exhausted = self.exhausted.update(is_quiet and is_annealed)
        evidence = {
            "approx_kl": window.kl,
            "clip_fraction": window.clip_fraction,
            "policy_learning_rate": window.learning_rate,
            "peak": self.peak,
            "windows": self.windows,
        }
        if is_still and not is_annealed:
            message = (
                f"the policy does not move: its KL is {window.kl:.2g} and its clip fraction "
                f"{window.clip_fraction:.2g} in {self.windows} rollouts, with a learning rate of "
                f"{window.learning_rate:.3g}, {share:.0%} of its peak. Does its loss reach the actor, are the "
                "advantages other than 0, is the learning rate large enough?"
            )
            return [Verdict("policy_stall", Severity.WARN, message, {**evidence, "threshold": _STILL_KL})]
        if is_exhausted and is_annealed:
            message = (
                f"KL ({window.kl:.2g}) and clip fraction ({window.clip_fraction:.2g}) are near 0 because the learning "
                f"rate has been annealed to {window.learning_rate:.3g}, {share:.1%} of its peak: they say nothing of "
                "the policy. For more learning begin another schedule; more epochs would change nothing"
            )
            return [Verdict("schedule_exhausted", Severity.INFO, message, {**evidence, "threshold": _ANNEALED})]
        return []

    # The critic

    def _critic(self, window: PolicyUpdateWindow) -> list[Verdict]:
        if not self.unexplained.update(window.explained_variance < 0.0) or self.updates < self.min_updates:
            return []
        message = (
            f"after {self.updates:.0f} updates the critic explains the returns worse than a constant would "
            f"(explained variance {window.explained_variance:.3g}, below 0 in {self.windows} rollouts): is it updated, "
            "are its targets of the same scale as before, is clip_range_vf smaller than the returns?"
        )
        evidence = {"explained_variance": window.explained_variance, "threshold": 0.0, "windows": self.windows}
        return [Verdict("critic_does_not_explain", Severity.WARN, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "confirmations": {name: getattr(self, name).state_dict() for name in _CONFIRMATIONS},
            "clip_fractions": list(self.clip_fractions),
            "peak": self.peak,
            "updates": self.updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name in _CONFIRMATIONS:
            getattr(self, name).load_state_dict(state_dict["confirmations"][name])
        self.clip_fractions = list(state_dict["clip_fractions"])
        self.peak, self.updates = state_dict["peak"], state_dict["updates"]


_CONFIRMATIONS = ("wild", "still", "exhausted", "dropped", "unexplained")
