"""Observations are an array or a dict of arrays: the few functions that treat both alike."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from rlmods.types import ArrayObservation, Observation


def map_observation(function: Callable[..., Tensor], *observations: Observation) -> Observation:
    """Apply a function to the arrays of one or several observations, key by key where they are dicts."""
    first = observations[0]
    if isinstance(first, Tensor):
        return function(*observations)
    dicts = cast(Sequence[dict[str, Tensor]], observations)
    return {key: function(*(observation[key] for observation in dicts)) for key in first}


def to_tensors(observation: ArrayObservation, device: torch.device) -> Observation:
    """Arrays to tensors of the same memory, moved to the device."""
    if isinstance(observation, dict):
        return {key: torch.from_numpy(array).to(device) for key, array in observation.items()}
    return torch.from_numpy(observation).to(device)


def to_arrays(observation: Observation) -> ArrayObservation:
    """Tensors on the CPU to arrays of the same memory."""
    if isinstance(observation, Tensor):
        return observation.numpy()
    return {key: tensor.numpy() for key, tensor in observation.items()}


def stack_observations(observations: Sequence[ArrayObservation]) -> Observation:
    """T observations `[N, *shape]` to `[T, N, *shape]`, a copy."""
    first = observations[0]
    if isinstance(first, dict):
        dicts = cast(Sequence[dict[str, Any]], observations)
        return {key: _stack([observation[key] for observation in dicts]) for key in first}
    return _stack(observations)


def _stack(arrays: Sequence[Any]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
