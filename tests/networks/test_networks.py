import pytest
import torch

from rlmods.networks.encoders import NatureCNN, observation_encoder
from rlmods.networks.mlp import mlp
from rlmods.types import EnvSpec


def test_mlp_has_no_activation_after_its_output() -> None:
    network = mlp(3, (5, 4), 2)
    assert [type(layer).__name__ for layer in network] == ["Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert network(torch.randn(7, 3)).shape == (7, 2)


def test_golden_nature_cnn_on_atari_has_the_size_of_the_paper() -> None:
    """84x84 → 20x20 → 9x9 → 7x7 with 64 channels: 3,136 features before the 512."""
    encoder = NatureCNN(4, 84, 84)
    assert encoder.linear[0].in_features == 3136
    assert encoder(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).shape == (2, 512)


def test_pixels_are_scaled_to_one() -> None:
    encoder = NatureCNN(1, 36, 36)
    white = torch.full((1, 1, 36, 36), 255, dtype=torch.uint8)
    expected = encoder.linear(encoder.convolutions(torch.ones(1, 1, 36, 36)))
    torch.testing.assert_close(encoder(white), expected)


def test_too_few_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="got pixels of 20x84, expected at least 36x36"):
        NatureCNN(3, 20, 84)


def test_a_dict_is_encoded_in_the_order_of_its_keys() -> None:
    spec: EnvSpec = {
        "env_id": "Toy-v0",
        "observation": {"b": {"shape": [2, 2], "dtype": "float64"}, "a": {"shape": [], "dtype": "float32"}},
        "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
    }
    encoder = observation_encoder(spec)
    observation = {"b": torch.arange(4.0).double().reshape(1, 2, 2), "a": torch.tensor([9.0])}
    assert encoder(observation).tolist() == [[9.0, 0.0, 1.0, 2.0, 3.0]]
    assert encoder.num_features == 5
