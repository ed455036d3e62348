"""Arrays of N environments in memory that several processes share."""

from collections.abc import Mapping
from math import prod
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlmods.types import ArrayObservation, ArraySpec, EnvSpec, is_array_spec

_ALIGNMENT = 64  # bytes, a cache line


class SharedArrays(NamedTuple):
    """Memory and what lies where in it; a process that is started with it sees the same numbers.

    The memory has no name in the file system: it is gone with the last process that has it, however that ends.
    """

    memory: Any  # of ctypes
    layout: dict[str, tuple[int, tuple[int, ...], str]]  # by name: first byte, shape, dtype

    def array(self, name: str) -> npt.NDArray[Any]:
        """A view of one of the arrays."""
        first, shape, dtype = self.layout[name]
        flat = np.frombuffer(self.memory, dtype, prod(shape), first)
        return flat.reshape(shape)


def share_arrays(context: BaseContext, arrays: Mapping[str, tuple[tuple[int, ...], str]]) -> SharedArrays:
    """Memory for arrays, zeros.

    Args:
        context: of the processes that will be started with it.
        arrays: shape and dtype by name.
    """
    layout, size = {}, 0
    for name, (shape, dtype) in arrays.items():
        layout[name] = (size, shape, dtype)
        num_bytes = prod(shape) * np.dtype(dtype).itemsize
        size += -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    return SharedArrays(context.RawArray("b", max(size, 1)), layout)


class StepArrays:
    """What a step of N environments reads and writes, as views of shared memory.

    Args:
        shared: made from `step_layout`.
        rows: of the environments that are looked at.

    Attributes:
        action: `[N]` int64, or `[N, A]`.
        reward: `[N]`.
        terminated: `[N]` bool.
        truncated: `[N]` bool.
        valid: `[N]` bool.
    """

    def __init__(self, shared: SharedArrays, rows: slice) -> None:
        arrays = {name: shared.array(name)[rows] for name in shared.layout}
        self.action, self.reward = arrays.pop("action"), arrays.pop("reward")
        self.terminated, self.truncated = arrays.pop("terminated"), arrays.pop("truncated")
        self.valid = arrays.pop("valid")
        self._observation = arrays

    def observation(self) -> ArrayObservation:
        """A copy of the observations `[N, *shape]`."""
        copies = {name.partition("/")[2]: array.copy() for name, array in self._observation.items()}
        return copies.get("", copies)

    def set_observation(self, observation: ArrayObservation) -> None:
        """Write observations `[N, *shape]`."""
        for name, array in self._observation.items():
            array[...] = observation[name.partition("/")[2]] if isinstance(observation, dict) else observation


def step_layout(spec: EnvSpec, num_envs: int, reward_dtype: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the arrays of N environments, by name."""
    observation = spec["observation"]
    parts: dict[str, ArraySpec] = {"": observation} if is_array_spec(observation) else dict(observation)
    action = spec["action"]
    # What the environment takes is for it to say: float64 holds any number that a policy chooses.
    action_dtype = "float64" if action["kind"] == "continuous" else "int64"
    return {
        "action": ((num_envs, *action["shape"]), action_dtype),
        "reward": ((num_envs,), reward_dtype),
        **dict.fromkeys(("terminated", "truncated", "valid"), ((num_envs,), "bool")),
        **{f"observation/{key}": ((num_envs, *part["shape"]), part["dtype"]) for key, part in parts.items()},
    }
