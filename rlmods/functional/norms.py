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


def adaptive_clip_(gradients: list[Tensor], parameters: list[Tensor], clip: float, *, min_norm: float = 1e-3) -> Tensor:
    """Scale each gradient in place so that ‖g‖ ≤ clip · max(min_norm, ‖w‖).

    Source: Brock et al. 2021, "High-Performance Large-Scale Image Recognition Without Normalization", equation 3, for
    whole tensors instead of their rows, as DreamerV3 has it.

    Args:
        gradients: of one device and dtype.
        parameters: theirs, in the same order.
        clip: above 0.
        min_norm: of a parameter, for those that begin at 0.

    Returns:
        The global norm before the clip.
    """
    if not gradients:
        return torch.zeros(())
    gradient_norms = torch._foreach_norm(gradients)
    bounds = torch._foreach_norm(parameters)
    torch._foreach_clamp_min_(bounds, min_norm)
    torch._foreach_mul_(bounds, clip)
    # One stack for all scales: hundreds of scalars are slower than the clip itself.
    norms = torch.stack(gradient_norms)
    scales = (torch.stack(bounds) / norms.clamp(min=1e-20)).clamp(max=1.0)
    torch._foreach_mul_(gradients, list(scales.unbind()))
    norm: Tensor = torch.linalg.vector_norm(norms)
    return norm
