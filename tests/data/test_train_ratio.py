import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmods.data.train_ratio import TrainRatio


def test_golden_of_the_paper() -> None:
    """Ratio 256 with 16 sequences of 64 steps is an update every 4 steps."""
    ratio = TrainRatio(256.0, 16 * 64)
    assert ratio.value is None
    assert [ratio.take(16) for _ in range(3)] == [4, 4, 4]
    assert ratio.value == 256.0


def test_golden_remainders() -> None:
    """1.5 · 4 = 6 steps an iteration, 8 an update: 6, 12, 10, 8 are owed."""
    ratio = TrainRatio(1.5, 8)
    assert [ratio.take(4) for _ in range(5)] == [0, 1, 1, 1, 0]
    assert ratio.value == pytest.approx(24 / 20)


@given(st.floats(0.01, 1100.0), st.integers(1, 2000), st.lists(st.integers(0, 50), max_size=40))
def test_never_more_than_the_ratio_and_never_less_by_an_update(
    train_ratio: float, update_steps: int, iterations: list[int]
) -> None:
    ratio = TrainRatio(train_ratio, update_steps)
    made = sum(ratio.take(new) for new in iterations)
    exact = train_ratio * sum(iterations) / update_steps
    assert made == ratio.replayed // update_steps
    assert exact - 1.0 - 1e-9 < made <= exact + 1e-9


def test_another_ratio_after_a_resume_is_not_caught_up_with() -> None:
    before = TrainRatio(1.0, 8)
    assert [before.take(4) for _ in range(9)] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    same, raised = TrainRatio(1.0, 8), TrainRatio(100.0, 8)
    for ratio in (same, raised):
        ratio.load_state_dict(before.state_dict())
    assert same.take(4) == before.take(4) == 1
    assert same.value == before.value == 1.0
    assert raised.take(4) == 50  # and the 4 steps that were owed
