"""Whether the latents of a world model carry what was seen, and its prior foresees them: pure."""

import math
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

# Of the variance of the observations: more than this share unexplained is a prediction that says little.
_POOR = 0.5
# Of the free nats: a KL below it is far under them.
_FAR_UNDER = 0.1
# Times the KL of the losses: that of the dreams is of another prior.
_OTHER_PRIOR = 2.0
_WINDOWS = 3
_CONFIRMED = ("blind", "collapsed", "under", "apart")


class LatentWindow(NamedTuple):
    """What one window measured; NaN where it is not known."""

    updates: float  # in it
    kl: float  # mean KL(posterior ‖ prior) in nats, before the free nats
    pinned: float  # share of the states below the free nats
    free_nats: float
    prior_entropy: float
    posterior_entropy: float
    reconstruction: float  # error of the posterior's own row, relative to predicting the mean
    open_loop: float  # of the dreamt rows, mean
    kl_of_losses: float  # as `kl`, of the last update and the rows that a dream reaches
    kl_of_dreams: float  # of the same rows, with the prior that dreams are drawn from


class LatentDetector:
    """See `LatentGuard` for what each cause means.

    Args:
        learning_updates: before anything is said of what was learned.
    """

    def __init__(self, *, learning_updates: int) -> None:
        if learning_updates < 0:
            raise ValueError(f"LatentGuard got learning_updates = {learning_updates}, expected at least 0")
        self.learning_updates = learning_updates
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.updates = 0.0
        self.blind = Confirmation(_WINDOWS, _WINDOWS)
        self.collapsed = Confirmation(_WINDOWS, _WINDOWS)
        self.under = Confirmation(_WINDOWS, _WINDOWS)
        self.apart = Confirmation(_WINDOWS, _WINDOWS)

    def update(self, window: LatentWindow) -> list[Verdict]:
        """Take in a window."""
        self.updates += window.updates
        least = max(_OTHER_PRIOR * window.kl_of_losses, _FAR_UNDER * window.free_nats)
        found = [self._apart(window)] if self.apart.update(window.kl_of_dreams > least) else []
        if self.updates < self.learning_updates:
            return found
        is_under = self.under.update(window.kl < _FAR_UNDER * window.free_nats)
        sees_nothing = window.kl < window.free_nats and window.open_loop > _POOR
        is_blind = self.blind.update(sees_nothing and window.reconstruction < _POOR)
        is_collapsed = self.collapsed.update(
            window.kl < _FAR_UNDER * window.free_nats and window.reconstruction > _POOR
        )
        if is_blind:
            found.append(self._blind(window))
        if is_collapsed:
            found.append(self._collapsed(window))
        if is_under and not found:
            found.append(self._under(window))
        return found

    def _apart(self, window: LatentWindow) -> Verdict:
        message = (
            f"the losses have a KL of {window.kl_of_losses:.3g} nat between posterior and prior, but the prior from "
            f"which dreams are drawn is {window.kl_of_dreams:.3g} nat away in the same rows, more than "
            f"{_OTHER_PRIOR:g} times as far (in {_WINDOWS} windows): what is learned is not what dreams. Is the prior "
            "of the losses made before z is drawn, from the state of the step before? Is their KL the sum over the "
            "latents, not the mean? Ask the doctor"
        )
        return Verdict("dreams_of_another_prior", Severity.WARN, message, self._evidence(window))

    def _blind(self, window: LatentWindow) -> Verdict:
        message = (
            f"the KL of the dynamics is {window.kl:.3g} nat, below the {window.free_nats:g} that are free, as if the "
            f"prior knew what comes; but what it dreams leaves {window.open_loop:.0%} of the observations' variance "
            f"unexplained, the posterior {window.reconstruction:.0%} (in {_WINDOWS} windows). The prior has seen the "
            "posterior, or nothing moves it: is it made before z is drawn, and is the KL summed over the latents "
            "before it meets the free nats? Ask the doctor"
        )
        return Verdict("prior_does_not_foresee", Severity.WARN, message, self._evidence(window))

    def _collapsed(self, window: LatentWindow) -> Verdict:
        message = (
            f"the KL of the dynamics is {window.kl:.3g} nat, far below the {window.free_nats:g} that are free, and the "
            f"posterior leaves {window.reconstruction:.0%} of the observations' variance unexplained (in {_WINDOWS} "
            "windows): the latents carry nothing of what was seen. Is the gradient of the KL zero below the free nats, "
            "is beta_rep small (0.1), is there a share of the uniform distribution in the latents?"
        )
        return Verdict("posterior_collapse", Severity.WARN, message, self._evidence(window))

    def _under(self, window: LatentWindow) -> Verdict:
        message = (
            f"the KL of the dynamics is {window.kl:.3g} nat, less than a tenth of the {window.free_nats:g} that are "
            f"free, in {_WINDOWS} windows: where the world is easily foreseen, that is as it should be; a gradient "
            "should not have brought it there"
        )
        return Verdict("kl_far_under_free_nats", Severity.INFO, message, self._evidence(window))

    def _evidence(self, window: LatentWindow) -> dict[str, Any]:
        known = {name: value for name, value in window._asdict().items() if math.isfinite(value)}
        return {**known, "updates": self.updates, "poor": _POOR, "other_prior": _OTHER_PRIOR, "windows": _WINDOWS}

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "updates": self.updates,
            **{name: getattr(self, name).state_dict() for name in _CONFIRMED},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.updates = state_dict["updates"]
        for name in _CONFIRMED:
            getattr(self, name).load_state_dict(state_dict[name])
