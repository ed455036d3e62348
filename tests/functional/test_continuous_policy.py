import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, TransformedDistribution
from torch.distributions.transforms import TanhTransform

from rlmods.functional.augmentation import random_shift
from rlmods.functional.continuous_policy import noisy_action, squashed_gaussian


def test_noise_of_zero_changes_nothing() -> None:
    action = torch.tensor([[-1.0, 0.3, 1.0]])
    assert torch.equal(noisy_action(action, 0.0), action)


def test_noise_is_clipped_before_it_is_added_and_the_action_after() -> None:
    torch.manual_seed(0)
    action = noisy_action(torch.full((1000, 1), 0.9), 10.0, noise_clip=0.5)
    assert action.min().item() == pytest.approx(0.4)
    assert action.max().item() == 1.0


def test_noise_has_the_spread_that_is_asked_for() -> None:
    torch.manual_seed(0)
    assert noisy_action(torch.zeros(20_000, 1), 0.1).std().item() == pytest.approx(0.1, rel=0.02)


def test_the_density_is_that_of_a_transformed_normal() -> None:
    torch.manual_seed(0)
    mean, log_std = torch.randn(50, 3).double(), torch.rand(50, 3).double() - 1.0
    action, log_density = squashed_gaussian(mean, log_std)
    reference = TransformedDistribution(Normal(mean, log_std.exp()), [TanhTransform()])
    expected = reference.log_prob(action).sum(-1)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(log_density, expected)


def test_the_density_integrates_to_one() -> None:
    """∫ π(a) da by importance sampling from the policy itself: the mean of 1/π over draws is the volume, 2."""
    torch.manual_seed(0)
    _, log_density = squashed_gaussian(torch.zeros(200_000, 1).double(), torch.zeros(200_000, 1).double())
    assert (-log_density).exp().mean().item() == pytest.approx(2.0, rel=0.02)


@given(st.floats(-500.0, 500.0), st.floats(-20.0, 2.0))
@settings(max_examples=50, deadline=None)
def test_the_density_is_finite_where_the_tanh_saturates(mean: float, log_std: float) -> None:
    action, log_density = squashed_gaussian(torch.full((4, 1), mean), torch.full((4, 1), log_std))
    assert action.abs().max() <= 1.0
    assert log_density.isfinite().all()


def test_golden_density() -> None:
    """At mean 0, std 1 and noise ε: log N(ε) - log(1 - tanh²ε)."""
    torch.manual_seed(5)
    epsilon = torch.randn(1, 1).item()
    torch.manual_seed(5)
    _, log_density = squashed_gaussian(torch.zeros(1, 1), torch.zeros(1, 1))
    expected = -0.5 * epsilon**2 - 0.5 * math.log(2 * math.pi) - math.log(1 - math.tanh(epsilon) ** 2)
    assert log_density.item() == pytest.approx(expected, rel=1e-5)


def test_a_shift_moves_whole_images_and_repeats_the_border() -> None:
    """Column c of the image holds c: what a shift by k gives can be read off."""
    torch.manual_seed(0)
    columns = torch.arange(10).expand(200, 2, 10, 10)
    rows = columns.transpose(2, 3)
    state = torch.get_rng_state()
    moved_columns = random_shift(columns, 3)
    torch.set_rng_state(state)
    moved_rows = random_shift(rows, 3)
    shift = moved_columns[:, 0, 0, 5] - 5
    assert shift.min().item() == -3
    assert shift.max().item() == 3
    expected = (torch.arange(10) + shift[:, None]).clamp(0, 9)
    assert torch.equal(moved_columns, expected[:, None, None, :].expand(200, 2, 10, 10))
    down = moved_rows[:, 0, 5, 0] - 5
    assert not torch.equal(down, shift)
    assert torch.equal(
        moved_rows, (torch.arange(10) + down[:, None]).clamp(0, 9)[:, None, :, None].expand(200, 2, 10, 10)
    )


def test_no_shift_draws_nothing() -> None:
    pixels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    state = torch.get_rng_state()
    assert random_shift(pixels, 0) is pixels
    assert torch.equal(torch.get_rng_state(), state)
