"""One bit of knowledge about each transition of a replay buffer, in a ring beside its rows."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.priorities import Index
from rlmods.data.segments import SegmentPart


class FlagRing:
    """Flags in the slots of a ring. That of transition number `r`, counted from 0 for ever, lies in `r % capacity`."""

    def __init__(self, capacity: int) -> None:
        """All flags are False.

        Args:
            capacity: Of the buffer, in transitions.
        """
        self.capacity = capacity
        self._flags = np.zeros(capacity, dtype=np.bool_)

    def write(self, first: int, flags: Tensor) -> None:
        """Set the flags `[M]` bool of the transitions number `first` and following; of a slot the last one stays."""
        kept = min(len(flags), self.capacity)
        slots = np.arange(first + len(flags) - kept, first + len(flags)) % self.capacity
        self._flags[slots] = flags[len(flags) - kept :].numpy(force=True)

    def take(self, index: Index) -> npt.NDArray[np.bool_]:
        """Slots `[...]` to their flags `[...]`."""
        return self._flags.take(index)

    def between(self, first: int, last: int) -> Tensor:
        """A copy of the flags `[M]` of the transitions number `first` to `last`, exclusive."""
        return torch.from_numpy(self.take(np.arange(first, last) % self.capacity))

    def segment_part(self, oldest: int, inserted: int) -> SegmentPart:
        """The flags of the transitions number `oldest` to `inserted`, exclusive, as they are written to disk."""
        return SegmentPart(
            "flags of who acted",
            "expert.pt",
            oldest,
            inserted,
            1,
            lambda first, last: {"by_expert": self.between(first, last)},
            lambda first, content: self.write(first, content["by_expert"]),
        )
