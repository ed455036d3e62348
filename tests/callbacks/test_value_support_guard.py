import math
from pathlib import Path

import pytest
import torch
from dreaming import Signals, fit_sayer, sequences
from guarding import as_lists, causes, events
from torch import Tensor

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.callbacks.value_support_detector import SupportDetector, SupportWindow
from rlmods.callbacks.value_support_guard import ValueSupportGuard
from rlmods.types import SequenceBatch

# The published run: 11 bins from symexp(−5) to symexp(5), rewards of 1 and γ = 0.997.
POST_MORTEM = SupportWindow(147.41, low=0.0, high=333.0, end_mass=0.0, value=20.0, target=30.0, target_outside=0.0)
HEALTHY = POST_MORTEM._replace(bound=4.85e8)


def said(windows: list[SupportWindow]) -> list[list[str]]:
    detector = SupportDetector(end_mass=0.01, near=0.9)
    return [causes(detector.update(window)) for window in windows]


# The pure detector


def test_wide_bins_are_silent() -> None:
    assert not any(said([HEALTHY._replace(value=float(v)) for v in range(300)]))


def test_the_published_run_is_named_in_its_first_window() -> None:
    detector = SupportDetector(end_mass=0.01, near=0.9)
    (verdict,) = detector.update(POST_MORTEM)
    assert (verdict.cause, verdict.severity) == ("support_too_small", Severity.ACT)
    assert "[0, 333]" in verdict.message
    assert "symexp(5.8)" in verdict.message  # ln 334
    assert verdict.evidence["bound"] == 147.41


@pytest.mark.parametrize(("high", "found"), [(147.41, []), (147.42, ["support_too_small"])])
def test_golden_bound(high: float, found: list[str]) -> None:
    assert said([POST_MORTEM._replace(high=high)]) == [found]


def test_costs_count_as_well() -> None:
    assert said([POST_MORTEM._replace(low=-200.0, high=0.0)]) == [["support_too_small"]]


@pytest.mark.parametrize("change", [{"value": 133.0}, {"target": 133.0}])
def test_a_value_near_the_last_bin_is_told_in_the_third_window(change: dict[str, float]) -> None:
    """90 % of 147.41 is 132.7."""
    window = POST_MORTEM._replace(high=140.0)
    assert said([window._replace(**change)] * 3) == [[], [], ["value_at_support_end"]]
    assert not any(said([window._replace(value=132.0, target=132.0)] * 9))


def test_mass_in_the_end_bins_counts_once_the_start_is_left() -> None:
    """11 bins begin with 2/11 of the mass in the end bins."""
    start, learned, back = (HEALTHY._replace(end_mass=mass) for mass in (0.18, 0.001, 0.02))
    assert not any(said([start] * 40))
    assert said([start, learned, back, back, back])[-1] == ["value_at_support_end"]
    assert said([start] * 60)[-1] == ["value_at_support_end"]


def test_targets_beyond_the_last_bin_are_told_in_the_third_window() -> None:
    window = HEALTHY._replace(target_outside=0.001)
    assert said([window] * 3) == [[], [], ["targets_beyond_support"]]
    assert said([window, window, HEALTHY, window]) == [[]] * 4


def test_numbers_that_are_not_known_say_nothing() -> None:
    assert not any(said([SupportWindow(*[math.nan] * 7)] * 5))


def test_a_saved_detector_goes_on() -> None:
    window = HEALTHY._replace(target_outside=0.001)
    detector, other = (SupportDetector(end_mass=0.01, near=0.9) for _ in range(2))
    for _ in range(2):
        detector.update(window)
    other.load_state_dict(detector.state_dict())
    assert causes(other.update(window)) == ["targets_beyond_support"]


def test_shares_outside_their_range_are_refused() -> None:
    with pytest.raises(ValueError, match="got end_mass = 1"):
        ValueSupportGuard(end_mass=1.0)
    with pytest.raises(ValueError, match="got near = 0"):
        ValueSupportGuard(near=0.0)


# The hook


def batches(num: int, reward: float = 1.0) -> list[SequenceBatch]:
    """γ is 0.9: with rewards of 1 values lie in [0, 10]."""
    return [sequences(torch.full((2, 3, 4), reward)) for _ in range(num)]


def critic(value: float, bound: float) -> Signals:
    constant: Tensor = torch.full((2, 12), value)
    return {
        "value": constant,
        "imagined_return": constant + 1.0,
        "end_bin_mass": torch.full((2,), 0.001),
        "value_bin_bound": torch.tensor(bound),
    }


def test_bins_that_cannot_hold_the_values_are_named_at_the_first_update(tmp_path: Path) -> None:
    guard = ValueSupportGuard(every_n_iterations=100)
    trainer = fit_sayer(tmp_path, lambda batch, i: critic(0.0, 9.9) if i else {}, batches(3), guard)
    (event,) = events(trainer)
    assert event["evidence"]["cause"] == "support_too_small"
    assert event["evidence"]["high"] == pytest.approx(10.0, rel=1e-5)
    assert event["iteration"] == 2


def test_bins_that_hold_them_are_not(tmp_path: Path) -> None:
    guard = ValueSupportGuard(every_n_iterations=1)
    fit_sayer(tmp_path, lambda batch, i: critic(5.0, 10.1), batches(9), guard)
    assert guard.raised == []


def test_a_target_beyond_them_is_found(tmp_path: Path) -> None:
    guard = ValueSupportGuard(every_n_iterations=1)
    fit_sayer(tmp_path, lambda batch, i: critic(9.5, 10.1), batches(3), guard)
    assert [cause for cause, _ in guard.raised] == ["targets_beyond_support", "value_at_support_end"]


def test_the_state_goes_on(tmp_path: Path) -> None:
    guard, other = ValueSupportGuard(every_n_iterations=1), ValueSupportGuard(every_n_iterations=1)
    fit_sayer(tmp_path, lambda batch, i: critic(9.5, 10.1), batches(2), guard)
    other.load_state_dict(guard.state_dict())
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
    fit_sayer(tmp_path, lambda batch, i: critic(9.5, 10.1), batches(1), other)
    assert ("targets_beyond_support", Severity.ACT) in other.raised


def test_missing_signals_and_batches_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="value_bin_bound"):
        fit_sayer(tmp_path, lambda batch, i: {"value": torch.zeros(1, 1)}, batches(1), ValueSupportGuard())
    with pytest.raises(MissingInputError, match=r"got a Tensor without \['reward', 'discount'\]"):
        fit_sayer(tmp_path, lambda batch, i: {}, [torch.zeros(1)], ValueSupportGuard())  # type: ignore[list-item]
