import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmods.callbacks.reward_windows import RewardWindows, Row


def filled(*rows: Row, sizes: tuple[int, ...] = (100, 1000)) -> RewardWindows:
    windows = RewardWindows(sizes)
    for row in rows:
        windows.append(row)
    return windows


def test_the_oldest_row_counts_in_part() -> None:
    """50 frames of 2, 60 of 1: of the last 100 there are 60 of 1 and 40 of 2."""
    windows = filled(Row(50, 50, 100.0), Row(110, 60, 60.0))
    assert windows.mean(100) == pytest.approx((60 * 1 + 40 * 2) / 100)
    assert windows.mean(1000) == pytest.approx(160 / 110)


def test_a_row_larger_than_the_window() -> None:
    assert filled(Row(500, 500, 250.0)).mean(100) == 0.5


def test_the_slope_of_a_line() -> None:
    """The reward of a frame is the environment steps in millions."""
    windows = filled(*[Row(end, frames, frames * end / 1e6) for end, frames in ((100, 100), (250, 150), (300, 50))])
    assert windows.slope(1000) == pytest.approx(1.0)


def test_the_slope_is_weighted_by_frames() -> None:
    """Weights 1, 1, 2 at x = 1, 2, 3 with y = 0, 0, 1: means 2.25 and 0.5, 1.5/2.75 a step."""
    windows = filled(Row(1, 1, 0.0), Row(2, 1, 0.0), Row(3, 2, 2.0))
    assert windows.slope(1000) == pytest.approx(1e6 * 1.5 / 2.75)


def test_what_is_not_known_yet() -> None:
    windows = filled(Row(10, 0, 0.0))
    assert math.isnan(windows.mean(100))
    assert math.isnan(windows.slope(100))
    windows.append(Row(20, 10, 1.0))
    assert windows.mean(100) == 0.1
    assert math.isnan(windows.slope(100))


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(-5, 5)), min_size=1, max_size=40))
def test_windows_forget_only_what_none_of_them_reaches(rows: list[tuple[int, float]]) -> None:
    windows, ends = RewardWindows([7, 60]), 0
    rewards: list[float] = []  # of each frame
    for frames, reward in rows:
        ends += frames
        windows.append(Row(ends, frames, frames * reward))
        rewards += [reward] * frames
        for size in windows.sizes:
            assert windows.mean(size) == pytest.approx(sum(rewards[-size:]) / len(rewards[-size:]), abs=1e-9)
    assert sum(row.frames for row in windows.rows) < 60 + 40


def test_a_round_trip_goes_on_alike() -> None:
    windows, other = filled(Row(50, 50, 100.0), Row(110, 60, 60.0)), RewardWindows([100, 1000])
    other.load_state_dict(windows.state_dict())
    for each in (windows, other):
        each.append(Row(140, 30, 3.0))
    assert other.rows == windows.rows
    assert other.mean(100) == windows.mean(100)


def test_many_small_rows_are_taken_together() -> None:
    """30,000 rows of a frame, worth its number in thousandths: they become rows of ten frames."""
    windows = RewardWindows([1_000, 20_000])
    for end in range(1, 30_001):
        windows.append(Row(end, 1, end / 1e3))
    assert len(windows.rows) == 2_000
    assert windows.mean(1_000) == pytest.approx(29.5005)
    assert windows.slope(20_000) == pytest.approx(1e3)


@pytest.mark.parametrize("sizes", [[], [0, 5], [5, 5], [9, 5]])
def test_sizes_ascend(sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"got windows of .* expected some numbers above 0 in ascending order"):
        RewardWindows(sizes)
