"""Distributions of returns over a fixed support of Z atoms.

Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning". https://arxiv.org/abs/1707.06887
Every function returns per-sample values: the mean is taken by the caller, after the importance weights.
"""

import torch
from torch import Tensor


def expected_value(probabilities: Tensor, atoms: Tensor) -> Tensor:
    """Σ pᵢ zᵢ.

    Args:
        probabilities: `[..., Z]`.
        atoms: `[Z]`.

    Returns:
        `[...]`.
    """
    # No matrix product, which mixed precision would round.
    return (probabilities * atoms).sum(-1)


def project_onto_atoms(positions: Tensor, probabilities: Tensor, atoms: Tensor) -> Tensor:
    """The mass at any positions, shared between the two atoms next to each (equation 7).

    The share of an atom falls in a straight line with the distance, so that the mean stays as it is, but for mass
    beyond the support, which goes to its end. A position exactly on an atom gives it all: the lower neighbour is at
    most the last but one, so that the two are never the same and no mass is lost (in Algorithm 1 of the paper it is,
    where both round to one atom).

    Args:
        positions: `[B, Z]`, where the mass lies.
        probabilities: `[B, Z]`, how much.
        atoms: `[Z]`, at equal distances, in ascending order; at least 2.

    Returns:
        `[B, Z]` with the same sum; NaN where a position is.

    Raises:
        ValueError: where the first two shapes differ, or the last axis is not that of the atoms.
    """
    if positions.shape != probabilities.shape or positions.shape[-1:] != atoms.shape:
        raise ValueError(
            f"got positions {tuple(positions.shape)}, probabilities {tuple(probabilities.shape)} and atoms "
            f"{tuple(atoms.shape)}; expected [B, Z], [B, Z] and [Z]"
        )
    last = atoms.numel() - 1
    index = ((positions - atoms[0]) * (last / (atoms[-1] - atoms[0]))).clamp(0.0, last)
    lower = index.floor().clamp(max=last - 1.0)
    upper_share = probabilities * (index - lower)
    lower_index = lower.nan_to_num().long()  # NaN is no index; it stays in the shares
    projected = torch.zeros_like(probabilities)
    projected.scatter_add_(-1, lower_index, probabilities - upper_share)
    return projected.scatter_add_(-1, lower_index + 1, upper_share)


def categorical_cross_entropy(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """−Σ mᵢ log pᵢ (Algorithm 1).

    Args:
        target: `[..., Z]`, m.
        log_probabilities: `[..., Z]`, log p.

    Returns:
        `[...]`, in nats, at least the entropy of the target.
    """
    return -(target * log_probabilities).sum(-1)


def categorical_kl(target: Tensor, log_probabilities: Tensor) -> Tensor:
    """Σ mᵢ (log mᵢ − log pᵢ): the cross-entropy without the entropy of the target, 0 where the two are the same.

    Args:
        target: `[..., Z]`, m.
        log_probabilities: `[..., Z]`, log p.

    Returns:
        `[...]`, in nats; rounding below 0 is cut off.
    """
    return (torch.xlogy(target, target) - target * log_probabilities).sum(-1).clamp(min=0.0)
