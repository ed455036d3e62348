"""Whether a run gets the same random data again: pure judgements of fingerprints and of logged curves."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict

# A batch with fewer different numbers is not random data: rewards of zero in front of a wall.
_MIN_DISTINCT = 16


class RepeatedStretch(NamedTuple):
    """Rows of a curve that equal earlier ones."""

    first: int  # position of the first row
    last: int  # position of the last row
    lag: int  # how many rows earlier they were seen


def repeated_stretches(
    values: Sequence[float], *, tolerance: float = 1e-5, min_length: int = 5
) -> list[RepeatedStretch]:
    """Stretches of a curve that repeat rows `lag` earlier: the mark of a random stream that was restarted.

    Rows are equal where they differ by at most `tolerance` relatively and by at most a thousandth of what neighbours
    differ by (median |v[i] − v[i−1]|): what a curve of fresh noise does in one row of a thousand, in `min_length` rows
    in a row never. A stretch must be longer where equal values are more common, as whole numbers are: so long that by
    chance one curve in a hundred has it. Each row is reported once, with its earliest origin.

    Nothing is reported of a curve that is constant in most rows, smooth (second differences below half of the first:
    a schedule, a slow drift), or periodic from its first row to its last with at least two repetitions (a loader that
    goes over the same rows by design). O(n²) for n rows.

    Args:
        values: one a row, best those that depend on the data alone. Those that are not finite equal nothing.
        tolerance: relative difference of equal rows.
        min_length: rows of the shortest stretch, at least 2.

    Returns:
        In the order of the rows.

    Raises:
        ValueError: where an argument is outside its range.
    """
    if tolerance < 0.0 or min_length < 2:
        raise ValueError(
            f"got tolerance = {tolerance} and min_length = {min_length}, expected at least 0 and at least 2 rows"
        )
    series = torch.tensor(list(values), dtype=torch.float64)
    steps = series.diff()
    steps, bends = steps[steps.isfinite()].abs(), steps.diff()[steps.diff().isfinite()].abs()
    if series.numel() <= min_length or not steps.numel() or not bends.numel():
        return []
    step, bend = float(steps.median()), float(bends.median())
    if step == 0.0 or bend < 0.5 * step:
        return []
    rows = series.numel()
    limit = (tolerance * series.abs().clamp(min=step)).clamp(max=1e-3 * step)
    equal = 0
    found = []
    for lag in range(rows - 1, 0, -1):
        is_equal = (series[lag:] - series[:-lag]).abs() <= limit[lag:]
        count = int(is_equal.sum())
        equal += count
        if count >= min_length and is_equal.unfold(0, min_length, 1).all(1).any():
            found += [RepeatedStretch(first + lag, last + lag, lag) for first, last in _runs(is_equal.tolist())]
    if any(stretch.first == stretch.lag and stretch.last == rows - 1 and 3 * stretch.lag <= rows for stretch in found):
        return []
    # n² pairs of rows, each the beginning of a stretch of L equal ones with a chance of p^L.
    chance = equal / (0.5 * rows * (rows - 1))
    needed = max(min_length, math.ceil(math.log(100.0 * rows**2) / -math.log(chance))) if 0.0 < chance < 1.0 else rows
    return _earliest(found, needed)


def _runs(flags: list[bool]) -> list[tuple[int, int]]:
    runs, position = [], 0
    for is_set, group in itertools.groupby(flags):
        length = sum(1 for _ in group)
        if is_set:
            runs.append((position, position + length - 1))
        position += length
    return runs


def _earliest(found: Sequence[RepeatedStretch], needed: int) -> list[RepeatedStretch]:
    """The stretches in the order of their lags, largest first; each row belongs to the first that is long enough."""
    taken: set[int] = set()
    kept = []
    for first, last, lag in found:
        if last - first + 1 < needed:
            continue
        free = [row not in taken for row in range(first, last + 1)]
        parts = [(first + begin, first + end) for begin, end in _runs(free)]
        kept += [RepeatedStretch(begin, end, lag) for begin, end in parts if end - begin + 1 >= needed]
        taken.update(range(first, last + 1))
    return sorted(kept)


def fingerprint(sample: Tensor) -> int | None:
    """A hash below 2⁶³ of the bytes of numbers on the host; None where fewer than 16 of them are different."""
    if len(set(sample.tolist())) < _MIN_DISTINCT:
        return None
    digest = hashlib.blake2b(sample.contiguous().numpy().tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class RepeatedStreamDetector:
    """Finds iterations whose data were seen before, all of them the same number of iterations ago.

    Args:
        needed: iterations in a row that must repeat with one lag, at least 1.
        capacity: iterations that are remembered, the oldest are forgotten, at least 1.
    """

    def __init__(self, *, needed: int, capacity: int) -> None:
        if needed < 1 or capacity < 1:
            raise ValueError(
                f"RepeatedStreamGuard got needed = {needed} and capacity = {capacity}, expected iterations, at least 1"
            )
        self.needed = needed
        self.capacity = capacity
        self.iteration = 0  # the next one
        self.seen: dict[int, int] = {}  # fingerprint → iteration that last had it, oldest first
        self.reset()

    def reset(self) -> None:
        """Forget the repetition that goes on, because the weights or the data have jumped; what was seen stays."""
        self.first, self.lag, self.length = 0, 0, 0

    def update(self, prints: Sequence[int | None], period: int | None = None) -> list[Verdict]:
        """Take in the fingerprints of the iterations of a window; None stands for data that say nothing.

        Args:
            prints: in order.
            period: lags that are a multiple of it are no repetition, because the loader goes over the same data.
        """
        longest = (0, 0, 0)  # length, first, lag
        for current in prints:
            self._take(current, period)
            longest = max(longest, (self.length, self.first, self.lag))
        length, first, lag = longest
        return [repeated_stream(first, lag, length)] if length >= self.needed else []

    def _take(self, current: int | None, period: int | None) -> None:
        iteration, self.iteration = self.iteration, self.iteration + 1
        if current is None:
            return
        last = self.seen.pop(current, None)
        self.seen[current] = iteration
        if len(self.seen) > self.capacity:
            del self.seen[next(iter(self.seen))]
        if last is None or (period is not None and (iteration - last) % period == 0):
            self.reset()
        elif iteration - last == self.lag:
            self.length += 1
        else:
            self.first, self.lag, self.length = iteration, iteration - last, 1

    def state_dict(self) -> dict[str, Any]:
        """What was seen, and the repetition that goes on."""
        return {
            "iteration": self.iteration,
            "fingerprints": list(self.seen),
            "iterations": list(self.seen.values()),
            "run": [self.first, self.lag, self.length],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on."""
        self.iteration = state_dict["iteration"]
        self.seen = dict(zip(state_dict["fingerprints"], state_dict["iterations"], strict=True))
        self.first, self.lag, self.length = state_dict["run"]


def repeated_stream(first: int, lag: int, length: int) -> Verdict:
    """The verdict on data that come again, iterations counted from 0."""
    message = (
        f"the training data of {length} iterations from {first} on are, bit for bit, those of {lag} iterations before: "
        "a random stream was restarted, so nothing new is learned from, and errors of the mean are larger than they "
        "look. Save the state of every generator with the checkpoint, and restore it at a resume instead of seeding it"
    )
    evidence = {"first_iteration": first, "lag": lag, "length": length}
    return Verdict("repeated_stream", Severity.ACT, message, evidence)


def repeated_start(first: int, lag: int, length: int) -> Verdict:
    """The verdict on first observations that come again, iterations counted from 0."""
    message = (
        f"the rollouts of {length} iterations from {first} on begin, bit for bit, in the states of {lag} iterations "
        "before, each environment in its own: the environments' generators were restarted, and what differs since is "
        "the policy alone; or the observations never change. Save the state of every generator with the checkpoint, "
        "restore it at a resume instead of seeding it, and reset environments without a seed, or with a new one"
    )
    evidence = {"first_iteration": first, "lag": lag, "length": length}
    return Verdict("repeated_start", Severity.WARN, message, evidence)
