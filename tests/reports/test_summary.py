import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmods.reports.summary import Summary, number, slope, summarize

finite = st.floats(-1e3, 1e3)


def test_golden_numbers() -> None:
    # The last five finite are 2, 6, 4, 8, 10 at 1, 3, 4, 5, 6, with the means 6 and 3.8:
    # Σ(t − 3.8)(v − 6) = 11.2 + 0 − 0.4 + 2.4 + 8.8 = 22, Σ(t − 3.8)² = 14.8.
    times = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    values = [50.0, 2.0, math.nan, 6.0, 4.0, 8.0, 10.0]
    summary = summarize(times, values)
    assert summary[:4] == (10.0, 2.0, 50.0, 6.0)
    assert summary.slope_last_k == pytest.approx(22.0 / 14.8)


def test_too_few_values() -> None:
    assert summarize([], []) == summarize([0.0, 1.0], [math.nan, math.inf]) == Summary(None, None, None, None, None)
    assert summarize([3.0], [7.0]) == Summary(7.0, 7.0, 7.0, 7.0, None)
    assert slope([2.0, 2.0], [0.0, 9.0]) == 0.0


def test_four_digits() -> None:
    words = [number(value) for value in (2.58451e-05, 9.16294, 0.0, 4096.0, None, math.nan, math.inf)]
    assert words == ["2.585e-05", "9.163", "0", "4096", "-", "-", "inf"]


@given(st.lists(finite, min_size=2, max_size=8), finite, finite)
def test_the_slope_of_a_line_is_its_slope_wherever_it_starts(noise: list[float], gradient: float, level: float) -> None:
    times = [float(position) for position in range(len(noise))]
    flat = slope(times, noise)
    tilted = slope(times, [value + gradient * time + level for value, time in zip(noise, times, strict=True)])
    assert flat is not None
    assert tilted == pytest.approx(flat + gradient, abs=1e-7)


@given(st.lists(finite, min_size=1, max_size=12))
def test_a_summary_lies_within_its_values(values: list[float]) -> None:
    summary = summarize([float(position) for position in range(len(values))], values)
    assert (summary.last, summary.min, summary.max) == (values[-1], min(values), max(values))
    assert summary.mean_last_k == pytest.approx(sum(values[-5:]) / len(values[-5:]), abs=1e-9)
