"""Whether anything is being learned: the pure detector behind `LivenessGuard`."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict


class LivenessWindow(NamedTuple):
    """What one window measured. A dict holds what the module has; NaN stands for what this window did not show."""

    updates: float  # optimiser steps with gradients, of all optimisers
    update_ratio: Mapping[str, float]  # by parameter group: ‖Δθ‖ / ‖θ‖ of one update
    learning_rate: Mapping[str, float]  # by parameter group, as the optimiser uses it
    weight_norm: Mapping[str, float]  # by parameter group
    grad_norm: Mapping[str, Mapping[str, float]]  # by optimiser, by module: L2 norm before the step
    target_distance: Mapping[str, float]  # by target network: ‖θ − θ'‖ / ‖θ‖, the larger of two updates in a row
    target_moved: Mapping[str, float]  # by target network: 0 where its weights equal those of the window before
    losses: Mapping[str, tuple[float, float]]  # by signal: the value that most updates share, and their share
    collected: float  # environment steps in this window; NaN where nobody counts
    added: float  # transitions put into the replay in this window; NaN where there is none
    uses: float  # transitions drawn in this window
    uses_per_transition: float  # as configured
    progress: float  # 0 to 1 of the budget; NaN where nobody knows it
    module_group: Mapping[str, str] = {}  # by module: its parameter group, where an optimiser has several
    error_ratio: float = 1.0  # the squared error that is learned from, as a share of the largest so far


class LivenessDetector:
    """See `LivenessGuard` for what each cause means.

    Args:
        inert_below: ‖Δθ‖/‖θ‖ of one update, below which the weights stand still.
        violent_above: the same, above which they are thrown about.
        target_patience: updates after which a target network must have moved.
    """

    def __init__(self, *, inert_below: float, violent_above: float, target_patience: int) -> None:
        if not 0.0 <= inert_below < violent_above:
            raise ValueError(
                f"LivenessGuard got inert_below = {inert_below} and violent_above = {violent_above}, expected "
                "0 ≤ inert_below < violent_above"
            )
        if target_patience < 1:
            raise ValueError(f"LivenessGuard got target_patience = {target_patience}, expected updates, at least 1")
        self.inert_below = inert_below
        self.violent_above = violent_above
        self.target_patience = target_patience
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.windows = 0
        self.confirmations: dict[str, Confirmation] = {}
        self.peak_learning_rate: dict[str, float] = {}
        self.peak_grad_norm = 0.0
        self.still: dict[str, float] = {}  # by target network, by loss: updates since it last changed
        self.last_weight_norm: dict[str, float] = {}
        self.moved_at: dict[str, float] = {}  # by target network: progress of the run when it last moved
        self.pinned: dict[str, tuple[float, float]] = {}  # by loss: the value that it is pinned at, updates

    def update(self, window: LivenessWindow) -> list[Verdict]:
        """Take in a window."""
        self.windows += 1
        verdicts = [*self._experience(window)]
        if window.updates > 0:
            verdicts += [
                *self._gradients(window),
                *self._steps(window),
                *self._learning_rates(window),
                *self._targets(window),
                *self._losses(window),
            ]
        return verdicts

    def _confirmed(self, key: str, positive: bool, needed: int) -> bool:
        return self.confirmations.setdefault(key, Confirmation(needed, needed)).update(positive)

    def _gradients(self, window: LivenessWindow) -> list[Verdict]:
        verdicts = []
        for optimizer, modules in window.grad_norm.items():
            largest = self._largest(modules, window.module_group)
            dead = [
                module
                for module, norm in modules.items()
                if self._confirmed(
                    f"grad/{optimizer}/{module}", norm <= 1e-6 * largest[module] and largest[module] > 0.0, 3
                )
            ]
            if dead:
                message = (
                    f"{', '.join(dead)} of the optimiser {optimizer} got no gradient in 3 windows (at most 1e-6 of the "
                    f"largest beside it, {largest[dead[0]]:.3g}), so its weights are not trained: a "
                    "detach or no_grad cuts it off, nothing uses its output, or all its units are dead"
                )
                threshold = {module: 1e-6 * largest[module] for module in dead}
                evidence = {"modules": dead, "grad_norm": dict(modules), "threshold": threshold, "windows": 3}
                verdicts.append(Verdict("no_gradient", Severity.WARN, message, evidence))
        return verdicts

    @staticmethod
    def _largest(modules: Mapping[str, float], module_group: Mapping[str, str]) -> dict[str, float]:
        """By module, the largest norm of its parameter group; of the optimiser, where the whole group has none.

        Losses of different parts have different sizes: an actor that knows nothing yet is no dead part of a model.
        """
        of_group: dict[str | None, float] = {}
        for module, norm in modules.items():
            group = module_group.get(module)
            of_group[group] = max(of_group.get(group, 0.0), norm)
        everywhere = max(of_group.values(), default=0.0)
        return {module: of_group[module_group.get(module)] or everywhere for module in modules}

    def _steps(self, window: LivenessWindow) -> list[Verdict]:
        grad_norm = math.hypot(*(norm for modules in window.grad_norm.values() for norm in modules.values()))
        self.peak_grad_norm = max(self.peak_grad_norm, grad_norm)
        # Where gradient or error are gone, on rewards of zero or at the end of a descent, there is nothing to move for.
        has_gradient = grad_norm > 0.05 * self.peak_grad_norm and window.error_ratio > 0.05**2
        verdicts = []
        for group, ratio in window.update_ratio.items():
            rate = window.learning_rate[group]
            last_peak = self.peak_learning_rate.get(group, rate)
            peak = max(last_peak, rate)
            self.peak_learning_rate[group] = peak
            # The end of a schedule is no defect, and has a cause of its own; nor is a warm-up, whose rate still rises.
            # A rate of 0 beside others fixes a group.
            is_fixed = peak == 0.0 and any(window.learning_rate.values())
            is_scheduled = rate < 0.01 * peak or rate > last_peak or is_fixed
            evidence = {"group": group, "update_ratio": ratio, "learning_rate_used": rate, "learning_rate_peak": peak}
            if self._confirmed(f"inert/{group}", ratio < self.inert_below and has_gradient and not is_scheduled, 2):
                message = (
                    f"an update changes the weights of {group} by {ratio:.2g} of their norm, less than "
                    f"{self.inert_below:.0e}, at a learning rate of {rate:.3g}: nothing is learned. Look whether the "
                    "optimiser holds these weights, whether the gradient is divided twice, and at the learning rate"
                )
                verdicts.append(
                    Verdict("inert_update", Severity.WARN, message, evidence | {"threshold": self.inert_below})
                )
            verdicts += self._violent(window, group, evidence)
        return verdicts

    def _violent(self, window: LivenessWindow, group: str, evidence: dict[str, Any]) -> list[Verdict]:
        """Steps that are large against the weights, or that have just made the weights large, and look small now."""
        ratio, norm = window.update_ratio[group], window.weight_norm[group]
        last = self.last_weight_norm.get(group, norm)
        self.last_weight_norm[group] = norm
        has_begun = self.windows > 4
        max_growth = 2.0 if has_begun else 4.0
        is_thrown = self._confirmed(f"violent/{group}", has_begun and ratio > self.violent_above, 2)
        # From weights that begin at 0 every growth is infinite.
        if not (is_thrown or norm > max_growth * last > 0.0):
            return []
        message = (
            f"an update changes the weights of {group} by {ratio:.2g} of their norm, which is {norm:.3g}, after "
            f"{last:.3g} in the last window, at a learning rate of {evidence['learning_rate_used']:.3g}: what was "
            "learned is thrown away. Lower the learning rate, or look at what raised it"
        )
        evidence |= {"weight_norm": norm, "weight_norm_last": last}
        evidence |= {"thresholds": {"update_ratio": self.violent_above, "growth": max_growth}}
        return [Verdict("violent_update", Severity.WARN, message, evidence)]

    def _learning_rates(self, window: LivenessWindow) -> list[Verdict]:
        verdicts = []
        for group, rate in window.learning_rate.items():
            peak = self.peak_learning_rate.get(group, rate)
            if rate < 0.01 * peak and window.progress < 0.95:
                message = (
                    f"the learning rate of {group} is {rate:.2g}, {rate / peak:.1%} of its peak {peak:.2g}, with "
                    f"{1.0 - window.progress:.0%} of the budget left: the rest of the run learns next to nothing. "
                    "Align the schedule with the budget; a KL or clip fraction of 0 means nothing now"
                )
                evidence = {
                    "group": group,
                    "learning_rate_used": rate,
                    "learning_rate_peak": peak,
                    "progress": window.progress,
                }
                verdicts.append(Verdict("learning_rate_exhausted", Severity.WARN, message, evidence))
        return verdicts

    def _targets(self, window: LivenessWindow) -> list[Verdict]:
        verdicts = []
        for network, distance in window.target_distance.items():
            moved = window.target_moved.get(network, math.nan)
            # One that equals a network that stands still has nothing to lag behind.
            if self._confirmed(f"lag/{network}", distance < 1e-9 and moved > 0.0, 2):
                message = (
                    f"{network} equals its online network in two updates in a row, in 2 windows: it does not lag, so "
                    "targets chase themselves. Lower tau, raise target_update_interval, or look whether both are one "
                    "object"
                )
                verdicts.append(
                    Verdict(
                        "target_never_lags",
                        Severity.WARN,
                        message,
                        {"network": network, "distance": distance, "threshold": 1e-9, "windows": 2},
                    )
                )
            if moved or network not in self.still:
                self.still[network], self.moved_at[network] = 0.0, window.progress
            self.still[network] += 0.0 if moved else window.updates
            # Whatever the interval that is declared: fewer than five updates in a run are as good as none.
            share = window.progress - self.moved_at[network]
            updates = self.still[network]
            is_late = updates > self.target_patience or (share > 0.2 and updates >= 200)
            # A distance of nothing says that there was nothing to follow.
            if is_late and distance > 1e-9:
                message = (
                    f"{network} has not moved for {updates:.0f} updates, {share:.0%} of the run, and is "
                    f"{distance:.2g} of the norm away from its online network: targets stay those of the past. Is it "
                    "updated, and is target_update_interval counted in updates?"
                )
                evidence = {
                    "network": network,
                    "distance": distance,
                    "updates": updates,
                    "threshold": self.target_patience,
                    "share": share,
                    "share_threshold": 0.2,
                }
                verdicts.append(Verdict("target_never_moves", Severity.WARN, message, evidence))
        return verdicts

    def _losses(self, window: LivenessWindow) -> list[Verdict]:
        verdicts = []
        for name, (value, share) in window.losses.items():
            last, updates = self.pinned.get(name, (math.nan, 0.0))
            # Two updates have the same loss by chance next to never. 0 is what a term that is switched off has, or a
            # task that is solved exactly.
            is_shared = share >= 0.25 and value != 0.0
            goes_on = is_shared and abs(value - last) <= 1e-6 * abs(value)
            updates = window.updates + updates if goes_on else window.updates
            self.pinned[name] = (value, updates) if is_shared else (math.nan, 0.0)
            updates = updates if goes_on else 0.0
            if updates >= 200:
                message = (
                    f"{name} is {value:.6g} to six digits in {share:.0%} of {updates:.0f} updates: a max, a clamp or "
                    "free bits hold it there, and it has no gradient"
                )
                evidence = {"loss": name, "value": value, "share": share, "updates": updates, "threshold": 200}
                verdicts.append(Verdict("pinned_loss", Severity.WARN, message, evidence))
        return verdicts

    def _experience(self, window: LivenessWindow) -> list[Verdict]:
        collected, added = window.collected, window.added
        if self._confirmed("experience", window.updates > 0 and (collected == 0.0 or added == 0.0), 2):
            what = "no environment step was made" if collected == 0.0 else "nothing was put into the replay"
            message = (
                f"{what} in 2 windows, while {window.updates:.0f} updates a window went on: the collector died, and "
                "the old data are learned by heart"
            )
            evidence = {"collected": collected, "added": added, "updates": window.updates, "windows": 2}
            return [Verdict("no_new_experience", Severity.ACT, message, evidence)]
        if math.isnan(added) or added <= 0.0 or not window.uses:
            return []
        uses = window.uses / added
        ratio = uses / window.uses_per_transition
        evidence = {
            "uses_per_transition": uses,
            "configured": window.uses_per_transition,
            "drawn": window.uses,
            "added": added,
        }
        if self._confirmed("overused", ratio > 2.0, 3):
            message = (
                f"each transition is drawn {uses:.3g} times on average, {ratio:.1f} times as often as configured "
                f"({window.uses_per_transition:.3g}), in 3 windows: too many updates for what is collected"
            )
            return [Verdict("replay_overused", Severity.WARN, message, evidence)]
        if self._confirmed("underused", ratio < 0.5, 3):
            message = (
                f"each transition is drawn {uses:.3g} times on average, {ratio:.2f} of what is configured "
                f"({window.uses_per_transition:.3g}), in 3 windows: too few updates for what is collected"
            )
            return [Verdict("replay_underused", Severity.WARN, message, evidence)]
        return []

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "windows": self.windows,
            "confirmations": {key: confirmation.state_dict() for key, confirmation in self.confirmations.items()},
            "needed": {key: confirmation.needed for key, confirmation in self.confirmations.items()},
            "peak_learning_rate": dict(self.peak_learning_rate),
            "peak_grad_norm": self.peak_grad_norm,
            "still": dict(self.still),
            "moved_at": dict(self.moved_at),
            "last_weight_norm": dict(self.last_weight_norm),
            "pinned": {name: list(pinned) for name, pinned in self.pinned.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.windows = state_dict["windows"]
        self.confirmations = {}
        for key, confirmation in state_dict["confirmations"].items():
            needed = state_dict["needed"][key]
            self.confirmations[key] = Confirmation(needed, needed)
            self.confirmations[key].load_state_dict(confirmation)
        self.peak_learning_rate = dict(state_dict["peak_learning_rate"])
        self.peak_grad_norm = state_dict["peak_grad_norm"]
        self.still = dict(state_dict["still"])
        self.moved_at = dict(state_dict["moved_at"])
        self.last_weight_norm = dict(state_dict["last_weight_norm"])
        self.pinned = {name: (value, updates) for name, (value, updates) in state_dict["pinned"].items()}
