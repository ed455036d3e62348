import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from rlmods.functional import linear_dynamics
from rlmods.functional.linear_dynamics import (
    critical_step,
    iterate_fixed_point,
    leading_eigenvalues,
    mean_td_update,
    power_iteration_proxy,
    solve_fixed_point,
    spectral_radius_of_update,
    td_matrix,
    td_vector,
)


class Sample(NamedTuple):
    feature: Tensor
    bootstrap_feature: Tensor
    ratio: Tensor
    reward: Tensor
    discount: float
    weight: Tensor


def sample(n: int, size: int, seed: int = 0) -> Sample:
    """Random cosines of a smooth path, as in the laboratory: features of low numerical rank."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    path, direction, phase = (0.3 * normal(n + 1, 4)).cumsum(0).sin(), normal(4, size), 3.0 * normal(size)
    feature = math.sqrt(2.0 / size) * (path @ direction + phase).cos()
    return Sample(feature[:-1], feature[1:], normal(n).exp().clamp(max=3.0), 0.1 * normal(n), 0.9, normal(size))


def loop(data: Sample, step_size: float, tolerance: float, max_iterations: int) -> tuple[Tensor, int, bool]:
    """The plain iteration."""
    weight = data.weight
    for iteration in range(max_iterations):
        step = step_size * mean_td_update(*data[:5], weight)
        weight = weight + step
        if step.norm() <= tolerance:
            return weight, iteration + 1, True
    return weight, max_iterations, False


def operator(data: Sample) -> Tensor:
    return td_matrix(*data[:3], data.discount) / math.sqrt(data.feature.shape[1])


GOLDEN = Sample(
    torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0]]).double(),
    torch.tensor([[0, 1.0, 0, 0], [0, 1.0, 0, 0]]).double(),
    torch.tensor([1.0, 0.5]).double(),
    torch.tensor([1.0, 3.0]).double(),
    0.5,
    torch.tensor([2.0, 4.0, 0, 0]).double(),
)


def test_golden_update_by_hand() -> None:
    """N = 4, so values are halved: δ = 1 + (2 − 2)/2 = 1 and 3 + (2 − 8)/2 = 0; u = ½ (1·1, ½·0·2)."""
    assert mean_td_update(*GOLDEN).tolist() == [0.5, 0.0, 0.0, 0.0]
    assert td_matrix(*GOLDEN[:3], 0.5)[:2, :2].tolist() == [[-0.5, 0.25], [0.0, -0.75]]
    assert td_vector(GOLDEN.feature, GOLDEN.ratio, GOLDEN.reward).tolist() == [0.5, 1.5, 0.0, 0.0]


def test_golden_spectrum_by_hand() -> None:
    """Triangular: eigenvalues of A/√4 are −0.375, −0.25, 0, 0; the first limits the step: 2/0.375."""
    eigenvalues = leading_eigenvalues(*GOLDEN[:3], 0.5, 2)
    torch.testing.assert_close(eigenvalues, torch.tensor([-0.375, -0.25], dtype=torch.complex128))
    assert critical_step(eigenvalues) == pytest.approx(16 / 3)
    assert spectral_radius_of_update(eigenvalues, 16 / 3) == pytest.approx(1.0)
    assert spectral_radius_of_update(eigenvalues, 2.0) == pytest.approx(0.5)


def test_the_update_is_the_vector_plus_the_matrix() -> None:
    data = sample(50, 12)
    expected = td_vector(data.feature, data.ratio, data.reward) + operator(data) @ data.weight
    torch.testing.assert_close(mean_td_update(*data), expected)


@pytest.mark.parametrize(
    ("n", "size", "step_size", "tolerance", "max_iterations"),
    [
        (200, 80, 0.2, 1e-7, 400),  # slow modes, far from converged: the laboratory's own case
        (200, 80, 20.0, 1e-9, 300),  # several bases
        (40, 90, 20.0, 1e-9, 200),  # fewer transitions than weights
        (100, 6, 8.0, 1e-6, 2500),  # converges
        (100, 6, 8.0, 1e-1, 2500),  # converges early
        (100, 6, 900.0, 1e-6, 60),  # diverges
        (100, 6, 1.0, 1e-9, 1),
        (100, 6, 1.0, 1e-9, 3),
        (100, 1, 1.0, 1e-9, 500),
    ],
)
def test_the_iteration_is_that_of_the_plain_loop(
    n: int, size: int, step_size: float, tolerance: float, max_iterations: int
) -> None:
    data = sample(n, size)
    weight, num_iterations, converged = loop(data, step_size, tolerance, max_iterations)
    found = iterate_fixed_point(*data, step_size, tolerance, max_iterations)
    assert (found.num_iterations, found.converged) == (num_iterations, converged)
    walked = float((weight - data.weight).norm())
    assert float((found.weight - weight).norm()) <= 1e-9 * walked
    assert float((found.weight - data.weight).norm()) == pytest.approx(walked, rel=1e-9)


def test_the_cases_above_do_both() -> None:
    data = sample(100, 6)
    assert iterate_fixed_point(*data, 8.0, 1e-6, 2500).converged
    assert not iterate_fixed_point(*data, 900.0, 1e-6, 60).converged
    assert float(iterate_fixed_point(*data, 900.0, 1e-6, 60).weight.norm()) > 1e6


def test_float32_features_keep_their_dtype_or_that_of_the_weight() -> None:
    data = sample(100, 40)
    narrow = Sample(*(part.float() if isinstance(part, Tensor) else part for part in data))  # type: ignore[arg-type]
    expected = float((loop(data, 0.2, 1e-9, 300)[0] - data.weight).norm())
    found = iterate_fixed_point(*narrow[:5], data.weight, 0.2, 1e-9, 300)
    assert found.weight.dtype == torch.float64
    assert float((found.weight - data.weight).norm()) == pytest.approx(expected, rel=1e-6)
    assert iterate_fixed_point(*narrow, 0.2, 1e-9, 300).weight.dtype == torch.float32
    assert solve_fixed_point(*narrow, ridge=1e-3).weight.dtype == torch.float32
    assert mean_td_update(*narrow).dtype == td_matrix(*narrow[:3], 0.9).dtype == torch.float32


def test_at_a_fixed_point_there_is_nothing_to_do() -> None:
    data = GOLDEN._replace(reward=torch.zeros(2).double(), weight=torch.zeros(4).double())
    assert iterate_fixed_point(*data, 0.1, 0.0, 10)[1:] == (1, True)
    assert solve_fixed_point(*data, ridge=1e-3).relative_residual == 0.0


def test_a_loop_that_overflows_ends_and_has_not_converged() -> None:
    found = iterate_fixed_point(*sample(100, 6), 1e9, 1e-6, 10_000)
    assert not found.converged
    assert not found.weight.isfinite().all()


def test_golden_solution() -> None:
    """0 = 1 + w₂/4 − w₁/2 and 0 = 3 + w₂/4 − w₂: w₂ = 4, w₁ = 4; what nothing determines stays."""
    start = GOLDEN.weight + torch.tensor([0, 0, 7.0, -7.0]).double()
    found = solve_fixed_point(*GOLDEN[:5], start, ridge=1e-12)
    torch.testing.assert_close(found.weight, torch.tensor([4.0, 4.0, 7.0, -7.0]).double(), rtol=1e-9, atol=1e-9)
    assert found.relative_residual < 1e-9


def test_a_larger_ridge_moves_less_and_leaves_more() -> None:
    data = sample(60, 30)
    found = [solve_fixed_point(*data, ridge=ridge) for ridge in (1e-10, 1e-6, 1e-3, 1e-1, 1e3)]
    residuals = [solution.relative_residual for solution in found]
    distances = [float((solution.weight - data.weight).norm()) for solution in found]
    assert residuals == sorted(residuals)
    assert distances == sorted(distances, reverse=True)
    assert residuals[0] < 0.05
    assert residuals[-1] == pytest.approx(1.0, abs=2e-3)


def test_the_solution_minimises_what_it_says() -> None:
    data, ridge = sample(60, 10), 1e-3
    matrix = operator(data)
    found = solve_fixed_point(*data, ridge=ridge)
    gradient = matrix.T @ mean_td_update(*data[:5], found.weight)
    gradient += ridge * matrix.square().sum() * (found.weight - data.weight)
    assert float(gradient.norm()) < 1e-12 * float((matrix.T @ mean_td_update(*data)).norm()) + 1e-15


def test_the_solution_is_where_a_converged_iteration_ends() -> None:
    data = sample(100, 4)
    iterated = iterate_fixed_point(*data, 8.0, 1e-12, 200_000)
    assert iterated.converged
    solved = solve_fixed_point(*data, ridge=1e-12).weight
    torch.testing.assert_close(iterated.weight, solved, rtol=1e-6, atol=1e-6)


def test_golden_proxy() -> None:
    """One step from e₁: A e₁ = −½ e₁. Mean: |1 − 0.4·0.25| = 0.9; sum: |1 − 0.4·2·0.5| = 0.6."""
    start = torch.tensor([5.0, 0, 0, 0]).double()
    assert power_iteration_proxy(*GOLDEN[:3], 0.5, start, 1, 0.4, "mean") == pytest.approx(0.9)
    assert power_iteration_proxy(*GOLDEN[:3], 0.5, start, 3, 0.4, "sum") == pytest.approx(0.6)
    assert power_iteration_proxy(*GOLDEN[:3], 0.5, start, 3, 1.0, "sum") == 0.0
    with pytest.raises(ValueError, match="got the reduction 'max'"):
        power_iteration_proxy(*GOLDEN[:3], 0.5, start, 3, 1.0, "max")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n", "size"), [(120, 30), (30, 120)])
def test_eigenvalues_of_either_side_are_those_of_the_matrix(n: int, size: int) -> None:
    data = sample(n, size)
    expected = torch.linalg.eigvals(operator(data))
    found = leading_eigenvalues(*data[:3], data.discount, 6)
    expected_magnitude = expected.abs().sort(descending=True).values[:6]
    torch.testing.assert_close(found.abs()[:6], expected_magnitude, rtol=1e-8, atol=1e-12)
    nonzero = expected[expected.abs() > 1e-10 * expected.abs().max()]
    assert float(found.real.max()) == pytest.approx(float(nonzero.real.max()), rel=1e-3)
    assert critical_step(found) == pytest.approx(critical_step(expected), rel=1e-8)


@pytest.mark.parametrize(("n", "size"), [(120, 60), (60, 120), (50, 8)])
def test_arnoldi_against_dense(n: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = sample(n, size, seed=1)
    dense = leading_eigenvalues(*data[:3], data.discount, 5)
    monkeypatch.setattr(linear_dynamics, "_DENSE", 0)
    krylov = leading_eigenvalues(*data[:3], data.discount, 5)
    torch.testing.assert_close(krylov[:5].abs(), dense[:5].abs(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(krylov[:5].real, dense[:5].real, rtol=1e-6, atol=1e-9)
    assert critical_step(krylov) == pytest.approx(critical_step(dense), rel=1e-6)


def test_below_the_critical_step_the_iteration_contracts_and_above_it_grows() -> None:
    data = sample(100, 6)
    eigenvalues = leading_eigenvalues(*data[:3], data.discount, 6)
    critical = critical_step(eigenvalues)
    for factor, grows in ((0.9, False), (1.1, True)):
        step = factor * critical
        assert (spectral_radius_of_update(eigenvalues, step) > 1.0) is grows
        far = iterate_fixed_point(*data, step, 0.0, 400).weight.norm()
        further = iterate_fixed_point(*data, step, 0.0, 800).weight.norm()
        assert bool(further > 10.0 * far) is grows


def test_golden_critical_steps() -> None:
    """−1 ± 2i: 2·1/5; a positive real part allows no step; a tiny one, and a tiny eigenvalue, are rounding."""
    pair = torch.tensor([-1 + 2j, -1 - 2j], dtype=torch.complex128)
    assert critical_step(pair) == pytest.approx(0.4)
    assert spectral_radius_of_update(pair, 0.4) == pytest.approx(1.0)
    assert critical_step(torch.tensor([-1.0 + 0j, 0.01 + 0j])) == 0.0
    assert critical_step(torch.tensor([-4.0 + 0j, 1e-9 + 0j, -1e-20 + 1e-11j], dtype=torch.complex128)) == 0.5
    assert critical_step(torch.zeros(3, dtype=torch.complex128)) == math.inf


def test_a_small_eigenvalue_that_limits_the_step_is_returned() -> None:
    """−10, −9 and −0.01 ± i: −10 allows 2/10, the slow oscillation 0.02/1.0001. With φ = I, A/√4 is (φ̄ − I)/8."""
    matrix = torch.tensor([[-10.0, 0, 0, 0], [0, -9.0, 0, 0], [0, 0, -0.01, -1.0], [0, 0, 1.0, -0.01]]).double()
    identity = torch.eye(4, dtype=torch.float64)
    bootstrap_feature = identity + 8.0 * matrix
    found = leading_eigenvalues(identity, bootstrap_feature, torch.ones(4).double(), 1.0, 2)
    assert found.numel() == 3
    assert critical_step(found) == pytest.approx(0.02 / 1.0001, rel=1e-5)


def test_too_small_a_ridge_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got ridge 0\.0; expected at least 1e-12"):
        solve_fixed_point(*GOLDEN, ridge=0.0)
