import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Independent, OneHotCategorical, kl_divergence

from rlmods.functional.discrete_latents import (
    latent_entropy,
    latent_kl,
    mixed_probabilities,
    one_hot_sample,
    straight_through,
)

logit_lists = st.lists(st.floats(-50.0, 50.0, width=32), min_size=2, max_size=6)


def column(*values: float) -> Tensor:
    """The classes of one variable, `[C, 1]`."""
    return torch.tensor(values).unsqueeze(-1)


def test_golden_mixture() -> None:
    """softmax (3/4, 1/4), half of it uniform: (3/8 + 1/4, 1/8 + 1/4)."""
    mixed = mixed_probabilities(column(math.log(3.0), 0.0), 0.5)
    assert mixed.flatten().tolist() == pytest.approx([0.625, 0.375])


def test_each_variable_has_a_softmax_of_its_own() -> None:
    """Two variables of three classes, side by side."""
    logits = torch.tensor([[0.0, math.log(2.0)], [0.0, 0.0], [0.0, 0.0]])
    expected = torch.tensor([[1 / 3, 1 / 2], [1 / 3, 1 / 4], [1 / 3, 1 / 4]])
    torch.testing.assert_close(mixed_probabilities(logits, 0.0), expected)


@given(logit_lists, st.floats(0.0, 0.99))
def test_a_mixture_is_a_distribution_with_a_floor(logits: list[float], unimix: float) -> None:
    probabilities = mixed_probabilities(column(*logits), unimix)
    assert float(probabilities.sum()) == pytest.approx(1.0, abs=1e-5)
    assert float(probabilities.min()) >= unimix / len(logits) * (1.0 - 1e-5)


def test_half_precision_rounds_no_probabilities() -> None:
    logits = column(2.0, 0.0).bfloat16()
    for unimix in (0.0, 0.01):
        mixed = mixed_probabilities(logits, unimix)
        assert mixed.dtype == torch.float32
        assert torch.equal(mixed, mixed_probabilities(logits.float(), unimix))


def test_golden_draws_invert_the_distribution_function() -> None:
    """Of 1/8, 2/8, 5/8: below 1/8 the first, then until 3/8 the second, then the third; twice the mass is the same."""
    uniform = torch.tensor([0.0, 0.12, 0.13, 0.37, 0.38, 0.999999])
    probabilities = column(1 / 8, 2 / 8, 5 / 8).expand(3, 6)
    for scale in (1.0, 2.0):
        sample = one_hot_sample(scale * probabilities, uniform.unsqueeze(0))
        assert torch.equal(sample.sum(0), torch.ones(6))
        assert sample.argmax(0).tolist() == [0, 0, 1, 1, 2, 2]


@given(logit_lists, st.floats(0.0, 1.0, exclude_max=True, width=32))
def test_every_draw_is_one_class(logits: list[float], uniform: float) -> None:
    """Also where rounding leaves the sum of the probabilities below 1."""
    probabilities = mixed_probabilities(column(*logits), 0.01)
    sample = one_hot_sample(probabilities, torch.tensor([[uniform]]))
    assert sorted(sample.flatten().tolist()) == [0.0] * (len(logits) - 1) + [1.0]


def test_draws_have_no_gradient() -> None:
    probabilities = column(0.5, 0.5).requires_grad_()
    assert not one_hot_sample(probabilities, torch.tensor([[0.7]])).requires_grad


def test_golden_straight_through_gradient() -> None:
    """The sample itself, and of w·z the gradient pᵢ (wᵢ − Σ p w): p = (1/4, 3/4), w = (8, 0), so ±1/4·3/4·8 = ±1.5."""
    logits = column(0.0, math.log(3.0)).requires_grad_()
    sample = column(0.0, 1.0)
    passed = straight_through(sample, mixed_probabilities(logits, 0.0))
    assert torch.equal(passed, sample)
    (gradient,) = torch.autograd.grad((passed * column(8.0, 0.0)).sum(), logits)
    assert gradient.flatten().tolist() == pytest.approx([1.5, -1.5])


@given(logit_lists, st.integers(0, 5))
def test_straight_through_changes_no_number(logits: list[float], choice: int) -> None:
    sample = torch.zeros(len(logits), 1)
    sample[choice % len(logits)] = 1.0
    assert torch.equal(straight_through(sample, mixed_probabilities(column(*logits), 0.01)), sample)


def test_golden_the_divergence_is_summed_over_the_variables() -> None:
    """Two variables that are certainly the first class, expected with e^-0.6: 0.6 nat each, 1.2 together.

    Their mean is 0.6, and where each is held at 1 nat it is 1 or 2.
    """
    log_p = column(0.0, -60.0).log_softmax(0).expand(2, 2)
    expected = math.exp(-0.6)
    log_q = column(expected, 1.0 - expected).log().expand(2, 2)
    assert latent_kl(log_p, log_q).shape == ()
    assert float(latent_kl(log_p, log_q)) == pytest.approx(1.2, abs=1e-6)


def test_golden_the_divergence_of_mixed_opposites_is_finite() -> None:
    """Certain of different classes, with 1 % of the uniform: 0.99·ln(0.995/0.005) for each; without it 100 nats."""
    p, q = (mixed_probabilities(column(*logits), 0.01).log() for logits in ((100.0, 0.0), (0.0, 100.0)))
    assert float(latent_kl(p, q)) == pytest.approx(0.99 * math.log(199.0), rel=1e-5)


def test_divergence_and_entropy_are_those_of_torch() -> None:
    torch.manual_seed(0)
    log_p, log_q = torch.randn(2, 5, 4, 3).mul(2.0).log_softmax(-2)
    p, q = (Independent(OneHotCategorical(logits=logits.mT), 1) for logits in (log_p, log_q))
    torch.testing.assert_close(latent_kl(log_p, log_q), kl_divergence(p, q))
    torch.testing.assert_close(latent_entropy(log_p), p.entropy())  # type: ignore[no-untyped-call]
    assert torch.equal(latent_kl(log_p, log_p), torch.zeros(5))


def test_golden_the_entropy_of_uniform_variables_is_their_bound() -> None:
    assert float(latent_entropy(torch.full((4, 32), math.log(0.25)))) == pytest.approx(32.0 * math.log(4.0))
