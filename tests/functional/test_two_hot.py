import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.two_hot import symexp, symexp_bins, symlog, two_hot_log_likelihood, two_hot_mean

BINS = symexp_bins(5, 2.0 * math.log(3.0))  # symexp of 0, ln 3 and 2 ln 3: 0, 2 and 8


def masses(value: float, bins: Tensor) -> Tensor:
    """The mass on each bin `[Z]`: Σ tᵢ lᵢ is linear in l, so that the rows of the unit matrix give tᵢ one by one."""
    return two_hot_log_likelihood(torch.eye(bins.numel()), torch.full(bins.shape, value), bins)


def test_golden_symlog_and_symexp() -> None:
    assert symlog(torch.tensor([0.0, math.e - 1.0, 1.0 - math.e**2])).tolist() == pytest.approx([0.0, 1.0, -2.0])
    assert symexp(torch.tensor([0.0, 1.0, -2.0])).tolist() == pytest.approx([0.0, math.e - 1.0, 1.0 - math.e**2])


@given(st.floats(-1e8, 1e8, width=32))
def test_symexp_is_the_inverse_of_symlog(x: float) -> None:
    """A logarithm of 18 is rounded by 1e-6, which is as much of the number itself."""
    assert symexp(symlog(torch.tensor(x))).item() == pytest.approx(x, rel=3e-6)


def test_golden_bins() -> None:
    assert BINS.tolist() == pytest.approx([-8.0, -2.0, 0.0, 2.0, 8.0])


def test_the_published_bins_reach_far_and_are_mirrored_bit_for_bit() -> None:
    """e²⁰ − 1 = 485,165,194; integers from −5 to 5 would end at e⁵ − 1 = 147."""
    bins = symexp_bins(255, 20.0)
    assert bins[-1].item() == pytest.approx(485_165_194.0, rel=1e-6)
    assert torch.equal(bins, -bins.flip(0))
    assert bins[127].item() == 0.0
    assert bool((bins.diff() > 0.0).all())


@pytest.mark.parametrize("num_bins", [0, 1, 2, 254])
def test_bins_without_a_middle_are_refused(num_bins: int) -> None:
    with pytest.raises(ValueError, match=f"got {num_bins} bins, expected an odd number from 3"):
        symexp_bins(num_bins, 20.0)


def test_golden_mean() -> None:
    """Masses 1/8, 1/8, 1/4, 1/4, 1/4: (−8 − 2)/8 + (2 + 8)/4 = 1.25."""
    logits = torch.tensor([[0.125, 0.125, 0.25, 0.25, 0.25]]).log() + 7.0
    assert two_hot_mean(logits, BINS).tolist() == pytest.approx([1.25])


@given(st.floats(-1e4, 1e4, width=32), st.sampled_from([3, 41, 255]), st.floats(0.1, 20.0))
def test_equal_logits_mean_exactly_zero(logit: float, num_bins: int, log_bound: float) -> None:
    """Rounded sums over bins of 4.85e8 are off by up to 1 where they are not made in pairs."""
    assert two_hot_mean(torch.full((2, num_bins), logit), symexp_bins(num_bins, log_bound)).tolist() == [0.0, 0.0]


def test_half_precision_rounds_no_means() -> None:
    """Of bins of 0 and 8 with logits 0 and 4: 8/(1 + e⁻⁴) = 7.8561; bfloat16 knows 7.84375 and 7.875."""
    logits = torch.tensor([-1e4, -1e4, 0.0, -1e4, 4.0], dtype=torch.bfloat16)
    mean = two_hot_mean(logits, BINS)
    assert mean.dtype == torch.float32
    assert mean.item() == pytest.approx(7.8561, abs=1e-4)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.5, [0.0, 0.0, 0.75, 0.25, 0.0]),  # in symlog space 0.5 lies at ln 1.5/ln 3 = 0.37 of the way
        (5.0, [0.0, 0.0, 0.0, 0.5, 0.5]),
        (-6.5, [0.75, 0.25, 0.0, 0.0, 0.0]),
        (2.0, [0.0, 0.0, 0.0, 1.0, 0.0]),
        (0.0, [0.0, 0.0, 1.0, 0.0, 0.0]),
        (8.0, [0.0, 0.0, 0.0, 0.0, 1.0]),
        (1e9, [0.0, 0.0, 0.0, 0.0, 1.0]),
        (-math.inf, [1.0, 0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_golden_masses_are_linear_in_the_value_itself(value: float, expected: list[float]) -> None:
    assert masses(value, BINS).tolist() == pytest.approx(expected, abs=1e-6)


@given(st.floats(-1e9, 1e9, width=32))
def test_masses_are_of_two_neighbours_and_mean_the_value(value: float) -> None:
    bins = symexp_bins(255, 20.0)
    mass = masses(value, bins).double()
    (held,) = mass.nonzero(as_tuple=True)
    assert 1 <= held.numel() <= 2
    assert int(held[-1] - held[0]) == held.numel() - 1
    assert float(mass.min()) >= 0.0
    assert float(mass.sum()) == pytest.approx(1.0)
    bound = float(bins[-1])
    assert float((mass * bins.double()).sum()) == pytest.approx(min(max(value, -bound), bound), rel=1e-5, abs=1e-6)


def test_golden_log_likelihood() -> None:
    """0.5 is three quarters of bin 0 with p = 1/4 and a quarter of bin 2 with p = 1/2: −(3/4·2 + 1/4)·ln 2."""
    log_probabilities = torch.tensor([[0.125, 0.0625, 0.25, 0.5, 0.0625]]).log()
    likelihood = two_hot_log_likelihood(log_probabilities, torch.tensor([0.5]), BINS)
    assert likelihood.tolist() == pytest.approx([-1.75 * math.log(2.0)])


@given(st.floats(-10.0, 10.0, width=32), st.lists(st.floats(-5.0, 5.0), min_size=5, max_size=5))
def test_the_gradient_is_that_of_a_softmax(value: float, numbers: list[float]) -> None:
    """∂/∂logit of the cross-entropy is p − t; the value has none."""
    logits, number = torch.tensor(numbers, requires_grad=True), torch.tensor(value, requires_grad=True)
    loss = -two_hot_log_likelihood(logits.log_softmax(-1), number, BINS)
    of_logits, of_value = torch.autograd.grad(loss, [logits, number], allow_unused=True)
    torch.testing.assert_close(of_logits, logits.detach().softmax(-1) - masses(value, BINS))
    assert of_value is None


def test_any_leading_shape() -> None:
    torch.manual_seed(0)
    log_probabilities, value = torch.randn(2, 3, 5).log_softmax(-1), 8.0 * torch.randn(2, 3)
    together = two_hot_log_likelihood(log_probabilities, value, BINS)
    one_by_one = [
        two_hot_log_likelihood(row, number, BINS)
        for row, number in zip(log_probabilities.flatten(0, 1), value.flatten(), strict=True)
    ]
    torch.testing.assert_close(together.flatten(), torch.stack(one_by_one))
    transposed = two_hot_log_likelihood(log_probabilities.transpose(0, 1), value.t(), BINS)
    assert torch.equal(transposed, together.t())


def test_a_nan_is_not_hidden() -> None:
    """A value that is not finite must come out as such, for who watches the loss; it is no index of a bin."""
    likelihood = two_hot_log_likelihood(torch.zeros(2, 5), torch.tensor([math.nan, 1.0]), BINS)
    assert likelihood.isnan().tolist() == [True, False]
