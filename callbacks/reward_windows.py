"""The mean reward of a frame over the last so many frames, and its trend: pure."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple


class Row(NamedTuple):
    """Some frames of the training."""

    end: float  # environment steps of the run at their end
    frames: float  # how many; of one actor's frames perhaps fewer than have passed
    reward: float  # their sum


class RewardWindows:
    """Mean rewards of a frame over windows of the last rows, weighted by their frames, and the slope in a window.

    A window reaches back until its rows hold `size` frames. The oldest one counts in part. Rows are taken together as
    long as they hold no more than a hundredth of the smallest window, so that many small ones cost no more than few.

    Args:
        sizes: of the windows, in frames, ascending.

    Raises:
        ValueError: where they do not ascend from above 0.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        if not sizes or sizes[0] < 1 or list(sizes) != sorted(set(sizes)):
            raise ValueError(f"got windows of {list(sizes)} frames, expected some numbers above 0 in ascending order")
        self.sizes = list(sizes)
        self.rows: list[Row] = []  # oldest first
        self._frames = 0.0  # of all rows

    def append(self, row: Row) -> None:
        """Add the latest frames; rows that no window reaches any more are forgotten."""
        if row.frames <= 0.0:
            return
        self._frames += row.frames
        if self.rows and self.rows[-1].frames + row.frames <= self.sizes[0] / 100.0:
            last = self.rows.pop()
            row = Row(row.end, last.frames + row.frames, last.reward + row.reward)
        self.rows.append(row)
        while self._frames - self.rows[0].frames >= self.sizes[-1]:
            self._frames -= self.rows.pop(0).frames

    def mean(self, size: int) -> float:
        """Reward of a frame over the last `size` frames, NaN without any."""
        rows = self._window(size)
        frames = sum(row.frames for row in rows)
        return sum(row.reward for row in rows) / frames if frames else math.nan

    def slope(self, size: int) -> float:
        """Its change in a million environment steps: weighted least squares, NaN with fewer than two rows.

        y is a row's reward of a frame, x its end, its weight the frames.
        """
        rows = self._window(size)
        total = sum(row.frames for row in rows)
        if len(rows) < 2:
            return math.nan
        mean_x = sum(row.frames * row.end for row in rows) / total
        mean_y = sum(row.reward for row in rows) / total
        spread = sum(row.frames * (row.end - mean_x) ** 2 for row in rows)
        together = sum((row.end - mean_x) * (row.reward - row.frames * mean_y) for row in rows)
        return 1e6 * together / spread if spread else math.nan

    def _window(self, size: int) -> list[Row]:
        """The rows of the last `size` frames, the latest first, the oldest cut to what is missing."""
        window, missing = [], float(size)
        for row in reversed(self.rows):
            part = min(1.0, missing / row.frames)
            window.append(Row(row.end, part * row.frames, part * row.reward))
            missing -= part * row.frames
            if missing <= 0.0:
                break
        return window

    def state_dict(self) -> dict[str, Any]:
        """The rows."""
        return {"rows": [list(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.rows = [Row(*row) for row in state["rows"]]
        self._frames = sum(row.frames for row in self.rows)
