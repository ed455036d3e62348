"""Temporal-difference targets for action values.

`discount` is γ^horizon · (1 − terminated): one number per transition instead of a boolean `done`, so that termination,
truncation and n-step horizons need no branch. A truncated transition keeps its discount and bootstraps.
Every function returns per-sample values: the mean is taken by the caller, after the importance weights.
"""

import torch
from torch import Tensor


def action_value(q_values: Tensor, action: Tensor) -> Tensor:
    """Q(s, a) of the actions that were taken.

    Args:
        q_values: `[B, A]`.
        action: `[B]` int64 in `[0, A)`.

    Returns:
        `[B]`.

    Raises:
        ValueError: where the leading shapes differ (a `[B, 1]` against a `[B]` would broadcast silently).
    """
    if q_values.shape[:-1] != action.shape:
        raise ValueError(f"got q_values {tuple(q_values.shape)} and action {tuple(action.shape)}; expected [B, A], [B]")
    return q_values.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def q_learning_bootstrap(target_q_values: Tensor) -> Tensor:
    """max_a Q⁻(s′, a) of the target network (Mnih et al. 2015, Algorithm 1).

    Args:
        target_q_values: `[B, A]`, the target network at the next observation.

    Returns:
        `[B]`.
    """
    return target_q_values.amax(-1)


def double_q_bootstrap(target_q_values: Tensor, online_q_values: Tensor) -> Tensor:
    """Q⁻(s′, argmax_a Q(s′, a)): the online network selects, the target network values.

    Source: van Hasselt et al. 2016, "Deep Reinforcement Learning with Double Q-learning", equation 4.

    Args:
        target_q_values: `[B, A]`, the target network at the next observation.
        online_q_values: `[B, A]`, the online network at the next observation.

    Returns:
        `[B]`.
    """
    return action_value(target_q_values, online_q_values.argmax(-1))


def td_target(reward: Tensor, discount: Tensor, bootstrap_value: Tensor) -> Tensor:
    """R + γⁿ(1 − terminated) · V(s′). Call under `no_grad`.

    Args:
        reward: `[B]`, the n-step sum of discounted rewards.
        discount: `[B]` in `[0, 1)`.
        bootstrap_value: `[B]`.

    Returns:
        `[B]`.

    Raises:
        ValueError: where the three shapes differ.
    """
    if not reward.shape == discount.shape == bootstrap_value.shape:
        raise ValueError(
            f"got reward {tuple(reward.shape)}, discount {tuple(discount.shape)}, "
            f"bootstrap_value {tuple(bootstrap_value.shape)}; expected the same shape"
        )
    return torch.addcmul(reward, discount, bootstrap_value)
