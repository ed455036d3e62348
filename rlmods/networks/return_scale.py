"""How far apart returns are, for an actor whose entropy bonus means the same in all tasks."""

import torch
from torch import Tensor, nn

_LOW, _HIGH = 0.05, 0.95


class ReturnScale(nn.Module):
    """S = max(1, EMA of the 95th percentile − EMA of the 5th), both from 0 and without a correction for that.

    Source: Hafner et al. 2025, equation 12. https://arxiv.org/abs/2301.04104

    Args:
        rate: of the moving average.
    """

    percentiles: Tensor

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("percentiles", torch.zeros(2))

    @torch.no_grad()
    def update(self, returns: Tensor) -> Tensor:
        """S after these returns `[...]` were seen, a scalar."""
        ordered = returns.float().flatten().sort().values
        position = torch.tensor([_LOW, _HIGH], device=ordered.device) * (ordered.numel() - 1)
        below = position.floor().long()
        above = (below + 1).clamp(max=ordered.numel() - 1)
        self.percentiles.lerp_(torch.lerp(ordered[below], ordered[above], position - below), self.rate)
        return self.scale

    @property
    def scale(self) -> Tensor:
        """S, a scalar."""
        return (self.percentiles[1] - self.percentiles[0]).clamp(min=1.0)
