"""An actor and a critic of one observation, with or without a memory."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rlmods.networks.encoders import FlatEncoder, observation_encoder
from rlmods.types import EnvSpec, Observation, is_array_spec

Activation: TypeAlias = Literal["tanh", "relu"]


class LSTM(nn.Module):
    """A long short-term memory whose state is zero where an episode begins.

    The state `[B, 2H]` is h and c side by side. One step and a sequence make the same products in the same order.
    """

    def __init__(self, num_inputs: int, num_units: int) -> None:
        super().__init__()
        self.num_units = num_units
        self.input = nn.Linear(num_inputs, 4 * num_units)
        self.recurrent = nn.Linear(num_units, 4 * num_units, bias=False)

    def step(self, projected: Tensor, state: Tensor) -> Tensor:
        """One step from `input(features)` `[B, 4H]` and the state `[B, 2H]` to the next state `[B, 2H]`."""
        hidden, cell = state.chunk(2, -1)
        gates = torch.addmm(projected, hidden, self.recurrent.weight.T)
        to_input, to_forget, to_output, candidate = gates.chunk(4, -1)
        cell = to_forget.sigmoid() * cell + to_input.sigmoid() * candidate.tanh()
        return torch.cat([to_output.sigmoid() * cell.tanh(), cell], -1)

    def forward(self, features: Tensor, state: Tensor, begins: Tensor) -> Tensor:
        """A sequence.

        Args:
            features: `[L, B, num_inputs]`.
            state: before the first step, `[B, 2H]`.
            begins: `[L, B]` bool, whether an episode begins with the step.

        Returns:
            h after each step, `[L, B, H]`.
        """
        projected = self.input(features)
        keeps = (~begins).to(features.dtype).unsqueeze(-1)
        hidden = []
        for t in range(features.shape[0]):
            state = self.step(projected[t], state * keeps[t])
            hidden.append(state[:, : self.num_units])
        return torch.stack(hidden)


class ActorCritic(nn.Module):
    """Encoder, memory, actor and critic.

    Vectors go to both as they are; what pixels are encoded to and the memory are shared.

    Args:
        spec: of the environment.
        num_outputs: of the actor.
        hidden_sizes: widths of the hidden layers of actor and critic.
        activation: between them.
        lstm_hidden_size: units of the memory; None has none.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_outputs: int,
        hidden_sizes: Sequence[int],
        activation: Activation,
        lstm_hidden_size: int | None,
    ) -> None:
        super().__init__()
        self.encoder = observation_encoder(spec)
        num_features = self.encoder.num_features
        self.lstm = None if lstm_hidden_size is None else LSTM(num_features, lstm_hidden_size)
        if lstm_hidden_size is not None:
            num_features = lstm_hidden_size
        self.actor = _head(num_features, hidden_sizes, num_outputs, activation, gain=0.01)
        self.critic = _head(num_features, hidden_sizes, 1, activation, gain=1.0)
        # A vector that is float32 already needs no encoder, which costs a small network a tenth of its time.
        observed = spec["observation"]
        is_vector = is_array_spec(observed) and observed["dtype"] == "float32" and len(observed["shape"]) == 1
        self._is_encoded = is_vector and isinstance(self.encoder, FlatEncoder)

    @property
    def state_size(self) -> int:
        """Numbers of the recurrent state."""
        return 0 if self.lstm is None else 2 * self.lstm.num_units

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Weights of all linear layers but the last ones, and of the memory."""
        layers = [layer for head in (self.actor, self.critic) for layer in list(head)[:-1]]
        if self.lstm is not None:
            layers += [self.lstm.input, self.lstm.recurrent]
        return [parameter for layer in layers for parameter in layer.parameters() if parameter.ndim == 2]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Those of the encoder and the memory."""
        modules = [self.encoder] if self.lstm is None else [self.encoder, self.lstm]
        return [parameter for module in modules for parameter in module.parameters()]

    def step(self, observation: Observation, state: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[N, F]` and the next state `[N, S]` of one step."""
        encoded = self.encode(observation)
        if self.lstm is None:
            return encoded, state
        state = self.lstm.step(self.lstm.input(encoded), state)
        return self.remembered(state), state

    def remembered(self, state: Tensor) -> Tensor:
        """The features in a state after its step: h, `[..., H]` of `[..., 2H]`."""
        return state[..., : state.shape[-1] // 2]

    def sequence(self, observation: Observation, state: Tensor, begins: Tensor) -> Tensor:
        """Features `[L·B, F]` of L steps of B sequences.

        Args:
            observation: `[L·B, *shape]`, time first.
            state: before the first step, `[B, S]`.
            begins: `[L, B]` bool, whether an episode begins with the step.
        """
        encoded = self.encode(observation)
        if self.lstm is None:
            return encoded
        hidden: Tensor = self.lstm(encoded.view(*begins.shape, -1), state, begins)
        return hidden.flatten(0, 1)

    def encode(self, observation: Observation) -> Tensor:
        """Features `[N, F]` before the memory."""
        encoded: Tensor = observation if self._is_encoded else self.encoder(observation)  # type: ignore[assignment]
        return encoded

    def value(self, features: Tensor) -> Tensor:
        """V, `[N]`."""
        value: Tensor = self.critic(features)
        return value.squeeze(-1)


def _head(
    num_inputs: int, hidden_sizes: Sequence[int], num_outputs: int, activation: Activation, *, gain: float
) -> nn.Sequential:
    """Orthogonal layers, √2 between them and `gain` at the end (Andrychowicz et al. 2021, section 3.2)."""
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [_orthogonal(num_inputs, size, 2.0**0.5), nn.Tanh() if activation == "tanh" else nn.ReLU()]
        num_inputs = size
    return nn.Sequential(*layers, _orthogonal(num_inputs, num_outputs, gain))


def _orthogonal(num_inputs: int, num_outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer
