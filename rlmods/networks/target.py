"""Target networks."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def polyak_update(target: Iterable[Tensor], online: Iterable[Tensor], tau: float) -> None:
    """θ⁻ ← (1 − τ)·θ⁻ + τ·θ in place; τ = 1 copies bit for bit.

    Args:
        target: parameters of the target network.
        online: parameters of the network that learns, in the same order.
        tau: in `(0, 1]`.
    """
    torch._foreach_lerp_(list(target), list(online), tau)
