"""What values can be: bounds that hold for every policy, from transitions or from bounds of the rewards."""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class ValueInterval(NamedTuple):
    """Every policy's value lies in [low, high]."""

    low: Tensor  # scalar
    high: Tensor  # scalar

    def hull(self, other: "ValueInterval") -> "ValueInterval":
        """The smallest interval that holds both."""
        return ValueInterval(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))


def value_interval(reward: Tensor, discount: Tensor) -> ValueInterval:
    """The values that the Bellman equation lets transitions with these rewards and discounts have.

    With y = R + D·V, a high is closed under the equation where R + D·high ≤ high, so the largest R / (1 − D) is one;
    0, what follows an end, always belongs to the interval. In one step with rewards in [r_min, r_max] that is
    [min(0, r_min/(1 − γ)), max(0, r_max/(1 − γ))] (van Hasselt et al. 2018, section 3, for r in [−1, 1]); in n steps,
    with their own discounted sums and γⁿ, the same. No γ is needed: the discounts that were stored are the ones that
    count. Of rewards that were not seen yet it knows nothing.

    Args:
        reward: `[...]`, discounted sums over the horizon.
        discount: `[...]`, γ^horizon · (1 − terminated).

    Returns:
        Scalars; 10³⁰ times the reward on the side on which a discount of 1 or more leaves no bound; empty (low > high)
        for `[0]`. A reward that is not finite says nothing and counts as 0.
    """
    if reward.numel() == 0:
        return ValueInterval(reward.new_tensor(torch.inf), reward.new_tensor(-torch.inf))
    reward = reward.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    # Where nothing fades the bound is as good as infinite, and 0 stays 0.
    forever = reward / (1.0 - discount).clamp_(min=1e-30)
    low, high = forever.aminmax()
    return ValueInterval(low.clamp(max=0.0), high.clamp(min=0.0))


def longest_bootstrap(discount: Tensor) -> Tensor:
    """The largest D / (1 − D), a scalar: what a bonus of 1 in every bootstrapped state adds to a value at most.

    γ / (1 − γ) in one step. 10³⁰ times D where nothing fades; −∞ for `[0]`, a neutral element of the maximum.

    Args:
        discount: `[...]`, γ^horizon · (1 − terminated).
    """
    if discount.numel() == 0:
        return discount.new_tensor(-torch.inf)
    return (discount / (1.0 - discount).clamp(min=1e-30)).amax()


def soft_value_interval(interval: ValueInterval, bootstrap: Tensor, entropy_bonus: Tensor) -> ValueInterval:
    """The values that the soft Bellman equation allows: y = R + D·(Q − α ln π) (Haarnoja et al. 2018, equation 3).

    In expectation −ln π is an entropy, at most H. So a high is closed where R + D·(high + α·H) ≤ high: with rewards up
    to r_max in one step (r_max + γ·α·H) / (1 − γ). The entropy of a density has no lower end, and neither have the
    values.

    Args:
        interval: of the rewards alone, as `value_interval` finds it.
        bootstrap: scalar, as `longest_bootstrap` finds it.
        entropy_bonus: scalar α·H, at least 0; H is A·ln 2 for A actions in [−1, 1].
    """
    # No transition, no bonus: −∞ · 0 would be NaN.
    bonus = bootstrap.clamp(min=0.0) * entropy_bonus.clamp(min=0.0)
    return ValueInterval(torch.full_like(interval.low, -torch.inf), interval.high + bonus)


def explained_variance(target: Tensor, error: Tensor) -> Tensor:
    """1 − Var(error) / Var(target): at most 1, negative where a constant predicts better, NaN for a constant target.

    Args:
        target: `[...]`.
        error: `[...]`, target − prediction.
    """
    variance = target.var(correction=0)
    ratio = 1.0 - error.var(correction=0) / variance
    return ratio.where(variance > 1e-12 * target.square().mean(), torch.nan)


def discounted_value_bounds(
    reward_low: float, reward_high: float, gamma: float, max_episode_steps: int | None = None
) -> tuple[float, float]:
    """What a value can be, before any transition was seen: Σ γᵗ rₜ over at most T steps, or for ever.

    [min(0, r_low·h), max(0, r_high·h)] with h = (1 − γ^T)/(1 − γ), and 1/(1 − γ) for ever; 0 is what follows an end. It
    is the interval of `value_interval` for transitions with these rewards, in one step or in n.

    Args:
        reward_low: lowest reward of a step.
        reward_high: highest reward of a step.
        gamma: discount of a step, in [0, 1].
        max_episode_steps: T, where the episode is terminated after it. Leave a time limit out: a truncated episode's
            value goes on.

    Returns:
        Low and high; infinite on the side on which nothing fades: γ = 1 without an end.

    Raises:
        ValueError: where a number is outside its range.
    """
    if not reward_low <= reward_high:
        raise ValueError(f"got rewards from {reward_low} to {reward_high}, expected a lowest and a highest in order")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"got gamma = {gamma}, expected a discount in [0, 1]")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise ValueError(f"got max_episode_steps = {max_episode_steps}, expected at least 1, or None")
    if gamma == 1.0:
        steps = math.inf if max_episode_steps is None else float(max_episode_steps)
    else:
        faded = 0.0 if max_episode_steps is None else gamma**max_episode_steps
        steps = (1.0 - faded) / (1.0 - gamma)
    # 0 · ∞ would be NaN.
    return (reward_low * steps if reward_low < 0.0 else 0.0, reward_high * steps if reward_high > 0.0 else 0.0)
