"""Random numbers of many rows at once, each row with a stream of its own."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Indices: TypeAlias = npt.NDArray[np.intp] | slice

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def row_seeds(seed: int | Sequence[int], num_rows: int) -> npt.NDArray[np.uint64]:
    """`[N]`, from a seed for all rows or one of each."""
    if isinstance(seed, int):
        return np.random.SeedSequence(seed).generate_state(num_rows, np.uint64).astype(np.uint64)
    return np.array([np.random.SeedSequence(one).generate_state(1, np.uint64)[0] for one in seed], np.uint64)


def hashed(seeds: npt.NDArray[np.uint64], places: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """64 random bits of each place `[..., N]` in the streams of the seeds `[N]`, by SplitMix64."""
    z = seeds + places * _GAMMA
    z ^= z >> np.uint64(30)
    z *= _MIX_1
    z ^= z >> np.uint64(27)
    z *= _MIX_2
    z ^= z >> np.uint64(31)
    return z


class EpisodeStreams:
    """What a row draws in an episode depends on its seed and the episode's number, and on no other row.

    A generator that all rows share would let the end of one episode change all later ones; one for each row costs a
    Python loop. Here a number is a hash of its place in the row's stream: SplitMix64 (Steele, Lea and Flood 2014).

    Args:
        num_rows: N.
        draws: numbers of an episode.

    Attributes:
        seeds: `[N]` uint64.
        episodes: `[N]` uint64, how many each row has begun.
    """

    def __init__(self, num_rows: int, draws: int) -> None:
        self.draws = draws
        self.seeds = np.zeros(num_rows, np.uint64)
        self.episodes = np.zeros(num_rows, np.uint64)

    def seed(self, seed: int | Sequence[int]) -> None:
        """Begin all streams anew, from a seed for all of them or one of each."""
        self.seeds[:] = row_seeds(seed, len(self.seeds))
        self.episodes[:] = 0

    def begin(self, rows: Indices) -> npt.NDArray[np.float32]:
        """The numbers of the next episode of some rows, `[draws, n]` in [0, 1)."""
        first = self.episodes[rows] * np.uint64(self.draws) + np.uint64(1)
        self.episodes[rows] += np.uint64(1)
        z = hashed(self.seeds[rows], first + np.arange(self.draws, dtype=np.uint64)[:, None])
        # 24 bits are what a float32 below 1 holds.
        uniforms: npt.NDArray[np.float32] = (z >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        return uniforms

    def get_state(self) -> dict[str, npt.NDArray[np.int64]]:
        """Everything that the future depends on."""
        # As int64: processes that tell each other their states pickle tensors, which torch cannot do with uint64.
        return {"seeds": self.seeds.view(np.int64).copy(), "episodes": self.episodes.view(np.int64).copy()}

    def set_state(self, state: dict[str, npt.NDArray[np.int64]]) -> None:
        """Go on from a state that `get_state` gave."""
        self.seeds, self.episodes = (state[name].view(np.uint64).copy() for name in ("seeds", "episodes"))
