"""A sum tree: draws items with a probability in proportion to their priority."""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

FAN_OUT: Final = 32  # measured best between 1e4 and 1e6 items

Index: TypeAlias = npt.NDArray[np.int64]


class PriorityTree:
    """Three levels: leaves, nodes over 32 leaves each, nodes over 1024 leaves each.

    A node keeps its children's cumulative sums, always recomputed from the children, so that they never drift and a
    search adds nothing up. The arrays are numpy's: its indexing costs a fraction of torch's at the size of a
    mini-batch, and it defines that the last one of duplicates holds.
    """

    def __init__(self, capacity: int) -> None:
        """All priorities are 0.

        Args:
            capacity: Number of items, at least 1.

        Raises:
            ValueError: `capacity` is below 1.
        """
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, expected at least 1")
        self.capacity = capacity
        self.maximum = 1.0  # the highest priority ever set; 1 until one is set above it
        num_top = -(-capacity // FAN_OUT**2)
        self._leaves = np.zeros(num_top * FAN_OUT**2, dtype=np.float32)
        self._middle = np.zeros(num_top * FAN_OUT, dtype=np.float64)
        self._top = np.zeros(num_top, dtype=np.float64)
        # Cumulative sums of the children begin with a 0: the one before a child is always there.
        self._leaf_sums = np.zeros((self._middle.size, FAN_OUT + 1), dtype=np.float64)
        self._middle_sums = np.zeros((num_top, FAN_OUT + 1), dtype=np.float64)
        self._top_sums = np.zeros(num_top + 1, dtype=np.float64)

    @staticmethod
    def memory_bytes(capacity: int) -> int:
        """Bytes of the leaves and of their cumulative sums; the levels above add 4 %."""
        return capacity * 4 + capacity * 8 * (FAN_OUT + 1) // FAN_OUT

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._top_sums[-1])

    def priorities(self, index: Index) -> npt.NDArray[np.float32]:
        """Items `[...]` to their priorities `[...]`."""
        return self._leaves.take(index)

    def set(self, index: Index, priority: npt.NDArray[np.float32]) -> None:
        """Set priorities. Where an item occurs twice, the last one holds.

        Args:
            index: `[M]` in [0, capacity).
            priority: `[M]`, finite, at least 0.

        Raises:
            ValueError: Shapes differ, or a priority is negative or not finite. Nothing was set then.
            IndexError: An item is out of range. Nothing was set then.
        """
        if index.shape != priority.shape or index.ndim != 1:
            raise ValueError(f"index has shape {index.shape}, priority {priority.shape}, expected one and the same [M]")
        if index.size == 0:
            return
        if index.min() < 0 or index.max() >= self.capacity:
            raise IndexError(f"items {index.min()} to {index.max()} were given, expected 0 to {self.capacity - 1}")
        lowest, highest = priority.min(), priority.max()  # NaN where one is NaN, and then no comparison holds
        if not (lowest >= 0.0 and highest < np.inf):
            raise ValueError(f"priorities from {lowest} to {highest} were given, expected finite ones, at least 0")
        self.maximum = max(self.maximum, float(highest))
        self._leaves[index] = priority
        self._update(index // FAN_OUT)

    def sample(self, mass: npt.NDArray[np.float64]) -> Index:
        """Find the items at given points of the cumulative sum. An item of priority 0 is never returned.

        Args:
            mass: `[M]` in [0, total).

        Returns:
            `[M]`.

        Raises:
            ValueError: All priorities are 0.
        """
        if mass.size == 0:
            return np.empty(0, dtype=np.int64)
        if self.total == 0.0:
            raise ValueError("all priorities are 0: there is nothing to sample, call set() first")
        # The mass left is kept under a node's last sum, whatever the rounding. The first child whose cumulative sum
        # exceeds it then exists and has raised that sum: its priority is not 0.
        mass = np.minimum(mass, np.nextafter(self._top_sums[-1], 0.0))
        node = self._top_sums.searchsorted(mass, side="right") - 1
        mass = mass - self._top_sums.take(node)
        child, mass = _descend(self._middle_sums.take(node, axis=0), mass)
        node = node * FAN_OUT + child
        child, _ = _descend(self._leaf_sums.take(node, axis=0), mass)
        return node * FAN_OUT + child

    def state_dict(self) -> dict[str, Any]:
        """The leaves, 4 bytes each, and the maximum."""
        return {"priorities": torch.from_numpy(self._leaves[: self.capacity].copy()), "maximum": self.maximum}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the leaves and rebuild the sums.

        Raises:
            ValueError: The state is of another capacity.
        """
        leaves: Tensor = state_dict["priorities"]
        if list(leaves.shape) != [self.capacity]:
            raise ValueError(f"priorities have shape {list(leaves.shape)}, expected [{self.capacity}]")
        self._leaves[: self.capacity] = leaves.numpy()
        self._update(np.arange(self._middle.size))
        self.maximum = float(state_dict["maximum"])

    def _update(self, node: Index) -> None:
        """Recompute these nodes of the middle level, and everything above them."""
        sums = _cumulative(self._leaves.reshape(-1, FAN_OUT).take(node, axis=0))
        self._leaf_sums[node, 1:] = sums
        self._middle[node] = sums[:, -1]
        node = node // FAN_OUT
        sums = _cumulative(self._middle.reshape(-1, FAN_OUT).take(node, axis=0))
        self._middle_sums[node, 1:] = sums
        self._top[node] = sums[:, -1]
        self._top.cumsum(out=self._top_sums[1:])


def _cumulative(children: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values `[M, 32]` to their cumulative sums `[M, 32]` float64."""
    return torch.from_numpy(children).cumsum(1, dtype=torch.float64).numpy()  # a third of the time of numpy's


def _descend(sums: npt.NDArray[np.float64], mass: npt.NDArray[np.float64]) -> tuple[Index, npt.NDArray[np.float64]]:
    """Cumulative sums `[M, 33]` of nodes and mass `[M]` left, to the child chosen and the mass left within it."""
    mass = np.minimum(mass, np.nextafter(sums[:, -1], 0.0))
    child = (sums <= mass[:, None]).argmin(axis=1) - 1
    return child, mass - sums[np.arange(len(sums)), child]
