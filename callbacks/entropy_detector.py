"""Whether a policy still is as random as it may be, and as it must be: pure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Of a Gaussian with σ = 1: ½ + ½ log 2π.
_GAUSSIAN = 0.5 * (1.0 + math.log(2.0 * math.pi))
# Nats by which an entropy that one draw a sample estimates may pass its bound, for each action.
_ESTIMATED = 0.1
_ROUNDING = 1e-3
# Half action ranges: beyond it nearly two thirds of the draws are clipped, whatever the mean.
_WIDE = 2.0
# |μ|/σ, below which the side of the box is next to a coin's: Φ(0.25) = 0.60.
_COIN = 0.25
# Times its smallest so far: a σ that began wide and wanders is a setting.
_GROWN = 1.5
_AT_ENDS = 0.95
# Share of the best evaluation that must be lost, until a wide σ is held to be what costs it.
_LOST = 0.25


class EntropyWindow(NamedTuple):
    """What one iteration measured; NaN or empty where it is not known."""

    entropy: float  # of the first update, in nats
    largest: float  # that any distribution over these actions has
    stds: Sequence[float]  # σ by action, in half action ranges
    means: Sequence[float]  # mean |μ|, the same
    saturation: Sequence[float]  # share of the executed actions at their ends
    mean_reward: float  # of the last evaluation

    @property
    def is_gaussian(self) -> bool:
        """Whether the entropy is that of the Gaussian itself, which ends at no box."""
        expected = sum(_GAUSSIAN + math.log(std) for std in self.stds if std > 0.0)
        return bool(self.stds) and abs(self.entropy - expected) < _ROUNDING * max(1.0, abs(expected))


class EntropyDetector:
    """See `EntropyGuard` for what each cause means.

    Args:
        collapsed: share of the largest entropy below which discrete actions count as collapsed.
        windows: in a row, until it is told of a collapse or of actions at their ends.
    """

    def __init__(self, *, collapsed: float, windows: int) -> None:
        if not 0.0 < collapsed < 1.0:
            raise ValueError(f"EntropyGuard got collapsed = {collapsed}, expected a share in (0, 1), for example 0.05")
        if windows < 1:
            raise ValueError(f"EntropyGuard got windows = {windows}, expected at least 1")
        self.collapsed = collapsed
        self.windows = windows
        self.rewards: list[float] = []  # first and best evaluation
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.above = Confirmation(2, 2)
        self.outrun = Confirmation(3, 3)
        self.costly = Confirmation(3, 3)
        self.low = Confirmation(self.windows, self.windows)
        self.at_ends = Confirmation(self.windows, self.windows)
        self.start = math.nan  # the first entropy
        self.last_stds: list[float] = []
        self.least_stds: list[float] = []
        self.best_shares: list[float] = []  # the largest |μ|/σ by action, since σ left the box

    def update(self, window: EntropyWindow) -> list[Verdict]:
        """Take in an iteration."""
        if not math.isfinite(window.entropy):
            return []  # NonFiniteGuard names it
        if math.isnan(self.start):
            self.start = window.entropy
        if math.isfinite(window.mean_reward):
            first, best = self.rewards or [window.mean_reward] * 2
            self.rewards = [first, max(best, window.mean_reward)]
        return [*self._above(window), *self._spread(window), *self._collapse(window), *self._at_ends(window)]

    # Upper end

    def _above(self, window: EntropyWindow) -> list[Verdict]:
        slack = _ESTIMATED * len(window.stds) if window.stds else _ROUNDING
        if not self.above.update(window.entropy > window.largest + slack and not window.is_gaussian):
            return []
        message = (
            f"the entropy is {window.entropy:.4g} nats, but no distribution over these actions has more than "
            f"{window.largest:.4g}: the log-probabilities are those of another distribution (without the slope of the "
            "tanh, not normalised, or in other units)"
        )
        evidence = {"entropy": window.entropy, "largest": window.largest, "slack": slack, "windows": 2}
        return [Verdict("entropy_above_bound", Severity.ACT, message, evidence)]

    def _spread(self, window: EntropyWindow) -> list[Verdict]:
        """σ of a Gaussian that the environment clips: H alone is no alarm, σ that outruns |μ| is."""
        stds, last = list(window.stds), self.last_stds
        self.last_stds = stds
        self.least_stds = [min(pair) for pair in zip(self.least_stds or stds, stds, strict=True)]
        is_wide = [std > _WIDE for std in stds]
        if not (window.is_gaussian and math.isfinite(window.largest) and any(is_wide)):
            self.best_shares = []
            self.outrun.update(False)
            self.costly.update(False)
            return []
        shares = [mean / std for mean, std in zip(window.means, stds, strict=True)]
        best = self.best_shares or [0.0] * len(shares)
        self.best_shares = [max(pair) for pair in zip(best, shares, strict=True)]
        grows = [
            now > before and now > _GROWN * least
            for now, before, least in zip(stds, last or stds, self.least_stds, strict=True)
        ]
        spreads = [action for action in range(len(stds)) if is_wide[action] and grows[action]]
        is_outrun = self.outrun.update(
            any(shares[action] < max(_COIN, 0.5 * self.best_shares[action]) for action in spreads)
        )
        is_costly = self.costly.update(bool(spreads) and self._has_fallen(window))
        worst = max(range(len(stds)), key=lambda action: stds[action])
        evidence: dict[str, Any] = {
            "entropy": window.entropy,
            "largest": window.largest,
            "std": stds,
            "mean_abs": list(window.means),
            "mean_over_std": shares,
            "saturation": list(window.saturation),
            "threshold": [_WIDE, _COIN, _GROWN],
            "windows": 3,
        }
        what = (
            f"σ is {stds[worst]:.3g} times half the action range (entropy {window.entropy:.4g} nats, in the box at "
            f"most {window.largest:.3g})"
        )
        if is_outrun:
            message = (
                f"{what} and grows, while |μ|/σ is {shares[worst]:.2g}: the actions are coin flips between the ends of "
                "their range, and the KL is small because σ is large. Lower ent_coef, keep log σ out of Muon, or take "
                "a bounded distribution"
            )
            return [Verdict("sigma_outruns_mean", Severity.WARN, message, evidence)]
        if is_costly:
            message = (
                f"{what} and grows, and the evaluation has fallen from {self.rewards[1]:.4g} to "
                f"{window.mean_reward:.4g}: more and more actions are draws that the ends of their range cut off. "
                "Lower ent_coef, keep log σ out of Muon, or take a bounded distribution"
            )
            evidence |= {"mean_reward": window.mean_reward, "best_reward": self.rewards[1], "lost": _LOST}
            return [Verdict("sigma_costs_return", Severity.WARN, message, evidence)]
        message = (
            f"{what}: most actions are clipped to the ends of their range. As long as |μ| keeps up "
            f"({shares[worst]:.2g} of σ) that is a policy of extremes, and KL and entropy mean less than they look"
        )
        return [Verdict("sigma_beyond_box", Severity.INFO, message, evidence)]

    def _has_fallen(self, window: EntropyWindow) -> bool:
        """Whether the last evaluation is far below the best one; also where the best was the first, a warm start's."""
        if not (self.rewards and math.isfinite(window.mean_reward)):
            return False
        first, best = self.rewards
        return window.mean_reward < best - _LOST * max(abs(first), abs(best))

    # Lower end

    def _collapse(self, window: EntropyWindow) -> list[Verdict]:
        if window.stds:
            # e³: σ is a twentieth of what it was in every action.
            is_low = window.entropy < self.start - 3.0 * len(window.stds)
        else:
            is_low = window.entropy < self.collapsed * min(window.largest, max(self.start, 0.0))
        if not (self.low.update(is_low) and is_low and self._has_lost(window)):
            return []
        first, best = self.rewards
        message = (
            f"the entropy is {window.entropy:.3g} nats, where it began with {self.start:.3g}, and the return is "
            f"{window.mean_reward:.4g} (first {first:.4g}, best {best:.4g}): the policy has stopped to explore before "
            "it was any good. Raise ent_coef, lower the learning rate, or make fewer epochs"
        )
        evidence = {
            "entropy": window.entropy,
            "start": self.start,
            "mean_reward": window.mean_reward,
            "first_reward": first,
            "best_reward": best,
            "threshold": self.collapsed,
            "windows": self.windows,
        }
        return [Verdict("entropy_collapse", Severity.WARN, message, evidence)]

    def _has_lost(self, window: EntropyWindow) -> bool:
        """Whether the last evaluation has less than half of all that was gained: a solved task may be deterministic."""
        if not (self.rewards and math.isfinite(window.mean_reward)):
            return False
        first, best = self.rewards
        return window.mean_reward < first + 0.5 * (best - first)

    def _at_ends(self, window: EntropyWindow) -> list[Verdict]:
        found = [action for action, share in enumerate(window.saturation) if share > _AT_ENDS]
        if not (self.at_ends.update(bool(found)) and found):
            return []
        message = (
            f"more than {_AT_ENDS:.0%} of the actions {found} stand at the ends of their range, in {self.windows} "
            "iterations: right where the best action is an extreme, and hard to leave where it is not"
        )
        evidence = {"saturation": list(window.saturation), "threshold": _AT_ENDS, "windows": self.windows}
        return [Verdict("saturated_actions", Severity.INFO, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "confirmations": {name: getattr(self, name).state_dict() for name in _CONFIRMATIONS},
            "values": {name: getattr(self, name) for name in _VALUES},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name in _CONFIRMATIONS:
            getattr(self, name).load_state_dict(state_dict["confirmations"][name])
        for name in _VALUES:
            setattr(self, name, state_dict["values"][name])


_CONFIRMATIONS = ("above", "outrun", "costly", "low", "at_ends")
_VALUES = ("start", "rewards", "last_stds", "least_stds", "best_shares")
