"""Prioritised experience replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952), the maths of section 3.

A priority `pᵢ` is stored with its exponent α already applied, so that `P(i) = pᵢ / Σⱼ pⱼ`.
"""

from torch import Tensor


def td_error_priority(td_error: Tensor, *, alpha: float, eps: float) -> Tensor:
    """The proportional priority `(|δ| + ε)^α`, section 3.3.

    Args:
        td_error: `[...]`, signed, never squared.
        alpha: 0 (uniform) to 1 (fully prioritised).
        eps: Above 0: what an item keeps whose TD error is zero.

    Returns:
        `[...]`, above 0.
    """
    return (td_error.abs() + eps).pow(alpha)


def annealed_beta(beta0: float, progress: float) -> float:
    """β of section 3.4: linear from `beta0` to 1 over the budget; 1 beyond it.

    Args:
        beta0: 0 (no correction) to 1 (full correction).
        progress: Fraction of the budget, at least 0. The last iteration may overshoot 1.
    """
    return beta0 + (1.0 - beta0) * min(progress, 1.0)


def importance_weight(priority: Tensor, *, beta: float) -> Tensor:
    """`wᵢ = (N·P(i))^−β / maxⱼ (N·P(j))^−β`, the maximum over each mini-batch, section 3.4.

    Computed as `(minⱼ pⱼ / pᵢ)^β`, which is the same: N and the sum of all priorities cancel.

    Args:
        priority: `[..., B]` of the items drawn, above 0.
        beta: 0 to 1.

    Returns:
        `[..., B]` in (0, 1].

    Raises:
        ValueError: The mini-batch dimension is missing.
    """
    if priority.ndim == 0:
        raise ValueError("priority has shape [], expected [..., B]: the maximum is taken over a mini-batch")
    return (priority.amin(dim=-1, keepdim=True) / priority).pow(beta)
