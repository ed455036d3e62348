"""What the records mean: harm, detection, delay, recovery. Pure functions of records."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from statistics import fmean, quantiles
from typing import NamedTuple

from .catalogue import Fault
from .records import SEVERITIES, Alarm, Point, Record

LAST = 3  # evaluations that make the final return
# What `Rollback` says about its own work names no cause.
NO_CAUSES = frozenset({"rollback_due", "rollbacks_spent", "no_green_state", "learning_rate_not_lowered"})
RECOVERY_PART = 0.2  # of the budget: a collapse that is over within it was none


class Interval(NamedTuple):
    """A proportion with its 95 % interval."""

    hits: int
    of: int
    low: float
    high: float

    def __str__(self) -> str:
        if self.of == 0:
            return "none"
        return f"{self.hits}/{self.of} = {self.hits / self.of:.0%} ({self.low:.0%} to {self.high:.0%})"


class Detection(NamedTuple):
    """The first alarm after the onset, at or above some severity."""

    env_steps: int
    delay_env_steps: int
    delay_updates: int
    first_cause: str
    causes: tuple[str, ...]  # in the order in which they were named


def wilson(hits: int, of: int) -> Interval:
    """Wilson's interval of a proportion (Wilson 1927)."""
    if of == 0:
        return Interval(0, 0, 0.0, 1.0)
    z = 1.959964
    share, weight = hits / of, z**2 / of
    center = (share + weight / 2) / (1 + weight)
    half = z / (1 + weight) * math.sqrt(share * (1 - share) / of + weight / (4 * of))
    return Interval(hits, of, max(0.0, center - half), min(1.0, center + half))


def tenth_percentile(values: Sequence[float]) -> float:
    """Interpolated; the value itself where there is one only."""
    return quantiles(values, n=10, method="inclusive")[0] if len(values) > 1 else values[0]


def final_return(record: Record, random_score: float) -> float:
    """Mean of the last evaluations; a run that ended early is held at its last one."""
    return fmean(curve_at(record["evaluations"], step, random_score) for step in _evaluation_steps(record)[-LAST:])


def curve_at(evaluations: Sequence[Point], env_steps: float, random_score: float) -> float:
    """The curve: linear between evaluations, from the random score at the start, held after the last one."""
    steps = [0, *(point["env_steps"] for point in evaluations)]
    means = [random_score, *(point["mean"] for point in evaluations)]
    position = bisect_left(steps, env_steps)
    if position == len(steps):
        return means[-1]
    if steps[position] == env_steps or position == 0:
        return means[position]
    share = (env_steps - steps[position - 1]) / (steps[position] - steps[position - 1])
    return means[position - 1] + share * (means[position] - means[position - 1])


def area(record: Record, onset: float, random_score: float) -> float:
    """Mean height of the curve from the onset to the end of the budget."""
    start, end = onset * record["budget"], record["budget"]
    inner = [point["env_steps"] for point in record["evaluations"] if start < point["env_steps"] < end]
    steps = [start, *inner, end]
    heights = [curve_at(record["evaluations"], step, random_score) for step in steps]
    trapezia = ((b - a) * (y + z) / 2 for a, b, y, z in zip(steps, steps[1:], heights, heights[1:], strict=False))
    return sum(trapezia) / (end - start)


def recovery(guarded: float, unguarded: float, healthy: float) -> float | None:
    """How much of the lost area the safeguards saved, in [−1, 1.2]; None where nothing was lost."""
    lost = healthy - unguarded
    if lost <= 0.0:
        return None
    return min(1.2, max(-1.0, (guarded - unguarded) / lost))


def collapse(record: Record, healthy: Sequence[Record], random_score: float) -> int | None:
    """Environment steps of the collapse; None where there was none.

    The first evaluation where the mean of three has lost more than half of the way from the random score to the best
    of such means before, lies below the healthy tenth percentile at that step, and does not recover soon.
    """
    means = _means_of_three(record["evaluations"])
    best = random_score
    for position, point in enumerate(means):
        best = max(best, point["mean"])
        if not _has_collapsed(point, best, healthy, random_score):
            continue
        soon = [later for later in means[position:] if later["env_steps"] - point["env_steps"] <= _patience(record)]
        if all(_has_collapsed(later, best, healthy, random_score) for later in soon):
            return point["env_steps"]
    return None


def _patience(record: Record) -> float:
    return RECOVERY_PART * record["budget"]


def _has_collapsed(point: Point, best: float, healthy: Sequence[Record], random_score: float) -> bool:
    low = tenth_percentile([curve_at(record["evaluations"], point["env_steps"], random_score) for record in healthy])
    return point["mean"] < min(random_score + 0.5 * (best - random_score), low)


def _means_of_three(evaluations: Sequence[Point]) -> list[Point]:
    return [
        Point(
            env_steps=point["env_steps"],
            mean=fmean(each["mean"] for each in evaluations[max(0, number - 2) : number + 1]),
        )
        for number, point in enumerate(evaluations)
    ]


def _evaluation_steps(record: Record) -> list[int]:
    """The rhythm of the evaluations, to the end of the budget."""
    every: int = record["settings"]["data"]["eval_every"]
    return list(range(every, record["budget"] + 1, every)) or [record["budget"]]


def at_least(alarms: Sequence[Alarm], severity: str) -> list[Alarm]:
    """Alarms of this severity or a higher one that name a cause."""
    return [
        alarm
        for alarm in alarms
        if SEVERITIES.index(alarm["severity"]) >= SEVERITIES.index(severity) and alarm["cause"] not in NO_CAUSES
    ]


def detection(record: Record, fault: Fault, severity: str) -> Detection | None:
    """The first alarm at or after the onset. Of alarms of one iteration the most severe comes first.

    An exception counts only where a safeguard raised it, and then its alarm stands in the record as well.
    """
    onset = fault.onset * record["budget"]
    found = [alarm for alarm in at_least(record["alarms"], severity) if alarm["env_steps"] >= onset]
    found.sort(key=lambda alarm: (alarm["env_steps"], -SEVERITIES.index(alarm["severity"])))
    if not found:
        return None
    return Detection(
        env_steps=found[0]["env_steps"],
        delay_env_steps=round(found[0]["env_steps"] - onset),
        delay_updates=max(0, found[0]["updates"] - record["onset_updates"]),
        first_cause=found[0]["cause"],
        causes=tuple(dict.fromkeys(alarm["cause"] for alarm in found)),
    )


def before_onset(record: Record, fault: Fault, severity: str) -> list[Alarm]:
    """Alarms before anything was broken: false ones."""
    onset = fault.onset * record["budget"]
    return [alarm for alarm in at_least(record["alarms"], severity) if alarm["env_steps"] < onset]
