"""Schedules over the progress of a run (0 at its start, 1 when its budget of environment steps is spent)."""

import math
from typing import Literal, TypeAlias

Schedule: TypeAlias = Literal["constant", "linear", "cosine"]


def linear_schedule(progress: float, *, start: float, end: float, fraction: float) -> float:
    """From `start` to `end` in a straight line over the first `fraction` of the run, `end` thereafter.

    Args:
        progress: environment steps as a fraction of the budget, 0 to 1.
        start: value at progress 0.
        end: value from progress `fraction` on.
        fraction: in `[0, 1]`; 0 means `end` from the beginning.
    """
    if progress >= fraction:
        return end
    return start + (end - start) * progress / fraction


def annealed(progress: float, start: float, schedule: Schedule) -> float:
    """From `start` at progress 0 to 0 at progress 1, in a straight line or along half a cosine; or always `start`."""
    if schedule == "constant":
        return start
    if schedule == "linear":
        return start * (1.0 - progress)
    return start * 0.5 * (1.0 + math.cos(math.pi * progress))


def scheduled(progress: float, *, start: float, end: float, schedule: Schedule, warmup: float = 0.0) -> float:
    """Up to `start` in a straight line over the first `warmup` of the run, then by a schedule to `end` at progress 1.

    Args:
        progress: environment steps as a fraction of the budget, 0 to 1.
        start: value at the end of the warm-up.
        end: value at progress 1; unused where the schedule is constant.
        schedule: constant, linear or cosine (half a period).
        warmup: in `[0, 1)`; 0 has none.
    """
    if progress < warmup:
        return start * progress / warmup
    if schedule == "constant":
        return start
    spent = (progress - warmup) / (1.0 - warmup)
    if schedule == "linear":
        return linear_schedule(spent, start=start, end=end, fraction=1.0)
    return end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min(spent, 1.0)))
