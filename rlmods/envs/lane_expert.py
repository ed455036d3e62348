"""A scripted player of the lane shooter that knows the board."""

from typing import Final

import numpy as np
import numpy.typing as npt

from rlmods.envs.frame_streams import Bytes
from rlmods.envs.lane_board import (
    CELL,
    NUM_LANES,
    NUM_SLOTS,
    PULSAR,
    PULSE_DEPTH,
    PULSE_FRAMES,
    PULSE_PERIOD,
    Array,
    Board,
    Flags,
)
from rlmods.envs.lane_rules import MAX_MOVE, NUM_ACTIONS, encode_action

# Fuseballs first, then flippers, pulsars, tankers, spikers; by kind, 7 for a free slot.
_ORDER: Final = np.array([7, 1, 4, 3, 2, 0], np.int16)
_MOVES: Final = np.arange(-MAX_MOVE, MAX_MOVE + 1, dtype=np.int8)
_NEARBY: Final = np.arange(-MAX_MOVE - 1, MAX_MOVE + 2, dtype=np.int8)
_SHALLOW: Final = 3 * CELL
_DEADLY, _RISKY, _WALL = 1000, 24, 5000  # costs, in lanes


def choose_actions(board: Board, random: Bytes, mistakes: float) -> npt.NDArray[np.int64]:
    """`[N]`: hunt, keep away from what is deadly, and in the tube from spikes.

    Args:
        board: with N games.
        random: `[16, N]`.
        mistakes: probability of a random move and of random fire in a frame, in steps of 2⁻¹⁶.
    """
    relative = board.relative()
    cost = np.where(board.is_zooming, _spike_cost(board), _hunting_cost(board, relative))
    cost += _WALL * _is_walled(board)
    cost = 4 * cost + np.abs(_MOVES)[:, None]  # of the cheapest moves the smallest
    move = _MOVES[cost.argmin(0)]
    is_aligned = ((relative == move) & (board.kind > 0)).any(0)
    near_rim = ((np.abs(relative - move) <= 2) & (board.depth < _SHALLOW) & (board.kind > 0)).any(0)
    fire = is_aligned | near_rim | board.is_zooming
    at_rim = (board.depth < CELL) & (board.kind > 0) & (np.abs(relative) <= MAX_MOVE)
    zap = board.has_zap & (at_rim.sum(0) >= 2) & ~board.is_zooming
    return _mistaken(encode_action(move, fire, zap), random, mistakes)


def _hunting_cost(board: Board, relative: Array) -> Array:
    """`[5, N]` int16, of each move: the way to the target, and what is deadly there or next to it."""
    target = _target(board, relative)
    cost = np.abs(target - _MOVES[:, None]).astype(np.int16)
    soon = board.pulse_phase >= PULSE_PERIOD - PULSE_FRAMES - 2
    pulses = (board.kind == PULSAR) & (board.depth < PULSE_DEPTH) & soon
    at_rim = (board.depth < CELL) & (board.kind > 0)
    is_deadly = at_rim | pulses
    deadly = [(is_deadly & (relative == lane)).any(0) for lane in _NEARBY]
    rim = [(at_rim & (relative == lane)).any(0) for lane in _NEARBY]
    for i in range(len(_MOVES)):
        cost[i] += _DEADLY * deadly[i + 1] + np.int16(_RISKY) * (rim[i].astype(np.int16) + rim[i + 2])
    return cost


def _target(board: Board, relative: Array) -> Array:
    """`[N]` int8, lanes to the enemy that is hunted: by kind, the nearest, the shallowest; 0 where there is none."""
    slots = np.arange(NUM_SLOTS, dtype=np.int16)[:, None]
    distance, cell = np.abs(relative).astype(np.int16), board.depth >> 8
    key = ((_ORDER[board.kind] * NUM_LANES + distance) * NUM_LANES + cell) * 8 + slots
    slot = key.min(0) & 7
    target: Array = relative[slot, np.arange(board.num_games)] * board.kind.any(0).view(np.int8)
    return target


def _spike_cost(board: Board) -> Array:
    """`[5, N]` int16, the height of the spike in the lane of each move."""
    lane = (board.lane + _MOVES[:, None]) & (NUM_LANES - 1)
    height: Array = np.bitwise_count(board.spikes[lane, np.arange(board.num_games)]).astype(np.int16)
    return height


def _is_walled(board: Board) -> Flags:
    """`[5, N]`, whether there is no lane there."""
    lane = board.lane + _MOVES[:, None]
    walled: Flags = board.is_open & ((lane < 0) | (lane >= NUM_LANES))
    return walled


def _mistaken(action: npt.NDArray[np.int64], random: Bytes, mistakes: float) -> npt.NDArray[np.int64]:
    """The actions, or with that probability others that do not zap."""
    if not mistakes:
        return action
    number = random[0].astype(np.int64) << 8 | random[1]
    other = (random[2].astype(np.int64) << 8 | random[3]) * (NUM_ACTIONS // 2) >> 16
    return np.where(number < mistakes * 65536, 2 * other, action)
