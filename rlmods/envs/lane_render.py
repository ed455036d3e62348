"""A picture of a game: the tube from above, the rim outside and the bottom in the middle, or an open one as a row."""

from typing import Final

import numpy as np
import numpy.typing as npt

from rlmods.envs.lane_board import (
    CELL,
    FLIPPER,
    FUSEBALL,
    NUM_CELLS,
    NUM_LANES,
    PULSAR,
    SPIKER,
    TANKER,
    Array,
    Board,
)

SIDE: Final = 360  # pixels
BACKGROUND, LINES, OWN, TEXT = (12, 12, 24), (50, 60, 150), (250, 220, 60), (220, 220, 220)
SHOT, SPIKE, DEADLY = (255, 255, 255), (60, 200, 60), (250, 250, 250)
COLOURS: Final = {
    FLIPPER: (240, 50, 50),
    SPIKER: (60, 200, 60),
    TANKER: (170, 90, 240),
    PULSAR: (60, 210, 230),
    FUSEBALL: (250, 150, 40),
}
_BEYOND: Final = 3.0  # how many times as far away the bottom is as the rim

Image = npt.NDArray[np.uint8]


def draw_board(board: Board, game: int, score: int) -> Image:
    """An RGB picture `[360, 360, 3]` of one game, with its level, points and lives.

    A flipper is a red cross, a spiker a green ring, a tanker a violet diamond, a pulsar a blue zigzag, white while its
    lane is deadly, a fuseball an orange ball. Shots are white, spikes green lines from the bottom, the player yellow.
    """
    image = np.full((SIDE, SIDE, 3), BACKGROUND, np.uint8)
    one = board.take(np.array([game]))
    is_open = bool(one.is_open[0])
    _draw_tube(image, is_open)
    for lane in range(NUM_LANES):
        _draw_lane(image, lane, is_open, int(one.shots[lane, 0]), int(one.spikes[lane, 0]).bit_count())
    for slot in np.flatnonzero(one.kind[:, 0]).tolist():
        kind, lane, depth = int(one.kind[slot, 0]), int(one.place[slot, 0]), int(one.depth[slot, 0])
        colour = DEADLY if kind == PULSAR and one.is_pulsing[0] else COLOURS[kind]
        _draw_enemy(image, kind, colour, _corners(lane, depth, is_open))
    _draw_player(image, int(one.lane[0]), max(int(one.zoom[0]), 0), is_open)
    _write(image, f"level {int(one.level[0])}{', zoom' if one.is_zooming[0] else ''}", (8, 18))
    _write(image, f"{score} points", (8, SIDE - 8))
    _write(image, f"lives {int(one.lives[0])}{', zap' if one.has_zap[0] else ''}", (SIDE - 100, SIDE - 8))
    return image


def _edge(edge: Array, depth: Array, is_open: bool) -> Array:
    """Where edges of lanes, in lanes, are at depths: `[n, 2]` pixels; edge l is the left one of lane l."""
    far = np.asarray(depth) / (NUM_CELLS * CELL)
    near = (1.0 / (1.0 + (_BEYOND - 1.0) * far) - 1.0 / _BEYOND) / (
        1.0 - 1.0 / _BEYOND
    )  # 1 at the rim, 0 at the bottom
    if is_open:
        width = 0.35 + 0.57 * near
        x, y = (np.asarray(edge) / NUM_LANES - 0.5) * width, -0.3 + 0.66 * near
    else:
        angle, radius = (np.asarray(edge) / NUM_LANES) * 2.0 * np.pi, 0.1 + 0.32 * near
        x, y = radius * np.sin(angle), radius * np.cos(angle)
    return np.stack(np.broadcast_arrays(SIDE * (0.5 + x), SIDE * (0.5 + y)), -1)


def _pixels(places: Array) -> npt.NDArray[np.int32]:
    return places.round().astype(np.int32)


def _corners(lane: int, depth: int, is_open: bool) -> Array:
    """`[4, 2]`, of what an enemy covers of its lane: left and right in front, right and left behind."""
    behind = depth + 1.2 * CELL
    return _edge(lane + np.array([0.1, 0.9, 0.9, 0.1]), np.array([depth, depth, behind, behind]), is_open)


def _draw_tube(image: Image, is_open: bool) -> None:
    import cv2  # late: without libGL it does not load, and training must not need it

    edges = np.arange(NUM_LANES + 1)
    rim, bottom = (_pixels(_edge(edges, np.array(depth), is_open)) for depth in (0, NUM_CELLS * CELL))
    for near, far in zip(rim.tolist(), bottom.tolist(), strict=True):
        cv2.line(image, near, far, LINES, 1, cv2.LINE_AA)
    cv2.polylines(image, [rim, bottom], False, LINES, 1, cv2.LINE_AA)


def _draw_lane(image: Image, lane: int, is_open: bool, shots: int, height: int) -> None:
    import cv2  # late, as above

    if height:
        ends = np.array([NUM_CELLS, NUM_CELLS - height]) * CELL
        cv2.polylines(image, [_pixels(_edge(np.array(lane + 0.5), ends, is_open))], False, SPIKE, 2, cv2.LINE_AA)
    for cell in range(NUM_CELLS):
        if shots >> cell & 1:
            (place,) = _pixels(_edge(np.array([lane + 0.5]), np.array((cell + 0.5) * CELL), is_open)).tolist()
            cv2.circle(image, place, 2, SHOT, -1, cv2.LINE_AA)


def _draw_enemy(image: Image, kind: int, colour: tuple[int, int, int], corners: Array) -> None:
    import cv2  # late, as above

    middles = (corners + np.roll(corners, -1, 0)) / 2  # in front, right, behind, left
    (centre,) = _pixels(corners.mean(0, keepdims=True)).tolist()
    radius = max(2, round(float(np.hypot(*(middles[1] - middles[3]))) / 2.5))
    if kind == FLIPPER:
        cv2.polylines(image, list(_pixels(corners[[[0, 2], [1, 3]]])), False, colour, 2, cv2.LINE_AA)
    elif kind == TANKER:
        cv2.fillPoly(image, [_pixels(middles)], colour, cv2.LINE_AA)
    elif kind == PULSAR:
        share = np.linspace(0.0, 1.0, 5)[:, None]
        zigzag = np.where(np.arange(5)[:, None] % 2, corners[3], corners[0]) + share * (corners[1] - corners[0])
        cv2.polylines(image, [_pixels(zigzag)], False, colour, 2, cv2.LINE_AA)
    else:
        cv2.circle(image, centre, radius, colour, -1 if kind == FUSEBALL else 2, cv2.LINE_AA)


def _draw_player(image: Image, lane: int, depth: int, is_open: bool) -> None:
    import cv2  # late, as above

    edges, above = np.array([0.0, 0.3, 0.5, 0.7, 1.0]), np.array([0.0, -0.6, -0.1, -0.6, 0.0])
    claw = _edge(lane + edges, np.maximum(depth + above * CELL, -0.6 * CELL), is_open)
    cv2.polylines(image, [_pixels(claw)], False, OWN, 2, cv2.LINE_AA)


def _write(image: Image, text: str, place: tuple[int, int]) -> None:
    import cv2  # late, as above

    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, TEXT, 1, cv2.LINE_AA)
