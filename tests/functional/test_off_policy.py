import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.off_policy import (
    Coefficients,
    clipped_ratio,
    effective_sample_size,
    emphasis,
    emphatic_td_coefficients,
    gtd2_coefficients,
    project_to_ball,
    td_coefficients,
    tdc_coefficients,
    vtrace_advantage,
)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def values(coefficients: Coefficients) -> list[float]:
    return [float(coefficient) for coefficient in coefficients]


def test_golden_coefficients() -> None:
    """ρ = 2, δ = 3, h_value = 0.5, γ = 0.9, F = 4."""
    ratio, td_error, auxiliary = torch.tensor(2.0), torch.tensor(3.0), torch.tensor(0.5)
    assert values(td_coefficients(ratio, td_error)) == [6.0, 0.0, 0.0]
    assert values(emphatic_td_coefficients(ratio, td_error, torch.tensor(4.0))) == [24.0, 0.0, 0.0]
    assert values(gtd2_coefficients(ratio, td_error, auxiliary, 0.9)) == pytest.approx([1.0, -0.9, 5.5])
    assert values(tdc_coefficients(ratio, td_error, auxiliary, 0.9)) == pytest.approx([6.0, -0.9, 5.5])


class Baird:
    """Baird 1995 as in Sutton & Barto 2018, section 11.2: γ = 0.99, reward 0, eight weights, every value 0 at w = 0.

    The behaviour goes to state 7 with probability 1/7 (the target always does: ρ = 7), elsewhere with ρ = 0.
    """

    discount = 0.99
    states = torch.cat((2.0 * torch.eye(7, 8, dtype=torch.float64)[:6], torch.eye(7, 8, dtype=torch.float64)[6:]))
    states[:6, 7], states[6, 7] = 1.0, 2.0
    probability = torch.tensor([1.0 / 7.0, 6.0 / 7.0], dtype=torch.float64).repeat_interleave(7) / 7.0
    ratio = torch.tensor([7.0, 0.0], dtype=torch.float64).repeat_interleave(7)
    feature = states.repeat(2, 1)
    bootstrap_feature = torch.cat((states[6].expand(7, 8), states[:6].mean(0).expand(7, 8)))

    def update(self, method: str, weight: Tensor, auxiliary: Tensor) -> tuple[Tensor, Tensor]:
        """The exact expectation of (G_w, G_h)."""
        scale = math.sqrt(8.0)
        td_error = (self.discount * self.bootstrap_feature - self.feature) @ weight / scale
        auxiliary_value = self.feature @ auxiliary / scale
        if method == "td":
            found = td_coefficients(self.ratio, td_error)
        elif method == "gtd2":
            found = gtd2_coefficients(self.ratio, td_error, auxiliary_value, self.discount)
        else:
            found = tdc_coefficients(self.ratio, td_error, auxiliary_value, self.discount)
        to_feature, to_bootstrap, to_auxiliary = (self.probability * coefficient for coefficient in found)
        return to_feature @ self.feature + to_bootstrap @ self.bootstrap_feature, to_auxiliary @ self.feature

    def growth(self, method: str, auxiliary_step: float) -> float:
        """Largest real part of the joint linear dynamics of (w, h)."""
        unit = torch.eye(16, dtype=torch.float64)
        columns = []
        for vector in unit:
            to_weight, to_auxiliary = self.update(method, vector[:8], vector[8:])
            columns.append(torch.cat((to_weight, auxiliary_step * to_auxiliary)))
        return float(torch.linalg.eigvals(torch.stack(columns, 1)).real.max())


@pytest.mark.parametrize(("method", "auxiliary_step"), [("gtd2", 1.0), ("gtd2", 0.1), ("tdc", 30.0)])
def test_on_bairds_counterexample_td_diverges_and_gradient_td_does_not(method: str, auxiliary_step: float) -> None:
    assert Baird().growth("td", 1.0) > 0.05
    assert Baird().growth(method, auxiliary_step) < 1e-10


@pytest.mark.parametrize("method", ["gtd2", "tdc"])
def test_with_solved_auxiliary_weights_the_update_descends_the_projected_bellman_error(method: str) -> None:
    """−½ ∇ of MSPBE = δ̄ᵀ C⁻¹ δ̄ with δ̄ = E ρδφ, C = E φφᵀ (Sutton et al. 2009, section 4); here times √N."""
    baird = Baird()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, generator=generator, dtype=torch.float64, requires_grad=True)
    scale = math.sqrt(8.0)
    td_error = (baird.discount * baird.bootstrap_feature - baird.feature) @ weight / scale
    expected = (baird.probability * baird.ratio * td_error) @ baird.feature
    inverse = torch.linalg.pinv(baird.feature.T @ (baird.probability.unsqueeze(1) * baird.feature))
    (gradient,) = torch.autograd.grad(expected @ inverse @ expected, weight)
    update, rest = baird.update(method, weight.detach(), scale * inverse @ expected.detach())
    torch.testing.assert_close(update, -0.5 * scale * gradient)
    torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-12, rtol=0.0)


def test_golden_emphasis() -> None:
    """γ = 0.5, ρ = 2 0 4 1: F = 1, 1 + 1, 1 + 0, 1 + 2·1; with a restart at step 1: 1, 1, 1, 3."""
    ratio = column(2.0, 0.0, 4.0, 1.0)
    assert emphasis(ratio, 0.5)[:, 0].tolist() == [1.0, 2.0, 1.0, 3.0]
    restart = torch.tensor([[False], [True], [False], [False]])
    assert emphasis(ratio, 0.5, restart)[:, 0].tolist() == [1.0, 1.0, 1.0, 3.0]
    assert ratio[:, 0].tolist() == [2.0, 0.0, 4.0, 1.0]


@given(st.lists(st.floats(0, 3), min_size=2, max_size=8), st.integers(1, 7), st.floats(0, 1))
def test_a_restart_splits_the_window(ratios: list[float], at: int, discount: float) -> None:
    at = min(at, len(ratios) - 1)
    ratio = column(*ratios)
    restart = torch.zeros_like(ratio, dtype=torch.bool)
    restart[at] = True
    apart = torch.cat((emphasis(ratio[:at], discount), emphasis(ratio[at:], discount)))
    torch.testing.assert_close(emphasis(ratio, discount, restart), apart)


def test_emphasis_makes_the_two_state_example_stable() -> None:
    """Sutton, Mahmood, White 2016, section 3: features 1 and 2, the target goes right, γ = 0.9, behaviour 50:50.

    All 2⁶ behaviours from each state, so the expectation is exact: Σ_{k≤t} (γ P_πᵀ)ᵏ d, here d(2) = ½ and
    d(2) + Σ_{k=1}^{5} 0.9ᵏ. With it, the mean of ρ(γφ̄ − φ)φ has the other sign than without.
    """
    paths = torch.tensor(list(itertools.product((0, 1), repeat=6)), dtype=torch.float64).T
    trace = emphasis(2.0 * paths, 0.9)[5]
    in_state = paths[4]  # the state at step 5 is where step 4 went: 1 is the right one
    left, right = (trace * (1 - in_state)).mean(), (trace * in_state).mean()
    assert float(left) == pytest.approx(0.5)
    assert float(right) == pytest.approx(0.5 + sum(0.9**k for k in range(1, 6)))
    towards = 0.9 * 2.0 - torch.tensor([1.0, 2.0])
    plain = 0.5 * (towards[0] * 1.0 + towards[1] * 2.0)
    emphatic = left * towards[0] * 1.0 + right * towards[1] * 2.0
    assert float(plain) == pytest.approx(0.2)
    assert float(emphatic) < 0.0


def test_golden_vtrace() -> None:
    """γ = λ = 0.5, ρ = 2 0.5, bounds ρ̄ = 1.5, c̄ = 1: A_1 = 0.5·4 = 2, A_0 = 1.5·1 + 0.25·1·2 = 2."""
    found = vtrace_advantage(column(1.0, 4.0), column(2.0, 0.5), 0.5, rho_bar=1.5, c_bar=1.0, trace_lambda=0.5)
    assert found[:, 0].tolist() == [2.0, 2.0]


_STEPS = st.lists(st.tuples(st.floats(-5, 5), st.floats(0, 4)), min_size=1, max_size=8)


@given(_STEPS, st.floats(0, 1), st.floats(0.1, 3))
def test_without_a_trace_vtrace_is_clipped_td(steps: list[tuple[float, float]], discount: float, bound: float) -> None:
    td_error, ratio = (column(*row) for row in zip(*steps, strict=True))
    found = vtrace_advantage(td_error, ratio, discount, rho_bar=bound, c_bar=bound, trace_lambda=0.0)
    torch.testing.assert_close(found, td_coefficients(clipped_ratio(ratio, bound), td_error).feature)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8), st.floats(0, 1))
def test_on_policy_vtrace_is_the_monte_carlo_error(rewards: list[float], discount: float) -> None:
    """Values v_t = t, the bootstrap v_T after the last reward."""
    length = len(rewards)
    value = torch.arange(length + 1, dtype=torch.float64).unsqueeze(1)
    td_error = column(*rewards) + discount * value[1:] - value[:-1]
    found = vtrace_advantage(td_error, torch.ones_like(td_error), discount, math.inf, math.inf, 1.0)
    outcome = float(length)
    for t in reversed(range(length)):
        outcome = rewards[t] + discount * outcome
        assert float(found[t]) == pytest.approx(outcome - t, abs=1e-9)


def test_golden_effective_sample_size() -> None:
    """(1 + 3)²/(1 + 9) = 1.6; scale does not matter, even where squares overflow; one giant counts alone."""
    assert float(effective_sample_size(torch.tensor([1.0, 3.0]))) == pytest.approx(1.6)
    assert float(effective_sample_size(torch.tensor([1e30, 3e30]))) == pytest.approx(1.6)
    assert float(effective_sample_size(torch.tensor([1e-9, 1e9, 1e-9]))) == 1.0
    assert float(effective_sample_size(torch.full((7,), 0.3))) == 7.0
    assert math.isnan(float(effective_sample_size(torch.zeros(3))))


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20))
def test_effective_sample_size_lies_between_one_and_all(ratios: list[float]) -> None:
    size = float(effective_sample_size(torch.tensor(ratios, dtype=torch.float64)))
    assert 1.0 - 1e-12 <= size <= len(ratios) + 1e-12


def test_golden_projection() -> None:
    matrix = column(3.0, 4.0)
    torch.testing.assert_close(project_to_ball(matrix, 1.0), column(0.6, 0.8))
    assert torch.equal(project_to_ball(matrix, 5.0), matrix)
    assert torch.equal(project_to_ball(matrix, 0.0), matrix)
    stacked = project_to_ball(torch.stack((matrix, 0.1 * matrix)), 1.0)
    torch.testing.assert_close(stacked, torch.stack((column(0.6, 0.8), column(0.3, 0.4))))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="expected a positive one, or None"):
        clipped_ratio(torch.ones(2), 0.0)
    assert clipped_ratio(torch.tensor([0.5, 3.0]), 2.0).tolist() == [0.5, 2.0]
    assert clipped_ratio(torch.tensor([0.5, 3.0]), None).tolist() == [0.5, 3.0]
    with pytest.raises(ValueError, match=r"expected the same \[T, B\]"):
        emphasis(torch.ones(3, 2), 0.9, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected the same \[T, B\]"):
        vtrace_advantage(torch.ones(3, 2), torch.ones(3, 1), 0.9, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_dtype_is_kept(dtype: torch.dtype) -> None:
    ratio = torch.ones(3, 2, dtype=dtype)
    results = [
        *tdc_coefficients(ratio, ratio, ratio, 0.9),
        emphasis(ratio, 0.9),
        vtrace_advantage(ratio, ratio, 0.9, 1.0, 1.0, 1.0),
        effective_sample_size(ratio.flatten()),
        project_to_ball(ratio, 1.0),
    ]
    assert {result.dtype for result in results} == {dtype}
