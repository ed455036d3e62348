"""What drones see: of themselves, their targets and the nearest other drone."""

from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from rlmods.envs.drone_dynamics import Array, Attitude
from rlmods.envs.drone_tasks import WORLD

Layout: TypeAlias = Literal["full", "lite"]

SIZES: dict[Layout, int] = {"full": 42, "lite": 20}
MAX_STAGES = 5  # that the lite layout tells apart

SPEED = 10.0  # m/s, the unit of velocities
RATE = 10.0  # rad/s, the unit of rates
NEAR = 4.0  # m, beyond which a clipped offset is ±1


class Seen(NamedTuple):
    """What both layouts are made of."""

    position: Array  # [3, n] m
    velocity: Array  # [3, n] m/s
    offset: Array  # [3, n] m, from the drone to its target
    nearest: Array  # [3, n] m, from the drone to the nearest other one; zeros where it is alone
    stage: Array  # [n], how many stages are done


class Felt(NamedTuple):
    """What the full layout has besides."""

    attitude: Attitude
    rewards: Array  # [3, n], for proximity, for the target, and in all, of the step that led here
    near_by: Array  # [3, n] m, to the target in the body's frame; for pick-and-place to the box
    beyond: Array  # [3, n] m, to the last target in the body's frame; for pick-and-place to the drop
    share_done: Array  # [n], of the stages


def lite(seen: Seen) -> Array:
    """`[n, 20]`: position 3, velocity 3, the target's offset clipped 3 and scaled 3, the nearest drone's 3, stage 5."""
    rows = np.empty((SIZES["lite"], len(seen.stage)), np.float32)
    np.divide(seen.position, WORLD, out=rows[0:3])
    np.multiply(seen.velocity, 1.0 / SPEED, out=rows[3:6])
    _offsets(seen, rows[6:12])
    _clipped(seen.nearest, rows[12:15])
    np.equal(seen.stage, np.arange(MAX_STAGES)[:, None], out=rows[15:20])
    return np.ascontiguousarray(rows.T)


def full(seen: Seen, felt: Felt) -> Array:
    """`[n, 42]`.

    Velocity in the body's frame 3, clipped velocity 3, rates 3, up 3, quaternion 4, rotors 4, position 3, the target's
    offset clipped 3 and scaled 3, last rewards 3, the nearest drone's clipped offset 3, and of the task 7: box and drop
    in the body's frame 6, share of the stages that are done.
    """
    attitude = felt.attitude
    rows = np.empty((SIZES["full"], len(seen.stage)), np.float32)
    np.multiply(attitude.body_velocity, 1.0 / SPEED, out=rows[0:3])
    np.clip(seen.velocity * (1.0 / SPEED), -1.0, 1.0, out=rows[3:6])
    np.multiply(attitude.rates, 1.0 / RATE, out=rows[6:9])
    rows[9:12], rows[12:16], rows[16:20] = attitude.up, attitude.quaternion, attitude.rotors
    np.divide(seen.position, WORLD, out=rows[20:23])
    _offsets(seen, rows[23:29])
    rows[29:32] = felt.rewards
    _clipped(seen.nearest, rows[32:35])
    np.multiply(felt.near_by, 1.0 / NEAR, out=rows[35:38])
    np.multiply(felt.beyond, 1.0 / NEAR, out=rows[38:41])
    rows[41] = felt.share_done
    return np.ascontiguousarray(rows.T)


def _offsets(seen: Seen, out: Array) -> None:
    """The target's offset, clipped to see the last metres well, and scaled to see it from everywhere."""
    _clipped(seen.offset, out[:3])
    np.multiply(seen.offset, 0.5 / WORLD, out=out[3:])


def _clipped(offset: Array, out: Array) -> None:
    np.multiply(offset, 1.0 / NEAR, out=out)
    np.clip(out, -1.0, 1.0, out=out)
