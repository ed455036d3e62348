"""Targets, windows and rewards by hand; what a pilot gets who knows the state, and what chance gets."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.envs.drone_neighbours import nearest_others
from rlmods.envs.drone_pilot import fly
from rlmods.envs.drone_swarm import DroneSwarm
from rlmods.envs.drone_tasks import RewardWeights, draw_targets, make_stages, potential, situation_of

ARENA = np.array([[6.0], [6.0], [3.0]], np.float32)


def column(*numbers: float) -> npt.NDArray[np.float32]:
    return np.array([[number] for number in numbers], np.float32)


def value(
    task: Any, offset: tuple[float, ...], velocity: tuple[float, ...], *, nearest: float = 9.0, **weights: float
) -> float:
    """Φ of one drone with R = 1/0.63, so that e = exp(−d)."""
    where, stages = column(*velocity), make_stages(task, 3)
    found = situation_of(stages, np.zeros(1, np.intp), column(*offset), column(0, 0, 0), where, 1.0)
    terms = RewardWeights(**weights)
    return float(potential(terms, found, where, None, np.array([nearest], np.float32), 1 / 0.63)[0])


# The potential


def test_golden_potential_of_a_waypoint() -> None:
    """d = 2, 3 m/s towards it and 4 m/s across: 1.13 e⁻² + 2.2·3/50."""
    assert value("waypoint", (2, 0, 0), (3, 4, 0)) == pytest.approx(1.13 * math.exp(-2) + 2.2 * 3 / 50, rel=1e-5)


def test_golden_potential_of_hovering() -> None:
    """d = 0.3 m and 0.25 m/s across: near and slow. Half a metre away it is neither near nor paid for it."""
    near = 1.13 * math.exp(-0.3) + 0.15 * math.exp(-0.3) / 1.25 + 0.75
    assert value("hover", (0.3, 0, 0), (0, 0.25, 0)) == pytest.approx(near, rel=1e-5)
    far = 1.13 * math.exp(-0.5) + 0.15 * math.exp(-0.5) / 1.25
    assert value("hover", (0.5, 0, 0), (0, 0.25, 0)) == pytest.approx(far, rel=1e-5)


def test_another_drone_within_a_metre_costs_1() -> None:
    alone = value("waypoint", (2, 0, 0), (0, 0, 0))
    assert value("waypoint", (2, 0, 0), (0, 0, 0), nearest=0.99) == pytest.approx(alone - 1.0)
    assert value("waypoint", (2, 0, 0), (0, 0, 0), nearest=1.01) == alone
    assert value("waypoint", (2, 0, 0), (0, 0, 0), nearest=0.99, proximity=0.0) == alone


def test_turning_costs() -> None:
    stages = make_stages("waypoint", 1)
    found = situation_of(stages, np.zeros(1, np.intp), column(2, 0, 0), column(0, 0, 0), column(0, 0, 0), 1.0)
    nearest = np.array([9.0], np.float32)
    still, turning = (
        potential(RewardWeights(), found, column(0, 0, 0), column(3 * turn, 4 * turn, 0), nearest, 8.0)
        for turn in (0, 1)
    )
    np.testing.assert_allclose(still - turning, 2.0 * 5.0 / 50.0, rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_windows(scale: float) -> None:
    stages, stage = make_stages("pick_and_place", 3), np.array([0, 1, 2, 3])
    at = scale * np.array([0.39, 0.19, 0.39, 0.19], np.float32)
    zeros = np.zeros((3, 4), np.float32)
    for factor, is_inside in ((1.0, True), (1.1, False)):
        offset, velocity = zeros.copy(), zeros.copy()
        offset[0] = factor * at
        velocity[1] = factor * scale * 0.39
        found = situation_of(stages, stage, offset, zeros, velocity, scale)
        assert (found.is_near == is_inside).all()
        assert (found.is_slow == is_inside).all()


def test_waypoints_are_flown_through_at_any_speed() -> None:
    found = situation_of(
        make_stages("waypoint", 2), np.zeros(1, np.intp), column(0, 0, 0), column(0, 0, 0), column(49, 0, 0), 1.0
    )
    assert (bool(found.is_near[0]), bool(found.is_slow[0])) == (True, True)


# Targets


def test_targets_lie_in_the_arena() -> None:
    uniforms = np.random.default_rng(0).random((15, 4000), np.float32)
    targets = draw_targets("waypoint", ARENA, uniforms)
    assert targets.shape == (5, 3, 4000)
    assert (np.abs(targets) <= ARENA).all()
    np.testing.assert_allclose(targets.mean((0, 2)), 0.0, atol=0.1)
    np.testing.assert_allclose(targets.std((0, 2)), ARENA[:, 0] / 3**0.5, rtol=0.02)


def test_a_box_and_its_drop_stand_on_the_floor_and_are_come_upon_from_above() -> None:
    above_box, box, above_drop, drop = draw_targets("pick_and_place", ARENA, np.full((4, 1), 0.75, np.float32))
    assert box[:, 0].tolist() == drop[:, 0].tolist() == [3.0, 3.0, -3.0]
    assert above_box[:, 0].tolist() == above_drop[:, 0].tolist() == [3.0, 3.0, -2.0]
    places = draw_targets("pick_and_place", ARENA, column(0.0, 0.25, 0.5, 1.0))
    assert places[1, :2, 0].tolist() == [-6.0, -3.0]
    assert places[3, :2, 0].tolist() == [0.0, 6.0]


# Neighbours


@settings(max_examples=20, deadline=None)
@given(swarms=st.integers(1, 4), drones=st.integers(2, 6), seed=st.integers(0, 1000))
def test_the_nearest_other_drone_is_that_of_a_loop(swarms: int, drones: int, seed: int) -> None:
    position = np.random.default_rng(seed).normal(size=(3, swarms, drones)).astype(np.float32)
    ways, distances = nearest_others(position)
    for swarm in range(swarms):
        for drone in range(drones):
            others = [position[:, swarm, o] - position[:, swarm, drone] for o in range(drones) if o != drone]
            nearest = min(others, key=lambda way: float(np.linalg.norm(way)))
            np.testing.assert_allclose(ways[:, swarm, drone], nearest)
            assert distances[swarm, drone] == pytest.approx(float(np.linalg.norm(nearest)), rel=1e-5)


def test_a_drone_alone_has_nobody_near() -> None:
    way, distance = nearest_others(np.ones((3, 2, 1), np.float32))
    assert not way.any()
    assert np.isinf(distance).all()


# What can be reached


def first_episodes(env: DroneSwarm, policy: str) -> dict[str, float]:
    """Rates over the first episode of every drone."""
    env.reset(seed=3)
    playing = np.ones(env.num_envs, np.bool_)
    events = {name: np.zeros(env.num_envs) for name in ("is_success", "collision", "out_of_bounds")}
    generator = np.random.default_rng(0)
    while playing.any():
        size = (env.num_envs, env.dynamics.action_size)
        actions = fly(env) if policy == "pilot" else generator.uniform(-1, 1, size)
        _, _, terminated, truncated, infos = env.step(actions)
        ended = playing & (terminated | truncated)
        for name, happened in events.items():
            if ended.any():
                happened[ended] = infos["final_info"][name][ended]
        playing &= ~ended
    return {name: float(happened.mean()) for name, happened in events.items()}


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("task", ["waypoint", "hover", "pick_and_place"])
def test_a_pilot_who_knows_the_state_always_succeeds_and_chance_never(task: Any, level: Any) -> None:
    env = DroneSwarm(64, 300, task=task, level=level)
    rates = first_episodes(env, "pilot")
    assert rates["is_success"] == 1.0
    assert rates["out_of_bounds"] == 0.0
    assert first_episodes(env, "chance")["is_success"] == 0.0


def test_chance_leaves_the_world_at_level_1() -> None:
    assert first_episodes(DroneSwarm(64, 200, level=1), "chance")["out_of_bounds"] > 0.9
