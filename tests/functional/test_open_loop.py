import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.functional.open_loop import relative_error, same_episode, unexplained_variance


def test_rows_count_until_the_next_beginning() -> None:
    """A beginning in the first row is the episode's own."""
    first = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    expected = [[True, True, True], [True, True, False], [True, False, False], [True, False, False]]
    assert same_episode(first).tolist() == expected
    assert first[0].tolist() == [True, False, False]


def test_golden_relative_error() -> None:
    """Targets 0, 2 | 4, 6 with mean 3: the rows spread by 9 + 1 and 1 + 9; errors of 1 and 4 are 1/10 and 4/10."""
    target = torch.tensor([[[0.0], [2.0]], [[4.0], [6.0]]])
    error = torch.tensor([[1.0, 0.0], [4.0, 0.0]])
    assert relative_error(error, target, torch.ones(2, 2, dtype=torch.bool)).tolist() == pytest.approx([0.1, 0.4])


def test_rows_that_do_not_count_are_left_out() -> None:
    """Without the last of them the mean is 2, and the second row spreads by 4."""
    target = torch.tensor([[[0.0], [2.0]], [[4.0], [1e6]]])
    error = torch.tensor([[4.0, 0.0], [4.0, 1e9]])
    counts = torch.tensor([[True, True], [True, False]])
    assert relative_error(error, target, counts).tolist() == pytest.approx([1.0, 1.0])


def test_what_does_not_vary_or_is_not_there_is_not_known() -> None:
    counts = torch.tensor([[True, True], [False, False]])
    assert all(math.isnan(value) for value in relative_error(torch.ones(2, 2), torch.ones(2, 2, 3), counts))


@given(st.integers(0, 2**31 - 1))
def test_predicting_the_mean_is_one_over_all_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64)
    mean = target.mean((0, 1))
    error = (target - mean).square().sum(-1)
    relative = relative_error(error, target, torch.ones(5, 3, dtype=torch.bool))
    assert relative.tolist() == pytest.approx([1.0] * 5)


EVERYTHING = torch.ones(2, 2, dtype=torch.bool)


def test_golden_unexplained_variance() -> None:
    """Means 1 and 20, variances 1 and 100. Errors of the rows: (1 + 0)/2 and (0 + 400)/2; 0 and (100 + 0)/2."""
    target = torch.tensor([[[0.0, 10.0], [2.0, 30.0]], [[2.0, 30.0], [0.0, 10.0]]])
    predicted = torch.tensor([[[1.0, 10.0], [2.0, 10.0]], [[2.0, 20.0], [0.0, 10.0]]])
    apart = unexplained_variance(predicted, target, EVERYTHING, apart=True)
    assert apart.tolist() == pytest.approx([(0.5 / 1.0 + 200.0 / 100.0) / 2.0, (0.0 + 50.0 / 100.0) / 2.0])
    together = unexplained_variance(predicted, target, EVERYTHING, apart=False)
    assert together.tolist() == pytest.approx([200.5 / 101.0, 50.0 / 101.0])


def test_golden_unexplained_variance_of_what_counts() -> None:
    """Of 0, 2 and 4 the mean is 2 and the variance 8/3; the last row has one error of 2, the first of 1 and 1."""
    target = torch.tensor([[[0.0], [2.0]], [[4.0], [1e6]]])
    counts = torch.tensor([[True, True], [True, False]])
    error = unexplained_variance(target + torch.tensor([[[1.0]], [[2.0]]]), target, counts, apart=True)
    assert error.tolist() == pytest.approx([3.0 / 8.0, 12.0 / 8.0])


def test_an_entry_that_does_not_vary_is_left_out() -> None:
    target = torch.tensor([[[0.0, 5.0], [2.0, 5.0]]])
    counts = torch.ones(1, 2, dtype=torch.bool)
    assert unexplained_variance(target + 1.0, target, counts, apart=True).tolist() == [1.0]
    assert math.isnan(unexplained_variance(target[..., 1:], target[..., 1:], counts, apart=True)[0])
    assert math.isnan(unexplained_variance(target, target, torch.zeros(1, 2, dtype=torch.bool), apart=False)[0])


@pytest.mark.parametrize("apart", [True, False])
@given(seed=st.integers(0, 2**31 - 1))
def test_the_mean_explains_nothing(apart: bool, seed: int) -> None:
    target = torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    everything = torch.ones(5, 3, dtype=torch.bool)
    error = unexplained_variance(target.mean((0, 1)).expand_as(target), target, everything, apart=apart)
    assert float(error.mean()) == pytest.approx(1.0)
