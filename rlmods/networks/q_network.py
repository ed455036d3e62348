"""Action-value networks."""

from collections.abc import Sequence

from torch import Tensor, nn

from rlmods.networks.encoders import observation_encoder
from rlmods.networks.mlp import mlp
from rlmods.types import EnvSpec, Observation


class QNetwork(nn.Module):
    """Q(s, ·) of a discrete environment: encoder, hidden layers, one output an action.

    Args:
        spec: of the environment.
        hidden_sizes: widths of the hidden layers after the encoder.
        dueling: split the last layer into a value and centred advantages (Wang et al. 2016, equation 9).
    """

    def __init__(self, spec: EnvSpec, hidden_sizes: Sequence[int], *, dueling: bool) -> None:
        super().__init__()
        self.encoder = observation_encoder(spec)
        self.trunk = mlp(self.encoder.num_features, hidden_sizes)
        width = hidden_sizes[-1] if hidden_sizes else self.encoder.num_features
        self.advantage = nn.Linear(width, spec["action"]["n"])
        self.value = nn.Linear(width, 1) if dueling else None

    def forward(self, observation: Observation) -> Tensor:
        """Observations `[B, *shape]` to `[B, A]`."""
        features = self.trunk(self.encoder(observation))
        advantage: Tensor = self.advantage(features)
        if self.value is None:
            return advantage
        value: Tensor = self.value(features)
        return value + advantage - advantage.mean(-1, keepdim=True)
