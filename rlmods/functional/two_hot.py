"""Numbers as distributions over bins that grow exponentially: a network predicts 0.01 and 10,000 alike.

Hafner et al. 2023, "Mastering Diverse Domains through World Models", equations 7 to 10.
https://arxiv.org/abs/2301.04104
"""

import torch
from torch import Tensor


def symlog(x: Tensor) -> Tensor:
    """sign(x)·ln(1 + |x|)."""
    return torch.sign(x) * torch.log1p(x.abs())


def symexp(x: Tensor) -> Tensor:
    """sign(x)·(e^|x| − 1), the inverse of `symlog`."""
    return torch.sign(x) * torch.expm1(x.abs())


def symexp_bins(num_bins: int, log_bound: float) -> Tensor:
    """The values of the bins, `[num_bins]`: symexp of a uniform grid from −b to b.

    One half is the mirror image of the other, bit for bit, and the middle is exactly 0.

    Args:
        num_bins: odd, at least 3.
        log_bound: b; 20 reaches to ±4.85e8.

    Raises:
        ValueError: where the number is even or below 3.
    """
    if num_bins < 3 or num_bins % 2 == 0:
        raise ValueError(f"got {num_bins} bins, expected an odd number from 3: the middle one is 0")
    half = symexp(torch.linspace(0.0, log_bound, num_bins // 2 + 1))
    return torch.cat([-half[1:].flip(0), half])


def two_hot_mean(logits: Tensor, bins: Tensor) -> Tensor:
    """Σ pᵢ bᵢ, in pairs of mirrored bins: for equal logits it is exactly 0, whatever the size of the bins.

    Args:
        logits: `[..., Z]`.
        bins: `[Z]`, mirrored around 0.

    Returns:
        `[...]` float32.
    """
    probabilities = logits.float().softmax(-1)
    middle = bins.numel() // 2
    difference = probabilities[..., middle + 1 :] - probabilities[..., :middle].flip(-1)
    return (difference * bins[middle + 1 :]).sum(-1)


def two_hot_log_likelihood(log_probabilities: Tensor, value: Tensor, bins: Tensor) -> Tensor:
    """Σ tᵢ ln pᵢ for t with the mass of a value on its two neighbours, in proportion to its closeness to them.

    Values beyond the bins count as the last one.

    Args:
        log_probabilities: `[..., Z]` float32.
        value: `[...]`, in the units of the bins; has no gradient.
        bins: `[Z]` in ascending order.

    Returns:
        `[...]`, at most 0.
    """
    value = value.detach().float().clamp(bins[0], bins[-1])
    # bins[upper − 1] < value ≤ bins[upper]; NaN is beyond them all.
    upper = torch.searchsorted(bins, value.contiguous()).clamp(1, bins.numel() - 1)
    below, above = bins[upper - 1], bins[upper]
    share = (value - below) / (above - below)
    neighbours = log_probabilities.gather(-1, torch.stack([upper - 1, upper], -1))
    return neighbours[..., 0] * (1.0 - share) + neighbours[..., 1] * share
