import math

import pytest
import torch

from rlmods.functional.priorities import annealed_beta, importance_weight, td_error_priority


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_priority_is_the_absolute_td_error_to_the_power_of_alpha(dtype: torch.dtype) -> None:
    """(|−3| + 1)^½ = 2, (|0| + 1)^½ = 1, (|8| + 1)^½ = 3."""
    td_error = torch.tensor([[-3.0, 0.0, 8.0]], dtype=dtype)
    expected = torch.tensor([[2.0, 1.0, 3.0]], dtype=dtype)
    torch.testing.assert_close(td_error_priority(td_error, alpha=0.5, eps=1.0), expected)


def test_alpha_zero_makes_all_priorities_one() -> None:
    assert td_error_priority(torch.tensor([0.0, -7.0]), alpha=0.0, eps=1e-6).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("progress", "beta"), [(0.0, 0.4), (0.5, 0.7), (1.0, 1.0), (1.2, 1.0)])
def test_beta_is_linear_and_stays_at_one(progress: float, beta: float) -> None:
    assert math.isclose(annealed_beta(0.4, progress), beta)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_importance_weight_by_hand(dtype: torch.dtype) -> None:
    """N = 4, p = (1, 4, 4, 16) of 25, β = ½: (N·P)^−½ = (25/4)^½ · (1, ½, ½, ¼); divided by its maximum."""
    weight = importance_weight(torch.tensor([1.0, 4.0, 4.0, 16.0], dtype=dtype), beta=0.5)
    torch.testing.assert_close(weight, torch.tensor([1.0, 0.5, 0.5, 0.25], dtype=dtype))


def test_importance_weight_equals_the_formula_of_the_paper() -> None:
    priority = torch.rand(3, 8, dtype=torch.float64) + 0.1
    paper = (100 * priority / 57.0).pow(-0.7)
    torch.testing.assert_close(importance_weight(priority, beta=0.7), paper / paper.amax(-1, keepdim=True))


def test_importance_weight_is_normalised_by_each_mini_batch() -> None:
    weight = importance_weight(torch.tensor([[1.0, 2.0], [10.0, 40.0]]), beta=1.0)
    assert weight.tolist() == [[1.0, 0.5], [1.0, 0.25]]


def test_importance_weight_wants_a_mini_batch() -> None:
    with pytest.raises(ValueError, match=r"expected \[\.\.\., B\]"):
        importance_weight(torch.tensor(1.0), beta=1.0)
