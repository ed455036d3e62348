import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from rlmods.functional.gaussian_policy import (
    ActionMode,
    executed_action,
    expected_ratio_of_ball_clip,
    expected_squared_ratio,
    expected_squared_ratio_of_ball_clip,
    importance_ratio,
    isotropic_kl,
    isotropic_log_density,
    isotropic_total_variation,
    ratio_tail_index,
    sampled_total_variation,
    score,
)

_STD = st.floats(0.1, 2.0)
_ZERO = torch.zeros(2, dtype=torch.float64)


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("ball_clip", (0.3, 0.4)), ("box_clip", (0.5, 0.5)), ("raw", (3.0, 4.0))],
)
def test_golden_executed_action(mode: ActionMode, expected: tuple[float, float]) -> None:
    torch.testing.assert_close(executed_action(vector(3.0, 4.0), mode, 0.5), vector(*expected))


def test_tanh_stays_below_the_limit() -> None:
    torch.testing.assert_close(
        executed_action(vector(0.1, -9.0), "tanh", 0.4), vector(0.4 * math.tanh(0.1), -0.4 * math.tanh(9.0))
    )


@given(st.floats(-3, 3), st.floats(-3, 3))
def test_clips_are_idempotent_and_leave_the_inside_alone(first: float, second: float) -> None:
    action = vector(first, second)
    once = executed_action(action, "ball_clip", 0.4)
    assert float(once.norm()) <= 0.4 + 1e-15
    torch.testing.assert_close(executed_action(once, "ball_clip", 0.4), once)
    if float(action.norm()) <= 0.4:
        assert torch.equal(once, action)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="got the action mode 'disc'"):
        executed_action(_ZERO, "disc", 0.4)  # type: ignore[arg-type]


def test_density_against_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    action, mean = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)
    expected = stats.norm.logpdf(action.numpy(), mean.numpy(), 0.3).sum(-1)
    torch.testing.assert_close(isotropic_log_density(action, mean, 0.3), torch.from_numpy(expected))


def test_golden_ratio() -> None:
    """At a = 0 with means 0 only (σ_μ/σ_π)² is left; at ‖a‖² = 1, σ_μ = 1, σ_π = 2: ¼ exp(½ − ⅛)."""
    assert float(importance_ratio(_ZERO, _ZERO, 1.0, _ZERO, 2.0)) == 0.25
    assert float(importance_ratio(vector(0.6, 0.8), _ZERO, 1.0, _ZERO, 2.0)) == pytest.approx(0.25 * math.exp(0.375))


def test_equal_policies_have_ratio_one_exactly() -> None:
    action, mean = torch.randn(2, 100, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(importance_ratio(action, mean, 0.3, mean, 0.3), torch.ones(100))


@given(_STD, _STD, st.floats(-1, 1), st.floats(-1, 1))
def test_ratio_is_the_quotient_of_the_densities(behaviour: float, target: float, first: float, second: float) -> None:
    action, mean = vector(first, second), vector(second, 0.2)
    quotient = isotropic_log_density(action, mean, target) - isotropic_log_density(action, _ZERO, behaviour)
    torch.testing.assert_close(importance_ratio(action, _ZERO, behaviour, mean, target).log(), quotient)


def test_score_is_the_gradient_of_the_log_density() -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(5, generator=generator, dtype=torch.float64)
    action = torch.randn(2, generator=generator, dtype=torch.float64)
    theta = torch.randn(5, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    mean = feature @ theta / math.sqrt(5)
    (gradient,) = torch.autograd.grad(isotropic_log_density(action, mean, 0.4), theta)
    torch.testing.assert_close(score(action, mean.detach(), 0.4, feature), gradient, rtol=1e-10, atol=1e-10)
    stacked = score(action.expand(3, 2), mean.detach().expand(3, 2), 0.4, feature.expand(3, 5))
    torch.testing.assert_close(stacked[2], gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("behaviour", "target", "expected"), [(0.25, 0.4, 0.6199927415), (0.35, 0.30, 0.0429952)])
def test_golden_kl(behaviour: float, target: float, expected: float) -> None:
    """2[ln(σ_μ/σ_π) + σ_π²/(2σ_μ²) − ½]; a gap of 0.5 adds 0.125/σ_μ²."""
    assert float(isotropic_kl(_ZERO, target, _ZERO, behaviour)) == pytest.approx(expected, abs=5e-8)
    shifted = float(isotropic_kl(vector(0.3, 0.4), target, _ZERO, behaviour))
    assert shifted == pytest.approx(expected + 0.125 / behaviour**2, abs=5e-8)


@given(_STD, _STD, st.floats(-2, 2))
def test_kl_against_torch(std_p: float, std_q: float, gap: float) -> None:
    p = torch.distributions.Normal(vector(gap, 0.0, 0.0), std_p)
    q = torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), std_q)
    expected = torch.distributions.kl_divergence(p, q).sum()
    torch.testing.assert_close(isotropic_kl(p.mean, std_p, q.mean, std_q), expected, rtol=1e-9, atol=1e-12)


def test_golden_total_variation() -> None:
    """Equal means: |e^{−r²/2σ_p²} − e^{−r²/2σ_q²}|; equal stds: 2Φ(d/2σ) − 1 with d/2σ = 1."""
    squared = 4.0 * math.log(0.4 / 0.25) / (0.25**-2 - 0.4**-2)
    exact = abs(math.exp(-0.5 * squared / 0.16) - math.exp(-0.5 * squared / 0.0625))
    assert exact == pytest.approx(0.3336, abs=5e-5)
    assert float(isotropic_total_variation(_ZERO, 0.4, _ZERO, 0.25)) == pytest.approx(exact, abs=1e-12)
    assert float(isotropic_total_variation(vector(0.6, 0.8), 0.5, _ZERO, 0.5)) == pytest.approx(0.6826894921)


@pytest.mark.parametrize(("std_p", "std_q", "gap"), [(0.4, 0.25, 0.3), (0.25, 0.4, 0.01), (1.0, 1.1, 0.5), (0.1, 2, 4)])
def test_total_variation_against_scipy(std_p: float, std_q: float, gap: float) -> None:
    """In the disc where p > q the squared distance to its centre is a non-central χ² of two degrees of freedom."""
    curvature = std_q**-2 - std_p**-2
    centre = gap / (std_q**2 * curvature)
    squared = 4.0 * math.log(std_p / std_q) / curvature + (gap / (std_p * std_q * curvature)) ** 2
    inside_p = stats.ncx2.cdf(squared / std_p**2, 2, (centre / std_p) ** 2)
    inside_q = stats.ncx2.cdf(squared / std_q**2, 2, ((centre - gap) / std_q) ** 2)
    found = float(isotropic_total_variation(_ZERO, std_p, vector(0.0, gap), std_q))
    assert found == pytest.approx(abs(inside_p - inside_q), abs=1e-9)


@pytest.mark.parametrize("excess", [1e-3, 1e-4, 1e-5, 2e-6, 5e-7])
def test_nearly_equal_stds_approach_the_half_plane(excess: float) -> None:
    found = float(isotropic_total_variation(_ZERO, 1.0, vector(0.0, 0.5), 1.0 + excess))
    assert found == pytest.approx(math.erf(0.5 / math.sqrt(8.0)), abs=0.5 * excess)


@given(_STD, _STD, st.floats(0, 3))
def test_total_variation_is_symmetric_bounded_and_below_pinsker(std_p: float, std_q: float, gap: float) -> None:
    mean = vector(gap, 0.0)
    distance = float(isotropic_total_variation(_ZERO, std_p, mean, std_q))
    assert distance == pytest.approx(float(isotropic_total_variation(mean, std_q, _ZERO, std_p)), abs=1e-9)
    assert 0.0 <= distance <= 1.0 + 1e-12
    assert distance <= math.sqrt(0.5 * float(isotropic_kl(_ZERO, std_p, mean, std_q))) + 1e-6


def test_total_variation_of_equal_policies_is_zero_and_other_dimensions_are_refused() -> None:
    mean = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(isotropic_total_variation(mean, 0.3, mean, 0.3), torch.zeros(7))
    with pytest.raises(ValueError, match="sampled_total_variation"):
        isotropic_total_variation(torch.zeros(3), 0.3, torch.zeros(3), 0.4)


def test_sampled_total_variation_agrees_with_the_exact_one() -> None:
    generator = torch.Generator().manual_seed(0)
    mean_p, mean_q = torch.zeros(3, 2), torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.3, 0.3]])
    action = mean_p.unsqueeze(1) + 0.4 * torch.randn(3, 20_000, 2, generator=generator)
    sampled = sampled_total_variation(action, mean_p, 0.4, mean_q, 0.25)
    torch.testing.assert_close(sampled, isotropic_total_variation(mean_p, 0.4, mean_q, 0.25), rtol=0.0, atol=0.015)
    assert torch.equal(sampled_total_variation(action, mean_p, 0.4, mean_p, 0.4), torch.zeros(3))
    far = sampled_total_variation(torch.zeros(1, 2), torch.zeros(2), 1e-3, torch.full((2,), 50.0), 1e-3)
    assert float(far) == 0.5


@pytest.mark.parametrize(
    ("stds", "mean", "second_moment", "clip_fraction"),
    [((0.25, 0.4), 0.63040, 0.42729, 0.278), ((0.35, 0.30), 1.14846, 1.32801, 0.520)],
)
def test_golden_ball_clip(stds: tuple[float, float], mean: float, second_moment: float, clip_fraction: float) -> None:
    assert expected_ratio_of_ball_clip(*stds, 0.4) == pytest.approx(mean, abs=6e-6)
    assert expected_squared_ratio_of_ball_clip(*stds, 0.4) == pytest.approx(second_moment, abs=6e-6)
    draw = stds[0] * torch.randn(40_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    action = executed_action(draw, "ball_clip", 0.4)
    ratio = importance_ratio(action, _ZERO, stds[0], _ZERO, stds[1])
    assert float((draw != action).any(-1).double().mean()) == pytest.approx(clip_fraction, abs=0.008)
    assert float(ratio.mean()) == pytest.approx(mean, abs=0.008)
    assert float(ratio.square().mean()) == pytest.approx(second_moment, abs=0.015)


@given(_STD, _STD, st.floats(0.1, 2.0))
def test_ball_clip_against_quadrature(behaviour: float, target: float, limit: float) -> None:
    radius = torch.linspace(0.0, limit, 4001, dtype=torch.float64)
    density = radius / behaviour**2 * (-0.5 * (radius / behaviour) ** 2).exp()
    ratio = importance_ratio(radius.unsqueeze(1) * vector(1.0, 0.0), _ZERO, behaviour, _ZERO, target)
    edge = math.exp(-0.5 * (limit / behaviour) ** 2)
    mean = float(torch.trapezoid(density * ratio, radius) + edge * ratio[-1])
    square = float(torch.trapezoid(density * ratio**2, radius) + edge * ratio[-1] ** 2)
    assert expected_ratio_of_ball_clip(behaviour, target, limit) == pytest.approx(mean, rel=1e-3)
    assert expected_squared_ratio_of_ball_clip(behaviour, target, limit) == pytest.approx(square, rel=1e-3)


def test_golden_second_moment() -> None:
    assert expected_squared_ratio(0.35, 0.3) == pytest.approx(1.0757, abs=5e-5)
    assert expected_squared_ratio(0.7, 0.3) == pytest.approx(2.9975, abs=5e-5)
    assert expected_squared_ratio(0.25, 0.4) == math.inf
    assert expected_squared_ratio(0.3, 0.3, dimension=5) == pytest.approx(1.0)
    assert expected_squared_ratio(0.35, 0.3, dimension=4) == pytest.approx(expected_squared_ratio(0.35, 0.3) ** 2)


def test_golden_tail_index() -> None:
    """(0.25, 0.4): 0.16/(0.16 − 0.0625) = 1.641; the variance ends where σ_π² = 2σ_μ², at α = 2."""
    assert ratio_tail_index(0.25, 0.4) == pytest.approx(1.6410256)
    assert ratio_tail_index(1.0, math.sqrt(2.0)) == pytest.approx(2.0)
    assert ratio_tail_index(0.3, 0.3) == ratio_tail_index(0.35, 0.3) == math.inf


def test_the_tail_of_sampled_ratios_has_that_index() -> None:
    """Exactly a power law beyond its minimum q: the maximum-likelihood index is 1/mean ln(ρ/q)."""
    action = 0.25 * torch.randn(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ratio = importance_ratio(action, _ZERO, 0.25, _ZERO, 0.4)
    estimate = 1.0 / float((ratio / (0.25 / 0.4) ** 2).log().mean())
    assert estimate == pytest.approx(ratio_tail_index(0.25, 0.4), rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    action, mean = torch.ones(3, 2, dtype=dtype), torch.zeros(3, 2, dtype=dtype)
    results = [
        executed_action(action, "ball_clip", 0.4),
        importance_ratio(action, mean, 0.3, mean, 0.4),
        score(action, mean, 0.3, torch.ones(3, 4, dtype=dtype)),
        isotropic_kl(action, 0.3, mean, 0.4),
        isotropic_total_variation(action, 0.3, mean, 0.4),
        sampled_total_variation(action.unsqueeze(1), action, 0.3, mean, 0.4),
    ]
    assert {result.dtype for result in results} == {dtype}
