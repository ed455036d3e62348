"""The frozen random features of the off-policy laboratory: of the actor, of the critic and of the teacher.

Random Fourier features (Rahimi & Recht 2007, "Random features for large-scale kernel machines"), drawn once from a seed
of their own and never trained. Arrays are drawn with numpy in a fixed order, so that the same seed gives the same
features on every machine.
"""

import math
from collections.abc import Iterator
from typing import Literal, TypedDict, cast

import numpy as np
import torch
from torch import Tensor, nn

EVENTS = slice(14, 17)  # caught, picked a good goblet, picked a bad one: where they are in an observation
NUM_EVENT_FEATURES = 4  # these three and ‖a‖²
# What a thread makes at once: 64 rows of 2,048 float32 stay in a cache of half a megabyte.
_BLOCK_ELEMENTS = 64 * 2048

Precision = Literal["float32", "float64"]


class FeatureSettings(TypedDict):
    """Sizes, scales and seed of the frozen features."""

    observation_size: int
    action_size: int
    feature_dim: int
    actor_feature_dim: int
    feature_sigma: float
    actor_feature_norm: float
    lambda_action_penalty: float
    teacher_base_scale: float
    feature_seed: int
    precision: Precision


def check_feature_settings(settings: FeatureSettings) -> None:
    """Refuse sizes and scales that make no features.

    Raises:
        ValueError: naming the setting.
    """
    expectations = {
        "feature_dim": (
            settings["feature_dim"] > NUM_EVENT_FEATURES,
            f"more than the {NUM_EVENT_FEATURES} features of the events",
        ),
        "actor_feature_dim": (settings["actor_feature_dim"] >= 1, "at least 1"),
        "feature_sigma": (settings["feature_sigma"] > 0.0, "above 0"),
        "actor_feature_norm": (settings["actor_feature_norm"] > 0.0, "above 0"),
        "teacher_base_scale": (settings["teacher_base_scale"] >= 0.0, "at least 0"),
        "feature_seed": (settings["feature_seed"] >= 0, "at least 0"),
        "precision": (settings["precision"] in ("float32", "float64"), "'float32' or 'float64'"),
    }
    values = cast(dict[str, object], settings)
    for name, (is_right, expected) in expectations.items():
        if not is_right:
            raise ValueError(
                f"got {name} = {values[name]!r}, expected {expected}: type --data.init_args.env_kwargs.{name} VALUE"
            )


class ActorFeatures(nn.Module):
    """ψ(s) = tanh(W o + b), scaled down to the norm `actor_feature_norm` where it is longer, `[..., D_a]`."""

    weight: Tensor
    bias: Tensor

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        self.norm = settings["actor_feature_norm"]
        generator = _stream(settings, 0)
        size, inputs = settings["actor_feature_dim"], settings["observation_size"]
        weight = generator.standard_normal((size, inputs)) / math.sqrt(inputs)
        bias = 0.1 * generator.standard_normal(size)
        self.register_buffer("weight", _tensor(weight.T, settings), persistent=False)
        self.register_buffer("bias", _tensor(bias, settings), persistent=False)

    def forward(self, observation: Tensor) -> Tensor:
        """Observations `[..., O]` to features `[..., D_a]` of norm at most `actor_feature_norm`."""
        feature = torch.addmm(self.bias, observation.reshape(-1, observation.shape[-1]), self.weight).tanh_()
        norm = torch.linalg.vector_norm(feature, dim=-1, keepdim=True)
        feature *= (self.norm / (norm + 1e-12)).clamp_(max=1.0)
        return feature.view(*observation.shape[:-1], -1)


class CriticFeatures(nn.Module):
    """φ(s, a) = [√(2/M) cos(W [o; a; 1] + b), caught, picked good, picked bad, ‖a‖²], M = D − 4, `[..., D]`.

    Its functions of many transitions work through them in blocks that stay in the cache: a block of cosines is made and
    used up before the next one, which is four times as fast as writing all of them to memory.
    """

    input_weight: Tensor

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        check_feature_settings(settings)
        self.size = settings["feature_dim"]
        num_cosines = self.size - NUM_EVENT_FEATURES
        self.amplitude = math.sqrt(2.0 / num_cosines)
        self.observation_size = settings["observation_size"]
        generator = _stream(settings, 1)
        shape = (num_cosines, self.observation_size + settings["action_size"] + 1)
        weight = settings["feature_sigma"] * generator.standard_normal(shape)
        weight[:, -1] += generator.uniform(0.0, 2.0 * math.pi, num_cosines)
        self.register_buffer("input_weight", _tensor(weight.T, settings), persistent=False)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        """Features `[M, D]` of observations `[M, O]` with executed actions `[M, A]`."""
        feature = observation.new_empty(observation.shape[0], self.size)
        for rows, cosines in self._cosines(observation, action):
            torch.mul(cosines, self.amplitude, out=feature[rows, :-NUM_EVENT_FEATURES])
        feature[:, -NUM_EVENT_FEATURES:] = _event_features(observation, action.square().sum(-1))
        return feature

    def mean(self, observation: Tensor, actions: Tensor) -> Tensor:
        """The mean feature `[M, D]` over S executed actions `[M, S, A]` in each observation `[M, O]`."""
        num_rows, num_samples = actions.shape[:2]
        feature = observation.new_empty(num_rows, self.size)
        # The state's part of the argument is made once, and S cosines are added up in the cache.
        of_state = torch.cat((self.input_weight[: self.observation_size], self.input_weight[-1:]))
        of_action = self.input_weight[self.observation_size : -1]
        inputs = torch.cat((observation, observation.new_ones(num_rows, 1)), 1)
        size = self._block_size(num_rows)
        memory = observation.new_empty(3, size, of_state.shape[1])
        for start in range(0, num_rows, size):
            rows = slice(start, min(start + size, num_rows))
            phase, cosines, total = memory[:, : rows.stop - start].unbind()
            torch.mm(inputs[rows], of_state, out=phase)
            total.zero_()
            for sample in range(num_samples):
                total += torch.addmm(phase, actions[rows, sample], of_action, out=cosines).cos_()
            torch.mul(total, self.amplitude / num_samples, out=feature[rows, :-NUM_EVENT_FEATURES])
        feature[:, -NUM_EVENT_FEATURES:] = _event_features(observation, actions.square().sum(-1).mean(1))
        return feature

    def expectation(self, observation: Tensor, mean: Tensor, std: float) -> Tensor:
        """E[φ(s, a)], `[M, D]`, for a ~ N(mean, std² I), means `[M, A]`, executed as they are.

        E cos(u + w·a) = cos(u + w·m) exp(−σ² ‖w‖² / 2), E ‖a‖² = ‖m‖² + A σ².
        """
        feature: Tensor = self(observation, mean)
        feature[:, :-NUM_EVENT_FEATURES] *= self._attenuation(std)
        feature[:, -1] += mean.shape[-1] * std**2
        return feature

    def value(self, weight: Tensor, observation: Tensor, action: Tensor) -> Tensor:
        """weight·φ(s, a), `[M]`, for a weight `[D]`, without ever holding all features."""
        cosine_weight = self.amplitude * weight[:-NUM_EVENT_FEATURES]
        value = observation.new_empty(observation.shape[0])
        for rows, cosines in self._cosines(observation, action):
            torch.mv(cosines, cosine_weight, out=value[rows])
        events = _event_features(observation, action.square().sum(-1))
        return value + events @ weight[-NUM_EVENT_FEATURES:]

    def mean_value(self, weight: Tensor, observation: Tensor, actions: Tensor) -> Tensor:
        """weight·`mean`, `[M]`."""
        num_samples = actions.shape[1]
        repeated = observation.unsqueeze(1).expand(-1, num_samples, -1).reshape(-1, observation.shape[-1])
        return self.value(weight, repeated, actions.flatten(0, 1)).view(-1, num_samples).mean(1)

    def expected_value(self, weight: Tensor, observation: Tensor, mean: Tensor, std: float) -> Tensor:
        """weight·`expectation`, `[M]`."""
        attenuated = weight.clone()
        attenuated[:-NUM_EVENT_FEATURES] *= self._attenuation(std)
        return self.value(attenuated, observation, mean) + mean.shape[-1] * std**2 * weight[-1]

    def _attenuation(self, std: float) -> Tensor:
        action_weight = self.input_weight[self.observation_size : -1]
        return torch.exp(-0.5 * std**2 * action_weight.square().sum(0))

    def _block_size(self, num_rows: int) -> int:
        return min(num_rows, max(1, _BLOCK_ELEMENTS * torch.get_num_threads() // self.size))

    def _cosines(self, observation: Tensor, action: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """cos(W [o; a; 1] + b) for a block of rows at a time, always in the same memory."""
        num_rows = observation.shape[0]
        inputs = torch.cat([observation, action, observation.new_ones(num_rows, 1)], dim=-1)
        size = self._block_size(num_rows)
        memory = observation.new_empty(size, self.input_weight.shape[1])
        for start in range(0, num_rows, size):
            rows = slice(start, min(start + size, num_rows))
            yield rows, torch.mm(inputs[rows], self.input_weight, out=memory[: rows.stop - start]).cos_()


def teacher_weight(settings: FeatureSettings) -> Tensor:
    """w_R, `[D]`: the reward is w_R·φ(s, a)/√D. Being caught costs, a good goblet pays, a bad one costs."""
    base = settings["teacher_base_scale"] * _stream(settings, 2).standard_normal(
        settings["feature_dim"] - NUM_EVENT_FEATURES
    )
    return _tensor(np.concatenate([base, [-1.0, 1.0, -1.0, -settings["lambda_action_penalty"]]]), settings)


def _event_features(observation: Tensor, squared_action: Tensor) -> Tensor:
    return torch.cat([observation[:, EVENTS], squared_action.unsqueeze(1)], dim=1)


def _stream(settings: FeatureSettings, child: int) -> np.random.Generator:
    """The generator of the actor (0), the critic (1) or the teacher (2)."""
    return np.random.default_rng(np.random.SeedSequence(settings["feature_seed"]).spawn(3)[child])


def _tensor(array: "np.typing.NDArray[np.float64]", settings: FeatureSettings) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(getattr(torch, settings["precision"]))
