"""Action-value networks."""

from collections.abc import Sequence

from torch import Tensor, nn

from rlmods.networks.encoders import observation_encoder
from rlmods.networks.mlp import mlp
from rlmods.types import EnvSpec


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) − mean over a of A(s, ·).

    Source: Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", equation 9.
    """

    def __init__(self, num_features: int, num_actions: int) -> None:
        super().__init__()
        self.value = nn.Linear(num_features, 1)
        self.advantage = nn.Linear(num_features, num_actions)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, num_features]` to `[B, A]`."""
        value: Tensor = self.value(features)
        advantage: Tensor = self.advantage(features)
        return value + advantage - advantage.mean(-1, keepdim=True)


def q_network(spec: EnvSpec, hidden_sizes: Sequence[int], *, dueling: bool) -> nn.Sequential:
    """Q(s, ·) of a discrete environment: observations `[B, *shape]` to `[B, A]`.

    Args:
        spec: of the environment.
        hidden_sizes: widths of the hidden layers after the encoder.
        dueling: end in a `DuelingHead` instead of one linear layer.
    """
    encoder = observation_encoder(spec)
    num_features = hidden_sizes[-1] if hidden_sizes else encoder.num_features
    num_actions = spec["action"]["n"]
    head = DuelingHead(num_features, num_actions) if dueling else nn.Linear(num_features, num_actions)
    # One flat sequence: entering a module takes as long as a small layer's arithmetic.
    return nn.Sequential(encoder, *mlp(encoder.num_features, hidden_sizes), head)
