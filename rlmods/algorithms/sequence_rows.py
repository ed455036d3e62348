"""Rows of observations, whether these are one array or a dict of them."""

import torch
from torch import Tensor

from rlmods.types import Observation


def flat_rows(observation: Observation) -> Observation:
    """`[T, B, *shape]` to `[T·B, *shape]`."""
    if isinstance(observation, Tensor):
        return observation.flatten(0, 1)
    return {key: column.flatten(0, 1) for key, column in observation.items()}


def num_rows(observation: Observation) -> int:
    """N of `[N, *shape]`."""
    return (observation if isinstance(observation, Tensor) else next(iter(observation.values()))).shape[0]


def begun(is_first: Tensor) -> Tensor:
    """`[T, B]`, with the first row of every sequence among them."""
    return torch.cat([torch.ones_like(is_first[:1]), is_first[1:]])
