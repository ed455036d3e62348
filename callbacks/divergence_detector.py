"""A loss that falls while the evaluation falls, and changes of the training's returns: pure."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlmods.callbacks.detectors import Severity, Verdict, autocorrelation
from rlmods.callbacks.evaluations import Evaluation, Interval
from rlmods.callbacks.return_falls import ReturnFalls, to_fields

# Evaluations in a row that must lie below the best.
_FELL_AFTER = 3
# Of the loss at the best evaluation.
_HALF = 0.5


class LossReturnDetector:
    """Says where the loss has fallen by half since the best evaluation, and the evaluation has fallen too.

    The best is the highest level that was held (the lower one of two evaluations in a row). Three evaluations in a row
    must lie below it as `ReturnFalls` says, by half of what was learned. Of 82 healthy runs of all algorithms, in
    `benchmarks/results`, six have such a fall; the loss must have halved besides.

    Args:
        share: of what was learned that must be lost.
        confidence: of the intervals of the evaluations.
    """

    def __init__(self, *, share: float, confidence: float) -> None:
        self.falls = ReturnFalls(share=share, confidence=confidence)
        self.best: Evaluation | None = None
        self.best_loss = math.nan  # mean up to it, since the evaluation before
        self.swing = 0.0  # by then
        self.last_loss = math.nan
        self.in_a_row = 0

    def update(self, evaluation: Evaluation, loss: float) -> list[Verdict]:
        """Take in an evaluation with the mean loss since the last one, NaN where nothing was learned."""
        if not math.isfinite(evaluation.mean):
            return []
        best, interval = self.best, None
        if best is not None:
            interval = self.falls.fall(evaluation, best, self.swing)
        is_down = interval is not None and loss < _HALF * self.best_loss
        self.in_a_row = self.in_a_row + 1 if is_down else 0
        self.falls.add(evaluation)
        held = self.falls.held()
        if held is not None and (best is None or held.mean > best.mean):
            self.best, self.swing, self.best_loss = held, self.falls.swing, loss
        if best is None or interval is None or self.in_a_row < _FELL_AFTER:
            return []
        return [self._verdict(best, evaluation, loss, interval)]

    def _verdict(self, best: Evaluation, now: Evaluation, loss: float, interval: Interval) -> Verdict:
        message = (
            f"since the best evaluation ({best.mean:.4g}, held at {best.env_steps} environment steps) the loss has "
            f"fallen from {self.best_loss:.3g} to {loss:.3g}, and the return to {now.mean:.4g}, in {self.in_a_row} "
            "evaluations in a row: the loss is relative to targets that move with the network, and says nothing of the "
            "policy. Go back to a checkpoint from before, and look at the values against their bound"
        )
        evidence = {
            "best": best.mean,
            "best_env_steps": best.env_steps,
            "best_loss": self.best_loss,
            "now": now.mean,
            "loss": loss,
            "interval": list(interval),
            "evaluations_in_a_row": self.in_a_row,
        }
        return Verdict("loss_falls_with_return", Severity.WARN, message, evidence)

    def reset(self) -> None:
        """Count anew; the best stays the yardstick."""
        self.in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        """The best and the evaluations."""
        return {
            "falls": self.falls.state_dict(),
            "best": None if self.best is None else to_fields(self.best),
            "best_loss": self.best_loss,
            "swing": self.swing,
            "in_a_row": self.in_a_row,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.falls.load_state_dict(state["falls"])
        self.best = None if state["best"] is None else Evaluation(*state["best"])
        self.best_loss, self.swing, self.in_a_row = state["best_loss"], state["swing"], state["in_a_row"]


class ReturnChangeDetector:
    """Finds where the returns of the training jump off their own trend.

    A block is the mean of some episodes. Over the last 16 blocks a straight line with a step between two of them is
    fitted, once for each place of the step from the fifth block to the fifth last, and the step's t statistic is taken,
    its standard error inflated by the autocorrelation of the residuals. The limit, 7, is calibrated by simulation: on
    3,000 straight lines with independent noise the largest |t| was 6.6, and 5.5 in one of a thousand; curves that bend
    like a sigmoid stay below it. A jump is for information; a fall that is still there 16 blocks later, by half of all
    that was gained, is a warning.

    Attributes:
        blocks: mean returns of the last 16, oldest first.
        ends: environment steps at their ends.
        jump: where the returns jumped, from which level and to which; None where they did not.
    """

    def __init__(self) -> None:
        self.blocks: list[float] = []
        self.ends: list[int] = []
        self.lowest, self.highest = math.inf, -math.inf
        self.jump: list[float] | None = None  # environment steps, level before, after, t, highest and lowest by then
        self.since = 0  # blocks since the jump was found

    def update(self, block: float, env_steps: int) -> list[Verdict]:
        """Take in a block; one that is not finite is passed over."""
        if not math.isfinite(block):
            return self.verdicts()
        self.blocks, self.ends = [*self.blocks, block][-BLOCKS:], [*self.ends, env_steps][-BLOCKS:]
        self.lowest, self.highest = min(self.lowest, block), max(self.highest, block)
        self.since += 1
        if len(self.blocks) == BLOCKS and (self.jump is None or self.since >= 2 * BLOCKS):
            self.jump = None
            place, step = largest_step(self.blocks)
            if abs(step) > LIMIT:
                levels = [sum(part) / len(part) for part in (self.blocks[:place], self.blocks[place:])]
                self.jump, self.since = [float(self.ends[place - 1]), *levels, step, self.lowest, self.highest], 0
        return self.verdicts()

    def verdicts(self) -> list[Verdict]:
        """What the last jump comes to now."""
        if self.jump is None:
            return []
        env_steps, before, after, step, lowest, highest = self.jump
        now = sum(self.blocks[-4:]) / 4
        fall = max(before - after, 0.0)
        stays = self.since >= BLOCKS and fall > 0.5 * (highest - lowest) and now < after + 0.25 * fall
        message = (
            f"the returns of the training jumped from {before:.4g} to {after:.4g} at {env_steps:.0f} environment steps "
            f"(t = {step:.1f} against their own trend, limit {LIMIT})"
        )
        if stays:
            message += (
                f" and have stayed there ({now:.4g}): look whether the rewards, the environment or who acts has "
                "changed, then at the policy"
            )
        evidence = {"env_steps": env_steps, "before": before, "after": after, "t": step, "limit": LIMIT, "now": now}
        return [Verdict("reward_changed", Severity.WARN if stays else Severity.INFO, message, evidence)]

    def reset(self) -> None:
        """Start the window anew."""
        self.blocks, self.ends, self.jump, self.since = [], [], None, 0

    def state_dict(self) -> dict[str, Any]:
        """The blocks and the jump."""
        return {name: getattr(self, name) for name in _REMEMBERED}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        for name in _REMEMBERED:
            setattr(self, name, state[name])


_REMEMBERED = ("blocks", "ends", "lowest", "highest", "jump", "since")
BLOCKS = 16
LIMIT = 7.0
_EDGE = 4  # blocks on either side of a step


def largest_step(values: Sequence[float]) -> tuple[int, float]:
    """The step with the largest |t| that a straight line with one step has in these values.

    y = a + b·x + s·[x ≥ place] + noise, least squares; t = s / SE(s), the latter times √((1 + φ)/(1 − φ)).

    Args:
        values: at least 2·4 + 1 of them.

    Returns:
        The place, number of the first value after the step, and t; 0 where the values do not vary.
    """
    y = np.asarray(values, dtype=np.float64)
    x = np.linspace(-1.0, 1.0, len(y))
    found = (_EDGE, 0.0)
    for place in range(_EDGE, len(y) - _EDGE + 1):
        design = np.stack([np.ones_like(x), x, np.arange(len(y)) >= place], axis=1)
        inverse = np.linalg.inv(design.T @ design)
        fitted = inverse @ design.T @ y
        residual = y - design @ fitted
        variance = float(residual @ residual) / (len(y) - 3)
        if variance <= 1e-18 * float(y @ y):
            exact = abs(fitted[2]) > 1e-9 * float(np.abs(y).max())
            return (place, math.copysign(math.inf, fitted[2])) if exact else found
        phi = autocorrelation(residual.tolist())
        step = float(fitted[2]) / math.sqrt(variance * inverse[2, 2] * (1.0 + phi) / (1.0 - phi))
        found = max(found, (place, step), key=lambda candidate: abs(candidate[1]))
    return found
