"""Encoders of actor-critic algorithms: pixels through convolutions, everything else as it is."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from rlmods.networks.encoders import Encoder, FlatEncoder, NatureCNN
from rlmods.types import ArraySpec, EnvSpec, Observation, is_array_spec

PixelEncoder: TypeAlias = Literal["nature", "drq_v2"]


class DrQv2CNN(Encoder):
    """Four convolutions of 32 filters, 3×3, strides 2, 1, 1, 1 (Yarats et al. 2021, DrQ-v2, appendix B).

    Takes uint8 pixels `[B, C, H, W]`, scaled to `[-0.5, 0.5]` here. Orthogonal initial weights.

    Raises:
        ValueError: where the pixels are too few for the filters.
    """

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < 15:
            raise ValueError(f"got pixels of {height}x{width}, expected at least 15x15: enlarge them with resize")
        layers: list[nn.Module] = []
        for stride in (2, 1, 1, 1):
            convolution = nn.Conv2d(channels, 32, kernel_size=3, stride=stride)
            nn.init.orthogonal_(convolution.weight, gain=2**0.5)
            layers += [convolution, nn.ReLU()]
            channels = 32
        self.convolutions = nn.Sequential(*layers, nn.Flatten())
        height, width = ((size - 3) // 2 + 1 - 6 for size in (height, width))
        self.num_features = 32 * height * width

    def forward(self, pixels: Tensor) -> Tensor:
        """Features of pixels `[B, C, H, W]`."""
        features: Tensor = self.convolutions(pixels.float() / 255.0 - 0.5)
        return features


class ObservationEncoder(Encoder):
    """Observations, or dicts of them, to features `[B, num_features]`, those of pixels first.

    Each key with pixels has convolutions of its own; vectors stay as they are.

    Attributes:
        num_pixel_features: the first so many features come from pixels; 0 where there are none.
    """

    def __init__(self, spec: EnvSpec, pixel_encoder: PixelEncoder) -> None:
        super().__init__()
        observation = spec["observation"]
        specs = {"": observation} if is_array_spec(observation) else dict(observation)
        self.pixel_keys = sorted(key for key, array in specs.items() if is_pixels(array))
        self.vector_keys = sorted(set(specs) - set(self.pixel_keys))
        cnn = NatureCNN if pixel_encoder == "nature" else DrQv2CNN
        pixels: list[Encoder] = [cnn(*specs[key]["shape"]) for key in self.pixel_keys]
        vectors: list[Encoder] = [FlatEncoder(specs[key]["shape"]) for key in self.vector_keys]
        self.num_pixel_features = sum(encoder.num_features for encoder in pixels)
        self.num_features = self.num_pixel_features + sum(encoder.num_features for encoder in vectors)
        # A list, not a ModuleDict, which refuses keys with a dot in them.
        self.encoders = nn.ModuleList([*pixels, *vectors])

    def forward(self, observation: Observation) -> Tensor:
        """Features of observations `[B, *shape]`.

        Raises:
            ValueError: where a key is missing.
        """
        if isinstance(observation, Tensor):
            encoded: Tensor = self.encoders[0](observation)
            return encoded
        keys = [*self.pixel_keys, *self.vector_keys]
        if missing := set(keys) - set(observation):
            raise ValueError(
                f"got an observation with the keys {sorted(observation)}, expected also {sorted(missing)}: the network "
                "was built for them; return all keys of the observation space from reset and step"
            )
        return torch.cat([encoder(observation[key]) for key, encoder in zip(keys, self.encoders, strict=True)], -1)


class BoundedTrunk(nn.Module):
    """Linear, layer norm, tanh over the features of pixels (Yarats et al. 2021); the others are passed on.

    Bounded features are what keeps an actor from saturating when a convolution's output grows.
    """

    def __init__(self, encoder: ObservationEncoder, features_dim: int) -> None:
        super().__init__()
        self.num_pixel_features = encoder.num_pixel_features
        self.num_features = features_dim + encoder.num_features - encoder.num_pixel_features
        self.layers = nn.Sequential(
            nn.Linear(encoder.num_pixel_features, features_dim), nn.LayerNorm(features_dim), nn.Tanh()
        )

    def forward(self, features: Tensor) -> Tensor:
        """`[B, encoder.num_features]` to `[B, num_features]`."""
        bounded = self.layers(features[:, : self.num_pixel_features])
        return torch.cat([bounded, features[:, self.num_pixel_features :]], -1)


def is_pixels(array: ArraySpec) -> bool:
    """Whether an array is an image: uint8 `[C, H, W]`."""
    return array["dtype"] == "uint8" and len(array["shape"]) == 3
