import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, WARN, as_lists, events, fit_stranger, warnings_of
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.ratio_detector import (
    NUM_LARGEST,
    RatioDetector,
    RatioWindow,
    hill_tail_index,
    mean_ratio_interval,
)
from rlmods.callbacks.ratio_guard import RatioGuard
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.functional.gaussian_policy import ratio_tail_index

SEED_RUN = (0.25, 0.4)  # standard deviations of behaviour and target
DISC = 0.4


def gaussian_ratio(stds: tuple[float, float], samples: int, *, disc: float = math.inf, seed: int = 0) -> Tensor:
    """ρ of actions from a Gaussian in the plane, projected on a disc while the densities are not."""
    behaviour, target = stds
    action = behaviour * torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    radius = action.norm(dim=-1).clamp(max=disc)
    return (behaviour / target) ** 2 * torch.exp(radius**2 * (behaviour**-2 - target**-2) / 2.0)


def window_of(ratio: Tensor, stds: tuple[float, float] = (math.nan, math.nan)) -> RatioWindow:
    largest = ratio.topk(min(NUM_LARGEST, len(ratio))).values.tolist()
    excess = ratio - 1.0
    return RatioWindow(len(ratio), float(excess.sum()), float(excess.square().sum()), largest, *stds)


def said_of(*windows: RatioWindow) -> list[list[tuple[str, Severity]]]:
    detector = RatioDetector(tolerance=0.01, min_effective_fraction=0.1)
    return [[(verdict.cause, verdict.severity) for verdict in detector.update(window)] for window in windows]


# Statistics


def test_the_moments_of_two_ratios() -> None:
    """0.5 and 1.5: mean 1, mean square (0.25 + 2.25)/2, effective sample size 2²/2.5 of 2."""
    window = window_of(torch.tensor([0.5, 1.5]))
    assert (window.mean, window.second_moment, window.effective_fraction) == (1.0, 1.25, 0.8)


@given(st.lists(st.floats(0.01, 100.0), min_size=1, max_size=50))
def test_the_effective_fraction_lies_between_one_sample_and_all(ratios: list[float]) -> None:
    fraction = window_of(torch.tensor(ratios, dtype=torch.float64)).effective_fraction
    assert 1.0 / len(ratios) * (1.0 - 1e-9) <= fraction <= 1.0 + 1e-9


def test_tail_index_of_gaussians() -> None:
    """0.16/(0.16 − 0.0625); the variance is infinite from σ_π² = 2 σ_μ² on."""
    assert ratio_tail_index(0.25, 0.4) == pytest.approx(1.641, abs=1e-3)
    assert ratio_tail_index(1.0, math.sqrt(2.0)) == pytest.approx(2.0)
    assert ratio_tail_index(0.3, 0.3) == ratio_tail_index(0.35, 0.3) == math.inf


def test_the_ratio_of_gaussians_has_this_tail() -> None:
    """P(ρ > 10) = (10/q)^−α with q = 0.390625: 0.00488; 0.00002 of standard error for a million."""
    share = (gaussian_ratio(SEED_RUN, 1_000_000) > 10.0).double().mean().item()
    assert share == pytest.approx((10.0 / 0.390625) ** -ratio_tail_index(*SEED_RUN), abs=3e-4)


def test_hill_of_three_values() -> None:
    """Threshold 1; the logarithms of the others are 2 and 1: 1/1.5."""
    assert hill_tail_index([math.e**2, math.e, 1.0]) == pytest.approx(2.0 / 3.0)
    assert hill_tail_index([2.0, 2.0, 2.0]) == math.inf
    assert math.isnan(hill_tail_index([2.0, 1.0]))
    assert math.isnan(hill_tail_index([2.0, 1.0, 0.0]))


def test_the_interval_of_the_mean() -> None:
    """4.5 · √(0.25/100) = 0.225 either way; below, 9.5 · 2/1 · 0.9/100 = 0.171 more of the tail."""
    assert mean_ratio_interval(100, 0.25, 0.9, 2.0) == pytest.approx((1.0 - 0.225 - 0.171, 1.225))
    assert mean_ratio_interval(100, 0.25, 0.9, math.inf) == pytest.approx((1.0 - 0.225 - 0.0855, 1.225))
    assert mean_ratio_interval(100, 0.25, 0.9, 1.2) == (-math.inf, 1.225)
    assert mean_ratio_interval(100, 0.25, 0.9, math.nan) == (-math.inf, 1.225)


# The detector


@pytest.mark.parametrize("stds", [SEED_RUN, (math.nan, math.nan)])
@pytest.mark.parametrize("samples", [100, 3200])
def test_projected_actions_break_the_identity_at_once(samples: int, stds: tuple[float, float]) -> None:
    """The seed run: mean 0.630 and second moment 0.427, spec 5.6; sure in the second window."""
    window = window_of(gaussian_ratio(SEED_RUN, samples, disc=DISC), stds)
    assert window.mean == pytest.approx(0.630, abs=0.05)
    variance = [("ratio_variance_infinite", ACT)] if stds == SEED_RUN else []
    assert said_of(window, window) == [
        [*variance, ("ratio_identity", WARN)],
        [*variance, ("ratio_identity", ACT)],
    ]


def test_a_mean_that_is_too_large_breaks_it_too() -> None:
    """(0.35, 0.3) on the disc: mean 1.148."""
    window = window_of(gaussian_ratio((0.35, 0.3), 3200, disc=DISC), (0.35, 0.3))
    assert said_of(window) == [[("ratio_identity", WARN)]]
    (verdict,) = RatioDetector(tolerance=0.01, min_effective_fraction=0.1).update(window)
    assert "1.14" in verdict.message
    assert "below 1" not in verdict.message


def test_a_second_moment_below_one_is_said() -> None:
    (verdict,) = RatioDetector(tolerance=0.01, min_effective_fraction=0.1).update(
        window_of(gaussian_ratio(SEED_RUN, 3200, disc=DISC))
    )
    assert "second moment 0.42" in verdict.message
    assert verdict.evidence["mean_ratio"] == pytest.approx(0.63, abs=0.01)


@pytest.mark.parametrize("stds", [(0.25, 0.25), (0.3, 0.2), (0.25, 0.3), (0.25, 0.34), (0.25, 0.4), (0.2, 0.6)])
@pytest.mark.parametrize("is_published", [True, False])
def test_true_density_ratios_keep_it(stds: tuple[float, float], is_published: bool) -> None:
    """From on-policy to a tail index of 1.125, where the sample mean is often below 0.8."""
    windows = [
        window_of(gaussian_ratio(stds, samples, seed=seed), stds if is_published else (math.nan, math.nan))
        for samples in (100, 3200)
        for seed in range(100)
    ]
    assert "ratio_identity" not in {cause for said in said_of(*windows) for cause, _ in said}


def test_infinite_variance_is_an_inequality_of_standard_deviations() -> None:
    def said(target: float) -> list[list[tuple[str, Severity]]]:
        return said_of(window_of(torch.ones(200), (0.25, target)))

    assert said(0.353) == [[]]
    assert said(0.354) == [[("ratio_variance_infinite", ACT)]]


def test_infinite_variance_of_the_ratios_alone_is_a_warning() -> None:
    windows = [window_of(gaussian_ratio((0.2, 0.6), 32_000, seed=seed)) for seed in (0, 1, 2)]
    assert [said.count(("ratio_variance_infinite", WARN)) for said in said_of(*windows)] == [0, 0, 1]


def test_few_large_equal_ratios_are_no_heavy_tail() -> None:
    """Discrete actions: a ratio of 15 in one sample of 40, 0.64 else: Hill's estimate alone says 0.9."""
    ratio = torch.linspace(0.638, 0.643, 1000)
    ratio[::40] = torch.linspace(14.9, 15.1, 25)
    assert hill_tail_index(window_of(ratio).largest) < 1.0
    assert said_of(*[window_of(ratio)] * 4) == [[]] * 4


def test_few_effective_samples_are_told_when_confirmed() -> None:
    """One ratio of 100 among 1,000 of 0.9: (100 + 899)²/(100² + 809)/1000 = 9.2 %."""
    ratio = torch.full((1000,), 0.9)
    ratio[0] = 100.0
    assert said_of(*[window_of(ratio)] * 2) == [[], [("low_effective_sample_size", WARN)]]


def test_numbers_that_are_not_finite_and_few_ratios_say_nothing() -> None:
    assert said_of(window_of(torch.tensor([math.inf, 1.0])), window_of(torch.full((99,), 0.5))) == [[], []]


# The hook


class Importance(LightningModule):
    """Publishes the ratios that its batches consist of."""

    def __init__(self, *, automatic: bool = False, **stds: float) -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.stds = {name: torch.tensor(std) for name, std in stds.items()}

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.weight.sum(), "importance_ratio": batch, **self.stds} if batch.numel() else {}

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.01)


def seed_run(iterations: int = 20) -> list[Tensor]:
    return [gaussian_ratio(SEED_RUN, 320, disc=DISC, seed=seed).reshape(16, 20).float() for seed in range(iterations)]


@pytest.mark.parametrize("automatic", [True, False])
def test_the_seed_run_is_named_within_twenty_iterations(tmp_path: Path, automatic: bool) -> None:
    guard = RatioGuard()
    model = Importance(automatic=automatic, behaviour_std=0.25, target_std=0.4)
    trainer = fit_stranger(tmp_path, model, seed_run(), guard)
    assert guard.raised == [("ratio_variance_infinite", ACT), ("ratio_identity", WARN), ("ratio_identity", ACT)]
    (_, warned, sure) = events(trainer)
    assert warned["evidence"]["samples"] == sure["evidence"]["samples"] == 3200
    assert sure["evidence"]["mean_ratio"] == pytest.approx(0.630, abs=0.01)


def test_on_policy_and_bounded_ratios_are_silent(tmp_path: Path) -> None:
    guard = RatioGuard(every_n_iterations=2)
    healthy = [gaussian_ratio((0.3, 0.25), 320, seed=seed) for seed in range(8)]
    on_policy = [torch.ones(16, 20)] * 8
    fit_stranger(tmp_path, Importance(behaviour_std=0.3, target_std=0.25), [*healthy, *on_policy], guard)
    assert guard.raised == []


def test_it_stops_a_run_only_when_told(tmp_path: Path) -> None:
    batches = seed_run(8)
    for mode, steps in (("act", 8), ("stop", 4)):
        guard = RatioGuard(every_n_iterations=2, mode=mode)  # type: ignore[arg-type]
        trainer = fit_stranger(tmp_path / mode, Importance(automatic=True), batches, guard)
        assert (trainer.global_step, guard.stopped is not None) == (steps, mode == "stop")


def test_a_warm_up_is_left_out(tmp_path: Path) -> None:
    guard = RatioGuard(every_n_iterations=2)
    warm_up = [torch.zeros(0)] * 3
    fit_stranger(tmp_path, Importance(), [*warm_up, *seed_run(3)], guard)
    assert guard.raised == [("ratio_identity", WARN), ("ratio_identity", ACT)]


def test_a_resumed_guard_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of a window, between the warning and the certainty."""
    batches = seed_run(8)
    whole, half, resumed = (RatioGuard(every_n_iterations=4) for _ in range(3))
    fit_stranger(tmp_path / "whole", Importance(automatic=True), batches, whole)
    trainer = fit_stranger(tmp_path / "half", Importance(automatic=True), batches, half, max_steps=6)
    assert half.raised == [("ratio_identity", WARN)]
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    state = torch.load(tmp_path / "half.ckpt", weights_only=True)
    resumed.load_state_dict(state["callbacks"][half.state_key])
    assert repr(as_lists(resumed.state_dict())) == repr(as_lists(half.state_dict()))
    for batch_idx in (6, 7):
        resumed.on_train_batch_end(trainer, Importance(), {"importance_ratio": batches[batch_idx]}, None, batch_idx)
    assert resumed.raised == whole.raised == [("ratio_identity", WARN), ("ratio_identity", ACT)]
    assert resumed.state_dict()["detector"] == whole.state_dict()["detector"]


def test_a_rearmed_guard_begins_anew(tmp_path: Path) -> None:
    guard = RatioGuard(every_n_iterations=4)
    fit_stranger(tmp_path, Importance(), seed_run(6), guard)
    guard.rearm()
    fresh = RatioGuard(every_n_iterations=4)
    assert guard.state_dict()["detector"] == fresh.state_dict()["detector"]
    assert guard.state_dict()["sums"] == [0.0, 0.0, 0.0]


def test_a_module_without_ratios_is_told(tmp_path: Path) -> None:
    class Other(Importance):
        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            return {"td_error": batch}

    with pytest.raises(MissingInputError, match=r"RatioGuard needs the signals \['importance_ratio'\]"):
        fit_stranger(tmp_path, Other(), seed_run(1), RatioGuard())


def test_a_module_that_never_says_anything_is_told(tmp_path: Path) -> None:
    guard = RatioGuard()
    fit_stranger(tmp_path, Importance(), [torch.zeros(0)] * 2, guard)
    assert warnings_of(guard) == ["no_signals"]


def test_a_standard_deviation_of_many_numbers_is_refused(tmp_path: Path) -> None:
    model = Importance()
    model.stds = {"target_std": torch.ones(2)}
    with pytest.raises(ValueError, match=r"got target_std of shape \[2\], expected one number"):
        fit_stranger(tmp_path, model, seed_run(1), RatioGuard())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, "tolerance = 0.0"),
        ({"min_effective_fraction": 1.0}, "min_effective_fraction = 1.0"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
        ({"mode": "watch"}, "mode = 'watch'"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RatioGuard(**arguments)
