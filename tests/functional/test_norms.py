import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.functional.norms import clip_by_global_norm_, global_norm


def test_golden_global_norm_is_not_the_sum_of_norms() -> None:
    """Norms 3 and 4: √(9 + 16) = 5, not 7."""
    assert global_norm([torch.tensor([3.0]), torch.tensor([0.0, 4.0])]).item() == 5.0


def test_golden_clip_scales_all_tensors_alike() -> None:
    tensors = [torch.tensor([3.0]), torch.tensor([0.0, 4.0])]
    assert clip_by_global_norm_(tensors, 1.0).item() == 5.0
    assert [tensor.tolist() for tensor in tensors] == [[pytest.approx(0.6)], [0.0, pytest.approx(0.8)]]


@given(st.lists(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=5), min_size=1, max_size=4), st.floats(1e-3, 1e3))
def test_it_is_torchs_clip_bit_for_bit(rows: list[list[float]], max_norm: float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(len(row))) for row in rows]
    for parameter, row in zip(parameters, rows, strict=True):
        parameter.grad = torch.tensor(row)
    mine = [torch.tensor(row) for row in rows]
    norm = clip_by_global_norm_(mine, max_norm)
    expected = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    assert torch.equal(norm, expected)
    assert all(torch.equal(a, b.grad) for a, b in zip(mine, parameters, strict=True) if b.grad is not None)


def test_a_nan_is_not_hidden() -> None:
    tensors = [torch.tensor([math.nan]), torch.tensor([1.0])]
    assert clip_by_global_norm_(tensors, 1.0).isnan()
    assert all(bool(tensor.isnan().all()) for tensor in tensors)


def test_no_tensors_have_norm_zero() -> None:
    assert clip_by_global_norm_([], 1.0).item() == 0.0
