"""Norms of gradients."""

import torch
from torch import Tensor


def global_norm(tensors: list[Tensor]) -> Tensor:
    """√(Σᵢ ‖xᵢ‖²), the L2 norm of all entries together: a scalar on the device; 0 where there are no tensors.

    Not the sum of the tensors' norms, which is up to √n times larger for n tensors.
    """
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))
    return norm


def clip_by_global_norm_(tensors: list[Tensor], max_norm: float) -> Tensor:
    """Scale the tensors in place so that their global norm is at most `max_norm`.

    Equal to `torch.nn.utils.clip_grad_norm_` bit for bit, without its grouping by device and dtype, which takes as long
    as the clip itself where networks are small.

    Args:
        tensors: of one device and dtype.
        max_norm: above 0.

    Returns:
        The global norm before the clip.
    """
    norm = global_norm(tensors)
    if tensors:
        torch._foreach_mul_(tensors, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm
