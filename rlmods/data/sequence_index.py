"""Which rows of a sequence replay follow each other, and where a sequence may begin."""

from typing import Any

import numpy as np
import torch

from rlmods.data.priorities import Index


class SequenceIndex:
    """The streams of a ring of rows, and the draw of sequences from them.

    Rows are numbered from 0 for ever, in the order in which they came; row number `r` lies in slot `r % capacity`. A
    sequence is `length` + 1 rows that follow each other in one stream. Any row may begin one, but for the last `length`
    of each stream: these are few, and known, so that a uniform draw needs no list of the others.

    With the online queue, the windows of a stream that begin with its row 0, `length`, 2 · `length` … are drawn once
    each as soon as they are complete, before all others: so each row but the first is learned from while it is new.

    Attributes:
        num_starts: rows that may begin a sequence.
        queue: the rows that begin the windows that wait, in the order in which these were completed.
    """

    def __init__(self, capacity: int, num_streams: int, length: int, *, online_queue: bool) -> None:
        """No rows yet.

        Args:
            capacity: of the ring, in rows.
            num_streams: environments, N.
            length: of a sequence, without the row that comes before it.
            online_queue: whether new windows come first.
        """
        self.capacity = capacity
        self.length = length
        self.online_queue = online_queue
        self.num_starts = 0
        self.queue: Index = np.zeros(0, np.int64)
        self._oldest = 0
        self._counts: Index = np.zeros(num_streams, np.int64)  # rows that each stream ever had
        self._next: Index = np.zeros(capacity, np.int64)  # by slot, the number of the row that follows
        self._tails: Index = np.zeros(0, np.int64)  # the last rows of all streams, in the order of their numbers
        self._tail_streams: Index = np.zeros(0, np.int64)
        self._gaps: Index = np.zeros(0, np.int64)  # rows that may begin a sequence before each of these

    @staticmethod
    def memory_bytes(capacity: int) -> int:
        """Bytes that it takes."""
        return capacity * np.dtype(np.int64).itemsize

    def append(self, first: int, stream: Index, oldest: int) -> None:
        """Take in rows.

        Args:
            first: number of the first one.
            stream: `[M]`, of each.
            oldest: number of the oldest row that is still held after them.
        """
        self._counts += np.bincount(stream, minlength=len(self._counts))
        numbers, streams, from_end = self._link(first, stream, oldest)
        if self.online_queue:
            position = self._counts[streams] - 1 - from_end
            ends = np.flatnonzero((numbers >= first) & (position % self.length == 0))
            ends = ends[np.argsort(numbers[ends])]
            begins = ends - self.length
            is_held = (begins >= 0) & (streams[np.maximum(begins, 0)] == streams[ends])
            self.queue = np.concatenate([self.queue, numbers[begins[is_held]]])
            self.queue = self.queue[self.queue >= oldest]

    def restore(self, first: int, stream: Index, oldest: int) -> None:
        """Put rows back that the loaded state knows already; the oldest come first. Arguments as in `append`."""
        self._link(first, stream, oldest)

    def draw(self, num_sequences: int, generator: np.random.Generator) -> Index:
        """Numbers of rows `[length + 1, num_sequences]`: what waits in the queue, then uniformly, with replacement.

        Raises:
            ValueError: no row may begin a sequence.
        """
        num_uniform = max(0, num_sequences - len(self.queue))
        if num_uniform and not self.num_starts:
            raise ValueError(
                f"there is no sequence of {self.length} + 1 rows yet: extend() the replay before sample(), or raise "
                "`learning_starts`"
            )
        rows = np.empty((self.length + 1, num_sequences), np.int64)
        num_fresh = num_sequences - num_uniform
        rows[0, :num_fresh] = self.queue[:num_fresh]
        self.queue = self.queue[num_fresh:]
        if num_uniform:
            picks = generator.integers(self.num_starts, size=num_uniform)
            rows[0, num_fresh:] = self._oldest + picks + np.searchsorted(self._gaps, picks, side="right")
        for step in range(self.length):
            rows[step + 1] = self._next[rows[step] % self.capacity]
        return rows

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from the rows."""
        return {"counts": torch.from_numpy(self._counts.copy()), "queue": torch.from_numpy(self.queue.copy())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; `restore` has to follow."""
        self._counts = state_dict["counts"].numpy().copy()
        self.queue = state_dict["queue"].numpy().copy()
        self._tails = self._tail_streams = np.zeros(0, np.int64)

    def _link(self, first: int, stream: Index, oldest: int) -> tuple[Index, Index, Index]:
        """Join rows to their streams.

        Returns:
            Of these rows and of the last ones before them, stream by stream: number, stream, and how many rows of the
            stream follow.
        """
        numbers = np.concatenate([self._tails, np.arange(first, first + len(stream))])
        streams = np.concatenate([self._tail_streams, stream])
        order = np.argsort(streams, kind="stable")
        order = order[numbers[order] >= oldest]
        numbers, streams = numbers[order], streams[order]
        is_followed = np.append(streams[1:] == streams[:-1], np.zeros(min(1, len(streams)), np.bool_))
        self._next[numbers[is_followed] % self.capacity] = numbers[1:][is_followed[:-1]]
        lasts = np.flatnonzero(~is_followed)
        from_end = np.repeat(lasts, np.diff(lasts, prepend=-1)) - np.arange(len(numbers))
        self._keep_tails(numbers[from_end < self.length], streams[from_end < self.length])
        self._oldest = oldest
        self._gaps = self._tails - oldest - np.arange(len(self._tails))
        self.num_starts = first + len(stream) - oldest - len(self._tails)
        return numbers, streams, from_end

    def _keep_tails(self, numbers: Index, streams: Index) -> None:
        order = np.argsort(numbers)
        self._tails, self._tail_streams = numbers[order], streams[order]
