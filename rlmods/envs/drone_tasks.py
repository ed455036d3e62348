"""What drones are asked to do: stages with a target each, and the potential whose differences are the reward."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from rlmods.envs.drone_dynamics import MAX_RATE, MAX_SPEED, Array, length

Task: TypeAlias = Literal["hover", "waypoint", "pick_and_place"]

WORLD = np.array([[30.0], [30.0], [10.0]], np.float32)  # m, half of the sides
ABOVE = 1.0  # m, how far above box and drop the drone hovers before it goes down


class Stages(NamedTuple):
    """The stages of a task, S of them; a drone is done with one where it is near and slow enough.

    A task with `hold_steps` has one stage that lasts: its drone is to be near and slow for that many steps on end, the
    last of the episode among them.
    """

    radius: Array  # [S] m
    speed: Array  # [S] m/s, infinite where a target is flown through
    bonus: Array  # [S], the reward for being done
    hold_steps: int
    draws: int  # random numbers of an episode

    @property
    def size(self) -> int:
        """S."""
        return len(self.radius)


def make_stages(task: Task, num_waypoints: int) -> Stages:
    """The stages of a task at its full difficulty."""
    if task == "hover":
        return Stages(_row(0.4), _row(0.4), _row(0.0), 20, 3)
    if task == "waypoint":
        each = np.ones(num_waypoints, np.float32)
        return Stages(0.5 * each, np.inf * each, each, 0, 3 * num_waypoints)
    # Above the box, gripping it, above the drop, letting go.
    return Stages(_row(0.4, 0.2, 0.4, 0.2), _row(0.4, 0.4, 0.4, 0.4), _row(0.0, 1.0, 0.25, 1.0), 0, 4)


def draw_targets(task: Task, arena: Array, uniforms: Array) -> Array:
    """Targets of n drones, `[S, 3, n]`, uniform in a box around the origin.

    Args:
        task: waypoints and the place to hover lie anywhere, a box and its drop on the floor of the arena.
        arena: half of its sides, `[3, 1]` m.
        uniforms: `[draws, n]` in [0, 1).
    """
    places = 2.0 * uniforms - 1.0
    if task != "pick_and_place":
        anywhere: Array = places.reshape(-1, 3, places.shape[1]) * arena
        return anywhere
    on_floor = np.concatenate([places.reshape(2, 2, -1), np.full((2, 1, places.shape[1]), -1.0, np.float32)], axis=1)
    box_and_drop = on_floor * arena
    lifted = box_and_drop + np.array([[0.0], [0.0], [ABOVE]], np.float32)
    return np.stack([lifted[0], box_and_drop[0], lifted[1], box_and_drop[1]])


class RewardWeights(NamedTuple):
    """Of the terms of the potential Φ and of what is added to its differences.

    With d the distance to the target, v the velocity, e = exp(−d/0.63R) where R is the reward radius:

    Φ = distance·e + speed·e/(1 + |v|) + hover·[near and slow] + approach·v·(direction to the target)/50
    − spin·|ω|/50 − proximity·[another drone within 1 m]

    The terms of speed and hover are those of stages that ask to be slow.
    """

    distance: float = 1.13
    speed: float = 0.15
    hover: float = 0.75
    approach: float = 2.2
    spin: float = 2.0
    proximity: float = 1.0
    reach: float = 1.0  # of the stages' bonuses
    out_of_bounds: float = 1.0  # subtracted once


class Situation(NamedTuple):
    """Where n drones are in relation to their targets."""

    offset: Array  # [3, n] m, from the drone to its target
    distance: Array  # [n] m
    pace: Array  # [n] m/s, |v|
    is_near: npt.NDArray[np.bool_]  # [n]
    is_slow: npt.NDArray[np.bool_]  # [n]
    asks_to_be_slow: npt.NDArray[np.bool_]  # [n]


def is_outside(position: Array) -> npt.NDArray[np.bool_]:
    """Whether drones at `[3, n]` m have left the world, `[n]`."""
    x, y, z = np.abs(position) > WORLD
    outside: npt.NDArray[np.bool_] = x | y | z
    return outside


def situation_of(
    stages: Stages, stage: npt.NDArray[np.intp], target: Array, position: Array, velocity: Array, scale: float
) -> Situation:
    """The windows of the stages are `scale` times as wide as at full difficulty."""
    offset = target - position
    distance, pace = length(offset), length(velocity)
    limit = stages.speed[stage]
    return Situation(
        offset,
        distance,
        pace,
        distance < scale * stages.radius[stage],
        pace < scale * limit,
        limit < np.inf,
    )


def potential(
    weights: RewardWeights, situation: Situation, velocity: Array, rates: Array | None, nearest: Array, radius: float
) -> Array:
    """Φ of n drones, `[n]`.

    Args:
        weights: of its terms.
        situation: of the drones.
        velocity: `[3, n]` m/s.
        rates: `[3, n]` rad/s, None where drones do not turn.
        nearest: `[n]` m, the distance to the nearest other drone.
        radius: R, m.
    """
    closeness = np.exp(situation.distance * (-1.0 / (0.63 * radius)))
    towards = (situation.offset * velocity).sum(0) / (situation.distance + 1e-6)
    value = weights.distance * closeness + (weights.approach / MAX_SPEED) * towards
    value -= weights.proximity * (nearest < 1.0)
    if situation.asks_to_be_slow.any():
        slow_terms = weights.speed * closeness / (1.0 + situation.pace)
        slow_terms += weights.hover * (situation.is_near & situation.is_slow)
        value += situation.asks_to_be_slow * slow_terms
    if rates is not None:
        value -= (weights.spin / MAX_RATE) * length(rates)
    potential_of_all: Array = value
    return potential_of_all


def _row(*numbers: float) -> Array:
    return np.array(numbers, np.float32)
