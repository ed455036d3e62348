"""Observations to tokens and back, as DreamerV3 does it: vectors through symlog, images through convolutions.

Hafner et al. 2025, "Mastering diverse control tasks through world models", methods. https://arxiv.org/abs/2301.04104
"""

import math
from itertools import pairwise
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.functional.two_hot import symexp, symlog
from rlmods.networks.normed import (
    Affine,
    NormedLinear,
    NormedMLP,
    RMSNorm,
    initialized,
    normed_layers,
    truncated_normal_,
)
from rlmods.networks.pixel_encoders import is_pixels
from rlmods.networks.rssm import LatentState
from rlmods.types import EnvSpec, Observation, is_array_spec

_DEPTHS = (2, 3, 4, 4)  # channels of the four stages, in multiples of the depth
_KERNEL = 5

ImageConvolutions: TypeAlias = Literal["strided_4x4", "strided_5x5", "max_pool"]


class _Convolutions(NamedTuple):
    """Of an image encoder; all of them halve four times."""

    kernel: int
    depths: tuple[int, ...]  # channels of the stages, in multiples of the depth
    strides: tuple[int, ...]
    pools: bool  # halves by the maximum of 2 × 2

    def stage(self, before: int, after: int, stride: int) -> list[nn.Module]:
        """Convolution, norm, SiLU."""
        padding = (self.kernel - 1) // 2  # with a stride of 2 half of the size, with one of 1 the size
        convolution = initialized(nn.Conv2d(before, after, self.kernel, stride, padding))
        return [convolution, *([nn.MaxPool2d(2)] if self.pools else []), ChannelNorm(after), nn.SiLU()]


# Of 2023, 2024 and 2025.
_ENCODERS: dict[ImageConvolutions, _Convolutions] = {
    "strided_4x4": _Convolutions(4, (1, 2, 4, 8), (2, 2, 2, 2), pools=False),
    "strided_5x5": _Convolutions(5, (1, 2, 3, 4, 4), (1, 2, 2, 2, 2), pools=False),
    "max_pool": _Convolutions(_KERNEL, _DEPTHS, (1, 1, 1, 1), pools=True),
}
_NUM_LAYERS = 3


class ObservationKeys:
    """Which arrays of an observation are images and which are vectors, in alphabetical order.

    Attributes:
        images: channels of each key with pixels.
        vectors: width of every other, flat.
        size: height and width of the images; None where there are none.

    Raises:
        ValueError: for images of different sizes, or of one that four halvings do not divide.
    """

    def __init__(self, spec: EnvSpec) -> None:
        observation = spec["observation"]
        arrays = {"": observation} if is_array_spec(observation) else dict(sorted(observation.items()))
        self.images = {key: array["shape"][0] for key, array in arrays.items() if is_pixels(array)}
        self.vectors = {key: math.prod(array["shape"]) for key, array in arrays.items() if not is_pixels(array)}
        sizes = {(array["shape"][1], array["shape"][2]) for array in arrays.values() if is_pixels(array)}
        self.size = next(iter(sizes), None)
        factor = 2 ** len(_DEPTHS)
        if len(sizes) > 1 or any(
            length % factor or not 3 <= length // factor <= 16 for size in sizes for length in size
        ):
            got = ", ".join(f"{height}x{width}" for height, width in sorted(sizes))
            remedy = (
                "type --data.init_args.resize '[64, 64]'"
                if len(self.images) == 1
                else f"let the environment itself make {', '.join(self.images)} alike, because resize takes one image"
            )
            raise ValueError(
                f"got images of {got} in {spec['env_id']}, expected all of one size whose sides are multiples of "
                f"{factor} from {3 * factor}: {remedy}"
            )

    def arrays(self, observation: Observation) -> dict[str, Tensor]:
        """An observation by key; "" is that of an observation that is one array."""
        return {"": observation} if isinstance(observation, Tensor) else observation

    def check(self, observation: Observation) -> None:
        """Whether an observation `[M, *shape]` is what the networks were built for.

        Raises:
            ValueError: where a key is missing, or an image has another shape or is not uint8.
        """
        arrays = self.arrays(observation)
        if missing := [key for key in [*self.images, *self.vectors] if key not in arrays]:
            raise ValueError(f"got an observation with the keys {sorted(arrays)}, expected also {missing}")
        for key, channels in self.images.items():
            image, expected = arrays[key], (channels, *(self.size or ()))
            if tuple(image.shape[1:]) != expected or image.dtype != torch.uint8:
                raise ValueError(
                    f"got images {key!r} {tuple(image.shape[1:])} {image.dtype}, expected {expected} torch.uint8 from "
                    "0 to 255: resize them at the environment with --data.init_args.resize, and do not divide by 255"
                )

    def image(self, observation: Observation) -> Tensor:
        """All images side by side as channels, `[M, C, H, W]` float32 in [0, 1]."""
        arrays = self.arrays(observation)
        return torch.cat([arrays[key] for key in self.images], 1).float() / 255.0

    def vector(self, observation: Observation) -> Tensor:
        """All vectors side by side, `[M, V]`, in symlog."""
        arrays = self.arrays(observation)
        return symlog(torch.cat([arrays[key].reshape(arrays[key].shape[0], -1).float() for key in self.vectors], 1))


class ChannelNorm(RMSNorm):
    """RMS norm over the channels of `[M, C, H, W]`."""

    def forward(self, x: Tensor) -> Tensor:
        """`[M, C, H, W]`."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class ObservationEncoder(nn.Module):
    """Observations `[M, *shape]` to tokens `[M, num_tokens]`.

    Args:
        keys: of the observations.
        hidden: width of the layers of vectors.
        depth: of the convolutions.
        convolutions: how they halve an image: with strides, as the versions of 2023 and 2024 do, or with pooling.
    """

    def __init__(
        self, keys: ObservationKeys, *, hidden: int, depth: int, convolutions: ImageConvolutions = "max_pool"
    ) -> None:
        super().__init__()
        self.keys = keys
        self.num_tokens = 0
        if keys.vectors:
            self.of_vectors = normed_layers(sum(keys.vectors.values()), hidden, _NUM_LAYERS)
            self.num_tokens += hidden
        if keys.size is not None:
            chosen = _ENCODERS[convolutions]
            channels = [sum(keys.images.values()), *(depth * multiple for multiple in chosen.depths)]
            stages = [
                chosen.stage(*sizes, stride) for sizes, stride in zip(pairwise(channels), chosen.strides, strict=True)
            ]
            self.of_images = nn.Sequential(*(layer for stage in stages for layer in stage))
            self.num_tokens += channels[-1] * math.prod(keys.size) // 4 ** len(_DEPTHS)

    def forward(self, observation: Observation) -> Tensor:
        """Tokens of vectors first, then of images."""
        self.keys.check(observation)
        tokens: list[Tensor] = []
        if self.keys.vectors:
            tokens.append(self.of_vectors(self.keys.vector(observation)))
        if self.keys.images:
            tokens.append(self.of_images(self.keys.image(observation) - 0.5).flatten(1))
        return torch.cat(tokens, -1)


class ObservationDecoder(nn.Module):
    """Latent states `[M, ...]` to what the observation was.

    Args:
        keys: of the observations.
        state: widths of h and of z, flat.
        hidden: width of the layers of vectors.
        depth: of the convolutions.
        num_blocks: of the layer that makes a map of h.
    """

    def __init__(
        self, keys: ObservationKeys, state: tuple[int, int], *, hidden: int, depth: int, num_blocks: int
    ) -> None:
        super().__init__()
        self.keys = keys
        deter, stoch = state
        if keys.vectors:
            self.to_vectors = NormedMLP(deter + stoch, hidden, _NUM_LAYERS, sum(keys.vectors.values()))
        if keys.size is not None:
            self.to_images = _ImageDecoder(
                sum(keys.images.values()), keys.size, state, hidden=hidden, depth=depth, num_blocks=num_blocks
            )

    @property
    def kinds(self) -> list[str]:
        """The names of its errors."""
        return [name for name, keys in (("vectors", self.keys.vectors), ("images", self.keys.images)) if keys]

    def errors(self, state: LatentState, observation: Observation) -> dict[str, Tensor]:
        """Squared errors `[M]`, summed over entries: of `vectors` in symlog, of `images` in [0, 1].

        A kind that the observation does not have is not there: the mean over nothing would be NaN.
        """
        errors: dict[str, Tensor] = {}
        if self.keys.vectors:
            predicted = self.to_vectors(state.features).float()
            errors["vectors"] = (predicted - self.keys.vector(observation)).square().sum(-1)
        if self.keys.images:
            predicted = self.to_images(state)
            errors["images"] = (predicted - self.keys.image(observation)).square().flatten(1).sum(-1)
        return errors

    def predict(self, state: LatentState) -> dict[str, Tensor]:
        """What is expected of each array, `[M, *shape]`: vectors in their own units, images in [0, 1]."""
        predicted: dict[str, Tensor] = {}
        if self.keys.vectors:
            vectors = symexp(self.to_vectors(state.features).float())
            predicted |= dict(
                zip(self.keys.vectors, torch.split(vectors, list(self.keys.vectors.values()), -1), strict=True)
            )
        if self.keys.images:
            images = self.to_images(state)
            predicted |= dict(
                zip(self.keys.images, torch.split(images, list(self.keys.images.values()), 1), strict=True)
            )
        return predicted


class _ImageDecoder(nn.Module):
    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        state: tuple[int, int],
        *,
        hidden: int,
        depth: int,
        num_blocks: int,
    ) -> None:
        super().__init__()
        deter, stoch = state
        widths = [depth * multiple for multiple in _DEPTHS]
        self.num_blocks = num_blocks
        self.map_shape = (widths[-1], size[0] // 2 ** len(_DEPTHS), size[1] // 2 ** len(_DEPTHS))
        num_entries = math.prod(self.map_shape)
        self.of_deter = nn.Parameter(torch.empty(num_blocks, deter // num_blocks, num_entries // num_blocks))
        truncated_normal_(self.of_deter, deter)
        self.of_deter_bias = nn.Parameter(torch.zeros(num_blocks, 1, num_entries // num_blocks))
        self.of_stoch = nn.Sequential(NormedLinear(stoch, 2 * hidden), initialized(Affine(2 * hidden, num_entries)))
        self.norm = ChannelNorm(widths[-1])
        outputs = [*widths[-2::-1], channels]
        self.convolutions = nn.ModuleList(
            initialized(nn.Conv2d(before, after, _KERNEL, padding="same"))
            for before, after in zip([widths[-1], *outputs], outputs, strict=False)
        )
        self.norms = nn.ModuleList(ChannelNorm(width) for width in outputs[:-1])

    def forward(self, state: LatentState) -> Tensor:
        """Images `[M, C, H, W]` in [0, 1]."""
        deter = state.deter.reshape(-1, self.num_blocks, self.of_deter.shape[1]).transpose(0, 1)
        of_deter = torch.baddbmm(self.of_deter_bias, deter, self.of_deter).transpose(0, 1)  # [M, G, entries/G]
        # A block makes some channels of the whole map.
        x = of_deter.reshape(-1, *self.map_shape) + self.of_stoch(state.stoch).view(-1, *self.map_shape)
        x = F.silu(self.norm(x))
        for number, convolution in enumerate(self.convolutions):
            x = convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            if number < len(self.norms):
                x = F.silu(self.norms[number](x))
        images: Tensor = x.float().sigmoid()
        return images
