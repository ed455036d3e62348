"""Linear layers whose weights carry noise of a size that is learned: exploration by the network itself.

Fortunato et al. 2018, "Noisy Networks for Exploration". https://arxiv.org/abs/1706.10295
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NoiseMode: TypeAlias = Literal["drawn", "each_row", "none"]


class NoisyLinear(nn.Linear):
    """y = (μʷ + σʷ ⊙ εʷ) x + μᵇ + σᵇ ⊙ εᵇ with factorised noise in training mode, else y = μʷ x + μᵇ.

    Equations 9 to 11: εʷᵢⱼ = f(εᵢ) f(εⱼ) and εᵇᵢ = f(εᵢ) with f(x) = sgn(x) √|x|. Initial values as in section 3.2: μ
    uniform within ±1/√p, which is torch's own, and σ = σ₀/√p for p inputs. The noise is drawn from
    torch's global generator.

    Args:
        in_features: p.
        out_features: q.
        noisy_std: σ₀.

    Attributes:
        weight_std: σʷ, `[q, p]`.
        bias_std: σᵇ, `[q]`.
        mode: `drawn`, the noise of the last `draw`, one for all rows of a batch; `each_row`, noise of its own for each
            row, drawn as it is used; `none`.
    """

    noise_in: Tensor  # [p], f(εⱼ)
    noise_out: Tensor  # [q], f(εᵢ)

    def __init__(self, in_features: int, out_features: int, noisy_std: float) -> None:
        super().__init__(in_features, out_features)
        std = noisy_std / in_features**0.5
        self.weight_std = nn.Parameter(torch.full((out_features, in_features), std))
        self.bias_std = nn.Parameter(torch.full((out_features,), std))
        self.mode: NoiseMode = "drawn"
        # Drawn anew before each use: not part of the state.
        self.register_buffer("noise_in", torch.empty(in_features), persistent=False)
        self.register_buffer("noise_out", torch.empty(out_features), persistent=False)
        self.draw()

    def draw(self) -> None:
        """Noise for the batches to come."""
        self.noise_in.copy_(_scaled(torch.randn_like(self.noise_in)))
        self.noise_out.copy_(_scaled(torch.randn_like(self.noise_out)))

    def forward(self, inputs: Tensor) -> Tensor:
        """`[B, p]` to `[B, q]`."""
        mean = super().forward(inputs)
        if not self.training or self.mode == "none":
            return mean
        noise_in, noise_out = self.noise_in, self.noise_out
        if self.mode == "each_row":
            noise_in, noise_out = _scaled(torch.randn_like(inputs)), _scaled(torch.randn_like(mean))
        # σʷᵢⱼ f(εᵢ) f(εⱼ) xⱼ: the matrix of the noise is never made.
        return torch.addcmul(mean, noise_out, F.linear(inputs * noise_in, self.weight_std, self.bias_std))


def draw_noise(*networks: nn.Module) -> None:
    """New noise in all noisy layers of some networks."""
    for network in networks:
        for layer in _noisy_layers(network):
            layer.draw()


@contextmanager
def noise_mode(network: nn.Module, mode: NoiseMode) -> Iterator[None]:
    """All noisy layers of a network in another mode, for a while."""
    layers = _noisy_layers(network)
    for layer in layers:
        layer.mode = mode
    try:
        yield
    finally:
        for layer in layers:
            layer.mode = "drawn"


def _noisy_layers(network: nn.Module) -> list[NoisyLinear]:
    return [layer for layer in network.modules() if isinstance(layer, NoisyLinear)]


def _scaled(noise: Tensor) -> Tensor:
    """f(x) = sgn(x) √|x|."""
    return noise.sign() * noise.abs().sqrt()
