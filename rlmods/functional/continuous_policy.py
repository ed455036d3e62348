"""Policies of continuous actions in the cube [-1, 1]^A."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def noisy_action(unit_action: Tensor, std: float, noise_clip: float | None = None) -> Tensor:
    """clip(a + ε, -1, 1) with ε ~ N(0, std²), itself clipped to ± `noise_clip` where that is given.

    Source: Fujimoto et al. 2018, section 5.3 for the target policy, section 6.1 for exploration. Draws
    from torch's global generator.

    Args:
        unit_action: `[B, A]` in [-1, 1].
        std: at least 0, in units of half the action range.
        noise_clip: at least 0; None leaves the noise alone.
    """
    noise = std * torch.randn_like(unit_action)
    if noise_clip is not None:
        noise = noise.clamp_(-noise_clip, noise_clip)
    return (unit_action + noise).clamp_(-1.0, 1.0)


def squashed_gaussian(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """An action tanh(u), u ~ N(mean, std²), and log π of it, both differentiable.

    Source: Haarnoja et al. 2018 (https://arxiv.org/abs/1801.01290), appendix C, equation 21, with
    log(1 - tanh²u) = 2(log 2 - u - softplus(-2u)), which stays finite where tanh u rounds to ±1. Draws from torch's
    global generator.

    Args:
        mean: `[B, A]`.
        log_std: `[B, A]`.

    Returns:
        The action `[B, A]` in [-1, 1] and its log density in the cube, `[B]`.
    """
    noise = torch.randn_like(mean)
    draw = mean + log_std.exp() * noise
    log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
    log_slope = 2.0 * (math.log(2.0) - draw - F.softplus(-2.0 * draw))
    return draw.tanh(), (log_density - log_slope).sum(-1)
