"""What the player of the lane shooter sees: the lanes as they lie around the own one, the enemies one by one."""

from typing import Final

import numpy as np
import torch

from rlmods.envs.lane_board import (
    KINDS,
    LAST_STAGE,
    MAX_SHOTS,
    NUM_CELLS,
    NUM_LANES,
    NUM_SLOTS,
    PULSE_PERIOD,
    QUOTA,
    Array,
    Board,
)

BEHIND: Final = 8  # lanes that are seen on the left; on the right one less
MAX_LIVES: Final = 9

# Rows of an observation, in this order, and what 1.0 of each is.
BLOCKS: Final = {
    "enemy_near": (NUM_LANES, NUM_CELLS),
    "spike": (NUM_LANES, NUM_CELLS),
    "shot_near": (NUM_LANES, NUM_CELLS),
    "kind": (len(KINDS) * NUM_SLOTS, 1),
    "relative_lane": (NUM_SLOTS, NUM_LANES),
    "depth": (NUM_SLOTS, 128),
    "way": (NUM_SLOTS, 1),
    "rise": (NUM_SLOTS, 128),
    "lane": (1, NUM_LANES - 1),
    "is_open": (1, 1),
    "is_zooming": (1, 1),
    "zoom": (1, NUM_CELLS),
    "level": (1, LAST_STAGE),
    "has_zap": (1, 1),
    "quota": (1, int(QUOTA.max())),
    "lives": (1, MAX_LIVES),
    "shots": (1, MAX_SHOTS),
    "is_pulsing": (1, 1),
    "pulse_phase": (1, PULSE_PERIOD),
}
SIZE: Final = sum(rows for rows, _ in BLOCKS.values())
_SCALE: Final = torch.cat([torch.full((rows,), 1.0 / unit) for rows, unit in BLOCKS.values()])
_ENDS: Final = np.cumsum([rows for rows, _ in BLOCKS.values()]).tolist()
ROWS: Final = {name: slice(end - rows, end) for (name, (rows, _)), end in zip(BLOCKS.items(), _ENDS, strict=True)}


def observe(board: Board) -> Array:
    """`[N, 122]` float32 in [−1, 1]."""
    rows = np.empty((SIZE, board.num_games), np.int8)
    relative = board.relative()
    _see_lanes(board, relative, rows)
    _see_enemies(board, relative, rows)
    _see_oneself(board, rows)
    return _transposed(rows)


def _transposed(rows: Array) -> Array:
    """Bytes `[122, N]` to `[N, 122]` float32, each in its unit."""
    # torch transposes in blocks, numpy row by row; and it moves a pair of rows as quickly as one.
    pairs = rows.view(np.uint8).reshape(SIZE // 2, 2, -1)
    words = pairs[:, 1].astype(np.uint16)
    words <<= np.uint16(8)
    words |= pairs[:, 0]
    turned = torch.from_numpy(words.astype("<u2", copy=False).view(np.int16)).t().contiguous().view(torch.int8)
    seen: Array = turned.float().mul_(_SCALE).numpy()
    return seen


def _see_lanes(board: Board, relative: Array, rows: Array) -> None:
    """From 8 lanes on the left to 7 on the right; −1 where an open tube has ended."""
    lanes = np.arange(NUM_LANES, dtype=np.int8)[:, None]
    closeness = np.int8(NUM_CELLS) - (board.depth >> 8).astype(np.int8)
    closeness *= (board.kind > 0).view(np.int8)
    position = relative + np.int8(BEHIND)
    near = rows[ROWS["enemy_near"]]
    near[...] = 0
    for slot in range(NUM_SLOTS):
        np.maximum(near, (lanes == position[slot]).view(np.int8) * closeness[slot], out=near)
    absolute = np.empty((2, NUM_LANES, board.num_games), np.uint8)
    np.bitwise_count(board.spikes, out=absolute[0])
    # The trailing zeros of a number are the ones of the number below its lowest one.
    np.bitwise_count((board.shots & -board.shots) - np.uint16(1), out=absolute[1])
    np.subtract(NUM_CELLS, absolute[1], out=absolute[1])
    others = slice(ROWS["spike"].start, ROWS["shot_near"].stop)
    rows[others] = _turned(board, absolute).reshape(2 * NUM_LANES, -1).view(np.int8)
    if board.is_open.any():
        straight = board.lane + lanes - np.int8(BEHIND)
        is_beyond = -(((straight & np.int8(~15)) != 0) & board.is_open).view(np.int8)  # all bits or none
        for name in ("enemy_near", "spike", "shot_near"):
            rows[ROWS[name]] &= ~is_beyond
            rows[ROWS[name]] |= is_beyond * np.int8(NUM_CELLS)


def _turned(board: Board, lanes: Array) -> Array:
    """`[2, 16, N]` uint8 with the lane 8 to the left of the player first: by 1, 2, 4 and 8 lanes where that is part."""
    by = (board.lane - np.int8(BEHIND)).view(np.uint8)
    for shift in (1, 2, 4, 8):
        where = -((by & np.uint8(shift)) != 0).view(np.uint8)  # all bits or none
        lanes = lanes ^ ((lanes ^ np.concatenate([lanes[:, shift:], lanes[:, :shift]], axis=1)) & where)
    return lanes


def _see_enemies(board: Board, relative: Array, rows: Array) -> None:
    is_there = board.kind > 0
    kinds = np.arange(1, len(KINDS) + 1, dtype=np.int8)[:, None, None]
    np.equal(board.kind, kinds, out=rows[ROWS["kind"]].view(np.bool_).reshape(len(KINDS), NUM_SLOTS, -1))
    np.multiply(relative, is_there.view(np.int8), out=rows[ROWS["relative_lane"]])
    rows[ROWS["depth"]] = board.depth >> 5
    np.multiply(board.way, is_there.view(np.int8), out=rows[ROWS["way"]])
    rows[ROWS["rise"]] = board.rise >> 1


def _see_oneself(board: Board, rows: Array) -> None:
    rows[ROWS["lane"]] = board.lane * np.int8(2) - np.int8(NUM_LANES - 1)
    rows[ROWS["is_open"]] = board.is_open
    rows[ROWS["is_zooming"]] = board.is_zooming
    rows[ROWS["zoom"]] = np.maximum(board.zoom, 0) >> 8
    rows[ROWS["level"]] = np.minimum(board.level, LAST_STAGE)
    rows[ROWS["has_zap"]] = board.has_zap
    rows[ROWS["quota"]] = board.quota
    rows[ROWS["lives"]] = board.lives
    rows[ROWS["shots"]] = np.bitwise_count(board.shots).sum(0, dtype=np.uint8)
    rows[ROWS["is_pulsing"]] = board.is_pulsing
    rows[ROWS["pulse_phase"]] = board.pulse_phase
