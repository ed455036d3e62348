"""A sum tree: draws items with a probability in proportion to their priority."""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

# A search adds up all blocks once and one block per draw: 64 balances the two between 1e4 and 1e6 items.
BLOCK: Final = 64

Index: TypeAlias = npt.NDArray[np.int64]


class PriorityTree:
    """Two levels: the priorities, in blocks of 64, and the sum of each block.

    More levels cost more than they save: at the size of a mini-batch time goes into the number of calls. Sums are
    float64 and always recomputed from the whole block, so that they never drift. The arrays are numpy's: its indexing
    costs a fraction of torch's, and it defines that the last one of duplicates holds.
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
        num_blocks = -(-capacity // BLOCK)
        self._blocks = np.zeros((num_blocks, BLOCK), dtype=np.float32)
        self._leaves = self._blocks.reshape(-1)  # the same memory
        self._sums = np.zeros(num_blocks, dtype=np.float64)

    @staticmethod
    def memory_bytes(capacity: int) -> int:
        """Bytes of the priorities; the sums add 3 %."""
        return capacity * np.dtype(np.float32).itemsize

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums.sum())

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
        block = index // BLOCK
        self._sums[block] = _row_sums(self._blocks.take(block, axis=0))

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
        cumulative = self._sums.cumsum()
        if cumulative[-1] == 0.0:
            raise ValueError("all priorities are 0: there is nothing to sample, call set() first")
        # The mass left is kept under the last cumulative sum, whatever the rounding. The first block, or item, whose
        # cumulative sum exceeds it then exists and has raised that sum: its priority is not 0.
        mass = np.minimum(mass, np.nextafter(cumulative[-1], 0.0))
        block = cumulative.searchsorted(mass, side="right")
        mass = mass - (cumulative.take(block) - self._sums.take(block))
        # torch's takes a third of the time of numpy's.
        within = torch.from_numpy(self._blocks.take(block, axis=0)).cumsum(1, dtype=torch.float64).numpy()
        mass = np.minimum(mass, np.nextafter(within[:, -1], 0.0))
        index: Index = block * BLOCK + (within <= mass[:, None]).argmin(axis=1)
        return index

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
        self._sums[:] = _row_sums(self._blocks)
        self.maximum = float(state_dict["maximum"])


def _row_sums(blocks: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    # A contiguous float64 row is added up in the same order however many rows there are: rebuilt sums are equal.
    sums: npt.NDArray[np.float64] = blocks.astype(np.float64).sum(axis=1)
    return sums
