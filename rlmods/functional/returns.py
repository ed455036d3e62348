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


def lambda_return(reward: Tensor, discount: Tensor, value: Tensor, gae_lambda: float | Tensor) -> Tensor:
    """R_t = r_{t+1} + d_{t+1} ((1 − λ_{t+1}) v_{t+1} + λ_{t+1} R_{t+1}), and R of the last row is its v.

    All of a row belongs to the state that it arrives at: the reward with which it came, the discount of what follows
    it (0 where it is terminal), its value.

    Source: Sutton & Barto 2018, equation 12.20; λ = 1 is Monte Carlo, λ = 0 the one-step target.

    Args:
        reward: `[T, ...]`, of which the first row is not read.
        discount: `[T, ...]`, likewise.
        value: `[T, ...]`, likewise.
        gae_lambda: λ, a number, or `[T, ...]` where some rows cut the trace.

    Returns:
        `[T − 1, ...]`.
    """
    weight = discount * gae_lambda
    one_step = reward + (discount - weight) * value
    following = value[-1]
    returns: list[Tensor] = []
    for row in range(reward.shape[0] - 1, 0, -1):
        following = torch.addcmul(one_step[row], weight[row], following)
        returns.append(following)
    return torch.stack(returns[::-1]) if returns else reward[1:]
