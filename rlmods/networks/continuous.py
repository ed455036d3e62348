"""Actors and critics of continuous actions, which encode observations themselves."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn

from rlmods.functional.augmentation import random_shift
from rlmods.networks.ensemble import EnsembleMLP
from rlmods.networks.mlp import mlp
from rlmods.networks.pixel_encoders import BoundedTrunk, ObservationEncoder, PixelEncoder
from rlmods.types import EnvSpec, Observation, Transition


class Encoded(NamedTuple):
    """An observation that is encoded already, for several networks that share the encoder."""

    features: Tensor  # [B, num_features]
    encoder: ObservationEncoder


Encodable: TypeAlias = Observation | Encoded
EncoderOwnership: TypeAlias = Literal["shared_critic", "separate", "shared_both"]


class ActionBox(nn.Module):
    """The box of an environment's actions, and the cube [-1, 1]^A in which networks work.

    Raises:
        ValueError: where the actions are discrete or not bounded.
    """

    scale: Tensor
    middle: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        action = spec["action"]
        if action["kind"] != "continuous":
            raise ValueError(
                f"got the {action['kind']} actions of {spec['env_id']}, expected continuous ones: type "
                "--data.init_args.env_id Pendulum-v1, or take rlmods.algorithms.DQN for discrete actions"
            )
        if not all(map(math.isfinite, [*action["low"], *action["high"]])):
            raise ValueError(
                f"got actions of {spec['env_id']} without bounds (low {action['low']}, high {action['high']}), "
                "expected a finite Box, which a squashed policy can fill: register the environment wrapped in "
                "gymnasium.wrappers.RescaleAction or with a Box of the range that is meant"
            )
        low, high = torch.tensor(action["low"]), torch.tensor(action["high"])
        self.shape = action["shape"]
        self.num_actions = math.prod(self.shape)
        self.is_cube = bool((low == -1.0).all() and (high == 1.0).all())
        middle = low + (high - low) / 2.0
        scale = torch.minimum(high - middle, middle - low)
        # Rounded, middle ± scale may lie outside the box by a bit, and some environments refuse such an action.
        is_outside = (middle + scale > high) | (middle - scale < low)
        scale = torch.where(is_outside, torch.nextafter(scale, torch.zeros_like(scale)), scale)
        if not (scale > 0.0).all():
            raise ValueError(
                f"got actions of {spec['env_id']} from {action['low']} to {action['high']}, expected low < high and a "
                "range that float32 can hold: register the environment with a Box of the range that is meant"
            )
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("middle", middle, persistent=False)

    def from_cube(self, unit_action: Tensor) -> Tensor:
        """`[B, A]` in [-1, 1] to actions `[B, *shape]`."""
        action = unit_action if self.is_cube else torch.addcmul(self.middle, self.scale, unit_action)
        return action.reshape(-1, *self.shape)

    def to_cube(self, action: Tensor) -> Tensor:
        """Actions `[B, *shape]` to `[B, A]`."""
        action = action.reshape(-1, self.num_actions)
        return action if self.is_cube else (action - self.middle) / self.scale

    def sample(self, num: int) -> Tensor:
        """Uniform actions `[num, *shape]`, drawn from torch's global generator."""
        return self.from_cube(2.0 * torch.rand(num, self.num_actions, device=self.scale.device) - 1.0)


class _ObservesThroughEncoder(nn.Module):
    """An encoder and, where there are pixels and `features_dim` is given, a bounded trunk of one's own.

    Attributes:
        head_parameters: all but those of the encoder; listed once, because torch takes long to walk over modules.
    """

    head_parameters: list[nn.Parameter]

    def __init__(self, encoder: ObservationEncoder, features_dim: int | None) -> None:
        super().__init__()
        self.encoder = encoder
        has_trunk = features_dim is not None and encoder.num_pixel_features > 0
        self.trunk = BoundedTrunk(encoder, features_dim or 0) if has_trunk else nn.Identity()
        self.num_features = self.trunk.num_features if isinstance(self.trunk, BoundedTrunk) else encoder.num_features

    def _find_head_parameters(self) -> list[nn.Parameter]:
        encoder = set(self.encoder.parameters())
        return [parameter for parameter in self.parameters() if parameter not in encoder]

    def target_copy(self, *, shares_encoder: bool) -> Self:
        """A frozen copy, with the same encoder or a frozen copy of it."""
        copied = deepcopy(self, {id(self.encoder): self.encoder} if shares_encoder else None)
        for parameter in copied.head_parameters if shares_encoder else copied.parameters():
            parameter.requires_grad_(False)
        return copied

    def encoded(self, observation: Observation) -> Encoded:
        """The observation with its features, for all who share the encoder."""
        return Encoded(self.encoder(observation), self.encoder)

    def encode(self, observation: Encodable) -> Tensor:
        """Features `[B, encoder.num_features]`.

        Raises:
            ValueError: where the observation was encoded by another network's encoder. A critic that is asked about
                features of an encoder it was not trained with can be driven to any value by that encoder.
        """
        if not isinstance(observation, Encoded):
            features: Tensor = self.encoder(observation)
            return features
        if observation.encoder is not self.encoder:
            raise ValueError(
                f"{type(self).__name__} got features of another network's encoder, expected those of its own or an "
                "observation: pass the observation"
            )
        return observation.features


class Actor(_ObservesThroughEncoder):
    """Observations to `num_outputs` numbers, from which a policy makes actions.

    Args:
        encoder: of the observations.
        hidden_sizes: widths of the hidden layers.
        num_outputs: A for a deterministic policy, 2A for mean and log standard deviation.
        features_dim: of the trunk behind pixels; None has no trunk.
        trains_encoder: whether the actor's loss reaches the encoder.
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        hidden_sizes: Sequence[int],
        num_outputs: int,
        *,
        features_dim: int | None,
        trains_encoder: bool,
    ) -> None:
        super().__init__(encoder, features_dim)
        self.trains_encoder = trains_encoder
        self.layers = mlp(self.num_features, hidden_sizes, num_outputs)
        if encoder.num_pixel_features:
            # Near zero the tanh behind it is alive, however the convolutions begin. Lillicrap et al. 2016, section 7,
            # have this bound for vectors, and a tenth of it for pixels without a trunk.
            for parameter in self.layers[-1].parameters():
                nn.init.uniform_(parameter, -3e-3, 3e-3)
        self.head_parameters = self._find_head_parameters()

    def forward(self, observation: Encodable) -> Tensor:
        """`[B, num_outputs]` for observations `[B, *shape]`."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trains_encoder):
            features = self.encode(observation)
        outputs: Tensor = self.layers(self.trunk(features))
        return outputs.float()

    def borrows(self, encoded: Encoded) -> bool:
        """Whether these are features that it reads without training their encoder."""
        return encoded.encoder is self.encoder and not self.trains_encoder

    def own_parameters(self) -> list[nn.Parameter]:
        """What the actor's loss trains."""
        return list(self.parameters()) if self.trains_encoder else self._find_head_parameters()


class Critic(_ObservesThroughEncoder):
    """E action values of the same observations and actions.

    Args:
        encoder: of the observations.
        actions: their box; the critic sees them in the cube.
        hidden_sizes: widths of the hidden layers.
        num_critics: E.
        features_dim: of the trunk behind pixels; None has no trunk.
    """

    def __init__(
        self,
        encoder: ObservationEncoder,
        actions: ActionBox,
        hidden_sizes: Sequence[int],
        *,
        num_critics: int,
        features_dim: int | None,
    ) -> None:
        super().__init__(encoder, features_dim)
        self.actions = actions
        self.q_functions = EnsembleMLP(num_critics, self.num_features + actions.num_actions, hidden_sizes)
        self.head_parameters = self._find_head_parameters()

    def forward(self, observation: Encodable, action: Tensor) -> Tensor:
        """Q `[E, B]` at observations `[B, *shape]` and actions `[B, *shape]`."""
        return self.value(self.encode(observation), action)

    def value(self, features: Tensor, action: Tensor) -> Tensor:
        """Q `[E, B]` at features of its own encoder, `[B, encoder.num_features]`."""
        values: Tensor = self.q_functions(self._inputs(features, action))
        return values.float()

    def first(self, observation: Encodable, action: Tensor) -> Tensor:
        """The first Q alone, `[B]`."""
        return self.q_functions.first(self._inputs(self.encode(observation), action)).float()

    def signals(self, q_values: Tensor, features: Tensor) -> dict[str, Tensor]:
        """What training publishes of values `[E, B]` and the features behind them."""
        signals = {"q_value": q_values[0]}
        if q_values.shape[0] > 1:
            signals["twin_gap"] = (q_values[0] - q_values[1]).abs()
        if self.encoder.num_pixel_features:
            signals["feature_norm"] = features.detach().float().norm(dim=-1).mean()
        return signals

    @torch.no_grad()
    def encoded_without_gradient(self, observation: Observation) -> Encoded:
        """As the actor's loss sees an observation."""
        return self.encoded(observation)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """What is computed inside sends no gradient to the critic's parameters, only to the action."""
        of_pixels = self.encoder.parameters() if self.encoder.num_pixel_features else ()
        parameters = [parameter for parameter in (*self.head_parameters, *of_pixels) if parameter.requires_grad]
        for parameter in parameters:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _inputs(self, features: Tensor, action: Tensor) -> Tensor:
        return torch.cat([self.trunk(features), self.actions.to_cube(action)], -1)


def actor_and_critic(
    spec: EnvSpec,
    actions: ActionBox,
    hidden_sizes: Sequence[int],
    *,
    num_outputs: int,
    num_critics: int,
    pixel_encoder: PixelEncoder,
    encoder_ownership: EncoderOwnership,
    features_dim: int | None,
) -> tuple[Actor, Critic]:
    """The two networks, wired as `encoder_ownership` says; see `TD3` for the arguments."""
    critic_encoder = ObservationEncoder(spec, pixel_encoder)
    critic = Critic(critic_encoder, actions, hidden_sizes, num_critics=num_critics, features_dim=features_dim)
    actor = Actor(
        ObservationEncoder(spec, pixel_encoder) if encoder_ownership == "separate" else critic_encoder,
        hidden_sizes,
        num_outputs,
        features_dim=features_dim,
        trains_encoder=encoder_ownership != "shared_critic",
    )
    if encoder_ownership == "shared_both" and critic_encoder.num_pixel_features:
        warnings.warn(
            "encoder_ownership = 'shared_both': two losses and two optimisers with moments of their own pull at one "
            "encoder, and the actor's can undo what the critic needs; shared_critic is what trains from pixels",
            stacklevel=3,
        )
    return actor, critic


def num_observations(observation: Observation) -> int:
    """N of observations `[N, *shape]`."""
    array = observation if isinstance(observation, Tensor) else next(iter(observation.values()))
    return array.shape[0]


def encode_once(observation: Observation, actor: Actor, critic: Critic) -> Encodable:
    """The observation encoded where actor and critic share convolutions, else as it is."""
    shares = actor.encoder is critic.encoder and critic.encoder.num_pixel_features > 0
    return critic.encoded(observation) if shares else observation


def target_encoders(
    pairs: Sequence[tuple[_ObservesThroughEncoder, _ObservesThroughEncoder]],
) -> list[tuple[ObservationEncoder, ObservationEncoder]]:
    """The encoders with parameters of target networks that have their own, each once, with the online ones."""
    encoders = {id(target.encoder): (target.encoder, online.encoder) for target, online in pairs}
    return [
        (target, online)
        for target, online in encoders.values()
        if target is not online and online.num_pixel_features > 0
    ]


def shift_transition(transition: Transition, encoder: ObservationEncoder, pad: int) -> Transition:
    """Its images moved at random by up to `pad` pixels, those of the next observations on their own."""
    if pad == 0 or encoder.num_pixel_features == 0:
        return transition
    return transition._replace(
        observation=_shift(transition.observation, encoder, pad),
        next_observation=_shift(transition.next_observation, encoder, pad),
    )


def _shift(observation: Observation, encoder: ObservationEncoder, pad: int) -> Observation:
    if isinstance(observation, Tensor):
        return random_shift(observation, pad)
    return {**observation, **{key: random_shift(observation[key], pad) for key in encoder.pixel_keys}}
