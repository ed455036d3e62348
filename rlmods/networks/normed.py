"""The layers that DreamerV3 is made of: linear, RMS norm, SiLU, and their initial weights.

Hafner et al. 2025, "Mastering diverse control tasks through world models", methods. https://arxiv.org/abs/2301.04104
"""

from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.functional.normed_silu import NORM_EPS, normed_silu

_TRUNCATION = 1.1368  # the standard deviation of a normal that is cut at 2σ is σ/1.1368


class Affine(nn.Linear):
    """A linear layer with a bias, as its type says."""

    bias: nn.Parameter


LayerT = TypeVar("LayerT", Affine, nn.Conv2d)


class RMSNorm(nn.Module):
    """x / √(mean x² + ε) · scale over the last axis, in float32; has no shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., width]`."""
        return F.rms_norm(x.float(), self.scale.shape, self.scale, NORM_EPS)


class NormedLinear(nn.Module):
    """Linear with bias, RMS norm, SiLU."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.linear = initialized(Affine(num_inputs, width))
        self.norm = RMSNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., num_inputs]` to `[..., width]`."""
        return normed_silu(self.linear(x), self.norm.scale)


class NormedMLP(nn.Module):
    """Layers of `NormedLinear`, then a linear one.

    Args:
        num_inputs: width of the input.
        width: of the hidden layers.
        num_layers: of them, at least 1.
        num_outputs: of the last layer.
        output_scale: factor on its initial weights; 0 predicts nothing at the start.
    """

    def __init__(
        self, num_inputs: int, width: int, num_layers: int, num_outputs: int, *, output_scale: float = 1.0
    ) -> None:
        super().__init__()
        self.hidden = normed_layers(num_inputs, width, num_layers)
        self.output = initialized(Affine(width, num_outputs), output_scale)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., num_inputs]` to `[..., num_outputs]`."""
        outputs: Tensor = self.output(self.hidden(x))
        return outputs


def normed_layers(num_inputs: int, width: int, num_layers: int) -> nn.Sequential:
    """`num_inputs` → width → … → width."""
    sizes = [num_inputs] + [width] * num_layers
    return nn.Sequential(*(NormedLinear(before, after) for before, after in pairwise(sizes)))


def initialized(layer: LayerT, scale: float = 1.0) -> LayerT:
    """The layer with weights drawn anew and a bias of 0."""
    truncated_normal_(layer.weight, layer.weight[0].numel(), scale)
    assert layer.bias is not None  # noqa: S101, none of them is made without
    nn.init.zeros_(layer.bias)
    return layer


@torch.no_grad()
def truncated_normal_(weight: Tensor, fan_in: int, scale: float = 1.0) -> None:
    """Draw weights with a standard deviation of scale/√fan_in from a normal that is cut at two of its own σ."""
    std = _TRUNCATION * scale * fan_in**-0.5
    if std == 0.0:
        nn.init.zeros_(weight)
    else:
        nn.init.trunc_normal_(weight, std=std, a=-2.0 * std, b=2.0 * std)
