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


def stack_observations(*parts: Sequence[ArrayObservation]) -> Observation:
    """T observations `[n, *shape]` of each part to `[T, N, *shape]`, the parts side by side, in one copy."""
    first = parts[0][0]
    if isinstance(first, dict):
        dicts = cast(Sequence[Sequence[dict[str, Any]]], parts)
        return {key: stack_arrays(*([row[key] for row in part] for part in dicts)) for key in first}
    return stack_arrays(*parts)


def stack_arrays(*parts: Sequence[Any]) -> Tensor:
    """The same of arrays."""
    if len(parts) == 1:
        return torch.from_numpy(np.stack(parts[0]))
    sizes = [len(part[0]) for part in parts]
    first = parts[0][0]
    stacked = np.empty((len(parts[0]), sum(sizes), *first.shape[1:]), first.dtype)
    begin = 0
    for part, size in zip(parts, sizes, strict=True):
        np.stack(part, out=stacked[:, begin : begin + size])
        begin += size
    return torch.from_numpy(stacked)
