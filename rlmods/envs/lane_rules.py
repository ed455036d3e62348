"""What the player of the lane shooter does in a frame, and what becomes of it."""

import numpy as np

from rlmods.envs.lane_board import (
    CELL,
    MAX_SHOTS,
    NUM_CELLS,
    NUM_LANES,
    POINTS,
    PULSAR,
    PULSE_DEPTH,
    SPIKE_POINTS,
    TANKER,
    ZOOM_SPEED,
    Array,
    Board,
    Flags,
)
from rlmods.envs.lane_enemies import split

MAX_MOVE = 2  # lanes of a frame
NUM_ACTIONS = (2 * MAX_MOVE + 1) * 4


def encode_action(move: Array, fire: Array, zap: Array) -> Array:
    """Lanes in [−2, 2], and two flags, to numbers in [0, 20)."""
    encoded: Array = 4 * (move.astype(np.int64) + MAX_MOVE) + 2 * fire + zap
    return encoded


def move_player(board: Board, move: Array) -> None:
    """By −2 to 2 lanes `[N]` int8, up to the wall where there is one."""
    lane = board.lane + move
    if board.is_open.any():
        lane = np.where(board.is_open, np.clip(lane, 0, NUM_LANES - 1), lane)
    board.lane = lane & np.int8(NUM_LANES - 1)


def shoot(board: Board, fire: Flags) -> Array:
    """Shots fly on by a cell, and where there are less than 8 a new one begins at the player.

    Returns:
        `[16, N]` uint16, the cells that a shot has been in since the last frame.
    """
    before = board.shots.copy()
    board.shots <<= np.uint16(1)
    in_flight = np.bitwise_count(board.shots).sum(0, dtype=np.uint8)
    begins = fire & (in_flight < MAX_SHOTS)
    begun = begins.astype(np.uint16) << _zoom_cell(board)
    board.shots.reshape(-1)[_own_lane(board)] |= begun
    swept: Array = before | board.shots
    return swept


def strike_spikes(board: Board) -> Array:
    """A shot takes a cell of the spike that it meets; the points `[N]`."""
    hits = board.shots & board.spikes
    struck = hits != 0
    board.shots ^= hits
    board.spikes <<= struck.astype(np.uint16)
    points: Array = struck.sum(0, dtype=np.int8) * SPIKE_POINTS
    return points


def strike_enemies(board: Board, swept: Array) -> Array:
    """Enemies in the swept cells are shot, tankers split; the points `[N]`."""
    num_games = board.num_games
    where = np.multiply(board.place, num_games, dtype=np.intp)
    where += np.arange(num_games)
    cell = (board.depth >> 8).view(np.uint16)
    hit = ((swept.reshape(-1).take(where) >> cell) & 1).astype(np.bool_) & (board.kind > 0)
    struck = np.flatnonzero(hit)
    if not len(struck):
        return np.zeros(num_games)
    slots, games = np.divmod(struck, num_games)
    _remove_shots(board, where.reshape(-1)[struck], cell.reshape(-1)[struck])
    kind = board.kind[slots, games]
    is_tanker = kind == TANKER
    board.free(slots[~is_tanker], games[~is_tanker])
    split(board, struck[is_tanker])
    return np.bincount(games, POINTS[kind], num_games)


def _remove_shots(board: Board, where: Array, cell: Array) -> None:
    """Those that have hit in these cells `[n]` of these flat lanes `[n]`: there now, or a cell further."""
    shots = board.shots.reshape(-1)
    there = np.uint16(1) << cell
    spent = np.where(shots[where] & there, there, there << np.uint16(1)).astype(np.uint16)
    np.bitwise_and.at(shots, where, ~spent)


def superzap(board: Board, zap: Flags) -> Array:
    """Once a level all enemies go at once, tankers whole; the points `[N]`."""
    points = np.zeros(board.num_games)
    games = np.flatnonzero(zap & board.has_zap & ~board.is_zooming)
    if len(games):
        points[games] = POINTS[board.kind[:, games]].sum(0)
        board.free(slice(None), games)
        board.has_zap[games] = False
    return points


def is_caught(board: Board) -> Flags:
    """`[N]`, by an enemy on the rim in the player's lane, by a pulse, or in the tube by a spike."""
    is_here = (board.place == board.lane) & (board.kind > 0)
    is_deadly = board.depth == 0
    pulsing = board.is_pulsing
    if pulsing.any():
        is_deadly |= (board.kind == PULSAR) & (board.depth < PULSE_DEPTH) & pulsing
    caught: Flags = (is_here & is_deadly).any(0)
    zooming = np.flatnonzero(board.is_zooming)
    if len(zooming):
        spike = board.spikes[board.lane[zooming], zooming]
        caught[zooming] = (spike >> (board.zoom[zooming] >> 8).astype(np.uint16)) & 1
    return caught


def zoom_on(board: Board) -> Array:
    """Fly on in the tube, and into it where all enemies of a level are gone; the games `[n]` that are through."""
    is_zooming = board.is_zooming
    board.zoom += np.int16(ZOOM_SPEED) * is_zooming
    begins = (board.quota == 0) & ~is_zooming
    begins &= ~board.kind.any(0)
    board.zoom[begins] = 0
    through: Array = np.flatnonzero(board.zoom >= NUM_CELLS * CELL)
    return through


def _own_lane(board: Board) -> Array:
    """`[N]` intp, where the player's lane is in a flat `[16, N]`."""
    here = np.multiply(board.lane, board.num_games, dtype=np.intp)
    here += np.arange(board.num_games)
    return here


def _zoom_cell(board: Board) -> Array:
    """`[N]` uint16, the cell that the player is in."""
    cell: Array = np.maximum(board.zoom, 0).view(np.uint16) >> np.uint16(8)
    return cell
