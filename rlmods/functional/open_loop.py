"""How far ahead a model of the world sees: what it dreams against what came."""

from typing import NamedTuple

import torch
from torch import Tensor


class Outlook(NamedTuple):
    """What a model and its critic say of states, row by row."""

    observation: dict[str, Tensor]  # [T, B, D] of vectors, in their own units; [T, B, C, H, W] of images, in [0, 1]
    reward: Tensor  # [T, B]
    discount: Tensor  # [T, B], γ·P(the episode goes on)
    value: Tensor  # [T, B]


class OpenLoop(NamedTuple):
    """A model that sees the first rows of sequences, its context, and then goes on alone.

    Observations are by key, "" where they are one array; of stacked frames the newest. Of the last row of the context
    on, the prediction takes the actions of the sequences, the dream those of the actor.
    """

    truth: dict[str, Tensor]  # [T, B, ...], as those of an `Outlook`
    reward: Tensor  # [T, B], as it came
    discount: Tensor  # [T, B], likewise
    counts: Tensor  # [T, B] bool, whether a row still belongs to the episode of the context's last row
    reconstruction: dict[str, Tensor]  # [T, B, ...], of the posterior, which sees every row
    prediction: Outlook  # [T, B, ...], of the posterior in the context, of the prior afterwards
    posterior: Tensor  # [T, B, L, C], p of the latents
    prior: Tensor  # [T, B, L, C], from the same h
    foreseen: Tensor  # [T, B, L, C], the prior along the prediction
    dream: Outlook  # [H + 1, B, ...], from the last row of the context
    context: int  # rows


class OpenLoopCheck(NamedTuple):
    """What the dreams of a model are worth, and the priors that they are drawn from."""

    error: Tensor  # [T], of dreams from the first row on: squared, relative to predicting the mean; NaN if none counts
    kl: Tensor  # [T, B] nat, of each posterior from the prior of a dream of one step; NaN where there is none


def same_episode(is_first: Tensor) -> Tensor:
    """Which rows belong to the episode of the first row: those before the next beginning.

    Args:
        is_first: `[T, B]` bool, where an episode begins.

    Returns:
        `[T, B]` bool, True in the first row.
    """
    later = is_first.clone()
    later[0] = False
    return later.cumsum(0) == 0


def relative_error(error: Tensor, target: Tensor, counts: Tensor) -> Tensor:
    """Σ error / Σ ‖target − mean‖² of each row: 0 is exact, 1 is no better than always predicting the mean.

    It is 1 − R² (the share of the variance that is not explained), with the mean of all rows that count.

    Args:
        error: `[T, B]`, ‖predicted − target‖².
        target: `[T, B, D]`.
        counts: `[T, B]` bool.

    Returns:
        `[T]`; NaN for a row in which nothing counts, or where the target does not vary.
    """
    weight = counts.to(error.dtype).unsqueeze(-1)
    mean = (target * weight).sum((0, 1)) / weight.sum().clamp(min=1.0)
    spread = ((target - mean).square() * weight).sum((1, 2))
    total = (error * weight.squeeze(-1)).sum(1)
    return (total / spread).where(spread > 0.0, torch.nan)


def unexplained_variance(predicted: Tensor, target: Tensor, counts: Tensor, *, apart: bool) -> Tensor:
    """The mean squared error of each row by the variance over all rows: smoother than `relative_error`, row by row.

    Args:
        predicted: `[T, B, D]`.
        target: `[T, B, D]`.
        counts: `[T, B]` bool.
        apart: the mean over the entries, each by its own variance, so that one that varies little counts as much as the
            others; else by the variance of all together.

    Returns:
        `[T]`; NaN for a row in which nothing counts, or where the target does not vary.
    """
    weight = counts.to(target.dtype).unsqueeze(-1)
    mean = (target * weight).sum((0, 1)) / weight.sum()
    variance = ((target - mean).square() * weight).sum((0, 1)) / weight.sum()
    error = ((predicted - target).square() * weight).sum(1) / weight.sum(1)
    if not apart:
        error, variance = error.sum(-1, keepdim=True), variance.sum(-1, keepdim=True)
    return (error / variance).where(variance > 0.0, torch.nan).nanmean(-1)
