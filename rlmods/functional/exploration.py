"""Behaviour policies over action values."""

import torch
from torch import Tensor


def epsilon_greedy(greedy_action: Tensor, num_actions: int, epsilon: float | Tensor) -> Tensor:
    """Each row keeps its greedy action with probability 1 − ε, else takes a uniform one (of all, the greedy included).

    Draws from torch's global generator of the tensor's device.

    Args:
        greedy_action: `[N]` int64.
        num_actions: A.
        epsilon: probability of a uniform action, in `[0, 1]`; of each row where it is `[N]`.

    Returns:
        `[N]` int64.
    """
    explore = torch.rand(greedy_action.shape, device=greedy_action.device) < epsilon
    return torch.where(explore, torch.randint_like(greedy_action, num_actions), greedy_action)
