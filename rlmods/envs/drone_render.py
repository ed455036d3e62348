"""A picture of a swarm: from above and from the side."""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rlmods.envs.drone_dynamics import Array

PANEL = 360  # pixels, the side of each of the two
BACKGROUND, FRAME, TEXT, ALARM = (250, 250, 250), (190, 190, 190), (70, 70, 70), (220, 30, 30)
MARGIN = 1.5  # how much more than the arena is seen

Image = npt.NDArray[np.uint8]


class Scene(NamedTuple):
    """What is drawn of a swarm of A drones."""

    caption: str
    arena: Sequence[float]  # m, half of its sides
    position: Array  # [3, A] m
    velocity: Array  # [3, A] m/s
    targets: Array  # [S, 3, A] m
    stage: npt.NDArray[np.intp]  # [A], how many stages are done
    radius: Array  # [A] m, within which the present target is reached
    has_collided: npt.NDArray[np.bool_]  # [A]
    cargo: Array | None  # [3, A] m, where each drone's box is; None where there are no boxes


def draw_swarm(scene: Scene) -> Image:
    """An RGB picture `[360, 720, 3]`: x to the right; y upwards in the left half, z upwards in the right one.

    A drone is a dot with a tail against its velocity, 0.2 s long, and a red ring once it has collided. A line goes to
    its present target, a circle of the true radius; later targets are crosses, a box is a square, the arena a frame.
    """
    panels = [_panel(scene, axes, title) for axes, title in (((0, 1), "from above"), ((0, 2), "from the side"))]
    image = np.concatenate(panels, axis=1)
    _write(image, scene.caption, (8, PANEL - 8))
    done = " ".join(str(stage) for stage in scene.stage.tolist())
    _write(image, f"stages done: {done}", (PANEL + 8, PANEL - 8))
    return image


def _panel(scene: Scene, axes: tuple[int, int], title: str) -> Image:
    import cv2  # late: without libGL it does not load, and training must not need it

    image = np.full((PANEL, PANEL, 3), BACKGROUND, np.uint8)
    half = PANEL / 2
    scale = half / (MARGIN * max(scene.arena))
    plane = list(axes)

    def pixels(vectors: Any) -> list[list[int]]:
        """Of places `[3, n]` m; those outside are seen on the edge."""
        flat = np.asarray(vectors)[plane] * np.array([[scale], [-scale]]) + half
        places: list[list[int]] = np.clip(flat, 0, PANEL - 1).round().astype(int).T.tolist()
        return places

    corner = np.array(scene.arena)[:, None]
    first, second = pixels(np.concatenate([-corner, corner], axis=1))
    cv2.rectangle(image, first, second, FRAME, 1)
    here, tail = pixels(scene.position), pixels(scene.position - 0.2 * scene.velocity)
    places = [pixels(targets) for targets in scene.targets]
    cargo = None if scene.cargo is None else pixels(scene.cargo)
    for i, stage in enumerate(np.minimum(scene.stage, len(places) - 1).tolist()):
        colour = _colour(i, len(here))
        for later in places[stage + 1 :]:
            cv2.drawMarker(image, later[i], colour, cv2.MARKER_TILTED_CROSS, 7, 1)
        cv2.line(image, here[i], places[stage][i], _pale(colour), 1, cv2.LINE_AA)
        cv2.circle(image, places[stage][i], max(3, round(scale * float(scene.radius[i]))), colour, 1, cv2.LINE_AA)
        cv2.line(image, tail[i], here[i], colour, 2, cv2.LINE_AA)
        cv2.circle(image, here[i], 5, colour, -1, cv2.LINE_AA)
        if cargo is not None:
            x, y = cargo[i]
            cv2.rectangle(image, (x - 4, y - 4), (x + 4, y + 4), colour, 2)
        if scene.has_collided[i]:
            cv2.circle(image, here[i], 9, ALARM, 1, cv2.LINE_AA)
    image[:, -1] = FRAME
    _write(image, title, (8, 18))
    return image


def _write(image: Image, text: str, place: tuple[int, int]) -> None:
    import cv2  # late, as above

    cv2.putText(image, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, TEXT, 1, cv2.LINE_AA)


def _colour(number: int, of: int) -> tuple[int, int, int]:
    red, green, blue = (round(255 * share) for share in colorsys.hsv_to_rgb(number / of, 0.85, 0.75))
    return red, green, blue


def _pale(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    red, green, blue = ((part + 2 * 250) // 3 for part in colour)
    return red, green, blue
