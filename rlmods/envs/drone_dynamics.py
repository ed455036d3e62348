"""How drones fly: a point mass, or a quadrotor with four rotors. N of them at once, in float32.

Arrays are `[k, N]`, a row for each coordinate: a coordinate of all drones is then contiguous.
"""

from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from rlmods.envs.episode_streams import Indices

Array: TypeAlias = npt.NDArray[np.float32]

GRAVITY = 9.81  # m/s²
MAX_SPEED = 50.0  # m/s, of each coordinate
MAX_RATE = 50.0  # rad/s, of each coordinate
ALL = slice(None)


class Attitude(NamedTuple):
    """What a drone feels beside its place and velocity."""

    body_velocity: Array  # [3, n] m/s
    rates: Array  # [3, n] rad/s, in the body's frame
    up: Array  # [3, n], the body's upward axis in the world
    quaternion: Array  # [4, n], body to world, real part first
    rotors: Array  # [4, n], share of the greatest speed


class Dynamics(Protocol):
    """N drones in free flight."""

    action_size: int
    draws: int  # random numbers that an episode needs
    state: Array  # [S, N], of which the first three rows are the position, the next three the velocity
    body: Array  # [B, N], what an episode's drone is made of

    @property
    def position(self) -> Array:
        """`[3, N]` m, a view."""
        ...

    @property
    def velocity(self) -> Array:
        """`[3, N]` m/s, a view."""
        ...

    def begin(self, drones: Indices, position: Array, uniforms: Array) -> None:
        """Put n drones at rest at positions `[3, n]`, with bodies made of numbers in [0, 1), `[draws, n]`."""
        ...

    def step(self, action: Array) -> None:
        """Fly for one step with actions `[action_size, N]` in [−1, 1]."""
        ...

    def attitude(self, drones: Indices) -> Attitude:
        """Of n drones."""
        ...

    def to_body(self, vectors: Array, drones: Indices) -> Array:
        """Vectors `[3, n]` of the world in the frames of n drones."""
        ...


class PointMass:
    """Level 0: three accelerations and linear drag; no weight, no attitude.

    v̇ = 10 m/s² · g·u − c·v with c = 0.5/s, integrated exactly over the step; g and c are 1 and c times a number that is
    uniform within the randomisation.

    Args:
        num_drones: N.
        dt: length of a step, s.
        randomization: largest relative deviation of a body from the nominal one.
    """

    MAX_ACCELERATION = 10.0
    DRAG = 0.5
    action_size = 3
    draws = 2

    def __init__(self, num_drones: int, dt: float, randomization: float) -> None:
        self.dt = dt
        self.randomization = randomization
        self.state = np.zeros((6, num_drones), np.float32)
        self.body = np.ones((4, num_drones), np.float32)  # acceleration, and three coefficients of the exact step

    @property
    def position(self) -> Array:
        """`[3, N]` m, a view."""
        return self.state[:3]

    @property
    def velocity(self) -> Array:
        """`[3, N]` m/s, a view."""
        return self.state[3:]

    def begin(self, drones: Indices, position: Array, uniforms: Array) -> None:
        """Put n drones at rest at positions `[3, n]`, with bodies made of numbers in [0, 1), `[2, n]`."""
        acceleration, drag = _deviations(uniforms, self.randomization)
        drag = self.DRAG * drag
        decay = np.exp(-drag * self.dt)
        gain = (1.0 - decay) / drag
        self.body[:, drones] = np.stack([self.MAX_ACCELERATION * acceleration, decay, gain, (self.dt - gain) / drag])
        self.state[:3, drones] = position
        self.state[3:, drones] = 0.0

    def step(self, action: Array) -> None:
        """Fly for one step with accelerations `[3, N]` in [−1, 1]."""
        greatest, decay, gain, second_gain = self.body
        acceleration = greatest * action
        self.state[:3] += gain * self.velocity + second_gain * acceleration
        self.state[3:] *= decay
        self.state[3:] += gain * acceleration

    def attitude(self, drones: Indices) -> Attitude:
        """Upright, without rotors: the body's frame is the world's."""
        velocity = self.velocity[:, drones]
        zeros, up, quaternion = (np.zeros((k, velocity.shape[1]), np.float32) for k in (4, 3, 4))
        up[2] = quaternion[0] = 1.0
        return Attitude(velocity, zeros[:3], up, quaternion, zeros)

    def to_body(self, vectors: Array, drones: Indices) -> Array:
        """The same."""
        return vectors


class Quadrotor:
    """Level 1: a rigid body with four rotors in a cross, integrated by Runge and Kutta's fourth order.

    An action is the four rotors' wanted speed, −1 at rest and 1 the greatest; the rotors follow with a lag of 0.1 s.
    Thrust goes with the square of the speed and is the weight where all actions are 0. There are linear drag, damping
    of the rotation, the gyroscopic torques of body and rotors, and the torque that speeds the rotors up. Velocities and
    rates are clamped to ±50 m/s and rad/s in each coordinate after a step.

    The arm is uniform in [0.1, 0.4] m where there is randomisation, else 0.25 m; mass, inertia, thrust, drag and lag
    deviate by up to `randomization`, gravity by a tenth of it.

    Rows of the state: position 3, velocity 3, quaternion 4, rates 3, rotors 4. Rotors stand front left, rear left, rear
    right and front right; the first and the third turn against the other two.

    Args:
        num_drones: N.
        dt: length of a step, s.
        randomization: largest relative deviation of a body from the nominal one.
    """

    ARM = 0.25  # m
    ARMS = (0.1, 0.4)
    INERTIA = 0.4  # of roll and pitch, in m·ℓ²; that of yaw is twice as large
    YAW_ARM = 0.02  # m, the torque of a rotor over its thrust
    DRAG = 0.3  # 1/s
    DAMPING = 2.0  # 1/s
    LAG = 0.1  # s
    SPIN = 0.3  # angular momentum of a rotor at full speed, in m·ℓ² per s
    action_size = 4
    draws = 7

    def __init__(self, num_drones: int, dt: float, randomization: float) -> None:
        self.dt = dt
        self.randomization = randomization
        self.state = np.zeros((17, num_drones), np.float32)
        self.body = np.ones((7, num_drones), np.float32)

    @property
    def position(self) -> Array:
        """`[3, N]` m, a view."""
        return self.state[:3]

    @property
    def velocity(self) -> Array:
        """`[3, N]` m/s, a view."""
        return self.state[3:6]

    def begin(self, drones: Indices, position: Array, uniforms: Array) -> None:
        """Put n drones upright and at rest at positions `[3, n]`, their rotors carrying the nominal weight."""
        mass, inertia, thrust, drag, lag = _deviations(uniforms[:5], self.randomization)
        gravity = GRAVITY * _deviations(uniforms[5], 0.1 * self.randomization)
        shortest, longest = self.ARMS
        arm = shortest + (longest - shortest) * uniforms[6] if self.randomization else np.full_like(mass, self.ARM)
        lift = GRAVITY * thrust / mass  # m/s² of a rotor at full speed
        tilt = GRAVITY * thrust / (2.0**0.5 * self.INERTIA * inertia * arm)  # rad/s²
        yaw = GRAVITY * thrust * self.YAW_ARM / (2.0 * self.INERTIA * inertia * arm**2)
        spin = self.SPIN / (self.INERTIA * inertia)
        self.body[:, drones] = np.stack([lift, tilt, yaw, self.DRAG * drag / mass, self.LAG * lag, gravity, spin])
        self.state[:, drones] = 0.0
        self.state[:3, drones] = position
        self.state[6, drones] = 1.0
        self.state[13:, drones] = 0.5

    def step(self, action: Array) -> None:
        """Fly for one step with the rotors' wanted speeds `[4, N]` in [−1, 1]."""
        wanted, half = 0.5 * (action + 1.0), 0.5 * self.dt
        first = self.derivative(self.state, wanted)
        second = self.derivative(self.state + half * first, wanted)
        third = self.derivative(self.state + half * second, wanted)
        fourth = self.derivative(self.state + self.dt * third, wanted)
        second += third
        second *= 2.0
        second += first
        second += fourth
        second *= self.dt / 6.0
        self.state += second
        quaternion = self.state[6:10]
        quaternion /= np.sqrt((quaternion * quaternion).sum(0))
        np.clip(self.state[3:6], -MAX_SPEED, MAX_SPEED, out=self.state[3:6])
        np.clip(self.state[10:13], -MAX_RATE, MAX_RATE, out=self.state[10:13])

    def derivative(self, state: Array, wanted: Array) -> Array:
        """Of states `[17, N]` by time, with wanted rotor speeds `[4, N]` as shares of the greatest."""
        lift, tilt, yaw, drag, lag, gravity, spin = self.body
        w, x, y, z = state[6:10]
        p, q, r = state[10:13]
        out = np.empty_like(state)
        out[:3] = state[3:6]
        squares = state[13:] * state[13:]
        left, right = squares[0] + squares[1], squares[2] + squares[3]
        front, first_pair = squares[0] + squares[3], squares[0] + squares[2]
        total = left + right
        np.multiply(lift * total, _up(w, x, y, z), out=out[3:6])
        out[5] -= gravity
        out[3:6] -= drag * state[3:6]
        # q̇ = ½ q ⊗ (0, ω)
        out[6] = -0.5 * (x * p + y * q + z * r)
        out[7] = 0.5 * (w * p + y * r - z * q)
        out[8] = 0.5 * (w * q + z * p - x * r)
        out[9] = 0.5 * (w * r + x * q - y * p)
        out[13:] = (wanted - state[13:]) / lag
        # A rotor's drag turns the body against it: the first pair, which yaws to the left, turns to the right.
        turning = spin * (state[14] - state[13] + state[16] - state[15])
        speeding = out[14] - out[13] + out[16] - out[15]
        # The inertias are 1, 1 and 2: Euler's equations have ±(2 − 1)·qr and pr, and nothing about the third axis.
        out[10] = tilt * (left - right) - q * (r + turning) - self.DAMPING * p
        out[11] = tilt * (total - front - front) + p * (r + turning) - self.DAMPING * q
        out[12] = yaw * (first_pair + first_pair - total) - 0.5 * spin * speeding - self.DAMPING * r
        return out

    def attitude(self, drones: Indices) -> Attitude:
        """Of n drones."""
        quaternion = self.state[6:10, drones]
        return Attitude(
            self.to_body(self.velocity[:, drones], drones),
            self.state[10:13, drones],
            _up(*quaternion),
            quaternion,
            self.state[13:, drones],
        )

    def to_body(self, vectors: Array, drones: Indices) -> Array:
        """Vectors `[3, n]` of the world, turned back by the quaternions."""
        w, *imaginary = self.state[6:10, drones]
        # v + 2 w (u × v) + 2 u × (u × v), with u negated for the way back
        axis = -np.stack(imaginary)
        twice = 2.0 * cross(axis, vectors)
        turned: Array = vectors + w * twice + cross(axis, twice)
        return turned


def cross(first: Array, second: Array) -> Array:
    """Cross products `[3, n]` of vectors `[3, n]`; numpy's own wants the coordinates last and takes longer."""
    (a, b, c), (x, y, z) = first, second
    return np.stack([b * z - c * y, c * x - a * z, a * y - b * x])


def length(vectors: Array) -> Array:
    """`[n]` of `[3, n]`."""
    x, y, z = vectors
    root: Array = np.sqrt(x * x + y * y + z * z)
    return root


def _up(w: Array, x: Array, y: Array, z: Array) -> Array:
    """The third column of the rotation matrix, `[3, n]`."""
    return np.stack([2.0 * (x * z + w * y), 2.0 * (y * z - w * x), 1.0 - 2.0 * (x * x + y * y)])


def _deviations(uniforms: Array, largest: float) -> Array:
    """Factors within 1 ± largest."""
    factors: Array = 1.0 + largest * (2.0 * uniforms - 1.0)
    return factors
