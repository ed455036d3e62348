import pytest
import torch
from torch import Tensor, nn

from rlmods.networks.noisy import NoisyLinear, draw_noise, noise_mode


def make_layer() -> NoisyLinear:
    """μʷ = ((1, 2)), μᵇ = 3, σʷ = ((10, 20)), σᵇ = 100, f(ε) of the inputs (0.5, −1), of the output 2."""
    layer = NoisyLinear(2, 1, 0.5)
    for parameter, values in (
        (layer.weight, [[1.0, 2.0]]),
        (layer.bias, [3.0]),
        (layer.weight_std, [[10.0, 20.0]]),
        (layer.bias_std, [100.0]),
    ):
        parameter.data = torch.tensor(values)
    layer.noise_in, layer.noise_out = torch.tensor([0.5, -1.0]), torch.tensor([2.0])
    return layer


def test_golden_noise() -> None:
    """Of x = (1, 1): 1 + 2 + 3, and 10·2·0.5 + 20·2·(−1) + 100·2 = 170 from the noise."""
    layer = make_layer()
    assert layer(torch.ones(1, 2)).tolist() == [[176.0]]
    assert layer.eval()(torch.ones(1, 2)).tolist() == [[6.0]]
    with noise_mode(layer.train(), "none"):
        assert layer(torch.ones(1, 2)).tolist() == [[6.0]]
    assert layer(torch.ones(1, 2)).tolist() == [[176.0]]


def test_the_noise_is_that_of_a_matrix() -> None:
    """Equation 9 written out: εʷ is the outer product of the two factors."""
    torch.manual_seed(0)
    layer, inputs = NoisyLinear(7, 5, 0.5), torch.randn(3, 7)
    weight = layer.weight + layer.weight_std * torch.outer(layer.noise_out, layer.noise_in)
    bias = layer.bias + layer.bias_std * layer.noise_out
    torch.testing.assert_close(layer(inputs), nn.functional.linear(inputs, weight, bias))


def test_initial_values_are_those_of_the_paper() -> None:
    layer = NoisyLinear(16, 4, 0.5)
    assert torch.equal(layer.weight_std, torch.full((4, 16), 0.125))
    assert torch.equal(layer.bias_std, torch.full((4,), 0.125))
    assert float(layer.weight.abs().max().detach()) <= 0.25
    assert float(layer.bias.abs().max().detach()) <= 0.25


def test_noise_stays_until_it_is_drawn_anew() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(NoisyLinear(4, 8, 0.5), nn.ReLU(), NoisyLinear(8, 2, 0.5))
    inputs = torch.randn(3, 4)
    before: Tensor = network(inputs)
    assert torch.equal(network(inputs), before)
    draw_noise(network)
    assert not torch.equal(network(inputs), before)


def test_rows_of_an_acting_policy_have_noise_of_their_own() -> None:
    torch.manual_seed(0)
    layer, same = NoisyLinear(4, 2, 0.5), torch.ones(6, 4)
    assert layer(same).unique(dim=0).shape[0] == 1
    drawn = layer.noise_in.clone()
    with noise_mode(layer, "each_row"):
        assert layer(same).unique(dim=0).shape[0] == 6
    assert torch.equal(layer.noise_in, drawn)


@pytest.mark.parametrize("mode", ["drawn", "each_row"])
def test_noise_has_mean_zero_and_the_size_of_its_std(mode: str) -> None:
    """E f(ε)² = E|ε| = √(2/π); with σ = 1 and x = (1): variance (2/π) of εʷ and √(2/π) of εᵇ, and they are correlated.

    Var(f(a) f(b) + f(a)) = E|a| (E|b| + 1) = 0.798 · 1.798 = 1.434.
    """
    torch.manual_seed(0)
    layer = NoisyLinear(1, 1, 1.0)
    for parameter in (layer.weight, layer.bias):
        nn.init.zeros_(parameter)
    if mode == "drawn":
        draws = []
        for _ in range(2_000):
            layer.draw()
            draws.append(layer(torch.ones(1, 1)).detach())
        sample = torch.cat(draws)
    else:
        with noise_mode(layer, "each_row"):
            sample = layer(torch.ones(20_000, 1)).detach()
    assert float(sample.mean()) == pytest.approx(0.0, abs=5 * (1.434 / len(sample)) ** 0.5)
    assert float(sample.var()) == pytest.approx(1.434, rel=0.25)


def test_the_size_of_the_noise_is_learned_and_the_noise_is_no_state() -> None:
    torch.manual_seed(0)
    layer = NoisyLinear(4, 2, 0.5)
    layer(torch.ones(3, 4)).sum().backward()
    assert layer.weight_std.grad is not None
    assert float(layer.weight_std.grad.abs().sum()) > 0.0
    assert layer.state_dict().keys() == {"weight", "bias", "weight_std", "bias_std"}
