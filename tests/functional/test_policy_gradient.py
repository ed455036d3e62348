"""The losses of PPO, by numbers that can be redone by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from rlmods.functional.off_policy import vtrace_advantage
from rlmods.functional.policy_gradient import (
    approximate_kl,
    clipped_surrogate_loss,
    explained_variance,
    segment_probabilities,
    segment_weight,
    standardized,
    value_loss,
)


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.5, 1.0, -1.2), (1.5, -1.0, 1.5), (0.5, 1.0, -0.5), (0.5, -1.0, 0.8), (1.1, 2.0, -2.2)],
)
def test_the_surrogate_is_the_pessimistic_of_both(ratio: float, advantage: float, expected: float) -> None:
    loss = clipped_surrogate_loss(torch.tensor(ratio), torch.tensor(advantage), 0.2)
    assert float(loss) == pytest.approx(expected)


def test_a_clipped_ratio_has_no_gradient_where_it_would_go_on() -> None:
    ratio = torch.tensor([1.5, 1.5, 0.5, 0.5], requires_grad=True)
    clipped_surrogate_loss(ratio, torch.tensor([1.0, -1.0, 1.0, -1.0]), 0.2).sum().backward()  # type: ignore[no-untyped-call]
    assert ratio.grad is not None
    assert ratio.grad.tolist() == [0.0, 1.0, -1.0, 0.0]


def test_a_clipped_value_is_as_wrong_as_the_farther_of_both() -> None:
    value, target, old = torch.tensor([2.0, 2.0]), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0])
    assert value_loss(value, target, old, None).tolist() == [1.0, 4.0]
    # Clipped to 1.5: errors of 1.5 and 1.5; the larger of 1 and 2.25, and of 4 and 2.25.
    assert value_loss(value, target, old, 0.5).tolist() == [2.25, 4.0]


@given(st.floats(-3.0, 3.0))
def test_the_kl_of_a_sample_is_never_negative(log_ratio: float) -> None:
    kl = float(approximate_kl(torch.tensor(log_ratio, dtype=torch.float64)))
    assert kl >= 0.0
    assert kl == pytest.approx(math.expm1(log_ratio) - log_ratio)


def test_the_mean_kl_is_that_of_two_gaussians() -> None:
    torch.manual_seed(0)
    behaviour, policy = Normal(0.0, 1.0), Normal(0.3, 1.2)
    draw = behaviour.sample((400_000,))  # type: ignore[no-untyped-call]
    log_ratio = policy.log_prob(draw) - behaviour.log_prob(draw)  # type: ignore[no-untyped-call]
    assert float(approximate_kl(log_ratio).mean()) == pytest.approx(float(kl_divergence(behaviour, policy)), rel=0.02)


def test_explained_variance() -> None:
    target = torch.tensor([0.0, 2.0])
    assert float(explained_variance(target, target)) == 1.0
    assert float(explained_variance(torch.tensor([5.0, 5.0]), target)) == 0.0
    assert float(explained_variance(torch.tensor([2.0, 0.0]), target)) == -3.0


def test_standardised_values_of_those_that_count() -> None:
    values, weight = torch.tensor([1.0, 3.0, 100.0]), torch.tensor([1.0, 1.0, 0.0])
    assert standardized(values[:2]).tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert standardized(values, weight)[:2].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert standardized(torch.tensor([7.0])).tolist() == [7.0]


def brute_force_gae(td_error: torch.Tensor, discount: torch.Tensor, ended: torch.Tensor, lam: float) -> torch.Tensor:
    """Σ_k (Π λ discount) δ over the rest of the episode, step by step."""
    num_steps, num_envs = td_error.shape
    advantage = torch.zeros_like(td_error)
    for n in range(num_envs):
        for t in range(num_steps):
            factor = 1.0
            for k in range(t, num_steps):
                advantage[t, n] += factor * td_error[k, n]
                if ended[k, n]:
                    break
                factor *= lam * float(discount[k, n])
    return advantage


@given(st.integers(0, 1_000), st.sampled_from([0.0, 0.5, 0.95, 1.0]))
def test_without_ratios_the_recursion_is_gae(seed: int, lam: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    td_error = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    terminated = torch.rand(7, 3, generator=generator) < 0.2
    truncated = (torch.rand(7, 3, generator=generator) < 0.2) & ~terminated
    discount = 0.9 * (~terminated).double()
    ended = terminated | truncated
    got = vtrace_advantage(td_error, torch.ones_like(td_error), discount, 1.0, 1.0, lam, ended)
    torch.testing.assert_close(got, brute_force_gae(td_error, discount, ended, lam))


def test_lambda_1_is_monte_carlo() -> None:
    reward, value = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[10.0], [20.0], [30.0]])
    next_value = torch.tensor([[20.0], [30.0], [40.0]])
    discount = torch.full((3, 1), 0.5)
    advantage = vtrace_advantage(
        reward + discount * next_value - value, torch.ones(3, 1), discount, 1.0, 1.0, 1.0, torch.zeros(3, 1).bool()
    )
    # Returns with the bootstrap of 40: 4 + 20 = 24, 2 + 12 = 14, 1 + 7 = 8.
    assert (advantage + value).flatten().tolist() == [8.0, 14.0, 24.0]


def test_segments_are_drawn_by_their_advantages() -> None:
    advantage = torch.tensor([[1.0, 0.0, -3.0], [1.0, 2.0, 1.0]])  # sums of 2, 2, 4
    assert segment_probabilities(advantage, 1.0).tolist() == [0.25, 0.25, 0.5]
    assert segment_probabilities(advantage, 0.0).tolist() == pytest.approx([1 / 3] * 3)
    assert segment_probabilities(torch.zeros(2, 4), 0.8).tolist() == [0.25] * 4


def test_with_full_correction_the_weighted_mean_is_the_plain_one() -> None:
    probability = torch.tensor([0.25, 0.25, 0.5])
    loss = torch.tensor([3.0, 6.0, 9.0])
    weight = segment_weight(probability, 1.0)
    assert float((probability * weight * loss).sum()) == pytest.approx(float(loss.mean()))
    assert segment_weight(probability, 0.0).tolist() == [1.0, 1.0, 1.0]
