"""How well a share is known from a number of cases."""

import torch
from torch import Tensor


def wilson_interval(share: Tensor, cases: Tensor, *, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Lower and upper end of Wilson's score interval of a proportion (Wilson 1927).

    With z the two-sided normal quantile, (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n). It lies in [0, 1], and
    has a width where the share is 0 or 1.

    Args:
        share: p, any shape, in [0, 1].
        cases: n, of the same shape, at least 1.
        confidence: in (0, 1).

    Returns:
        Two tensors of that shape, float64.
    """
    p, n = share.double(), cases.double()
    z = torch.special.ndtri(p.new_tensor(0.5 + 0.5 * confidence))
    centre = p + z**2 / (2.0 * n)
    half_width = z * torch.sqrt(p * (1.0 - p) / n + z**2 / (4.0 * n**2))
    scale = 1.0 + z**2 / n
    # At a share of 0 or 1 rounding would put an end on its wrong side.
    low, high = torch.minimum((centre - half_width) / scale, p), torch.maximum((centre + half_width) / scale, p)
    return low.clamp(min=0.0), high.clamp(max=1.0)


def rate_metrics(name: str, happened: Tensor) -> dict[str, float]:
    """The share of the episodes that had an event, with Wilson's 95 % interval; empty where none says.

    Args:
        name: of the event.
        happened: `[E]`, 0 or 1; NaN where it is not known, which is left out.

    Returns:
        `<name>_rate`, `<name>_rate_low`, `<name>_rate_high`.
    """
    known = happened[~happened.isnan()].double()
    if not known.numel():
        return {}
    rate = known.mean()
    low, high = wilson_interval(rate, torch.full_like(rate, known.numel()))
    return {f"{name}_rate": float(rate), f"{name}_rate_low": float(low), f"{name}_rate_high": float(high)}
