import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dreaming import Sayer, Signals, sequences
from guarding import as_lists, causes, fit_stranger

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.dream_gap_detector import DreamEvaluation, DreamGapDetector
from rlmods.callbacks.dream_gap_guard import DreamGapGuard
from rlmods.callbacks.safeguard import MissingInputError

# A CartPole that is solved, and whose value says so.
GOOD = DreamEvaluation(mean=500.0, sem=5.0, discounted=259.0, gap=5.0, gap_sem=2.0, imagined=260.0)


def said(evaluations: list[DreamEvaluation]) -> list[list[str]]:
    detector = DreamGapDetector(gap=0.5)
    return [causes(detector.update(evaluation)) for evaluation in evaluations]


def test_a_value_that_comes_true_is_silent() -> None:
    assert not any(said([GOOD._replace(mean=20.0 * i, gap=10.0 - i) for i in range(25)]))


def test_a_value_far_above_the_return_is_told_in_the_third_evaluation() -> None:
    """130 is more than half of 259."""
    high = GOOD._replace(gap=130.0)
    assert said([GOOD, high, high, high]) == [[], [], [], ["value_exceeds_return"]]


@pytest.mark.parametrize("change", [{"gap": 129.0}, {"gap": 130.0, "gap_sem": 44.0}, {"gap": math.nan}])
def test_a_gap_that_is_small_uncertain_or_unknown_is_none(change: dict[str, float]) -> None:
    assert not any(said([GOOD, *[GOOD._replace(**change)] * 5]))


def test_a_gap_of_the_start_that_shrinks_is_none() -> None:
    """A critic that begins at 0, in a task of costs."""
    costs = GOOD._replace(mean=-1_000.0, discounted=-300.0)
    assert not any(said([costs._replace(gap=300.0 - 10.0 * i) for i in range(20)]))


def test_where_nothing_is_gained_a_small_value_is_none() -> None:
    """Rewards that are still 0 give start values that hardly differ: any gap is certain. Half of 1 is too much."""
    nothing = DreamEvaluation(mean=0.0, sem=0.0, discounted=0.0, gap=0.0, gap_sem=0.0, imagined=math.nan)
    rising = [nothing._replace(gap=0.003 * i, gap_sem=1e-5, imagined=0.003 * i) for i in range(1, 20)]
    assert not any(said([nothing, *rising]))
    dreamt = nothing._replace(gap=0.6, imagined=0.6)
    assert said([nothing._replace(imagined=0.0), dreamt, dreamt, dreamt])[-1] == ["value_exceeds_return"]


def test_the_first_gap_is_that_of_a_value_that_has_learned() -> None:
    """A value of 0 in a task of costs is 300 too high, one update later 299: neither is told, nor what follows."""
    costs = GOOD._replace(mean=-1_000.0, discounted=-300.0, gap=0.0, imagined=math.nan)
    assert not any(said([costs, *[costs._replace(gap=299.0, imagined=-1.0)] * 5]))


def test_dreams_that_go_on_promising_are_told_in_the_second_evaluation() -> None:
    """More than half of 500 is lost, and of 260 no more than a tenth."""
    fallen = GOOD._replace(mean=200.0, imagined=240.0)
    assert said([GOOD, fallen, fallen]) == [[], [], ["dreams_go_on_promising"]]
    assert said([GOOD, fallen, GOOD, fallen]) == [[]] * 4


@pytest.mark.parametrize("change", [{"mean": 251.0}, {"imagined": 233.0}, {"sem": 110.0}, {"imagined": math.nan}])
def test_a_fall_that_dreams_know_of_or_that_is_noise_is_none(change: dict[str, float]) -> None:
    fallen = GOOD._replace(mean=200.0, imagined=240.0)
    assert not any(said([GOOD, *[fallen._replace(**change)] * 5]))


def test_a_saved_detector_goes_on() -> None:
    fallen = GOOD._replace(mean=200.0)
    detector, other = (DreamGapDetector(gap=0.5) for _ in range(2))
    for evaluation in (GOOD, fallen):
        detector.update(evaluation)
    other.load_state_dict(detector.state_dict())
    assert causes(other.update(fallen)) == ["dreams_go_on_promising"]


class Evaluated(Sayer):
    """Evaluates after each second iteration to what a test says."""

    def __init__(self, metrics: list[dict[str, float]], say: Callable[..., Signals]) -> None:
        super().__init__(say)
        self.metrics = metrics
        self.evaluations = 0

    def val_dataloader(self) -> Any:
        return [0]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        metrics = {"std_reward": 3.0, "episodes": 10.0, **self.metrics[self.evaluations]}
        self.log_dict({f"eval/{name}": value for name, value in metrics.items()}, batch_size=1)
        self.evaluations += 1


def dreams(batch: Any, batch_idx: int) -> Signals:
    return {"imagined_return": torch.full((2, 4), 260.0)}


def fit(
    folder: Path, metrics: list[dict[str, float]], guard: DreamGapGuard, say: Callable[..., Signals] = dreams
) -> None:
    options = {"val_check_interval": 2, "num_sanity_val_steps": 0}
    fit_stranger(
        folder, Evaluated(metrics, say), [sequences(torch.zeros(2, 2, 2))] * 2 * len(metrics), guard, **options
    )


SOLVED = {"mean_reward": 500.0, "mean_discounted_reward": 259.0, "q_gap": 1.0, "q_gap_sem": 1.0}


def test_the_hook(tmp_path: Path) -> None:
    for last, found in (({"mean_reward": 100.0}, ["dreams_go_on_promising"]), ({"q_gap": 200.0}, []), ({}, [])):
        guard = DreamGapGuard()
        fit(tmp_path, [SOLVED, *[SOLVED | last] * 2], guard)
        assert [cause for cause, _ in guard.raised] == found
        assert guard.detector.best is not None
        assert (guard.detector.best.imagined, guard.detector.best.sem) == (260.0, 1.0)


def test_the_state_goes_on(tmp_path: Path) -> None:
    guard, other = DreamGapGuard(), DreamGapGuard()
    fallen = SOLVED | {"mean_reward": 100.0}
    fit(tmp_path, [SOLVED, fallen], guard)
    other.load_state_dict(guard.state_dict())
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
    fit(tmp_path, [fallen], other)
    assert other.raised == [("dreams_go_on_promising", Severity.WARN)]


def test_an_evaluation_without_a_value_is_told(tmp_path: Path) -> None:
    guard = DreamGapGuard()
    fit(tmp_path, [{"mean_reward": 100.0}], guard)
    assert guard.raised == [("no_gap_logged", Severity.INFO)]


def test_missing_dreams_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="imagined_return"):
        fit(tmp_path, [SOLVED], DreamGapGuard(), lambda b, i: {"loss": torch.zeros(1)})
    with pytest.raises(ValueError, match="got gap = 0"):
        DreamGapGuard(gap=0.0)
