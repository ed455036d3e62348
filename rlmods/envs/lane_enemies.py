"""What the enemies of the lane shooter do in a frame."""

import numpy as np

from rlmods.envs.frame_streams import Bytes
from rlmods.envs.lane_board import (
    DEEP,
    FLIPPER,
    FUSEBALL,
    MIX,
    NUM_LANES,
    NUM_SLOTS,
    RESTLESS,
    RIM_RESTLESS,
    RISE,
    SPAWN,
    SPIKER,
    SPLIT_DEPTH,
    TANKER,
    TURN_DEPTH,
    Array,
    Board,
)

EARLY_TURN = 250  # bytes from here on turn a spiker round


def move_enemies(board: Board, random: Bytes) -> None:
    """Climb, change lanes, and let new ones appear, with the bytes `[16, N]` of the frame."""
    _change_lanes(board, random[:NUM_SLOTS])
    board.depth += board.rise
    _arrive(board)
    _spike(board, random[:NUM_SLOTS])
    split(board, np.flatnonzero((board.kind == TANKER) & (board.depth < SPLIT_DEPTH)))
    _appear(board, random[NUM_SLOTS:])


def split(board: Board, tankers: Array) -> None:
    """Each of these, flat indices `[n]` of `[7, N]`, becomes two flippers in the lanes next to it.

    The second one needs a free slot. Two tankers of a game at once share it.
    """
    if not len(tankers):
        return
    slots, games = np.divmod(tankers, board.num_games)
    place, depth = board.place[slots, games], board.depth[slots, games]
    _put(board, slots, games, FLIPPER, _beside(board, games, place, 1), depth, 1)
    free = board.kind[:, games] == 0
    has_room = free.any(0)
    games, slots = games[has_room], free.argmax(0)[has_room]
    _put(board, slots, games, FLIPPER, _beside(board, games, place[has_room], -1), depth[has_room], -1)


def _put(
    board: Board, slots: Array, games: Array, kind: Array | int, place: Array, depth: Array | int, way: Array | int
) -> None:
    board.kind[slots, games] = kind
    board.place[slots, games] = place
    board.depth[slots, games] = depth
    board.way[slots, games] = way
    board.rise[slots, games] = RISE[kind, board.stage[games]]
    board.restless[slots, games] = RESTLESS[kind]


def _beside(board: Board, games: Array, place: Array, by: int) -> Array:
    """The lanes next to these; that at a wall is its own neighbour."""
    beside: Array = np.where(board.is_open[games], np.clip(place + by, 0, NUM_LANES - 1), (place + by) % NUM_LANES)
    return beside


def _change_lanes(board: Board, random: Bytes) -> None:
    """With the chance of each; on the rim towards the player, a fuseball anywhere, at a wall back."""
    is_leaving = (random < board.restless).view(np.int8)
    way, one = board.way, np.int8(1)
    # x += (y - x) * where is a masked assignment in vector instructions.
    way += (-np.sign(board.relative()) - way) * (board.depth == 0).view(np.int8)
    way += ((random & 1).view(np.int8) * np.int8(2) - one - way) * (board.kind == FUSEBALL).view(np.int8)
    step = way * is_leaving
    board.place += step
    if board.is_open.any():
        is_outside = (((board.place & np.int8(~15)) != 0) & board.is_open).view(np.int8)
        board.place -= step * is_outside
        way *= one - np.int8(2) * is_outside
    board.place &= np.int8(15)


def _arrive(board: Board) -> None:
    """At the rim they stay; at the bottom spikers leave."""
    at_rim = np.flatnonzero(board.depth < 0)
    if len(at_rim):
        board.depth.reshape(-1)[at_rim] = 0
        board.rise.reshape(-1)[at_rim] = 0
        board.restless.reshape(-1)[at_rim] = RIM_RESTLESS[board.kind.reshape(-1)[at_rim]]
    at_bottom = np.flatnonzero(board.depth > DEEP)
    if len(at_bottom):
        board.free(*np.divmod(at_bottom, board.num_games))


def _spike(board: Board, random: Bytes) -> None:
    """Spikers that climb grow their spikes cell by cell, until they turn round."""
    is_climbing = (board.kind == SPIKER) & (board.rise < 0)
    has_changed = ((board.depth - board.rise) ^ board.depth) >> 8 != 0
    growing = np.flatnonzero(is_climbing & has_changed)
    if len(growing):
        lane = board.place.reshape(-1)[growing].astype(np.intp)
        cell = (board.depth.reshape(-1)[growing] >> 8).astype(np.uint16)
        from_cell = np.uint16(0xFFFF) << cell
        np.bitwise_or.at(board.spikes.reshape(-1), lane * board.num_games + growing % board.num_games, from_cell)
    turning = np.flatnonzero(is_climbing & ((board.depth < TURN_DEPTH) | (random >= EARLY_TURN)))
    if len(turning):
        board.rise.reshape(-1)[turning] *= -1


def _appear(board: Board, random: Bytes) -> None:
    """At the bottom, with the chance of the level, while there is a quota and a free slot."""
    games = np.flatnonzero((random[0] < SPAWN[board.stage]) & (board.quota > 0))
    free = board.kind[:, games] == 0
    has_room = free.any(0)
    games, slots = games[has_room], free.argmax(0)[has_room]
    kind = MIX[board.stage[games], random[2, games]]
    lane = random[1, games].view(np.int8) & np.int8(15)
    way = (random[1, games] >> 4 & 1).astype(np.int8) * 2 - 1
    _put(board, slots, games, kind, lane, DEEP, way)
    board.quota[games] -= 1
