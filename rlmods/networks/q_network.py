"""Action-value networks."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from rlmods.networks.encoders import observation_encoder
from rlmods.networks.mlp import mlp
from rlmods.networks.noisy import NoisyLinear
from rlmods.types import EnvSpec

LinearLayer: TypeAlias = Callable[[int, int], nn.Linear]


class DuelingHead(nn.Module):
    """Q(s, a) = V(s) + A(s, a) − mean over a of A(s, ·); with Z atoms the same of each atom's logits.

    Source: Wang et al. 2016, "Dueling Network Architectures for Deep Reinforcement Learning", equation 9.
    """

    def __init__(
        self, num_features: int, num_actions: int, num_atoms: int = 1, linear: LinearLayer = nn.Linear
    ) -> None:
        super().__init__()
        self.num_atoms = num_atoms
        self.value = linear(num_features, num_atoms)
        self.advantage = linear(num_features, num_actions * num_atoms)

    def forward(self, features: Tensor) -> Tensor:
        """Features `[B, num_features]` to `[B, A]`, with several atoms to `[B, A, Z]`."""
        value: Tensor = self.value(features)
        advantage: Tensor = self.advantage(features)
        if self.num_atoms == 1:
            return value + advantage - advantage.mean(-1, keepdim=True)
        advantage = advantage.view(*value.shape[:-1], -1, self.num_atoms)
        return value.unsqueeze(-2) + advantage - advantage.mean(-2, keepdim=True)


def q_network(
    spec: EnvSpec,
    hidden_sizes: Sequence[int],
    *,
    dueling: bool,
    num_atoms: int = 1,
    noisy_std: float | None = None,
) -> nn.Sequential:
    """Q(s, ·) of a discrete environment: observations `[B, *shape]` to `[B, A]`, with several atoms to `[B, A, Z]`.

    Args:
        spec: of the environment.
        hidden_sizes: widths of the hidden layers after the encoder.
        dueling: end in a `DuelingHead` instead of one linear layer.
        num_atoms: Z, outputs of each action.
        noisy_std: σ₀ of noisy layers after the encoder; None has ordinary ones.
    """
    encoder = observation_encoder(spec)
    num_features = hidden_sizes[-1] if hidden_sizes else encoder.num_features
    num_actions = spec["action"]["n"]
    linear: LinearLayer = nn.Linear if noisy_std is None else partial(NoisyLinear, noisy_std=noisy_std)
    # Before the hidden layers, as ever: a seed keeps its weights.
    if dueling:
        last: list[nn.Module] = [DuelingHead(num_features, num_actions, num_atoms, linear)]
    else:
        by_atom = [] if num_atoms == 1 else [nn.Unflatten(-1, (num_actions, num_atoms))]
        last = [linear(num_features, num_actions * num_atoms), *by_atom]
    # One flat sequence: entering a module takes as long as a small layer's arithmetic.
    return nn.Sequential(encoder, *mlp(encoder.num_features, hidden_sizes, linear=linear), *last)
