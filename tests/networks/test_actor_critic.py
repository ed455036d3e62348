"""The memory of an actor and a critic."""

import pytest
import torch
from torch import nn

from rlmods.networks.actor_critic import LSTM, ActorCritic
from rlmods.types import EnvSpec

SPEC: EnvSpec = {
    "env_id": "test",
    "observation": {"shape": [3], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}


def test_the_memory_is_that_of_torch() -> None:
    torch.manual_seed(0)
    ours, peer = LSTM(3, 5), nn.LSTM(3, 5)
    with torch.no_grad():
        # torch orders the gates i, f, g, o; ours are i, f, o, g.
        order = torch.cat([torch.arange(0, 10), torch.arange(15, 20), torch.arange(10, 15)])
        of_input, recurrent, bias, second_bias = (parameter[order] for parameter in peer.parameters())
        ours.input.weight.copy_(of_input)
        ours.input.bias.copy_(bias + second_bias)
        ours.recurrent.weight.copy_(recurrent)
    features, state = torch.randn(4, 2, 3), torch.randn(2, 10)
    expected, _ = peer(features, (state[:, :5].unsqueeze(0), state[:, 5:].unsqueeze(0)))
    got = ours(features, state, torch.zeros(4, 2, dtype=torch.bool))
    torch.testing.assert_close(got, expected)


def test_a_state_is_zero_where_an_episode_begins() -> None:
    torch.manual_seed(0)
    lstm = LSTM(3, 4)
    features, state = torch.randn(5, 2, 3), torch.randn(2, 8)
    begins = torch.zeros(5, 2, dtype=torch.bool)
    begins[2, 1] = True
    hidden = lstm(features, state, begins)
    fresh = lstm(features[2:], torch.zeros(2, 8), torch.zeros(3, 2, dtype=torch.bool))
    torch.testing.assert_close(hidden[2:, 1], fresh[:, 1])
    assert not torch.allclose(hidden[2:, 0], fresh[:, 0])


def test_no_gradient_flows_over_the_beginning_of_an_episode() -> None:
    lstm = LSTM(3, 4)
    features = torch.randn(3, 1, 3, requires_grad=True)
    begins = torch.tensor([[False], [False], [True]])
    lstm(features, torch.zeros(1, 8), begins)[2].sum().backward()
    assert features.grad is not None
    assert features.grad[:2].abs().sum() == 0.0
    assert features.grad[2].abs().sum() > 0.0


@pytest.mark.parametrize("lstm_hidden_size", [None, 4])
def test_steps_and_a_sequence_are_the_same(lstm_hidden_size: int | None) -> None:
    torch.manual_seed(0)
    networks = ActorCritic(SPEC, 2, [8], "tanh", lstm_hidden_size)
    observation = torch.randn(6, 3, 3)
    state = start = torch.randn(3, networks.state_size)
    steps = []
    for t in range(6):
        features, state = networks.step(observation[t], state)
        steps.append(features)
    sequence = networks.sequence(observation.flatten(0, 1), start, torch.zeros(6, 3, dtype=torch.bool))
    torch.testing.assert_close(sequence, torch.cat(steps))


def test_matrices_of_hidden_layers_are_neither_heads_nor_biases() -> None:
    networks = ActorCritic(SPEC, 2, [8, 8], "relu", 4)
    shapes = [tuple(matrix.shape) for matrix in networks.hidden_matrices()]
    assert shapes == [(8, 4), (8, 8), (8, 4), (8, 8), (16, 3), (16, 4)]
