import io
import math
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.torus_goblet_ghost import TorusGobletGhost
from rlmods.networks.random_features import CriticFeatures, teacher_weight

ENV_ID = "rlmods/TorusGobletGhost-v0"
SMALL: dict[str, Any] = {"feature_dim": 8, "actor_feature_dim": 4, "precision": "float64"}
STILL: dict[str, Any] = {"sigma_env": 0.0, "sigma_ghost": 0.0, "v_ghost": 0.0, "p_mix": 0.0}
CAUGHT, PICKED_GOOD, PICKED_BAD, BEGAN = range(14, 18)

Array = npt.NDArray[Any]


def make_env(num_envs: int = 1, **options: Any) -> TorusGobletGhost:
    return TorusGobletGhost(num_envs, **(SMALL | options))


def put(
    env: TorusGobletGhost,
    *,
    position: tuple[float, float] = (0.5, 0.5),
    ghost: tuple[float, float] = (0.2, 0.8),
    goblets: tuple[tuple[float, float], ...] = ((0.8, 0.2), (0.8, 0.5), (0.8, 0.8)),
    types: tuple[float, ...] = (1.0, 1.0, 1.0),
) -> None:
    """The one environment's things, by hand."""
    env.reset(seed=0)
    state = {
        "_position": np.array([position]),
        "_others": np.array([[ghost, *goblets]]),
        "_types": np.array([types]),
    }
    assert state.keys() < env.get_state().keys()
    env.set_state(env.get_state() | state)


def stay(env: TorusGobletGhost) -> Array:
    """The observation after a step with action 0."""
    return np.asarray(env.step(np.zeros((env.num_envs, 2)))[0])


def place_of(sine: Array, cosine: Array) -> Array:
    return np.asarray(np.arctan2(sine, cosine) / (2.0 * np.pi) % 1.0)


def position_of(observation: Array) -> Array:
    return place_of(observation[:, 0:2], observation[:, 2:4])


def ghost_of(observation: Array) -> Array:
    return place_of(observation[:, 4:6], observation[:, 6:8])


def play(env: Any, num_steps: int, seed: int = 3) -> list[tuple[Array, Array, Array]]:
    """Observations, rewards and truncations of random actions."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(num_steps):
        action = generator.normal(size=(env.num_envs, 2))
        observation, reward, _, truncated, _ = env.step(action)
        rows.append((observation, reward, truncated))
    return rows


def same(first: list[Any], second: list[Any]) -> bool:
    return all(
        np.array_equal(one, other, equal_nan=True)
        for row, others in zip(first, second, strict=True)
        for one, other in zip(row, others, strict=True)
    )


# Gymnasium's conventions


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_spaces_and_dtypes(precision: Any) -> None:
    env = gym.make_vec(ENV_ID, num_envs=3, feature_dim=8, precision=precision)
    assert isinstance(env.unwrapped, TorusGobletGhost)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (18,)
    assert env.single_action_space.shape == (2,)
    observation, infos = env.reset(seed=1)
    assert observation in env.observation_space
    assert infos == {}
    observation, reward, terminated, truncated, infos = env.step(env.action_space.sample())
    assert observation in env.observation_space
    assert observation.dtype == precision
    assert (reward.shape, reward.dtype) == ((3,), np.float64)
    assert (terminated.dtype, terminated.any(), truncated.dtype, truncated.any()) == (bool, False, bool, False)
    assert infos == {}


def test_one_environment_alone_is_refused_with_a_sentence() -> None:
    with pytest.raises(gym.error.Error, match="registered but entry_point is not specified"):
        gym.make(ENV_ID)
    for vectorization in ("sync", "async"):
        with pytest.raises(ValueError, match=r"exists as a vector environment alone.*vectorization=\"auto\""):
            make_envs(ENV_ID, 2, vectorization=vectorization)
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'sped'.*'v_ghost'"):
        make_envs(ENV_ID, 2, env_kwargs={"sped": 1.0})


def test_the_spec_names_the_features() -> None:
    spec = env_spec(ENV_ID, {"feature_dim": 9, "action_mode": "tanh", "v_max": 0.7, "max_episode_steps": 5})
    assert spec["observation"] == {"shape": [18], "dtype": "float32"}
    assert spec["action"]["kind"] == "continuous"
    assert spec["action"]["shape"] == [2]
    assert spec["settings"]["features"]["feature_dim"] == 9
    assert {name: spec["settings"][name] for name in ("action_mode", "v_max", "max_episode_steps")} == {
        "action_mode": "tanh",
        "v_max": 0.7,
        "max_episode_steps": 5,
    }


@pytest.mark.parametrize("seed", [5, [5, 6, 7]])
def test_the_same_seed_gives_the_same_trajectories(seed: Any) -> None:
    options: dict[str, Any] = {"p_mix": 0.3, "eps_catch": 0.2, "eps_pick": 0.2, "max_episode_steps": 4}
    env, other = make_env(3, **options), make_env(3, **options)
    start = env.reset(seed=seed)[0]
    assert np.array_equal(start, other.reset(seed=seed)[0])
    first, second = play(env, 20), play(other, 20)
    assert same(first, second)
    assert np.array_equal(start, env.reset(seed=seed)[0])
    assert same(play(env, 20), first)
    different = 9 if isinstance(seed, int) else [5, 6, 9]
    assert not np.array_equal(start, env.reset(seed=different)[0])


def test_with_a_list_of_seeds_each_environment_goes_its_own_way() -> None:
    """Its trajectory is that of this seed alone, whatever happens to the others."""
    options: dict[str, Any] = {"p_mix": 0.3, "eps_catch": 0.2, "eps_pick": 0.2, "max_episode_steps": 4}
    together, alone = make_env(3, **options), make_env(1, **options)
    together.reset(seed=[11, 12, 13])
    alone.reset(seed=[12])
    actions = np.random.default_rng(0).normal(size=(15, 3, 2))
    for action in actions:
        observation, reward, _, truncated, _ = together.step(action)
        expected, expected_reward, _, expected_truncated, _ = alone.step(action[1:2])
        assert np.array_equal(observation[1], expected[0])
        assert reward[1] == pytest.approx(expected_reward[0], rel=1e-12)
        assert truncated[1] == expected_truncated[0]


@pytest.mark.parametrize("seed", [[1], [1, None], [1, 2, 3]])
def test_a_wrong_list_of_seeds_is_refused(seed: Any) -> None:
    with pytest.raises(ValueError, match="expected 2 whole numbers"):
        make_env(2).reset(seed=seed)


def test_a_reset_without_a_seed_goes_on_with_the_generators() -> None:
    env, other = make_env(2), make_env(2)
    for one in (env, other):
        one.reset(seed=[1, 2])
    second = env.reset()[0]
    assert np.array_equal(second, other.reset()[0])
    assert not np.array_equal(second, env.reset()[0])


def test_a_truncated_episode_is_reset_in_the_same_step() -> None:
    env, endless = make_env(2, max_episode_steps=3), make_env(2)
    env.reset(seed=0)
    endless.reset(seed=0)
    for step in range(1, 4):
        action = np.full((2, 2), 0.1 * step)
        observation, reward, terminated, truncated, infos = env.step(action)
        expected, expected_reward, *_ = endless.step(action)
        assert np.array_equal(reward, expected_reward)
        assert truncated.tolist() == [step == 3] * 2
        assert not terminated.any()
        successor = infos["final_obs"] if step == 3 else observation
        assert np.array_equal(successor, expected)
    assert infos["_final_obs"].tolist() == [True, True]
    assert not np.array_equal(observation, expected)
    assert not observation[:, CAUGHT:].any()
    assert [play(env, 1)[0][2].any() for _ in range(3)] == [False, False, True]


def test_a_mask_resets_only_what_it_says() -> None:
    env = make_env(3, max_episode_steps=4)
    env.reset(seed=0)
    before = play(env, 2)[-1][0]
    after = env.reset(options={"reset_mask": np.array([False, True, False])})[0]
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert not np.array_equal(after[1], before[1])
    assert [play(env, 1)[0][2].tolist() for _ in range(4)] == [
        [False, False, False],
        [True, False, True],
        [False, False, False],
        [False, True, False],
    ]


def test_what_was_returned_is_not_overwritten() -> None:
    env = make_env(2)
    env.reset(seed=0)
    rows = play(env, 1)
    copies = [array.copy() for array in rows[0]]
    play(env, 5)
    assert all(np.array_equal(array, copy) for array, copy in zip(rows[0], copies, strict=True))


# State


@pytest.mark.parametrize("seed", [4, [4, 5, 6]])
def test_a_saved_state_goes_on_bit_for_bit(seed: Any) -> None:
    options: dict[str, Any] = {"p_mix": 0.2, "eps_catch": 0.2, "eps_pick": 0.2, "max_episode_steps": 7}
    environments = make_envs(ENV_ID, 3, env_kwargs=SMALL | options, reward_dtype=np.float64)
    environments.reset(seed)
    actions = np.random.default_rng(0).normal(size=(15, 3, 2))
    for action in actions[:5]:
        environments.step(action)
    file = io.BytesIO()
    torch.save(environments.state_dict(), file)
    expected = [environments.step(action) for action in actions[5:]]
    file.seek(0)
    restored = make_envs(ENV_ID, 3, env_kwargs=SMALL | options, reward_dtype=np.float64)
    restored.load_state_dict(torch.load(file, weights_only=True))
    # The last three fields are dicts of what an episode's end reports, of which there is nothing here.
    assert same([result[:-3] for result in expected], [restored.step(action)[:-3] for action in actions[5:]])


@pytest.mark.parametrize("seed", [4, [4, 5]])
def test_a_state_is_a_copy(seed: Any) -> None:
    env = make_env(2, p_mix=0.5, eps_pick=0.2)
    env.reset(seed=seed)
    state = env.get_state()
    first = play(env, 6)
    for _ in range(2):
        env.set_state(state)
        assert same(play(env, 6), first)


# What happens on the torus


def test_golden_observation() -> None:
    """At a quarter of the circle the sine is 1; the distances are those that one can count."""
    env = make_env(num_goblets=2, **STILL)
    # The first goblet is nearer: 0.3 over the edge, against 0.4.
    put(env, position=(0.25, 0.5), ghost=(0.0, 0.75), goblets=((0.95, 0.5), (0.25, 0.9)), types=(-1.0, 1.0))
    expected = [1, 0, 0, -1, 0, -1, 1, 0, -0.25, 0.25, -0.3, 0.0, -1, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(stay(env)[0], expected, atol=1e-12)


def test_the_ghost_comes_over_the_edge() -> None:
    env = make_env(**STILL | {"v_ghost": 0.3, "dt": 0.1})
    put(env, position=(0.05, 0.5), ghost=(0.85, 0.5))
    np.testing.assert_allclose(ghost_of(stay(env)), [[0.88, 0.5]], atol=1e-12)
    put(env, position=(0.9, 0.5), ghost=(0.1, 0.5))
    np.testing.assert_allclose(ghost_of(stay(env)), [[0.07, 0.5]], atol=1e-12)


def test_a_ghost_that_has_arrived_stays() -> None:
    env = make_env(**STILL | {"v_ghost": 0.3, "eps_catch": 0.0, "eps_pick": 0.0})
    put(env, position=(0.5, 0.5), ghost=(0.5, 0.5))
    observation = stay(env)
    assert observation[0, CAUGHT] == 1.0  # the distance is 0, and the radius is inclusive
    assert np.isfinite(observation).all()


def test_the_adventurer_walks_over_the_edge_and_the_ghost_sees_where_he_now_is() -> None:
    env = make_env(**STILL | {"v_ghost": 0.2, "dt": 0.5, "eps_catch": 0.01})
    put(env, position=(0.9, 0.5), ghost=(0.5, 0.5))
    observation = env.step(np.array([[0.6, 0.0]]))[0]
    np.testing.assert_allclose(position_of(observation), [[0.2, 0.5]], atol=1e-12)
    # From the old place, 0.4 to the right, he would have gone right; from the new one, 0.3 to the left, he goes left.
    np.testing.assert_allclose(ghost_of(observation), [[0.4, 0.5]], atol=1e-12)


def test_a_ghost_within_reach_catches_and_goes_elsewhere() -> None:
    env = make_env(**STILL)
    put(env, ghost=(0.5, 0.545))
    observation = stay(env)
    assert observation[0, CAUGHT:].tolist() == [1, 0, 0, 0]
    assert not np.allclose(ghost_of(observation), [[0.5, 0.545]])
    put(env, ghost=(0.5, 0.555))
    observation = stay(env)
    assert observation[0, CAUGHT:].tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(ghost_of(observation), [[0.5, 0.555]], atol=1e-12)


@pytest.mark.parametrize(("types", "flag"), [((-1.0, 1.0, 1.0), PICKED_BAD), ((1.0, -1.0, -1.0), PICKED_GOOD)])
def test_the_first_goblet_within_reach_is_picked_and_its_old_type_counts(types: Any, flag: int) -> None:
    """The second is nearer, the first has the lower index; a new type is drawn as the opposite of the old one."""
    env = make_env(**STILL, type_resample_p=1.0, p_type_positive=float(types[0] < 0))
    put(env, goblets=((0.5, 0.53), (0.5, 0.51), (0.9, 0.9)), types=types)
    observation = stay(env)
    assert np.flatnonzero(observation[0, CAUGHT:]).tolist() == [flag - CAUGHT]
    assert observation[0, 13] == pytest.approx((-types[0] + types[1] + types[2]) / 3)
    state = env.get_state()
    assert state["_types"].tolist() == [[-types[0], *types[1:]]]
    assert not np.allclose(state["_others"][0, 1], [0.5, 0.53])
    assert state["_others"][0, 2:].tolist() == [[0.5, 0.51], [0.9, 0.9]]
    # The other one is picked in the next step: one a step.
    assert np.flatnonzero(stay(env)[0, CAUGHT:]).tolist() == [1 if types[1] > 0 else 2]


def test_a_picked_goblet_may_keep_its_type() -> None:
    env = make_env(**STILL, type_resample_p=0.0, p_type_positive=1.0)
    put(env, goblets=((0.5, 0.5),) * 3, types=(-1.0, -1.0, -1.0))
    assert stay(env)[0, 13] == -1.0


def test_caught_and_picked_in_one_step() -> None:
    env = make_env(**STILL)
    put(env, ghost=(0.5, 0.5), goblets=((0.5, 0.5), (0.9, 0.9), (0.9, 0.1)), types=(-1.0, 1.0, 1.0))
    assert stay(env)[0, CAUGHT:].tolist() == [1, 0, 1, 0]


def test_a_new_beginning_overwrites_what_happened() -> None:
    env = make_env(**STILL | {"p_mix": 1.0})
    put(env, ghost=(0.5, 0.5), goblets=((0.5, 0.5), (0.5, 0.5), (0.5, 0.5)))
    observation = stay(env)
    assert observation[0, CAUGHT:].tolist() == [0, 0, 0, 1]
    assert not np.allclose(position_of(observation), [[0.5, 0.5]])


def test_with_p_mix_1_each_step_begins_anew_and_the_clock_goes_on() -> None:
    env = make_env(4, p_mix=1.0, max_episode_steps=5)
    env.reset(seed=0)
    rows = play(env, 5)
    assert all((observation[:, BEGAN] == 1.0).all() for observation, _, _ in rows[:-1])
    assert [bool(truncated.all()) for _, _, truncated in rows] == [False] * 4 + [True]
    assert (rows[-1][0][:, BEGAN] == 0.0).all()  # a reset is no restart


@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_types_are_drawn_with_their_probability(share: float) -> None:
    env = make_env(1000, p_type_positive=share)
    mean = env.reset(seed=0)[0][:, 13].mean()
    # 3,000 draws of ±1: four standard errors.
    assert abs(mean - (2 * share - 1)) <= 4 * math.sqrt(4 * share * (1 - share) / 3000) + 1e-12


def test_the_noise_has_its_spread() -> None:
    env = make_env(2000, **STILL | {"sigma_env": 0.01, "sigma_ghost": 0.03, "eps_catch": 0.0, "eps_pick": 0.0})
    start = env.reset(seed=0)[0]
    observation = stay(env)
    moved = (position_of(observation) - position_of(start) + 0.5) % 1.0 - 0.5
    ghost_moved = (ghost_of(observation) - ghost_of(start) + 0.5) % 1.0 - 0.5
    # 4,000 numbers: the relative standard error of a spread is 1/√8,000 = 0.011.
    assert moved.std() == pytest.approx(0.01, rel=0.05)
    assert ghost_moved.std() == pytest.approx(0.03, rel=0.05)


@pytest.mark.parametrize(
    ("mode", "moved"),
    [
        ("raw", (0.3, -0.4)),
        ("ball_clip", (0.12, -0.16)),
        ("box_clip", (0.2, -0.2)),
        ("tanh", (0.2 * math.tanh(0.3), 0.2 * math.tanh(-0.4))),
    ],
)
def test_action_modes(mode: Any, moved: tuple[float, float]) -> None:
    env = make_env(**STILL | {"dt": 1.0, "v_max": 0.2, "action_mode": mode})
    put(env)
    observation = env.step(np.array([[0.3, -0.4]]))[0]
    np.testing.assert_allclose(position_of(observation), [[0.5 + moved[0], 0.5 + moved[1]]], atol=1e-12)


# Reward


@pytest.mark.parametrize("mode", ["raw", "ball_clip"])
def test_the_reward_is_the_teachers_value_of_the_state_before_the_step(mode: Any) -> None:
    env = make_env(3, action_mode=mode, eps_catch=0.3, eps_pick=0.3)
    features = env.settings["features"]
    observation = env.reset(seed=0)[0]
    weight, phi = teacher_weight(features), CriticFeatures(features)
    for action in np.random.default_rng(0).normal(size=(10, 3, 2)):
        length = np.linalg.norm(action, axis=1, keepdims=True)
        executed = action * np.minimum(1.0, 0.4 / length) if mode == "ball_clip" else action
        expected = phi(torch.from_numpy(observation), torch.from_numpy(executed)) @ weight / math.sqrt(8)
        observation, reward, *_ = env.step(action)
        np.testing.assert_allclose(reward, expected, rtol=1e-10)


def test_an_event_is_rewarded_one_step_after_it_happened() -> None:
    """Without cosines in the teacher: caught −1, a good goblet +1, a bad one −1, in units of 1/√8."""
    env = make_env(**STILL, teacher_base_scale=0.0)
    for goblet, expected in ((1.0, 0.0), (-1.0, -2.0)):
        put(env, ghost=(0.5, 0.5), goblets=((0.5, 0.5), (0.9, 0.9), (0.9, 0.1)), types=(goblet, 1.0, 1.0))
        now, later = (env.step(np.zeros((1, 2)))[1] for _ in range(2))
        assert now == 0.0
        assert later == pytest.approx(expected / math.sqrt(8))
    reward = env.step(np.array([[3.0, 4.0]]))[1]
    assert reward == pytest.approx(-0.1 * 25 / math.sqrt(8))


def test_rewards_can_be_asked_for_later() -> None:
    env, at_once = make_env(3), make_env(3)
    env.defer_rewards()
    observations, actions = [env.reset(seed=0)[0]], np.random.default_rng(3).normal(size=(6, 3, 2))
    at_once.reset(seed=0)
    expected = []
    for action in actions:
        observation, reward, *_ = env.step(action)
        assert not reward.any()
        observations.append(observation)
        expected.append(at_once.step(action)[1])
    rewards = env.rewards(np.concatenate(observations[:-1]), actions.reshape(-1, 2))
    np.testing.assert_allclose(rewards.reshape(6, 3), expected, rtol=1e-12)


def test_without_a_teacher_the_reward_is_0() -> None:
    env = make_env(2, use_teacher_reward=False)
    env.reset(seed=0)
    assert not any(reward.any() for _, reward, _ in play(env, 10))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    size=st.sampled_from([0.5, 1.0, 3.0]),
    num_goblets=st.integers(1, 4),
    p_mix=st.floats(0.0, 1.0),
)
def test_all_stays_on_the_torus(seed: int, size: float, num_goblets: int, p_mix: float) -> None:
    env = make_env(3, torus_size=size, num_goblets=num_goblets, p_mix=p_mix, eps_catch=0.2, eps_pick=0.2)
    env.reset(seed=seed)
    for observation, reward, _ in play(env, 8):
        np.testing.assert_allclose(observation[:, [0, 1, 4, 5]] ** 2 + observation[:, [2, 3, 6, 7]] ** 2, 1.0)
        assert (np.abs(observation[:, 8:12]) <= 0.5).all()
        assert np.isin(observation[:, 12], [-1.0, 1.0]).all()
        assert (np.abs(observation[:, 13]) <= 1.0).all()
        assert np.isin(observation[:, CAUGHT:], [0.0, 1.0]).all()
        assert (observation[:, PICKED_GOOD] + observation[:, PICKED_BAD] <= 1.0).all()
        assert np.isfinite(reward).all()
    state = env.get_state()
    for places in (state["_position"], state["_others"]):
        assert (places >= 0.0).all()
        assert (places <= size).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torus_size", 0.0),
        ("dt", 0.0),
        ("v_max", 0.0),
        ("v_ghost", -0.1),
        ("sigma_env", -0.1),
        ("sigma_ghost", float("nan")),
        ("eps_catch", -0.1),
        ("eps_pick", -0.1),
        ("num_goblets", 0),
        ("p_mix", 1.1),
        ("p_type_positive", -0.1),
        ("type_resample_p", 2.0),
        ("action_mode", "squash"),
        ("max_episode_steps", 0),
        ("feature_dim", 4),
        ("actor_feature_dim", 0),
        ("feature_sigma", 0.0),
        ("actor_feature_norm", 0.0),
        ("teacher_base_scale", -1.0),
        ("feature_seed", -1),
        ("precision", "float16"),
    ],
)
def test_settings_outside_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"got {name} = .*expected .*env_kwargs\.{name} VALUE"):
        make_env(**{name: value})
