"""A pilot that knows the state: what a task can be solved with, to compare policies with."""

import numpy as np

from rlmods.envs.drone_dynamics import ALL, GRAVITY, Array, PointMass, Quadrotor, cross, length
from rlmods.envs.drone_swarm import DroneSwarm

STIFFNESS = 4.0  # 1/s²
FRICTION = 3.5  # 1/s
REACH = 6.0  # m/s², the largest wanted acceleration of a quadrotor


def fly(swarm: DroneSwarm) -> Array:
    """Actions `[N, A]` towards the present targets: a spring and a damper, at level 1 with a cascade below them.

    The quadrotor's wanted acceleration, with the weight, says where its upward axis is to point; the angle to there
    says at what rate it is to turn, and the error of the rate how the rotors are to differ. Yaw is only damped.
    """
    dynamics = swarm.dynamics
    wanted: Array = STIFFNESS * (swarm.target - dynamics.position) - FRICTION * dynamics.velocity
    if isinstance(dynamics, Quadrotor):
        return _rotors(dynamics, wanted)
    accelerations: Array = wanted * (1.0 / PointMass.MAX_ACCELERATION)
    np.clip(accelerations, -1.0, 1.0, out=accelerations)
    return accelerations.T


def _rotors(quadrotor: Quadrotor, wanted: Array) -> Array:
    wanted = wanted * np.minimum(1.0, REACH / (length(wanted) + 1e-6))
    wanted[2] += GRAVITY
    attitude = quadrotor.attitude(ALL)
    lift, tilt, yaw = quadrotor.body[:3]
    direction = quadrotor.to_body(wanted / length(wanted), ALL)
    upward = np.zeros_like(direction)
    upward[2] = 1.0
    turning = 4.0 * cross(upward, direction) - attitude.rates  # rad/s, what is missing
    roll, pitch = 12.0 * turning[:2] / tilt
    twist = np.clip(-2.0 * attitude.rates[2] / yaw, -0.2, 0.2)
    level = np.maximum((wanted * attitude.up).sum(0), 0.0) / lift
    # Front left, rear left, rear right, front right; see `Quadrotor`.
    signs = np.array([[1, -1, 1], [1, 1, -1], [-1, 1, 1], [-1, -1, -1]], np.float32)
    differences = signs @ np.stack([roll, pitch, twist])
    squares = 0.25 * (level + np.clip(differences, -0.6, 0.6))
    rotors: Array = 2.0 * np.sqrt(np.clip(squares, 0.0, 1.0)) - 1.0
    return rotors.T
