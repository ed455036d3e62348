import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from rlmods.functional.proportions import rate_metrics, wilson_interval


def interval(hits: int, cases: int, confidence: float = 0.95) -> tuple[float, float]:
    share, number = torch.tensor(hits / cases, dtype=torch.float64), torch.tensor(cases)
    low, high = wilson_interval(share, number, confidence=confidence)
    return float(low), float(high)


def test_golden() -> None:
    """z = 1.96: of 0 in n the upper end is z²/(n + z²)."""
    assert interval(0, 20) == pytest.approx((0.0, 3.8415 / 23.8415), abs=1e-5)
    assert interval(19, 20) == pytest.approx((0.7639, 0.9911), abs=1e-4)


@given(cases=st.integers(1, 500), confidence=st.sampled_from([0.5, 0.9, 0.95, 0.99]), data=st.data())
def test_it_is_scipys(cases: int, confidence: float, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, cases))
    other = binomtest(hits, cases).proportion_ci(confidence, method="wilson")
    assert interval(hits, cases, confidence) == pytest.approx((other.low, other.high), abs=1e-9)


def test_shapes_are_kept() -> None:
    low, high = wilson_interval(torch.rand(2, 3), torch.full((2, 3), 9))
    assert low.shape == high.shape == (2, 3)
    assert low.dtype == torch.float64


@given(happened=st.lists(st.sampled_from([0.0, 1.0, math.nan]), max_size=30))
def test_a_rate_lies_within_its_interval_which_lies_between_0_and_1(happened: list[float]) -> None:
    metrics = rate_metrics("crash", torch.tensor(happened))
    known = [value for value in happened if not math.isnan(value)]
    assert list(metrics) == (["crash_rate", "crash_rate_low", "crash_rate_high"] if known else [])
    if known:
        rate, low, high = metrics.values()
        assert rate == pytest.approx(sum(known) / len(known))
        assert 0.0 <= low <= rate <= high <= 1.0
        assert low < high
