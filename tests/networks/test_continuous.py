from typing import Any

import pytest
import torch
from torch import nn

from rlmods.networks.continuous import ActionBox, Actor, Critic
from rlmods.networks.ensemble import EnsembleLinear, EnsembleMLP
from rlmods.networks.pixel_encoders import BoundedTrunk, DrQv2CNN, ObservationEncoder
from rlmods.types import ActionSpec, EnvSpec

BOX: EnvSpec = {
    "env_id": "Toy-v0",
    "observation": {"shape": [3], "dtype": "float32"},
    "action": {"kind": "continuous", "n": 0, "shape": [2, 1], "low": [-2.0, 0.0], "high": [2.0, 10.0]},
}
PIXELS: EnvSpec = BOX | {
    "observation": {"a": {"shape": [2], "dtype": "float32"}, "pixels": {"shape": [3, 21, 24], "dtype": "uint8"}}
}


def test_an_ensemble_is_its_members_side_by_side() -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(3, 5, (7, 4))
    inputs = torch.randn(6, 5)
    outputs = ensemble(inputs)
    for member in range(3):
        layers: list[nn.Module] = []
        for layer in ensemble.layers:
            assert isinstance(layer, EnsembleLinear)
            single = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
            single.load_state_dict({"weight": layer.weight[member].T, "bias": layer.bias[member, 0]})
            layers += [single, nn.ReLU()]
        expected = nn.Sequential(*layers[:-1])(inputs).squeeze(-1)
        torch.testing.assert_close(outputs[member], expected)
    torch.testing.assert_close(ensemble.first(inputs), outputs[0])


def test_the_members_begin_apart_and_as_a_linear_layer_would() -> None:
    torch.manual_seed(0)
    layer = EnsembleLinear(2, 100, 50)
    assert not torch.equal(layer.weight[0], layer.weight[1])
    assert layer.weight.abs().max() <= 0.1  # 1/√100
    assert layer.weight.std().item() == pytest.approx(0.1 / 3**0.5, rel=0.03)


def test_the_cube_and_the_box() -> None:
    box = ActionBox(BOX)
    corners = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.5]])
    actions = box.from_cube(corners)
    assert actions.shape == (3, 2, 1)
    assert actions.flatten(1).tolist() == [[-2.0, 0.0], [2.0, 10.0], [0.0, 7.5]]
    torch.testing.assert_close(box.to_cube(actions), corners)


def test_no_action_leaves_its_box_by_rounding() -> None:
    bounds = 3.0 * torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    low, high = bounds.amin(0), bounds.amax(0)
    action: ActionSpec = {
        "kind": "continuous",
        "n": 0,
        "shape": [1000],
        "low": low.tolist(),
        "high": high.tolist(),
    }
    lowest, highest = ActionBox({**BOX, "action": action}).from_cube(torch.tensor([[-1.0], [1.0]]).expand(2, 1000))
    assert (lowest >= low).all()
    assert (highest <= high).all()
    torch.testing.assert_close(lowest, low)
    torch.testing.assert_close(highest, high)


def test_vectors_pass_the_encoder_as_they_are() -> None:
    encoder = ObservationEncoder(BOX, "drq_v2")
    assert encoder.num_pixel_features == 0
    assert not list(encoder.parameters())
    observation = torch.randn(4, 3)
    assert torch.equal(encoder(observation), observation)


def test_pixels_come_first_and_vectors_follow_the_bounded_trunk() -> None:
    torch.manual_seed(0)
    encoder = ObservationEncoder(PIXELS, "drq_v2")
    assert encoder.num_pixel_features == 32 * 4 * 5  # 21 → 10 → 8 → 6 → 4, 24 → 11 → 9 → 7 → 5
    observation = {
        "a": torch.tensor([[100.0, -100.0]]),
        "pixels": torch.randint(0, 256, (1, 3, 21, 24), dtype=torch.uint8),
    }
    trunk = BoundedTrunk(encoder, 6)
    features = trunk(encoder(observation))
    assert features.shape == (1, 8)
    assert features[0, :6].abs().max() <= 1.0
    assert features[0, 6:].tolist() == [100.0, -100.0]


def test_an_encoder_without_a_trunk_feeds_the_layers_itself() -> None:
    encoder = ObservationEncoder(PIXELS, "drq_v2")
    actor = Actor(encoder, (4,), 2, features_dim=None, trains_encoder=True)
    assert actor.num_features == encoder.num_features


def test_drq_v2_scales_pixels_around_zero() -> None:
    torch.manual_seed(0)
    cnn = DrQv2CNN(1, 15, 15)
    seen: list[Any] = []
    cnn.convolutions.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    cnn(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2).expand(1, 1, 15, 2).repeat(1, 1, 1, 8)[..., :15])
    assert seen[0].min().item() == -0.5
    assert seen[0].max().item() == 0.5


def test_too_few_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 15x15"):
        DrQv2CNN(1, 14, 20)


def test_a_frozen_critic_sends_gradients_to_the_action_alone() -> None:
    torch.manual_seed(0)
    box = ActionBox(BOX)
    critic = Critic(ObservationEncoder(BOX, "drq_v2"), box, (4,), num_critics=2, features_dim=None)
    action = box.from_cube(torch.zeros(5, 2)).requires_grad_()
    with critic.frozen():
        value = critic(torch.randn(5, 3), action)
    value.sum().backward()
    assert action.grad is not None
    assert action.grad.abs().sum() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in critic.parameters())
