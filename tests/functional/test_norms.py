import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.functional.norms import adaptive_clip_, clip_by_global_norm_, global_norm


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


def test_golden_adaptive_clip_is_of_each_tensor_by_its_own_weights() -> None:
    """Bounds 0.5·‖w‖ = 0.5·5 and 0.5·1: ‖g‖ = 5 is halved, ‖g‖ = 0.25 stays; the norm before is √(25 + 1/16)."""
    gradients = [torch.tensor([3.0, 4.0]), torch.tensor([0.25])]
    norm = adaptive_clip_(gradients, [torch.tensor([0.0, 5.0]), torch.tensor([-1.0])], 0.5)
    assert gradients[0].tolist() == pytest.approx([1.5, 2.0])
    assert gradients[1].tolist() == [0.25]
    assert norm.item() == pytest.approx(math.sqrt(25.0625))


def test_golden_weights_that_begin_at_zero_may_move() -> None:
    """They count as of norm 0.001: a gradient of 2 becomes 0.3·0.001."""
    gradients = [torch.tensor([[0.0, -2.0]])]
    adaptive_clip_(gradients, [torch.zeros(1, 2)], 0.3)
    assert gradients[0].tolist() == [[0.0, pytest.approx(-3e-4)]]


pairs = st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-10, 10)), min_size=1, max_size=5)


@given(st.lists(pairs, min_size=1, max_size=4), st.floats(1e-2, 10.0))
def test_adaptively_clipped_gradients_keep_their_direction_and_their_bound(
    rows: list[list[tuple[float, float]]], clip: float
) -> None:
    gradients = [torch.tensor([gradient for gradient, _ in row]) for row in rows]
    before = [gradient.clone() for gradient in gradients]
    weights = [torch.tensor([weight for _, weight in row]) for row in rows]
    norm = adaptive_clip_(gradients, weights, clip)
    assert torch.equal(norm, global_norm(before))
    for gradient, old, weight in zip(gradients, before, weights, strict=True):
        bound = clip * max(1e-3, float(weight.norm()))
        scale = min(1.0, bound / max(float(old.norm()), 1e-20))
        torch.testing.assert_close(gradient, scale * old)
        assert float(gradient.norm()) <= bound * (1.0 + 1e-5)


def test_an_adaptive_clip_hides_no_nan_and_spreads_none() -> None:
    gradients = [torch.tensor([math.nan, 1.0]), torch.tensor([1.0])]
    assert adaptive_clip_(gradients, [torch.ones(2), torch.ones(1)], 10.0).isnan()
    assert bool(gradients[0].isnan().all())
    assert gradients[1].tolist() == [1.0]


def test_an_adaptive_clip_of_nothing_has_norm_zero() -> None:
    assert adaptive_clip_([], [], 0.3).item() == 0.0
    gradients = [torch.zeros(3)]
    assert adaptive_clip_(gradients, [torch.ones(3)], 0.3).item() == 0.0
    assert gradients[0].tolist() == [0.0, 0.0, 0.0]
