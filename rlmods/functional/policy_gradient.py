"""The losses of policies that learn from what they have just done."""

import torch
from torch import Tensor


def clipped_surrogate_loss(importance_ratio: Tensor, advantage: Tensor, clip_range: float) -> Tensor:
    """−min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) of each sample.

    Source: Schulman et al. 2017 (https://arxiv.org/abs/1707.06347), equation 7.

    Args:
        importance_ratio: ρ, `[...]`.
        advantage: A, `[...]`.
        clip_range: ε > 0.
    """
    clipped = importance_ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    return -torch.minimum(importance_ratio * advantage, clipped * advantage)


def value_loss(value: Tensor, target: Tensor, old_value: Tensor, clip_range: float | None) -> Tensor:
    """(V − target)² of each sample; clipped, the larger of it and (V_old + clip(V − V_old, ±ε) − target)².

    Source of the clip: the code of Schulman et al. 2017; the paper does not have it.

    Args:
        value: V, `[...]`.
        target: `[...]`.
        old_value: V before the first update on the rollout, `[...]`.
        clip_range: ε > 0 in units of the return; None does not clip.
    """
    error = (value - target).square()
    if clip_range is None:
        return error
    clipped = old_value + (value - old_value).clamp(-clip_range, clip_range)
    return torch.maximum(error, (clipped - target).square())


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """ρ − 1 − log ρ of each sample, at least 0; its mean over samples of μ estimates KL(μ ‖ π) without bias.

    Source: Schulman 2020, "Approximating KL divergence", k3.

    Args:
        log_ratio: log π − log μ, `[...]`.
    """
    return torch.expm1(log_ratio) - log_ratio


def explained_variance(value: Tensor, target: Tensor) -> Tensor:
    """1 − Var(target − V)/Var(target), at most 1; 0 for a constant V, NaN for constant targets.

    Args:
        value: `[M]`.
        target: `[M]`.
    """
    return 1.0 - (target - value).var(correction=0) / target.var(correction=0)


def standardized(values: Tensor, weight: Tensor | None = None) -> Tensor:
    """(x − mean)/(std + 1e-8), as they are where there is only one.

    Args:
        values: `[...]`.
        weight: `[...]`, 0 or 1, of the values that count; None counts all.
    """
    if weight is None:
        return values if values.numel() < 2 else (values - values.mean()) / (values.std() + 1e-8)
    count = weight.sum().clamp(min=1.0)
    mean = (values * weight).sum() / count
    variance = ((values - mean).square() * weight).sum() / (count - 1.0).clamp(min=1.0)
    return (values - mean) / (variance.sqrt() + 1e-8)


def segment_probabilities(advantage: Tensor, alpha: float) -> Tensor:
    """P_i = p_i^α/Σ p_j^α with p_i = Σ_t |A_t|, of S segments; uniform where no advantage differs from 0.

    Source: PufferLib's prioritised segments, after Schaul et al. 2016 (https://arxiv.org/abs/1511.05952), equation 1.

    Args:
        advantage: `[L, S]`.
        alpha: α ≥ 0; 0 is uniform.
    """
    priority = advantage.abs().sum(0).pow(alpha)
    total = priority.sum()
    uniform = torch.full_like(priority, 1.0 / priority.numel())
    return torch.where(total > 0.0, priority / total, uniform)


def segment_weight(probability: Tensor, beta: float) -> Tensor:
    """(S P_i)^−β: with β = 1 the mean over segments drawn with replacement has the expectation of uniform sampling.

    Source: Schaul et al. 2016, section 3.4. Not divided by the maximum, which would change the step from draw to draw.

    Args:
        probability: P, `[S]`.
        beta: β in [0, 1].
    """
    return (probability.numel() * probability).pow(-beta)
