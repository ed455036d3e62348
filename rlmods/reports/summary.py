"""The five numbers that a table gives of a curve, and how numbers are printed."""

import math
from collections.abc import Sequence
from typing import NamedTuple

LAST_K = 5
COLUMNS = ("metric", "last", "min", "max", "mean_last_k", "slope_last_k")


class Summary(NamedTuple):
    """Of the finite values of a curve; None where there are too few."""

    last: float | None
    min: float | None
    max: float | None
    mean_last_k: float | None
    slope_last_k: float | None  # per unit of the axis


def summarize(times: Sequence[float], values: Sequence[float], k: int = LAST_K) -> Summary:
    """Last, minimum, maximum, and mean and least-squares slope of the last `k` finite values.

    Args:
        times: `[rows]`, the axis of the slope.
        values: `[rows]`; what is not finite is passed over.
        k: how many of the last finite values count.
    """
    finite = [(time, value) for time, value in zip(times, values, strict=True) if math.isfinite(value)]
    if not finite:
        return Summary(None, None, None, None, None)
    every = [value for _, value in finite]
    tail = finite[-k:]
    return Summary(every[-1], min(every), max(every), sum(every[-k:]) / len(tail), slope(*zip(*tail, strict=True)))


def slope(times: Sequence[float], values: Sequence[float]) -> float | None:
    """The least-squares slope; 0 where all times are equal, None for fewer than two points."""
    if len(times) < 2:
        return None
    center = sum(times) / len(times)
    level = sum(values) / len(values)
    spread = sum((time - center) ** 2 for time in times)
    if spread == 0.0:
        return 0.0
    return sum((time - center) * (value - level) for time, value in zip(times, values, strict=True)) / spread


def number(value: float | None) -> str:
    """Four significant digits; "-" where there is no number."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
