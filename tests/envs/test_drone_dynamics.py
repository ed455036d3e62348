"""How drones fly, by hand, by conservation laws, and against the same equations in small steps."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.envs.drone_dynamics import ALL, GRAVITY, Array, Dynamics, PointMass, Quadrotor, cross, length

DT = 0.05


def point_mass(num_drones: int = 1, randomization: float = 0.0, dt: float = DT, seed: int = 0) -> PointMass:
    drone = PointMass(num_drones, dt, randomization)
    begin(drone, seed)
    return drone


def quadrotor(num_drones: int = 1, randomization: float = 0.0, dt: float = DT, seed: int = 0) -> Quadrotor:
    drone = Quadrotor(num_drones, dt, randomization)
    begin(drone, seed)
    return drone


def begin(drones: Dynamics, seed: int) -> None:
    number = drones.state.shape[1]
    uniforms = np.random.default_rng(seed).random((drones.draws, number), np.float32)
    drones.begin(ALL, np.zeros((3, number), np.float32), uniforms)


def column(*numbers: float) -> Array:
    return np.array([[number] for number in numbers], np.float32)


def rotation(quaternion: Array) -> npt.NDArray[np.float64]:
    """Of one drone, `[3, 3]`, from body to world, from the definition q v q*."""
    w, x, y, z = quaternion.astype(float)
    skew = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    rotated: npt.NDArray[np.float64] = np.eye(3) + 2 * w * skew + 2 * skew @ skew
    return rotated


# The point mass


def test_golden_step_of_a_point_mass() -> None:
    """v̇ = 10u − v/2 from v = 2: v' = 20u + (2 − 20u) e^(−1/40), and with u = 1 it goes 0.0988 + 0.0124 m."""
    drone = point_mass()
    drone.state[:] = column(1, 2, 3, 2, 0, 0)
    drone.step(column(1, 0, -1))
    decay = np.exp(-0.025)
    np.testing.assert_allclose(drone.velocity[:, 0], [20 - 18 * decay, 0, -20 * (1 - decay)], rtol=1e-5, atol=1e-6)
    way = 20 * DT - 36 * (1 - decay)
    np.testing.assert_allclose(drone.position[:, 0], [1 + way, 2, 3 - 20 * DT + 40 * (1 - decay)], rtol=1e-5)
    assert way == pytest.approx(0.1111, abs=1e-4)


def test_a_point_mass_that_is_pushed_for_ever_flies_at_20_metres_a_second() -> None:
    drone = point_mass()
    for _ in range(400):
        drone.step(column(0, 1, 0))
    np.testing.assert_allclose(drone.velocity[:, 0], [0, 20, 0], atol=1e-3)


def test_two_half_steps_are_a_whole_one() -> None:
    drone, half = point_mass(64, 0.2), point_mass(64, 0.2, DT / 2)
    action = np.random.default_rng(1).uniform(-1, 1, (3, 64)).astype(np.float32)
    for _ in range(20):
        drone.step(action)
        half.step(action)
        half.step(action)
    np.testing.assert_allclose(drone.state, half.state, rtol=1e-4, atol=1e-4)


def test_the_frame_of_a_point_mass_is_the_worlds() -> None:
    drone = point_mass()
    drone.state[3:] = column(1, 2, 3)
    attitude = drone.attitude(ALL)
    assert [part[:, 0].tolist() for part in attitude] == [[1, 2, 3], [0, 0, 0], [0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(drone.to_body(column(4, 5, 6), ALL), column(4, 5, 6))


# The quadrotor


def test_at_action_0_thrust_is_weight() -> None:
    drone = quadrotor()
    for _ in range(100):
        drone.step(column(0, 0, 0, 0))
    np.testing.assert_allclose(drone.state[:6], 0.0, atol=1e-4)


def test_at_full_thrust_it_has_four_times_its_weight() -> None:
    """Once the rotors are up to speed, at v = 0: v̇ = 4g − g."""
    drone = quadrotor()
    drone.state[13:] = 1.0
    np.testing.assert_allclose(drone.derivative(drone.state, column(1, 1, 1, 1))[5], 3 * GRAVITY, rtol=1e-6)


def test_without_thrust_and_drag_energy_is_kept() -> None:
    """½v² + gz of a thrown body: 60 steps of 0.05 s fall 44 m."""
    drone = quadrotor()
    drone.body[3] = 0.0
    drone.state[3:6] = column(3, -2, 1)
    drone.state[13:] = 0.0
    start = 0.5 * (drone.velocity**2).sum()
    for _ in range(60):
        drone.step(column(-1, -1, -1, -1))
    assert float(drone.position[2, 0]) == pytest.approx(3.0 - 0.5 * GRAVITY * 9.0, rel=1e-4)
    energy = 0.5 * (drone.velocity**2).sum() + GRAVITY * drone.position[2, 0]
    assert float(energy) == pytest.approx(float(start), abs=1e-2)


def test_a_tumbling_body_keeps_its_angular_momentum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without rotors and damping R·Iω is constant, with the inertias 1, 1 and 2."""
    monkeypatch.setattr(Quadrotor, "DAMPING", 0.0)
    drone = quadrotor(dt=0.01)
    drone.state[10:13] = column(1.0, -2.0, 3.0)
    drone.state[13:] = 0.0
    inertia, start = np.array([1.0, 1.0, 2.0]), np.array([1.0, -2.0, 6.0])
    for _ in range(150):
        drone.step(column(-1, -1, -1, -1))
    turned = rotation(drone.state[6:10, 0])
    assert np.abs(turned - np.eye(3)).max() > 0.5
    np.testing.assert_allclose(turned @ (inertia * drone.state[10:13, 0]), start, atol=1e-3)


@pytest.mark.parametrize(
    ("faster", "axis", "sign"),
    [((0, 1), 0, 1), ((2, 3), 0, -1), ((1, 2), 1, 1), ((0, 3), 1, -1), ((0, 2), 2, 1), ((1, 3), 2, -1)],
    ids=["left up", "right up", "nose down", "nose up", "yaw left", "yaw right"],
)
def test_two_faster_rotors_turn_it(faster: tuple[int, int], axis: int, sign: int) -> None:
    """Rotors: front left, rear left, rear right, front right. Turning is right-handed about x forward, y left, z up."""
    drone = quadrotor()
    action = column(0, 0, 0, 0)
    action[list(faster)] = 0.2
    action[[rotor for rotor in range(4) if rotor not in faster]] = -0.2
    drone.step(action)
    rates = drone.state[10:13, 0]
    assert np.sign(rates[axis]) == sign
    np.testing.assert_allclose(np.delete(rates, axis), 0.0, atol=1e-6)


def test_rotors_that_speed_up_turn_the_body_as_their_drag_does() -> None:
    """Both act on the body against the rotors' own turning."""
    drone, dragless = quadrotor(), quadrotor()
    dragless.body[2] = 0.0
    for each in (drone, dragless):
        each.step(column(0.2, -0.2, 0.2, -0.2))
    assert 0.0 < dragless.state[12, 0] < drone.state[12, 0]


def euler(drone: Quadrotor, action: Array, num_steps: int) -> npt.NDArray[np.float64]:
    """One step of the drones as many small ones."""
    state = drone.state.astype(np.float64)
    for _ in range(num_steps):
        state += DT / num_steps * drone.derivative(state, 0.5 * (action + 1.0))  # type: ignore[arg-type]  # in float64
    return state


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_runge_kutta_is_euler_in_small_steps_and_of_high_order(seed: int) -> None:
    """Over a whole step its error is small, over two half ones many times smaller: 16 times, in the limit."""
    whole, half = quadrotor(16, 0.1, seed=seed), quadrotor(16, 0.1, DT / 2, seed)
    generator = np.random.default_rng(seed)
    whole.state[3:6] = generator.normal(0, 3, (3, 16))
    whole.state[10:13] = generator.normal(0, 2, (3, 16))
    quaternion = generator.normal(size=(4, 16))
    whole.state[6:10] = quaternion / np.sqrt((quaternion**2).sum(0))
    half.state[:] = whole.state
    action = generator.uniform(-1, 1, (4, 16)).astype(np.float32)
    coarse, middle = (euler(whole, action, num_steps) for num_steps in (200, 400))
    fine = 2.0 * middle - coarse  # whose error is of second order
    fine[6:10] /= np.sqrt((fine[6:10] ** 2).sum(0))
    whole.step(action)
    half.step(action)
    half.step(action)
    errors = [np.abs(drone.state - fine) / (1.0 + np.abs(fine)) for drone in (whole, half)]
    assert errors[0].max() < 0.02
    assert errors[1].max() < errors[0].max() / 5.0


def test_frames_are_those_of_the_quaternion() -> None:
    drone = quadrotor(5)
    quaternion = np.random.default_rng(0).normal(size=(4, 5))
    drone.state[6:10] = quaternion / np.sqrt((quaternion**2).sum(0))
    vectors = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
    turned, up = drone.to_body(vectors, ALL), drone.attitude(ALL).up
    for i in range(5):
        matrix = rotation(drone.state[6:10, i])
        np.testing.assert_allclose(matrix @ turned[:, i], vectors[:, i], atol=1e-5)
        np.testing.assert_allclose(matrix[:, 2], up[:, i], atol=1e-5)


def test_speeds_and_rates_are_bounded_and_quaternions_stay_of_length_1() -> None:
    drone = quadrotor(32, 0.3)
    generator = np.random.default_rng(0)
    for _ in range(300):
        drone.step(generator.choice(np.array([-1.0, 1.0], np.float32), (4, 32)))
    assert np.isfinite(drone.state).all()
    assert np.abs(drone.state[3:6]).max() <= 50.0
    assert np.abs(drone.state[10:13]).max() <= 50.0
    np.testing.assert_allclose((drone.state[6:10] ** 2).sum(0), 1.0, rtol=1e-5)
    assert drone.state[13:].min() >= 0.0
    assert drone.state[13:].max() <= 1.0


def test_bodies_differ_within_the_randomization_and_not_without() -> None:
    same, different = quadrotor(500), quadrotor(500, 0.1)
    assert np.ptp(same.body, axis=1).max() == 0.0
    lift, _, _, _, lag, gravity, _ = different.body
    assert 0.09 < lag.min() < lag.max() < 0.11
    assert 0.99 * GRAVITY < gravity.min() < gravity.max() < 1.01 * GRAVITY
    assert lift.min() > GRAVITY * 0.9 / 1.1
    acceleration = point_mass(500, 0.1).body[0]
    assert 9.0 <= acceleration.min() < 9.1
    assert 10.9 < acceleration.max() <= 11.0


def test_only_the_drones_that_begin_are_changed() -> None:
    drone = quadrotor(3, 0.1)
    drone.step(column(1, 1, 1, 0.5) + np.zeros((1, 3), np.float32))
    state, body = drone.state.copy(), drone.body.copy()
    drone.begin(np.array([1]), column(1, 2, 3), np.full((7, 1), 0.25, np.float32))
    np.testing.assert_array_equal(drone.state[:, [0, 2]], state[:, [0, 2]])
    np.testing.assert_array_equal(drone.body[:, [0, 2]], body[:, [0, 2]])
    assert drone.position[:, 1].tolist() == [1, 2, 3]


def test_cross_products_and_lengths() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 3, 9)).astype(np.float32)
    np.testing.assert_allclose(cross(first, second), np.cross(first.T, second.T).T, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(length(first), np.linalg.norm(first, axis=0), rtol=1e-6)
