"""Returns over time. Time first: `[T, N]` are T steps of N environments."""

from typing import NamedTuple

import torch
from torch import Tensor


class NStepReturn(NamedTuple):
    """For each step t the return over a horizon of at most n steps, cut where the episode or the actor ends."""

    reward: Tensor  # [T, N] float32, Σᵢ γⁱ r_{t+i}
    discount: Tensor  # [T, N] float32, γ^horizon · (1 − terminated)
    last: Tensor  # [T, N] int64, row of the horizon's last step
    ended: Tensor  # [T, N] bool, whether the episode ends within the horizon, or another actor ended it


def n_step_return(
    reward: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    n_steps: int,
    *,
    actor: Tensor | None = None,
) -> NStepReturn:
    """R_t = Σ_{i<h} γⁱ r_{t+i} with h = min(n, steps to the episode's end); the discount of what follows is γʰ.

    Source: Sutton & Barto 2018, equation 7.1. `terminated` cuts the bootstrap (discount 0), `terminated | truncated`
    cuts the sum.

    Args:
        reward: `[T, N]`.
        terminated: `[T, N]` bool.
        truncated: `[T, N]` bool.
        gamma: discount of one step, in `[0, 1)`.
        n_steps: n, at least 1.
        actor: `[T, N]`, who chose the action. A horizon then ends before the first action that somebody else than its
            own first actor chose, h being the steps until there; None lets it go on.

    Returns:
        Four tensors `[T, N]`. The last n − 1 rows see fewer than n steps: they are final only where `ended`.
    """
    num_rows = reward.shape[0]
    row = torch.arange(num_rows).unsqueeze(1).expand(reward.shape)
    ended_here = terminated | truncated
    total = torch.zeros_like(reward)
    last = row.clone()
    ended = torch.zeros_like(ended_here)
    for i in range(min(n_steps, num_rows)):
        rows = num_rows - i
        if actor is not None:
            ended[:rows] |= actor[i:] != actor[:rows]
        running = ~ended[:rows]
        total[:rows] += torch.where(running, gamma**i * reward[i:], 0.0)
        last[:rows] = torch.where(running, row[i:], last[:rows])
        ended[:rows] |= ended_here[i:]
    horizon = last - row + 1
    discount = torch.pow(gamma, horizon.to(reward.dtype)) * ~terminated.gather(0, last)
    return NStepReturn(total, discount, last, ended)
