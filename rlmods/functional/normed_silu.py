"""RMS norm and SiLU in one: the activation of every layer of DreamerV3, with few passes over memory."""

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

NORM_EPS = 1e-4
_CACHED_ELEMENTS = 2**16  # 256 KiB a tensor


class NormedSiLUSlopes(NamedTuple):
    """What the gradient of `normed_silu` needs, for any number of rows at once."""

    normed: Tensor  # [..., D], x/rms
    inverse_rms: Tensor  # [..., 1]
    slope: Tensor  # [..., D], of SiLU
    scaled_slope: Tensor  # [..., D], that of SiLU times the scale

    def backward(self, gradient: Tensor) -> Tensor:
        """∂/∂x of a gradient `[..., D]`."""
        of_normed = gradient * self.scaled_slope
        mean = (of_normed * self.normed).mean(-1, keepdim=True)
        return torch.addcmul(of_normed, self.normed, mean, value=-1.0).mul_(self.inverse_rms)

    def of_scale(self, gradient: Tensor) -> Tensor:
        """∂/∂scale `[..., D]` of a gradient `[T, B, ..., D]`."""
        return (gradient * self.slope * self.normed).sum((0, 1))

    def unbind(self) -> list["NormedSiLUSlopes"]:
        """Those of each index of the first axis."""
        return [NormedSiLUSlopes(*fields) for fields in zip(*(field.unbind() for field in self), strict=True)]


def normed_silu(x: Tensor, scale: Tensor) -> Tensor:
    """SiLU(x / √(mean x² + ε) · scale) over the last axis, in float32.

    Args:
        x: `[..., D]`, or `[..., E, D]`.
        scale: `[D]`, or `[E, D]`.
    """
    rows = x.float().reshape(-1, *scale.shape)
    if torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad):
        activated: Tensor = _NormedSiLU.apply(rows, scale)  # type: ignore[no-untyped-call]
    else:
        activated = _in_cache(rows, scale)
    return activated.view(x.shape)


def _in_cache(x: Tensor, scale: Tensor) -> Tensor:
    """Of rows `[M, *scale.shape]`, so many at a time that all passes over them find them in the cache."""
    if x.numel() <= _CACHED_ELEMENTS:
        return F.silu((x * inverse_rms(x)).mul_(scale), inplace=True)
    activated = torch.empty_like(x)
    for rows, out in zip(_chunks(x, scale), _chunks(activated, scale), strict=True):
        F.silu(torch.mul(rows, inverse_rms(rows), out=out).mul_(scale), inplace=True)
    return activated


def _chunks(x: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    # Elsewhere each piece would be launched by itself, and there is no such cache.
    return torch.split(x, max(1, _CACHED_ELEMENTS // scale.numel())) if x.device.type == "cpu" else (x,)


def inverse_rms(x: Tensor) -> Tensor:
    """1/√(mean x² + ε), `[..., 1]`."""
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return torch.addcmul(_eps(norm.device), norm, norm, value=1.0 / x.shape[-1]).rsqrt_()


@cache
def _eps(device: torch.device) -> Tensor:
    # Made once: in a scan a scalar takes as long as the operation that it is for.
    return torch.full((), NORM_EPS, device=device)


def normed_silu_slopes(x: Tensor, scale: Tensor) -> NormedSiLUSlopes:
    """Of `normed_silu` at `[..., D]`."""
    inverse = inverse_rms(x)
    normed = x * inverse
    activation = normed * scale
    sigmoid = activation.sigmoid()
    # σ(a)(1 + a(1 − σ(a)))
    slope = (1.0 - sigmoid).mul_(activation).add_(1.0).mul_(sigmoid)
    return NormedSiLUSlopes(normed, inverse, slope, slope * scale)


class _NormedSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        return _in_cache(x, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        of_x, of_scale = torch.empty_like(x), torch.zeros_like(scale)
        chunks = (_chunks(of_rows, scale) for of_rows in (x, gradients[0], of_x))
        for rows, gradient, out in zip(*chunks, strict=True):
            inverse = inverse_rms(rows)
            normed = rows * inverse
            of_activation = torch.ops.aten.silu_backward(gradient, normed * scale)
            of_scale += torch.linalg.vecdot(of_activation, normed, dim=0)
            of_normed = of_activation.mul_(scale)
            mean = torch.linalg.vecdot(of_normed, normed).unsqueeze(-1).mul_(1.0 / rows.shape[-1])
            torch.addcmul(of_normed, normed, mean, value=-1.0, out=out).mul_(inverse)
        return of_x, of_scale
