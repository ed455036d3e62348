import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from rlmods.networks.normed import NormedLinear, NormedMLP, RMSNorm, initialized, truncated_normal_


def test_golden_norm() -> None:
    """The mean square of 3, 4 and 5 and 5√2 is 25: each divided by 5, the second twice; ε = 1e-4 in 25 is nothing."""
    norm = RMSNorm(4)
    with torch.no_grad():
        norm.scale[1] = 2.0
    outputs = norm(torch.tensor([[3.0, 4.0, 5.0, 5.0 * math.sqrt(2.0)]]))
    assert outputs[0].tolist() == pytest.approx([0.6, 1.6, 1.0, math.sqrt(2.0)], rel=1e-5)


def test_golden_small_inputs_are_damped() -> None:
    """0.01 has a mean square of 1e-4, as much as ε: 0.01/√2e-4 = 1/√2."""
    assert RMSNorm(2)(torch.full((2,), 0.01)).tolist() == pytest.approx([math.sqrt(0.5)] * 2)
    assert RMSNorm(2)(torch.zeros(2)).tolist() == [0.0, 0.0]


def test_it_has_a_scale_and_no_shift() -> None:
    assert [name for name, _ in RMSNorm(3).named_parameters()] == ["scale"]


def test_half_precision_is_normed_in_single() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.bfloat16)
    outputs = RMSNorm(8)(x)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, F.rms_norm(x.float(), (8,), eps=1e-4))


@given(st.integers(1, 5), st.integers(1, 9), st.floats(0.01, 100.0), st.integers(0, 1000))
def test_a_layer_is_linear_norm_and_silu_and_so_are_its_gradients(
    rows: int, width: int, size: float, seed: int
) -> None:
    """Against torch's own operations, in double precision; also where a gradient to x alone is asked for."""
    torch.manual_seed(seed)
    layer = NormedLinear(3, width)
    with torch.no_grad():
        layer.norm.scale.normal_()
        layer.linear.bias.normal_()
    x, direction = (size * torch.randn(rows, 3)).requires_grad_(), torch.randn(rows, width)
    parameters = [x, layer.linear.weight, layer.linear.bias, layer.norm.scale]
    outputs = layer(x)
    plain_x, weight, bias, scale = (parameter.detach().double().requires_grad_() for parameter in parameters)
    expected = F.silu(F.rms_norm(F.linear(plain_x, weight, bias), (width,), scale, 1e-4))
    torch.testing.assert_close(outputs.double(), expected, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad((outputs * direction).sum(), parameters)
    plain = torch.autograd.grad((expected * direction).sum(), [plain_x, weight, bias, scale])
    for gradient, other in zip(gradients, plain, strict=True):
        torch.testing.assert_close(gradient.double(), other, rtol=1e-3, atol=1e-3 * (1.0 + float(other.abs().max())))
    with torch.no_grad():
        torch.testing.assert_close(layer(x), outputs)


def test_layers_have_biases_and_end_in_a_linear_one() -> None:
    """(3 + 1)·8 + 8, (8 + 1)·8 + 8 and (8 + 1)·2."""
    network = NormedMLP(3, 8, 2, 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 40 + 80 + 18
    with torch.no_grad():
        network.output.bias.fill_(-5.0)
        network.output.weight.zero_()
    assert network(torch.randn(4, 3)).tolist() == [[-5.0, -5.0]] * 4


def test_a_scale_of_zero_predicts_nothing() -> None:
    torch.manual_seed(0)
    assert not NormedMLP(3, 8, 2, 2, output_scale=0.0)(torch.randn(4, 3)).any()
    small, whole = (NormedMLP(3, 64, 1, 64, output_scale=scale).output.weight.detach().std() for scale in (0.01, 1.0))
    assert float(small / whole) == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("scale", [1.0, 0.01])
def test_golden_initial_weights_are_cut_at_two_of_their_own_sigma(scale: float) -> None:
    """Of fan-in 100 they have a standard deviation of 1/10, and none is beyond 2 · 1.1368/10."""
    torch.manual_seed(0)
    weight = torch.empty(200, 500)
    truncated_normal_(weight, 100, scale)
    assert float(weight.std()) == pytest.approx(0.1 * scale, rel=0.01)
    assert 0.99 * 0.22736 * scale < float(weight.abs().max()) <= 0.22736 * scale * (1.0 + 1e-6)


def test_the_fan_in_of_a_convolution_is_its_window() -> None:
    """5 · 5 · 4 = 100, however many channels it has; biases begin at 0."""
    torch.manual_seed(0)
    layer = initialized(nn.Conv2d(4, 200, 5))
    assert float(layer.weight.detach().std()) == pytest.approx(0.1, rel=0.03)
    assert layer.bias is not None
    assert not layer.bias.any()
