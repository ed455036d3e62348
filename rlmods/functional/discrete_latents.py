"""Vectors of categorical variables: L variables of C classes, `[..., C, L]`.

Hafner et al. 2023, "Mastering Diverse Domains through World Models", section "World model learning".
https://arxiv.org/abs/2301.04104

The classes are the last axis but one: a softmax over four neighbours in memory takes 16 times as long as one over four
rows.
"""

import torch
from torch import Tensor


def mixed_probabilities(logits: Tensor, unimix: float) -> Tensor:
    """(1 − u)·softmax(logits) + u/C: no class has less than u/C, so that no KL is infinite.

    Args:
        logits: `[..., C, L]`.
        unimix: u, in [0, 1).

    Returns:
        `[..., C, L]` float32.
    """
    return with_uniform(logits.float().softmax(-2), unimix)


def with_uniform(probabilities: Tensor, unimix: float) -> Tensor:
    """(1 − u)·p + u/C of `[..., C, L]`."""
    if unimix == 0.0:
        return probabilities
    uniform = probabilities.new_full((), 1.0 / probabilities.shape[-2])
    return torch.lerp(probabilities, uniform, unimix)


def one_hot_sample(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """A draw of each variable by the inverse of its distribution function, `[..., C, L]` of zeros and a one.

    Args:
        probabilities: `[..., C, L]`; need not sum to 1.
        uniform: `[..., 1, L]`, draws from [0, 1).
    """
    cumulated = probabilities.detach().cumsum(-2)
    reached = cumulated.ge_(uniform * cumulated[..., -1:, :])
    sample = reached.clone()
    sample[..., 1:, :].sub_(reached[..., :-1, :])
    return sample


def straight_through(sample: Tensor, probabilities: Tensor) -> Tensor:
    """The sample, with the gradient of the probabilities."""
    return sample + (probabilities - probabilities.detach())


def latent_kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) of the whole vector of independent variables: the sum over them, not the mean.

    Args:
        log_p: `[..., C, L]`.
        log_q: `[..., C, L]`.

    Returns:
        `[...]` nat.
    """
    return (log_p.exp() * (log_p - log_q)).sum((-2, -1))


def latent_entropy(log_p: Tensor) -> Tensor:
    """Of the whole vector, `[...]` nat, at most L·ln C."""
    return -(log_p.exp() * log_p).sum((-2, -1))
