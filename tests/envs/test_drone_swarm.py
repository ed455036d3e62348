"""The swarm as an environment: rows with an episode each, events, streams, state, the curriculum, pictures."""

import io
import math
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.episodes import EpisodeStatistics
from rlmods.envs.drone_pilot import fly
from rlmods.envs.drone_swarm import DroneSwarm
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs

ENV_ID = "rlmods/DroneSwarm-v0"
EVENTS = ("is_success", "collision", "out_of_bounds")

Array = npt.NDArray[Any]


def still(env: DroneSwarm) -> Array:
    return np.zeros((env.num_envs, env.dynamics.action_size), np.float32)


def random_actions(env: DroneSwarm, num_steps: int, seed: int = 0) -> Array:
    generator = np.random.default_rng(seed)
    return generator.uniform(-1, 1, (num_steps, env.num_envs, env.dynamics.action_size)).astype(np.float32)


def play(env: Any, actions: Array) -> list[tuple[Array, ...]]:
    """Observation, reward, terminated and truncated of each step."""
    return [env.step(action)[:4] for action in actions]


def assert_same(first: list[tuple[Array, ...]], second: list[tuple[Array, ...]], rows: Any = slice(None)) -> None:
    for one, other in zip(first, second, strict=True):
        for array, another in zip(one, other, strict=True):
            np.testing.assert_array_equal(array[rows], another[rows])


def put(env: DroneSwarm, **state: Any) -> None:
    """A state by hand, as far as it is given."""
    env.reset(seed=0)
    saved = env.get_state()
    assert state.keys() < saved.keys()
    env.set_state(saved | {name: np.asarray(value, saved[name].dtype) for name, value in state.items()})


# Gymnasium's conventions


@pytest.mark.parametrize(("level", "observation", "shape"), [(0, "full", 42), (1, "full", 42), (1, "lite", 20)])
def test_spaces_and_dtypes(level: int, observation: str, shape: int) -> None:
    env = gym.make_vec(ENV_ID, num_envs=6, num_agents=3, level=level, observation=observation)
    assert isinstance(env.unwrapped, DroneSwarm)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (shape,)
    assert env.single_action_space.shape == (3 + level,)
    first, infos = env.reset(seed=1)
    assert first in env.observation_space
    assert infos == {}
    seen, reward, terminated, truncated, infos = env.step(env.action_space.sample())
    assert seen in env.observation_space
    assert (reward.shape, reward.dtype) == ((6,), np.float32)
    assert (terminated.dtype, truncated.dtype) == (bool, bool)
    assert infos == {}


def test_actions_outside_of_the_box_are_those_of_its_edge() -> None:
    env, other = DroneSwarm(8), DroneSwarm(8)
    env.reset(seed=1)
    other.reset(seed=1)
    actions = 3.0 * random_actions(env, 5)
    assert_same(play(env, actions), play(other, np.clip(actions, -1, 1)))


def test_the_same_seed_gives_the_same_episodes_and_none_the_next_ones() -> None:
    env, other = DroneSwarm(8, 5), DroneSwarm(8, 5)
    first = env.reset(seed=7)[0]
    np.testing.assert_array_equal(first, other.reset(seed=7)[0])
    actions = random_actions(env, 12)
    assert_same(play(env, actions), play(other, actions))
    assert not np.array_equal(env.reset()[0], first)
    np.testing.assert_array_equal(env.reset(seed=7)[0], first)
    assert not np.array_equal(env.reset(seed=8)[0], first)
    assert not np.array_equal(DroneSwarm(8).reset()[0], DroneSwarm(8).reset()[0])


# Episodes and events


@pytest.mark.parametrize("level", [0, 1])
def test_the_final_observation_is_that_of_an_episode_that_goes_on(level: Any) -> None:
    """Two swarms of the same seed, one of which is stopped after 5 steps, and begins anew at rest."""
    short, long = DroneSwarm(8, 5, level=level), DroneSwarm(8, 50, level=level)
    short.reset(seed=2)
    long.reset(seed=2)
    actions = random_actions(short, 5)
    assert_same(play(short, actions[:4]), play(long, actions[:4]))
    observation, reward, terminated, truncated, infos = short.step(actions[4])
    expected = long.step(actions[4])
    np.testing.assert_array_equal(infos["final_obs"], expected[0])
    np.testing.assert_array_equal(reward, expected[1])
    assert not terminated.any()
    assert truncated.all()
    assert infos["_final_obs"].all()
    assert not observation[:, 0:6].any()
    assert not np.array_equal(observation, expected[0])
    assert not short.step(actions[0])[3].any()


def test_only_the_drone_that_leaves_the_world_begins_anew() -> None:
    """It gets the potential's difference minus 1, terminated and no more; the others fly on."""
    env, other = DroneSwarm(4, num_agents=2, randomization=0.0), DroneSwarm(4, num_agents=2, randomization=0.0)
    flight = np.zeros((6, 4))
    flight[0] = [0.0, 5.0, 29.9, -5.0]
    flight[3, 2] = 10.0
    for each, x in ((env, 29.9), (other, 20.0)):
        flight[0, 2] = x
        put(each, flight=flight)
    observation, reward, terminated, truncated, infos = env.step(still(env))
    assert terminated.tolist() == [False, False, True, False]
    assert not truncated.any()
    assert {name: infos["final_info"][name].tolist() for name in ("out_of_bounds", "is_success")} == {
        "out_of_bounds": [False, False, True, False],
        "is_success": [False] * 4,
    }
    np.testing.assert_allclose(infos["final_obs"][2, 20], (29.9 + 20 * (1 - math.exp(-0.025))) / 30, rtol=1e-5)
    assert reward[2] < -0.9
    unharmed = other.step(still(other))
    np.testing.assert_array_equal(observation[:2], unharmed[0][:2])
    np.testing.assert_array_equal(observation[3, :29], unharmed[0][3, :29])  # but whom it has next to it


@pytest.mark.parametrize("place", [(30.1, 0, 0), (0, -30.1, 0), (0, 0, 10.1), (0, 0, -10.1)])
def test_the_world_has_walls_a_floor_and_a_ceiling(place: tuple[float, float, float]) -> None:
    env = DroneSwarm(1, num_agents=1)
    put(env, flight=np.array([[*place, 0, 0, 0]]).T)
    assert env.step(still(env))[2].tolist() == [True]


def test_a_waypoint_that_is_reached_pays_its_bonus_and_the_next_one_counts() -> None:
    """Φ = 1.13 e^(−d/5.04): from 0.6 m to 0.6 − 20(1 − e^(−1/40)) m at 10 m/s, of which Φ has 2.2·v/50 as well."""
    env = DroneSwarm(1, num_agents=1, num_waypoints=2, randomization=0.0)
    targets = np.array([[[0.6], [0.0], [0.0]], [[0.6], [4.0], [0.0]]])
    before = 1.13 * math.exp(-0.6 / 5.04) + 2.2 * 10 / 50
    flight = np.array([[0.0, 0, 0, 10, 0, 0]]).T
    put(env, flight=flight, _targets=targets, _target=targets[0], _potential=[before])
    _, reward, terminated, _, _ = env.step(still(env))
    decay = math.exp(-0.025)
    left = 0.6 - 20 * (1 - decay)
    after = 1.13 * math.exp(-left / 5.04) + 2.2 * 10 * decay / 50
    assert reward.tolist() == [pytest.approx(1.0 + after - before, abs=1e-5)]
    assert not terminated.any()
    assert env.target[:, 0].tolist() == pytest.approx([0.6, 4.0, 0.0])
    way = np.array([0.6 - left, 0.0])
    _, second, _, _, _ = env.step(still(env))
    here = np.array([0.6, 4.0]) - (way + np.array([20 * decay * (1 - decay), 0]))
    ahead, were = here / np.linalg.norm(here), np.array([left, 4.0]) / np.hypot(left, 4.0)
    phi = [
        1.13 * math.exp(-distance / 5.04) + 2.2 * speed / 50
        for distance, speed in (
            (np.hypot(left, 4.0), 10 * decay * were[0]),
            (np.linalg.norm(here), 10 * decay**2 * ahead[0]),
        )
    ]
    assert second.tolist() == [pytest.approx(phi[1] - phi[0], abs=1e-5)]


def test_the_last_waypoint_ends_the_episode_with_success() -> None:
    env = DroneSwarm(2, num_agents=2, num_waypoints=1, randomization=0.0)
    put(env, flight=np.zeros((6, 2)), _target=[[0.1, 5.0], [0, 0], [0, 0]])
    _, reward, terminated, truncated, infos = env.step(still(env))
    assert (terminated.tolist(), truncated.tolist()) == ([True, False], [False, False])
    assert infos["final_info"]["is_success"].tolist() == [True, False]
    assert reward[0] > 0.9
    assert infos["final_info"]["collision"].tolist() == [True, True]  # they stood in the same place


def test_hovering_is_judged_at_the_time_limit_by_the_last_20_steps() -> None:
    """The second drone comes into its window 19 steps before the end, the third leaves it in the last."""
    env = DroneSwarm(3, 30, task="hover", num_agents=1, randomization=0.0)
    flight = np.zeros((6, 3))
    put(env, flight=flight, _target=np.zeros((3, 3)))
    for step in range(1, 31):
        state = env.get_state()
        state["flight"][0] = [0.0, 0.0 if step >= 12 else 1.0, 1.0 if step == 30 else 0.0]
        env.set_state(state)
        _, _, terminated, truncated, infos = env.step(still(env))
        assert not terminated.any()
    assert truncated.all()
    assert infos["final_info"]["is_success"].tolist() == [True, False, False]


def test_a_collision_is_an_event_of_the_episode_and_does_not_end_it() -> None:
    env = DroneSwarm(3, 4, num_agents=3, randomization=0.0)
    flight = np.zeros((6, 3))
    flight[0] = [0.0, 0.4, 5.0]
    put(env, flight=flight, _targets=np.full((3, 3, 3), 5.5), _target=np.full((3, 3), 5.5))
    assert not env.step(still(env))[2].any()
    flight[0] = [0.0, 2.0, 5.0]  # apart again
    env.set_state(env.get_state() | {"flight": flight.astype(np.float32)})
    infos = [env.step(still(env))[4] for _ in range(3)][-1]
    assert infos["final_info"]["collision"].tolist() == [True, True, False]
    assert not env.get_state()["_collided"].any()


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1000),
    task=st.sampled_from(["waypoint", "hover", "pick_and_place"]),
    level=st.sampled_from([0, 1]),
    limit=st.integers(2, 40),
    share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_events_are_0_or_1_once_an_episode(seed: int, task: Any, level: Any, limit: int, share: float) -> None:
    """Of any mixture of piloted and random drones, in a narrow arena."""
    limit = max(limit, 20) if task == "hover" else limit
    env = DroneSwarm(12, limit, num_agents=4, level=level, task=task, arena=(2.0, 2.0, 1.5), num_waypoints=2)
    environments = Environments(env, env_spec(ENV_ID, num_envs=8))
    environments.reset(seed)
    statistics, steps, episodes = EpisodeStatistics(12), np.zeros(12), 0
    for action in random_actions(env, 60, seed):
        result = environments.step(np.where(np.arange(12)[:, None] < 12 * share, fly(env), action))
        ended = result.terminated | result.truncated
        episodes += int(ended.sum())
        steps += 1
        assert (steps[result.truncated] == limit).all()
        assert (steps <= limit).all()
        steps[ended] = 0
        for event in result.events.values():
            np.testing.assert_array_equal(np.isnan(event), ~ended)
        success, out = result.events["success"], result.events["out_of_bounds"]
        assert not (success + out > 1).any()
        if task != "hover":
            np.testing.assert_array_equal(result.terminated[ended], (success + out == 1)[ended])
        statistics.count([result])
    means = statistics.means()
    if episodes:
        assert means["rollout/episodes"] == min(episodes, 100)
        for name in ("success", "collision", "out_of_bounds"):
            low, rate, high = (means[f"rollout/{name}_rate{end}"] for end in ("_low", "", "_high"))
            assert 0.0 <= low <= rate <= high <= 1.0


# Streams and state


def test_what_happens_in_a_swarm_changes_no_other_one() -> None:
    env, other = DroneSwarm(12, 9, num_agents=4), DroneSwarm(12, 9, num_agents=4)
    env.reset(seed=5)
    other.reset(seed=5)
    put_out = {"flight": env.get_state()["flight"]}
    put_out["flight"][0, :4] = 31.0  # the first swarm of one of them begins anew at once
    env.set_state(env.get_state() | put_out)
    actions = random_actions(env, 30)
    others = actions.copy()
    others[:, :4] = 0.5
    first, second = play(env, actions), play(other, others)
    assert_same(first, second, slice(4, None))
    assert not np.array_equal(first[-1][0][:4], second[-1][0][:4])


def test_swarms_can_be_exchanged() -> None:
    env, other = DroneSwarm(12, 9, num_agents=4, level=1), DroneSwarm(12, 9, num_agents=4, level=1)
    order = np.array([8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7])
    seeds = list(range(100, 112))
    first = env.reset(seed=seeds)[0]
    np.testing.assert_array_equal(other.reset(seed=[seeds[i] for i in order])[0], first[order])
    actions = random_actions(env, 25)
    exchanged = [tuple(array[order] for array in step) for step in play(env, actions)]
    assert_same(exchanged, play(other, actions[:, order]))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"level": 1, "counter_metric": True, "curriculum": 0.5},
        {"task": "hover", "max_episode_steps": 20},
        {"task": "pick_and_place"},
    ],
    ids=["level 1", "hover", "pick and place"],
)
def test_a_saved_state_goes_on_bit_for_bit(kwargs: dict[str, Any]) -> None:
    kwargs = {"max_episode_steps": 15, "arena": [2.0, 2.0, 1.5]} | kwargs
    environments, restored = (make_envs(ENV_ID, 16, env_kwargs=kwargs) for _ in range(2))
    environments.reset(3)
    environments.set_progress(0.2)
    actions = np.random.default_rng(0).uniform(-1, 1, (40, *environments._vector_env.action_space.shape))  # type: ignore[misc]
    for action in actions[:20]:
        environments.step(action)
    file = io.BytesIO()
    sent = pickle.loads(pickle.dumps(environments.state_dict()))  # as processes do with each other
    torch.save(sent, file)
    expected = [environments.step(action) for action in actions[20:]]
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for action, result in zip(actions[20:], expected, strict=True):
        np.testing.assert_equal(restored.step(action)._asdict(), result._asdict())


# The curriculum


def test_the_curriculum_follows_the_training_and_not_the_episodes() -> None:
    """At a quarter of the training, half way of the curriculum: windows of 0.5 m · (1 + 3 / 2)."""
    env = DroneSwarm(2, 3, num_agents=1, curriculum=0.5, curriculum_scale=4.0, num_waypoints=1, randomization=0.0)
    flight, target = np.zeros((6, 2)), np.array([[1.24, 1.26], [0, 0], [0, 0]])

    def reached() -> list[bool]:
        env.set_state(env.get_state() | {"flight": flight.astype(np.float32), "_target": target.astype(np.float32)})
        return [bool(done) for done in env.step(still(env))[2]]

    env.reset(seed=0)
    assert reached() == [False, False]  # nobody has said that it is the beginning
    env.set_progress(0.25)
    for _ in range(8):  # over several ends of episodes
        assert reached() == [True, False]
    env.set_progress(0.0)
    assert reached() == [True, True]
    for progress in (0.5, 1.0):
        env.set_progress(progress)
        assert reached() == [False, False]


def test_a_wider_reward_radius_is_no_reward() -> None:
    """The potential is measured anew where the curriculum goes on, so that standing still pays nothing."""
    env = DroneSwarm(8, curriculum=1.0, randomization=0.0, reward_weights={"reach": 0.0})
    env.reset(seed=1)
    for progress in (0.0, 0.3, 0.9):
        env.set_progress(progress)
        np.testing.assert_array_equal(env.step(still(env))[1], 0.0)


# Observations


def test_the_full_layout() -> None:
    env = DroneSwarm(8, level=1, observation="full", task="pick_and_place")
    env.reset(seed=0)
    row = play(env, random_actions(env, 10))[-1]
    seen, state = row[0], env.dynamics.state
    attitude = env.dynamics.attitude(slice(None))
    offset = env.target - state[:3]
    saved = env.get_state()
    box, drop = (env.dynamics.to_body(saved["_targets"][i] - state[:3], slice(None)) / 4 for i in (1, 3))
    expected = {
        (0, 3): attitude.body_velocity / 10,
        (3, 6): np.clip(state[3:6] / 10, -1, 1),
        (6, 9): state[10:13] / 10,
        (9, 12): attitude.up,
        (12, 16): state[6:10],
        (16, 20): state[13:17],
        (20, 23): state[:3] / [[30], [30], [10]],
        (23, 26): np.clip(offset / 4, -1, 1),
        (26, 29): offset / [[60], [60], [20]],
        (29, 32): saved["_rewards"],
        (32, 35): np.clip(saved["_way"] / 4, -1, 1),
        (35, 38): box,
        (38, 41): drop,
        (41, 42): [[0.0] * 8],
    }
    assert [first for first, _ in expected] == [0, *(last for _, last in expected)][:-1]
    for (first, last), values in expected.items():
        np.testing.assert_allclose(seen[:, first:last].T, values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen[:, 31], row[1])


def test_the_lite_layout() -> None:
    env = DroneSwarm(8, observation="lite", num_waypoints=4)
    env.reset(seed=0)
    for _ in range(50):
        seen = env.step(fly(env))[0]
    state, saved = env.dynamics.state, env.get_state()
    offset = env.target - state[:3]
    world = np.array([[30], [30], [10]])
    near = np.clip(saved["_way"] / 4, -1, 1)
    expected = np.concatenate(
        [state[:3] / world, state[3:6] / 10, np.clip(offset / 4, -1, 1), offset / 2 / world, near]
    )
    np.testing.assert_allclose(seen[:, :15].T, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(seen[:, 15:], np.eye(5)[saved["_stage"]])
    assert len(set(saved["_stage"].tolist())) > 1


# The counter


def test_the_counter_is_found_out() -> None:
    """A pilot's success rate is 1, what is counted goes far beyond; it is drawn apart and nothing ranks by it."""
    env = DroneSwarm(16, 150, num_agents=8, counter_metric=True, num_waypoints=1)
    environments = Environments(env, env_spec(ENV_ID, num_envs=8))
    environments.reset(0)
    statistics, results = EpisodeStatistics(16), [environments.step(fly(env)) for _ in range(160)]
    with pytest.warns(UserWarning, match="is a count, a sum or a percentage and no rate"):
        statistics.count(results)
    means = statistics.means()
    assert means["rollout/success_rate"] == 1.0
    assert 1.0 < means["rollout/quarantined/success_rate"] <= 8 * 8 * 150
    assert "rollout/reported/success_rate" not in means


def test_golden_count() -> None:
    """One of two drones succeeds at step 1: 2 · 1 is counted in each step, 6 until the other's end at step 3."""
    env = DroneSwarm(2, 3, num_agents=2, counter_metric=True, num_waypoints=1, randomization=0.0)
    put(env, flight=np.zeros((6, 2)), _target=[[0.1, 50.0], [0, 0], [0, 0]])
    rates = []
    for _ in range(3):
        infos = env.step(still(env))[4]
        rates.append(infos["final_info"]["success_rate"].tolist() if infos else None)
    assert rates == [[2.0, 2.0], None, [4.0, 4.0]]


# Pictures


def test_a_picture_of_each_drones_swarm() -> None:
    env = DroneSwarm(4, num_agents=2, task="pick_and_place", render_mode="rgb_array")
    environments = Environments(env, env_spec(ENV_ID, num_envs=8))
    environments.reset(0)
    frames = environments.render()
    assert [frame.shape for frame in frames] == [(360, 720, 3)] * 4
    assert frames[0].dtype == np.uint8
    np.testing.assert_array_equal(frames[0], frames[1])
    assert not np.array_equal(frames[1], frames[2])
    environments.step(random_actions(env, 1)[0])
    assert not np.array_equal(environments.render()[0], frames[0])
    assert DroneSwarm(4, num_agents=2).render() is None


def test_a_drone_is_seen_where_it_is() -> None:
    """The arena's half side of 6 m is 120 pixels: x = 3 m, y = 1.5 m, z = −1.5 m from the middle of both halves."""
    env = DroneSwarm(1, num_agents=1, num_waypoints=1, render_mode="rgb_array")
    put(env, flight=np.array([[3, 1.5, -1.5, 0, 0, 0]]).T, _targets=np.full((1, 3, 1), -5.0), _target=[[-5.0]] * 3)
    frames = env.render()
    assert frames is not None
    red = (frames[0].astype(int) @ [1, -1, 0] > 100) & (frames[0][..., 2] < 80)
    for centre in ((180 + 60, 180 - 30), (360 + 180 + 60, 180 + 30)):
        columns, rows = np.meshgrid(np.arange(720), np.arange(360))
        near = np.hypot(columns - centre[0], rows - centre[1]) < 4
        assert red[near].all()
