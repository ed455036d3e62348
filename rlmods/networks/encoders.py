"""From an observation to a flat feature vector: vectors, pixels, or a dict of both."""

import math

import torch
from torch import Tensor, nn

from rlmods.types import ArraySpec, EnvSpec, is_array_spec


class Encoder(nn.Module):
    """An observation `[B, *shape]`, or a dict of them, to features `[B, num_features]` float32."""

    num_features: int


class NatureCNN(Encoder):
    """The convolutions of Mnih et al. 2015 (Methods, "Model architecture") and their 512 features.

    Takes uint8 pixels `[B, C, H, W]`; they are scaled to `[0, 1]` here, so that replay keeps uint8.

    Raises:
        ValueError: where the pixels are too few for the strides.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < 36:
            raise ValueError(f"got pixels of {height}x{width}, expected at least 36x36: enlarge them with resize")
        self.convolutions = nn.Sequential(
            nn.Conv2d(channels, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        with torch.no_grad():
            num_flat = self.convolutions(torch.zeros(1, channels, height, width)).shape[1]
        self.num_features = 512
        self.linear = nn.Sequential(nn.Linear(num_flat, self.num_features), nn.ReLU())

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of pixels `[B, C, H, W]`."""
        features: Tensor = self.linear(self.convolutions(pixels.float() / 255.0))
        return features


class FlatEncoder(Encoder):
    """A vector, or any array flattened; has no parameters."""

    def __init__(self, shape: list[int]) -> None:
        super().__init__()
        self.num_features = math.prod(shape)

    def forward(self, array: Tensor) -> Tensor:
        """Features of an array `[B, *shape]`."""
        return array.reshape(array.shape[0], self.num_features).float()


class DictEncoder(Encoder):
    """One encoder a key, their features concatenated in the alphabetical order of the keys."""

    def __init__(self, specs: dict[str, ArraySpec]) -> None:
        super().__init__()
        self.keys = sorted(specs)
        encoders = [array_encoder(specs[key]) for key in self.keys]
        self.num_features = sum(encoder.num_features for encoder in encoders)
        # A list, not a ModuleDict, which refuses keys with a dot in them.
        self.encoders = nn.ModuleList(encoders)

    def forward(self, observation: dict[str, Tensor]) -> Tensor:
        """Features of a dict of arrays `[B, *shape]`."""
        encoded = [encoder(observation[key]) for key, encoder in zip(self.keys, self.encoders, strict=True)]
        return torch.cat(encoded, -1)


def array_encoder(spec: ArraySpec) -> Encoder:
    """Pixels (uint8 `[C, H, W]`) get the Nature CNN, everything else is flattened."""
    if spec["dtype"] == "uint8" and len(spec["shape"]) == 3:
        return NatureCNN(*spec["shape"])
    return FlatEncoder(spec["shape"])


def observation_encoder(spec: EnvSpec) -> Encoder:
    """The encoder that fits the observations of an environment."""
    observation = spec["observation"]
    return array_encoder(observation) if is_array_spec(observation) else DictEncoder(observation)
