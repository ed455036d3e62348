from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from dreaming import Signals, fit_sayer, sequences
from guarding import as_lists, causes

from rlmods.callbacks.advantage_sign_detector import AdvantageSignDetector, SignWindow
from rlmods.callbacks.advantage_sign_guard import AdvantageSignGuard
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.types import SequenceBatch

FOUND = ["advantages_on_one_side"]


def said(windows: list[SignWindow], *, learning_updates: int = 0) -> list[list[str]]:
    detector = AdvantageSignDetector(updates=100, learning_updates=learning_updates)
    return [causes(detector.update(window)) for window in windows]


def still(num: int, *, positive: float = 1.0, speed: float = 0.0) -> list[SignWindow]:
    """Ten updates a window; returns lie 10 above the value."""
    return [SignWindow(10.0 * i, positive, 147.0 + speed * i, 157.0 + speed * i) for i in range(1, num + 1)]


def test_a_critic_that_stands_still_is_told_after_its_time() -> None:
    """From update 10 to update 110 there are 100."""
    assert said(still(12)) == [[]] * 10 + [FOUND] * 2
    assert said(still(12, positive=0.0))[-1] == FOUND


@pytest.mark.parametrize(("speed", "found"), [(0.24, FOUND), (0.26, [])])
def test_golden_pace(speed: float, found: list[str]) -> None:
    """A quarter of a gap of 10 in ten windows is 0.25 a window."""
    assert said(still(30, speed=speed))[-1] == found


def test_a_critic_that_learns_slowly_follows_nevertheless() -> None:
    """As that of 2023 did in a short run: it closed 48 % of a gap of 2.66 in the time it had, 31 % in half of it."""
    values = [0.0] * 10 + [0.8] * 6 + [1.285] * 5
    windows = [SignWindow(10.0 * i, 1.0, value, value + 2.66) for i, value in enumerate(values, 1)]
    detector = AdvantageSignDetector(updates=200, learning_updates=0)
    assert not any(causes(detector.update(window)) for window in windows)


def test_advantages_of_both_signs_are_silent_and_begin_anew() -> None:
    assert not any(said(still(50, positive=0.97)))
    mixed = [*still(10), SignWindow(110.0, 0.5, 147.0, 157.0), *still(21)[11:]]
    assert not any(said(mixed))


def test_a_change_of_sides_begins_anew() -> None:
    assert not any(said([*still(10), *still(20, positive=0.0)[10:]]))


def test_the_first_updates_do_not_count() -> None:
    assert not any(said(still(20), learning_updates=110))
    assert said(still(21), learning_updates=110)[-1] == FOUND


def test_a_range_is_refused() -> None:
    with pytest.raises(ValueError, match="got updates = 0"):
        AdvantageSignGuard(updates=0)


def batches(num: int) -> list[SequenceBatch]:
    return [sequences(torch.zeros(1, 2, 4))] * num


def critic(value: float, gap: float, updates: int) -> Signals:
    constant = torch.full((1, 8), value)
    return {
        "value": constant,
        "imagined_return": constant + gap,
        "advantage": torch.full((1, 8), gap),
        "update_steps": torch.tensor(updates),
    }


@pytest.mark.parametrize(("value_of", "found"), [(lambda i: 5.0, FOUND), (lambda i: 5.0 + i, [])])
def test_the_hook(tmp_path: Path, value_of: Callable[[int], float], found: list[str]) -> None:
    guard = AdvantageSignGuard(updates=10, learning_updates=0, every_n_iterations=2)
    fit_sayer(tmp_path, lambda b, i: critic(value_of(i), 3.0, i + 1), batches(14), guard)
    assert [cause for cause, _ in guard.raised] == found


def test_the_state_goes_on(tmp_path: Path) -> None:
    guard, other = (AdvantageSignGuard(updates=4, learning_updates=0, every_n_iterations=1) for _ in range(2))
    fit_sayer(tmp_path, lambda b, i: critic(5.0, 3.0, i), batches(4), guard)
    assert guard.raised == []
    other.load_state_dict(guard.state_dict())
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
    fit_sayer(tmp_path, lambda b, i: critic(5.0, 3.0, i + 4), batches(1), other)
    assert other.raised == [("advantages_on_one_side", Severity.WARN)]


def test_missing_signals_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="imagined_return"):
        fit_sayer(tmp_path, lambda b, i: {"value": torch.zeros(1, 1)}, batches(1), AdvantageSignGuard())
