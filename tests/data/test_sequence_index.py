from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.sequence_index import SequenceIndex

STREAMS = st.lists(st.lists(st.integers(0, 2), max_size=12), max_size=8)  # of the rows of each call


def filled(calls: list[list[int]], capacity: int, length: int, *, online_queue: bool = False) -> SequenceIndex:
    index = SequenceIndex(capacity, 3, length, online_queue=online_queue)
    first = 0
    for stream in calls:
        index.append(first, np.array(stream, np.int64), max(0, first + len(stream) - capacity))
        first += len(stream)
    return index


def all_windows(calls: list[list[int]], capacity: int, length: int) -> list[tuple[int, ...]]:
    """Every run of length + 1 rows of one stream that is held, the slow way."""
    streams = [stream for call in calls for stream in call]
    windows = []
    for stream in range(3):
        held = [row for row in range(max(0, len(streams) - capacity), len(streams)) if streams[row] == stream]
        windows += [tuple(held[i : i + length + 1]) for i in range(len(held) - length)]
    return sorted(windows)


class EachOnce(np.random.Generator):
    """Draws every number below the limit once."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def integers(self, low: int, *, size: int) -> np.ndarray:  # type: ignore[override]
        assert size == low
        return np.arange(low)


def drawn(index: SequenceIndex, num: int, generator: np.random.Generator) -> list[tuple[int, ...]]:
    return [tuple(window) for window in index.draw(num, generator).T.tolist()]


def test_golden_two_streams() -> None:
    """Rows 0, 2, 4 are of stream 0; rows 1, 3 of stream 1; 5, 6 of stream 0 again. Ring of 6: row 0 is lost."""
    index = filled([[0, 1, 0, 1], [0, 0, 0]], 6, 2)
    assert index.num_starts == 2
    assert drawn(index, 2, EachOnce()) == [(2, 4, 5), (4, 5, 6)]


@given(STREAMS, st.integers(1, 20), st.integers(1, 4))
@settings(deadline=None)
def test_each_start_is_drawn_alike_and_windows_stay_in_their_stream(
    calls: list[list[int]], capacity: int, length: int
) -> None:
    index, expected = filled(calls, capacity, length), all_windows(calls, capacity, length)
    assert index.num_starts == len(expected)
    assert sorted(drawn(index, len(expected), EachOnce())) == expected


@given(STREAMS, st.integers(1, 20), st.integers(1, 4), st.integers(0, 7))
@settings(deadline=None)
def test_a_restored_index_goes_on_alike(calls: list[list[int]], capacity: int, length: int, stop: int) -> None:
    whole = filled(calls, capacity, length, online_queue=True)
    stopped = filled(calls[:stop], capacity, length, online_queue=True)
    streams = np.array([stream for call in calls[:stop] for stream in call], np.int64)
    oldest = max(0, len(streams) - capacity)
    resumed = SequenceIndex(capacity, 3, length, online_queue=True)
    resumed.load_state_dict(stopped.state_dict())
    middle = (oldest + len(streams)) // 2  # two files
    resumed.restore(oldest, streams[oldest:middle], oldest)
    resumed.restore(middle, streams[middle:], oldest)
    first = len(streams)
    for call in calls[stop:]:
        resumed.append(first, np.array(call, np.int64), max(0, first + len(call) - capacity))
        first += len(call)
    num = whole.num_starts + len(whole.queue)
    assert drawn(resumed, num, EachOnce()) == drawn(whole, num, EachOnce())


@given(STREAMS, st.integers(1, 4), st.integers(1, 5))
@settings(deadline=None)
def test_the_online_queue_has_each_new_window_once_and_in_order(
    calls: list[list[int]], length: int, per_draw: int
) -> None:
    """Whatever comes in one call, and whenever it is drawn."""
    index, generator = SequenceIndex(200, 3, length, online_queue=True), np.random.default_rng(0)
    first, fresh = 0, []
    for stream in calls:
        index.append(first, np.array(stream, np.int64), 0)
        first += len(stream)
        fresh += drawn(index, min(per_draw, len(index.queue)), generator)
    fresh += drawn(index, len(index.queue), generator)
    windows = all_windows(calls, 200, length)
    streams = [stream for call in calls for stream in call]
    by_stream = [[window for window in windows if streams[window[0]] == stream] for stream in range(3)]
    assert sorted(fresh) == sorted(window for each in by_stream for window in each[::length])
    assert [window[-1] for window in fresh] == sorted(window[-1] for window in fresh)


def test_each_row_but_the_first_is_learned_from_once_while_it_is_new() -> None:
    index = filled([[0] * 10, [0] * 3], 50, 4, online_queue=True)
    fresh = drawn(index, 3, np.random.default_rng(0))
    assert [row for window in fresh for row in window[1:]] == list(range(1, 13))


def test_a_window_that_was_overwritten_in_the_queue_is_gone() -> None:
    index = filled([[0] * 9, [1] * 6], 10, 4, online_queue=True)
    assert index.queue.tolist() == [9]  # rows 0 to 4 are gone; those from 4 to 8 too, row 4 among them


def test_the_queue_comes_first_and_uniform_draws_fill_the_rest() -> None:
    index = filled([[0] * 9], 50, 4, online_queue=True)
    windows = drawn(index, 400, np.random.default_rng(0))
    assert windows[:2] == [(0, 1, 2, 3, 4), (4, 5, 6, 7, 8)]
    counts = Counter(window[0] for window in windows[2:])
    assert sorted(counts) == [0, 1, 2, 3, 4]
    assert max(counts.values()) < 120  # 398 / 5 = 80 each, with a standard deviation of 8


def test_nothing_is_drawn_where_there_is_no_sequence() -> None:
    index = filled([[0, 1, 2, 0, 1, 2]], 50, 2)
    assert index.draw(0, np.random.default_rng(0)).shape == (3, 0)
    with pytest.raises(ValueError, match=r"no sequence of 2 \+ 1 rows yet"):
        index.draw(1, np.random.default_rng(0))
