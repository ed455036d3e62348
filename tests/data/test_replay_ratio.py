import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmods.data.replay_ratio import ReplayRatio


def test_golden_without_a_limit() -> None:
    """4 updates of 8 on 10 new transitions are 3.2 draws for each, twice."""
    ratio = ReplayRatio(None)
    assert ratio.value is None
    assert [ratio.take(4, 8, 10), ratio.take(4, 8, 10)] == [4, 4]
    assert ratio.value == pytest.approx(64 / 20)


def test_golden_limit() -> None:
    """At most 2 for each new one. 20 may be drawn: 2 · 8. Then 24 are left: 3 · 8. Then 20 are left: 2 · 8."""
    ratio = ReplayRatio(2.0)
    assert [ratio.take(4, 8, 10) for _ in range(3)] == [2, 3, 2]
    assert ratio.value == pytest.approx(56 / 30)


def test_an_iteration_may_make_no_update() -> None:
    ratio = ReplayRatio(0.5)
    assert [ratio.take(4, 8, 10) for _ in range(4)] == [0, 1, 0, 1]
    assert ratio.value == 16 / 40


@given(st.floats(0.01, 20.0), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 30)), max_size=30))
def test_the_limit_is_never_exceeded_and_never_missed_by_more_than_a_mini_batch(
    limit: float, iterations: list[tuple[int, int]]
) -> None:
    ratio = ReplayRatio(limit)
    for wanted, inserted in iterations:
        made = ratio.take(wanted, 8, inserted)
        assert 0 <= made <= wanted
        assert ratio.drawn <= limit * ratio.inserted
        assert made == wanted or ratio.drawn + 8 > limit * ratio.inserted - 1


def test_state_round_trip() -> None:
    ratio, restored = ReplayRatio(2.0), ReplayRatio(2.0)
    ratio.take(4, 8, 10)
    restored.load_state_dict(ratio.state_dict())
    assert [each.take(4, 8, 10) for each in (ratio, restored)] == [3, 3]
    assert restored.value == ratio.value
