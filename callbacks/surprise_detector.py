"""How surprising a loss is against its own past: pure."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, RobustScore, Severity, Verdict

# Of the moving average, and of what is left of a surprise an iteration later.
_RATE, _DECAY = 0.99, 0.9
# In units of the logarithm: a surprise of less than a fifth is none, however quiet the loss is.
_SPREAD_FLOOR = 0.05


class Surprise(NamedTuple):
    """Of a loss in one iteration."""

    value: float  # ln(loss / its moving average before)
    smoothed: float  # jumps up, and decays
    score: float | None  # standard deviations above the median; None while too few are known


class LossSurprise:
    """Follows one loss.

    Args:
        threshold: standard deviations that count as surprising.
        minimum: iterations before the first score.
    """

    def __init__(self, *, threshold: float, minimum: int) -> None:
        self.threshold = threshold
        self.average: float | None = None
        self.smoothed = 0.0
        self.baseline = RobustScore(window=max(50, minimum), minimum=minimum, floor=_SPREAD_FLOOR)
        self.confirmation = Confirmation(2, 3)
        self.is_surprising = False

    def update(self, loss: float) -> Surprise | None:
        """Take in an iteration; None for a loss that is not above 0, or the first one."""
        if not (loss > 0.0 and math.isfinite(loss)):
            return None
        if self.average is None:
            self.average = loss
            return None
        value = math.log(loss / self.average)
        self.average = _RATE * self.average + (1.0 - _RATE) * loss
        self.smoothed = max(value, _DECAY * self.smoothed + (1.0 - _DECAY) * value)
        score = self.baseline.score(value)
        self.is_surprising = self._confirmed(value, score)
        # Outliers join the baseline too: what lasts is no surprise.
        self.baseline.add(value)
        return Surprise(value, self.smoothed, score)

    def _confirmed(self, value: float, score: float | None) -> bool:
        """In two of three iterations, this one included. A loss below its average, however it came back, is none."""
        is_outlier = score is not None and score > self.threshold and value > 0.0
        return self.confirmation.update(is_outlier) and is_outlier

    def state_dict(self) -> dict[str, Any]:
        """The average and the past."""
        return {
            "average": self.average,
            "smoothed": self.smoothed,
            "baseline": self.baseline.state_dict(),
            "confirmation": self.confirmation.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.average, self.smoothed = state_dict["average"], state_dict["smoothed"]
        self.baseline.load_state_dict(state_dict["baseline"])
        self.confirmation.load_state_dict(state_dict["confirmation"])


class SurpriseDetector:
    """See `SurpriseMonitor`.

    Args:
        losses: names.
        threshold: standard deviations that count as surprising.
        minimum: iterations before the first score.
        max_duty: share of the iterations so far in which a surprise may be told, in (0, 1).
    """

    def __init__(self, losses: Sequence[str], *, threshold: float, minimum: int, max_duty: float) -> None:
        if threshold <= 0.0:
            raise ValueError(f"SurpriseMonitor got threshold = {threshold}, expected standard deviations above 0")
        if not 0.0 < max_duty < 1.0:
            raise ValueError(f"SurpriseMonitor got max_duty = {max_duty}, expected a share in (0, 1), for example 0.2")
        self.threshold = threshold
        self.minimum = minimum
        self.max_duty = max_duty
        self.follow(losses)
        self.iterations = 0
        self.told = 0
        self.withheld = 0

    def follow(self, losses: Iterable[str]) -> None:
        """Start anew with these losses; what was told counts on."""
        self.of = {name: LossSurprise(threshold=self.threshold, minimum=self.minimum) for name in losses}
        self.last: dict[str, Surprise] = {}

    def reset(self) -> None:
        """Start anew with the same."""
        self.follow(list(self.of))

    def update(self, losses: Mapping[str, float]) -> list[Verdict]:
        """Take in an iteration."""
        self.iterations += 1
        found = {name: self.of[name].update(loss) for name, loss in losses.items()}
        self.last |= {name: surprise for name, surprise in found.items() if surprise is not None}
        surprising = {
            name: surprise for name, surprise in found.items() if surprise is not None and self.of[name].is_surprising
        }
        if not surprising:
            return []
        if self.told >= self.max_duty * self.iterations:
            self.withheld += 1
            return []
        self.told += 1
        named = ", ".join(
            f"{name} is {math.exp(surprise.value):.2g} times its average (z = {surprise.score:.1f})"
            for name, surprise in surprising.items()
        )
        message = (
            f"{named}: the data are not what the model expects. Where a policy finds something new, that is as it "
            "should be; where it comes with falling returns, look at what was collected last"
        )
        evidence = {
            "scores": {name: surprise.score for name, surprise in surprising.items()},
            "surprises": {name: surprise.value for name, surprise in surprising.items()},
            "threshold": self.threshold,
            "told": self.told,
            "withheld": self.withheld,
            "iterations": self.iterations,
        }
        return [Verdict("surprise", Severity.INFO, message, evidence)]

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "of": {name: one.state_dict() for name, one in self.of.items()},
            "last": {name: list(surprise) for name, surprise in self.last.items()},
            "counts": [self.iterations, self.told, self.withheld],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on, with the losses that were followed."""
        self.follow(state_dict["of"])
        for name, one in self.of.items():
            one.load_state_dict(state_dict["of"][name])
        self.last = {name: Surprise(*fields) for name, fields in state_dict["last"].items()}
        self.iterations, self.told, self.withheld = state_dict["counts"]
