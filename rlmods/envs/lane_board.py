"""The board of the lane shooter: what N games consist of, and the tables of its levels.

Depths are counted from the rim, where the player is, in 256ths of a cell; a tube has 16 cells. Shots and spikes are
bits: bit c of a lane is its cell c.
"""

from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from rlmods.envs.episode_streams import Indices

Array: TypeAlias = npt.NDArray[Any]
Flags: TypeAlias = npt.NDArray[np.bool_]

NUM_LANES: Final = 16
NUM_CELLS: Final = 16
CELL: Final = 256
DEEP: Final = NUM_CELLS * CELL - 1
NUM_SLOTS: Final = 7  # enemies at once
MAX_SHOTS: Final = 8  # in flight

NOBODY, FLIPPER, SPIKER, TANKER, PULSAR, FUSEBALL = range(6)
KINDS: Final = ("flipper", "spiker", "tanker", "pulsar", "fuseball")
POINTS: Final = np.array([0, 150, 50, 100, 200, 250])  # by kind
SPIKE_POINTS: Final = 1  # of a cell of a spike
LEVEL_POINTS: Final = 500

LAST_STAGE: Final = 16  # from this level on they are alike
_LEVELS: Final = np.arange(1, LAST_STAGE + 1)
QUOTA: Final = np.minimum(6 + 2 * _LEVELS, 30).astype(np.int8)  # enemies of a level, parts of tankers apart
SPAWN: Final = (16 + 2 * _LEVELS).astype(np.uint8)  # 256ths, chance of a frame that the next one appears
RISE: Final = -np.outer([0.0, 1.0, 1.5, 0.75, 1.0, 1.25], 50 + 6 * _LEVELS).astype(np.int16)  # of a frame
RESTLESS: Final = np.array([0, 16, 0, 0, 12, 32], np.uint8)  # 256ths, chance of a frame to change the lane
RIM_RESTLESS: Final = np.array([0, 56, 0, 0, 32, 24], np.uint8)  # and on the rim

PULSE_PERIOD: Final = 32  # frames, a power of 2, of which a pulsar's lane is deadly in the last
PULSE_FRAMES: Final = 8
PULSE_DEPTH: Final = 12 * CELL  # up to which its pulse reaches the rim
SPLIT_DEPTH: Final = 2 * CELL  # where a tanker splits by itself
TURN_DEPTH: Final = 3 * CELL  # where a spiker turns round
ZOOM_SPEED: Final = 128  # of a frame


def _mix() -> npt.NDArray[np.int8]:
    """`[16, 256]`, the kind of a new enemy by level and a random byte."""
    early = [(80, 20, 0, 0, 0), (60, 15, 25, 0, 0), (50, 15, 20, 0, 15)]
    shares = early + 4 * [(40, 15, 20, 15, 10)] + (LAST_STAGE - 7) * [(30, 15, 20, 20, 15)]
    kinds, percent = np.arange(1, len(KINDS) + 1, dtype=np.int8), np.arange(256) * 100 // 256
    return np.stack([np.repeat(kinds, share)[percent] for share in shares])


MIX: Final = _mix()
_SAVED: Final = {"uint16": "int16"}


class Board:
    """N games. Arrays are `[N]` or `[k, N]`: a slot or a lane of all games is contiguous.

    Args:
        num_games: N.

    Attributes:
        lane: `[N]` int8, of the player.
        level: `[N]` int64, from 1.
        stage: `[N]` intp, row of the tables.
        is_open: `[N]`, whether the lanes 0 and 15 are no neighbours.
        has_zap: `[N]`, whether the superzap of this level is left.
        quota: `[N]` int8, enemies that are still to come.
        lives: `[N]` int8, with the present one.
        clock: `[N]` int32, frames of the level.
        zoom: `[N]` int16, how deep the player has flown into the tube; −1 outside of the zoom phase.
        kind: `[7, N]` int8, of the enemies; 0 is a free slot.
        place: `[7, N]` int8, lane.
        depth: `[7, N]` int16; that of a free slot is the bottom.
        rise: `[7, N]` int16, change of the depth in a frame.
        way: `[7, N]` int8, −1 or 1, where to the lane is changed.
        restless: `[7, N]` uint8, 256ths, chance to change it.
        shots: `[16, N]` uint16.
        spikes: `[16, N]` uint16, from the bottom up without gaps.
    """

    def __init__(self, num_games: int) -> None:
        slots, lanes = (NUM_SLOTS, num_games), (NUM_LANES, num_games)
        self.lane = np.zeros(num_games, np.int8)
        self.level = np.ones(num_games, np.int64)
        self.stage = np.zeros(num_games, np.intp)
        self.is_open = np.zeros(num_games, np.bool_)
        self.has_zap = np.zeros(num_games, np.bool_)
        self.quota = np.zeros(num_games, np.int8)
        self.lives = np.zeros(num_games, np.int8)
        self.clock = np.zeros(num_games, np.int32)
        self.zoom = np.full(num_games, -1, np.int16)
        self.kind = np.zeros(slots, np.int8)
        self.place = np.zeros(slots, np.int8)
        self.depth = np.full(slots, DEEP, np.int16)
        self.rise = np.zeros(slots, np.int16)
        self.way = np.ones(slots, np.int8)
        self.restless = np.zeros(slots, np.uint8)
        self.shots = np.zeros(lanes, np.uint16)
        self.spikes = np.zeros(lanes, np.uint16)

    @property
    def num_games(self) -> int:
        """N."""
        return len(self.lane)

    @property
    def is_zooming(self) -> Flags:
        """`[N]`, whether the player flies down the tube."""
        return self.zoom >= 0

    @property
    def pulse_phase(self) -> Array:
        """`[N]`, frame of the period."""
        phase: Array = self.clock & (PULSE_PERIOD - 1)
        return phase

    @property
    def is_pulsing(self) -> Flags:
        """`[N]`, whether the lanes of pulsars are deadly."""
        pulsing: Flags = self.pulse_phase >= PULSE_PERIOD - PULSE_FRAMES
        return pulsing

    def relative(self) -> npt.NDArray[np.int8]:
        """`[7, N]` int8, lanes from the player to each enemy: −8 to 7 the shorter way, −15 to 15 in an open tube."""
        straight = self.place - self.lane
        around: npt.NDArray[np.int8] = ((straight + np.int8(8)) & np.int8(15)) - np.int8(8)
        if self.is_open.any():
            np.copyto(around, straight, where=self.is_open)
        return around

    def take(self, games: Indices) -> "Board":
        """A copy of some games."""
        taken = Board(0)
        for name, array in vars(self).items():
            setattr(taken, name, array[..., games])
        return taken

    def begin_level(self, games: Indices, level: Array, is_open: bool | None) -> None:
        """A full quota, the superzap and no spikes.

        Args:
            games: in which.
            level: `[n]`, from 1.
            is_open: the tubes; None opens the third and fourth of every four levels.
        """
        self.level[games] = level
        self.stage[games] = stage = np.minimum(level, LAST_STAGE) - 1
        self.is_open[games] = (level - 1) % 4 >= 2 if is_open is None else is_open
        self.has_zap[games] = True
        self.quota[games] = QUOTA[stage]
        self.clock[games] = 0
        self.zoom[games] = -1
        self.spikes[:, games] = 0
        self.clear(games)

    def clear(self, games: Indices) -> None:
        """No enemies, no shots."""
        self.free(slice(None), games)
        self.shots[:, games] = 0

    def free(self, slots: Indices, games: Indices) -> None:
        """Let the enemies of some slots of some games be gone."""
        self.kind[slots, games] = NOBODY
        self.depth[slots, games] = DEEP
        self.rise[slots, games] = 0
        self.restless[slots, games] = 0

    def get_state(self) -> dict[str, Any]:
        """All fields, as copies."""
        # uint16 as int16: processes that tell each other their states pickle tensors, which torch cannot do with it.
        return {
            name: array.view(_SAVED.get(array.dtype.name, array.dtype)).copy() for name, array in vars(self).items()
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from a state that `get_state` gave."""
        for name, array in vars(self).items():
            setattr(self, name, state[name].view(array.dtype).copy())
