import math
import random
from typing import Any

import pytest

from rlmods.callbacks.detectors import Confirmation, RobustScore, Severity, autocorrelation


def test_severities_are_ordered() -> None:
    assert Severity.INFO < Severity.WARN < Severity.ACT < Severity.FATAL


def test_confirmation_needs_some_of_the_last_values_and_ends_when_all_are_quiet() -> None:
    confirmation = Confirmation(2, 3)
    values = [True, False, False, True, True, False, False, False, True]
    assert [confirmation.update(value) for value in values] == [
        False,
        False,
        False,
        False,
        True,
        True,
        True,
        False,
        False,
    ]


def test_confirmation_goes_on_after_a_round_trip_and_forgets_after_a_reset() -> None:
    confirmation, restored = Confirmation(2, 3), Confirmation(2, 3)
    confirmation.update(True)
    restored.load_state_dict(confirmation.state_dict())
    assert restored.update(True)
    restored.reset()
    assert not restored.is_on
    assert not restored.update(True)
    assert not confirmation.is_on


@pytest.mark.parametrize("arguments", [(0, 3), (4, 3)])
def test_confirmation_refuses_bad_arguments(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="1 ≤ needed ≤ window"):
        Confirmation(*arguments)


def test_golden_autocorrelation() -> None:
    """Of 1, 2, 3, 4: deviations −1.5, −0.5, 0.5, 1.5; Σ products 0.75 − 0.25 + 0.75 = 1.25, Σ squares 5."""
    assert autocorrelation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0.25)
    assert autocorrelation([1.0, -1.0, 1.0, -1.0]) == 0.0
    assert autocorrelation([3.0] * 5) == 0.0
    assert autocorrelation([0.0] * 500 + [1.0] * 500) == 0.95


def test_golden_score() -> None:
    """Of 1, −1, 1, −1, 0: median 0, MAD 1, no positive autocorrelation; 14.826 is ten times 1.4826 · MAD."""
    score = RobustScore(minimum=5)
    for value in (1.0, -1.0, 1.0, -1.0):
        score.add(value)
        assert score.score(14.826) is None
    score.add(0.0)
    assert score.score(14.826) == pytest.approx(10.0)
    assert score.score(-14.826) == pytest.approx(-10.0)


def test_golden_inflation() -> None:
    """Of 1, 2, 3, 4: median 2.5, MAD 1, φ = 0.25, so that a standard deviation is 1.4826 · √(1.25/0.75)."""
    score = RobustScore(minimum=4)
    for value in (1.0, 2.0, 3.0, 4.0):
        score.add(value)
    assert score.score(2.5 + 1.4826) == pytest.approx(math.sqrt(0.75 / 1.25))


def test_values_that_do_not_vary_are_scored_by_the_floor() -> None:
    score = RobustScore(minimum=3, floor=0.5)
    for _ in range(3):
        score.add(2.0)
    assert score.score(3.0) == pytest.approx(2.0)


def test_the_window_forgets() -> None:
    score = RobustScore(window=3, minimum=3, floor=1.0)
    for value in (100.0, 1.0, 1.0, 1.0):
        score.add(value)
    assert score.values == [1.0, 1.0, 1.0]


def test_score_round_trip_and_reset() -> None:
    score, restored = RobustScore(minimum=3), RobustScore(minimum=3)
    for value in (1.0, 5.0, 2.0):
        score.add(value)
    restored.load_state_dict(score.state_dict())
    assert restored.score(9.0) == score.score(9.0)
    restored.reset()
    assert restored.score(9.0) is None
    assert score.score(9.0) is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minimum": 2}, "minimum = 2"),
        ({"window": 5, "minimum": 6}, "minimum = 6 of window = 5"),
        ({"floor": 0.0}, "floor = 0.0"),
    ],
)
def test_score_refuses_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RobustScore(**arguments)


@pytest.mark.parametrize("phi", [0.0, 0.8, 0.95])
def test_wandering_noise_is_no_outlier(phi: float) -> None:
    generator = random.Random(0)
    score = RobustScore(minimum=20, floor=1e-3)
    value, outliers = 0.0, 0
    for _ in range(2000):
        value = phi * value + generator.gauss(0.0, 1.0)
        scored = score.score(value)
        outliers += scored is not None and scored > 6.0
        score.add(value)
    assert outliers <= 2
