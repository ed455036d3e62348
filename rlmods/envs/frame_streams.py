"""Random bytes of many rows at once for every step, each row with a stream of its own."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from rlmods.envs.episode_streams import Indices, hashed, row_seeds

Bytes: TypeAlias = npt.NDArray[np.uint8]

BYTES = 16  # of a row and a frame, in two words


class FrameStreams:
    """What a row draws in a frame depends on its seed, the episode's number and the frame's, and on nothing else.

    Args:
        num_rows: N.

    Attributes:
        seeds: `[N]` uint64.
        episodes: `[N]` uint64, how many each row has begun.
        frames: `[N]` uint64, how many of the episode have been drawn.
    """

    def __init__(self, num_rows: int) -> None:
        self.seeds, self.episodes, self.frames = (np.zeros(num_rows, np.uint64) for _ in range(3))

    def seed(self, seed: int | Sequence[int]) -> None:
        """Begin all streams anew, from a seed for all of them or one of each."""
        self.seeds[:] = row_seeds(seed, len(self.seeds))
        self.episodes[:] = self.frames[:] = 0

    def begin(self, rows: Indices) -> None:
        """Go on to the next episode of some rows."""
        self.episodes[rows] += np.uint64(1)
        self.frames[rows] = 0

    def draw(self) -> Bytes:
        """The bytes of the next frame of all rows, `[16, N]`."""
        self.frames += np.uint64(1)
        return self.peek(0, slice(None))

    def peek(self, salt: int, rows: Indices) -> Bytes:
        """Bytes `[16, n]` of some rows that belong to the present frame; other ones for each salt from 0 to 127."""
        # A frame has 256 places, an episode 2⁴⁰.
        first = (self.episodes[rows] << np.uint64(40)) + (self.frames[rows] << np.uint64(8)) + np.uint64(2 * salt)
        words = hashed(self.seeds[rows], first + np.arange(2, dtype=np.uint64)[:, None])
        drawn: Bytes = words.view(np.uint8).reshape(2, -1, 8).transpose(0, 2, 1).reshape(BYTES, -1)
        return drawn

    def get_state(self) -> dict[str, npt.NDArray[np.int64]]:
        """Everything that the future depends on."""
        # As int64: processes that tell each other their states pickle tensors, which torch cannot do with uint64.
        return {name: array.view(np.int64).copy() for name, array in vars(self).items()}

    def set_state(self, state: dict[str, npt.NDArray[np.int64]]) -> None:
        """Go on from a state that `get_state` gave."""
        for name, array in state.items():
            setattr(self, name, array.view(np.uint64).copy())
