"""Contenders that work in one process, one block at a time, so that whatever slows the machine down hits them alike."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from time import perf_counter, process_time
from typing import NamedTuple

import torch


class FrameRate(NamedTuple):
    """Environment steps per second of wall time and of CPU time."""

    wall: float
    cpu: float


class Turn:
    """One contender's place in the round, and its clock, which stands while the others work.

    The clock starts at the end of the first block that made updates: imports, building the environments, warm-up and
    the first allocations count for nobody.

    Args:
        num_blocks: of a turn. Right after a change of hands the caches hold the others' data, which is a cost of the
            measurement: where a block takes only a tenth of a second it is a tenth of it.
    """

    def __init__(self, num_blocks: int = 1) -> None:
        self.num_blocks = num_blocks
        self._blocks = 0
        self.before = self.after = self
        self._waiting = Lock()
        self._waiting.acquire()
        self._first_frame: int | None = None
        self._frames = 0
        self._wall = self._cpu = 0.0
        self._wall_since = self._cpu_since = 0.0

    def end_block(self, frames: int, *, learned: bool) -> None:
        """Hand over where the turn's blocks are made, and come back when the others have made theirs.

        Args:
            frames: environment steps so far.
            learned: whether the block made updates.
        """
        self._blocks += 1
        self._frames = frames
        if self._blocks % self.num_blocks:
            return
        self.pause()
        if self._first_frame is None and learned:
            self._first_frame = frames
        self.after._waiting.release()
        self.wait()

    def wait(self) -> None:
        """Until it is this contender's turn."""
        self._waiting.acquire()
        self.resume()

    def pause(self) -> None:
        """Stop the clock."""
        if self._first_frame is not None:
            self._wall += perf_counter() - self._wall_since
            self._cpu += process_time() - self._cpu_since

    def resume(self) -> None:
        """Let the clock go on."""
        self._wall_since, self._cpu_since = perf_counter(), process_time()

    def leave(self) -> None:
        """Let the others go on alone."""
        self.pause()
        self.before.after, self.after.before = self.after, self.before
        self.after._waiting.release()

    def frame_rate(self) -> FrameRate:
        """Over the whole run."""
        if self._first_frame is None or self._frames == self._first_frame:
            raise ValueError(f"{self._frames} frames are too few for two blocks of updates")
        frames = self._frames - self._first_frame
        return FrameRate(frames / self._wall, frames / self._cpu)


def take_turns(
    contenders: Mapping[str, Callable[[Turn], None]], *, num_threads: int = 1, num_blocks: int = 1
) -> dict[str, FrameRate]:
    """Run all of them to their end, with so many torch threads, a turn of so many blocks each.

    The first works in the main thread, as Lightning needs.
    """
    turns = {name: Turn(num_blocks) for name in contenders}
    circle = list(turns.values())
    for position, turn in enumerate(circle):
        turn.before, turn.after = circle[position - 1], circle[(position + 1) % len(circle)]
    circle[0]._waiting.release()
    first, *others = contenders
    with ThreadPoolExecutor(len(contenders)) as pool:
        futures = [pool.submit(_work, contenders[name], turns[name], num_threads) for name in others]
        _work(contenders[first], turns[first], num_threads)
        for future in futures:
            future.result()
    return {name: turn.frame_rate() for name, turn in turns.items()}


def _work(contender: Callable[[Turn], None], turn: Turn, num_threads: int) -> None:
    torch.set_num_threads(num_threads)  # a thread has its own number
    turn.wait()
    try:
        contender(turn)
    finally:
        turn.leave()
