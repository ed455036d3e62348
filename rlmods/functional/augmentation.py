"""Augmentation of pixels."""

import torch
from torch import Tensor


def random_shift(pixels: Tensor, pad: int) -> Tensor:
    """Each image moved by up to `pad` pixels in either direction, its border repeated into what opens.

    Source: Yarats et al. 2021, DrQ (https://arxiv.org/abs/2004.13649), section 3, in whole pixels as there; DrQ-v2's
    bilinear form blurs as well. Draws from torch's global generator.

    Args:
        pixels: `[B, C, H, W]` of any dtype.
        pad: at least 0; 0 gives the pixels as they are.

    Returns:
        `[B, C, H, W]`.
    """
    if pad == 0:
        return pixels
    num, channels, height, width = pixels.shape
    shift = torch.randint(-pad, pad + 1, (2, num, 1), device=pixels.device)
    rows = (torch.arange(height, device=pixels.device) + shift[0]).clamp_(0, height - 1)  # [B, H]
    columns = (torch.arange(width, device=pixels.device) + shift[1]).clamp_(0, width - 1)
    moved = pixels.gather(2, rows[:, None, :, None].expand(-1, channels, -1, width))
    return moved.gather(3, columns[:, None, None, :].expand(-1, channels, height, -1))
