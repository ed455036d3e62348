"""The lane shooter as an environment: conventions, rewards and their bounds, streams, state, pictures."""

import io
import pickle
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from lane_boards import FIRE, RIGHT, STILL, ZAP, put_enemy, quiet_game, random_actions, rewards

from rlmods.data.episodes import EpisodeStatistics
from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.envs.environments import Environments
from rlmods.envs.lane_board import CELL, FLIPPER, FUSEBALL, PULSAR
from rlmods.envs.lane_observation import ROWS, SIZE, observe
from rlmods.envs.lane_shooter import LaneShooter
from rlmods.envs.make import env_spec, make_envs
from rlmods.types import Observation

ENV_ID = "rlmods/LaneShooter-v0"
ALL_STREAMS = {"shaping": 0.5, "bonus": 0.5, "death_penalty": 2.0}
STREAMS = ("points", "death", "shaping", "bonus")

Array = npt.NDArray[Any]


def play(env: LaneShooter, actions: Array) -> list[tuple[Array, ...]]:
    """Observation, reward, terminated and truncated of each step."""
    return [env.step(action)[:4] for action in actions]


def assert_same(first: list[tuple[Array, ...]], second: list[tuple[Array, ...]], rows: Any = slice(None)) -> None:
    for one, other in zip(first, second, strict=True):
        for array, another in zip(one, other, strict=True):
            np.testing.assert_array_equal(array[rows], another[rows])


# Gymnasium's conventions


def test_spaces_and_dtypes() -> None:
    env = gym.make_vec(ENV_ID, num_envs=6)
    assert isinstance(env.unwrapped, LaneShooter)
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space == gym.spaces.Box(-1.0, 1.0, (122,), np.float32)
    assert env.single_action_space == gym.spaces.Discrete(20)
    first, infos = env.reset(seed=1)
    assert first in env.observation_space
    assert infos == {}
    seen, reward, terminated, truncated, infos = env.step(env.action_space.sample())
    assert seen in env.observation_space
    assert (reward.shape, reward.dtype) == ((6,), np.float32)
    assert (terminated.dtype, truncated.dtype) == (bool, bool)
    assert infos == {}


class OneGame(gym.Env[Any, Any]):
    """Gymnasium's checker knows single environments alone."""

    def __init__(self) -> None:
        self.games = LaneShooter(1)
        self.observation_space = self.games.single_observation_space
        self.action_space = self.games.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return self.games.reset(seed=seed)[0][0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, _ = self.games.step(np.array([action]))
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}


def test_gymnasiums_checker_finds_nothing() -> None:
    check_env(OneGame(), skip_render_check=True)


def test_the_same_seed_gives_the_same_games_and_none_the_next_ones() -> None:
    env, other = LaneShooter(8, 30), LaneShooter(8, 30)
    first = env.reset(seed=7)[0]
    np.testing.assert_array_equal(first, other.reset(seed=7)[0])
    actions = random_actions(80, 8)
    expected = play(env, actions)
    assert_same(expected, play(other, actions))
    env.reset(seed=7)
    env.reset()
    assert not np.array_equal(play(env, actions)[-1][0], expected[-1][0])
    with pytest.raises(ValueError, match="got 3 seeds, expected one number or 8 of them"):
        env.reset(seed=[1, 2, 3])


def test_the_final_observation_is_that_of_a_game_that_goes_on() -> None:
    short, long = LaneShooter(8, 60), LaneShooter(8, 600)
    short.reset(seed=2)
    long.reset(seed=2)
    actions = np.full((60, 8), STILL)
    assert_same(play(short, actions[:59]), play(long, actions[:59]))
    observation, reward, terminated, truncated, infos = short.step(actions[59])
    expected = long.step(actions[59])
    np.testing.assert_array_equal(infos["final_obs"], expected[0])
    np.testing.assert_array_equal(reward, expected[1])
    assert not terminated.any()
    assert truncated.all()
    np.testing.assert_array_equal(observation, observe(short.board))
    assert not np.array_equal(observation, expected[0])
    assert not short.step(actions[0])[3].any()


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 1000), limit=st.integers(2, 150), lives=st.integers(1, 3), is_open=st.sampled_from([None, True])
)
def test_observations_and_rewards_keep_their_bounds(seed: int, limit: int, lives: int, is_open: bool | None) -> None:
    """Whoever plays, expert or chance; what is seen is what `observe` sees, also of a game that has just begun."""
    environments = make_envs(
        ENV_ID, 8, env_kwargs={"max_episode_steps": limit, "lives": lives, "open": is_open} | ALL_STREAMS
    )
    low, high = environments.spec["settings"]["reward_bounds"]
    environments.reset(seed)
    for chance in random_actions(100, 8, seed):
        expert = environments.expert_action()
        assert expert is not None
        result = environments.step(np.where(np.arange(8) < 4, expert, chance))
        assert isinstance(result.observation, np.ndarray)
        assert (np.abs(result.observation) <= 1.0).all()
        assert ((result.reward >= low) & (result.reward <= high)).all()
        assert not (result.terminated & result.truncated).any()
        np.testing.assert_array_equal(result.observation, observe(environments._vector_env.board))  # type: ignore[attr-defined]


# Rewards


def test_the_bounds_of_a_step_can_be_reached() -> None:
    """Seven fuseballs for the superzap while eight shots strike spikes: 1,750 + 8 points. Death is the lower bound."""
    env = quiet_game()
    for slot in range(7):
        put_enemy(env.board, FUSEBALL, 0, 8, slot=slot)
    env.board.shots[:8] = 1 << 7
    env.board.spikes[:8] = 0xFF00
    assert rewards(env, ZAP) == [np.float32(17.58)]
    assert env.settings["reward_bounds"] == [-5.0, float(np.float32(17.58))]
    assert LaneShooter(1, points_clip=1.0, **ALL_STREAMS).settings["reward_bounds"] == [-2.5, 2.0]  # type: ignore[arg-type]


def test_the_points_of_a_step_can_be_clipped() -> None:
    env = quiet_game(points_clip=1.0)
    put_enemy(env.board, FLIPPER, 5, 0.5)
    put_enemy(env.board, FLIPPER, 9, 8, slot=1)
    assert rewards(env, FIRE) == [1.0]


def test_streams_are_summed_apart_and_add_up_to_the_return() -> None:
    environments = make_envs(ENV_ID, 16, env_kwargs=ALL_STREAMS | {"max_episode_steps": 80})
    environments.reset(3)
    returns, ended = np.zeros(16), 0
    for action in random_actions(200, 16):
        result = environments.step(action)
        returns += result.reward
        over = result.terminated | result.truncated
        if over.any():
            sums = {name: summed[over] for name, summed in result.sums.items()}
            np.testing.assert_allclose(sum(sums[name] for name in STREAMS), returns[over], atol=1e-4)
            np.testing.assert_array_equal(sums["death"], -2.0 * result.terminated[over])
            assert all(np.isnan(summed[~over]).all() for summed in result.sums.values())
            ended += int(over.sum())
        returns[over] = 0.0
    assert ended > 16


class Still:
    """Does nothing."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> torch.Tensor:
        assert isinstance(observation, torch.Tensor)
        return torch.full((len(observation),), STILL)


def test_streams_become_curves() -> None:
    """Two lives lost in games of two lives: −10 in each of them, and the same in an evaluation."""
    environments = make_envs(ENV_ID, 2, env_kwargs={"lives": 2, "max_episode_steps": 5000})
    statistics = EpisodeStatistics(2)
    environments.reset(0)

    evaluator = EpisodeEvaluator(environments, gamma=0.9, seed=0, env_steps=0, device=torch.device("cpu"))
    episodes = evaluator.run(Still())
    assert episodes.sums is not None
    assert episodes.sums["death"].tolist() == [-10.0, -10.0]
    torch.testing.assert_close(sum(episodes.sums[name] for name in STREAMS), episodes.returns)
    environments.reset(0)
    while not statistics.means():
        statistics.count([environments.step(np.full(2, STILL))])
    assert statistics.means()["rollout/death_mean"] == -10.0


def test_shaping_is_a_potential_and_leaves_nothing_behind() -> None:
    """It comes to 0 where the episode has terminated, else to the last potential: a flipper 4 lanes away is −4/16."""
    env = quiet_game(shaping=2.0, max_episode_steps=4)
    put_enemy(env.board, FLIPPER, 10, 8)
    assert rewards(env, RIGHT, STILL, FIRE) == pytest.approx([-2.0 * 4 / 16, 0.0, 0.0])
    infos = env.step(np.array([RIGHT]))[4]
    assert infos["final_info"]["episode_sums"]["shaping"].tolist() == [pytest.approx(-2.0 * 3 / 16)]
    env = quiet_game(shaping=2.0)
    put_enemy(env.board, FLIPPER, 6, 0)
    assert rewards(env, 0) == [pytest.approx(-2.0 * 3 / 16)]
    put_enemy(env.board, FLIPPER, 3, 0)
    infos = env.step(np.array([STILL]))[4]
    assert infos["final_info"]["episode_sums"]["shaping"].tolist() == [pytest.approx(0.0)]


def test_the_bonus_is_for_the_first_time() -> None:
    """1/2, 1/2√2 and 1/2√3 for the first three actions in the same state, and nothing for the same again."""
    env = quiet_game(bonus=0.5)
    put_enemy(env.board, PULSAR, 12, 14)
    rewards(env, STILL)  # from now on nothing is seen to change
    assert rewards(env, STILL) == [0.5]
    assert rewards(env, STILL, STILL) == [0.0, 0.0]
    assert rewards(env, FIRE) == [pytest.approx(0.5 / 2**0.5)]
    assert rewards(env, FIRE, STILL) == [0.0, 0.0]
    assert rewards(env, RIGHT) == [pytest.approx(0.5 / 3**0.5)]


def test_the_same_games_are_worth_the_same_whoever_has_played_them_before() -> None:
    """A bonus that remembered across seeds would favour the first one, and a resumed run's evaluation."""
    environments = make_envs(ENV_ID, 4, env_kwargs={"bonus": 0.5, "max_episode_steps": 30})
    evaluator = EpisodeEvaluator(environments, gamma=0.9, seed=0, env_steps=0, device=torch.device("cpu"))
    first, second = (evaluator.run(Still()) for _ in range(2))
    assert first.sums is not None
    assert float(first.sums["bonus"].min()) > 0.0
    torch.testing.assert_close(second.returns, first.returns, rtol=0, atol=0)


# Streams and state


def test_a_game_depends_neither_on_the_others_nor_on_how_many_there_are() -> None:
    few, many = LaneShooter(4, 90), LaneShooter(9, 90)
    np.testing.assert_array_equal(few.reset(seed=5)[0], many.reset(seed=5)[0][:4])
    actions = random_actions(150, 9)
    assert_same(play(few, actions[:, :4]), [tuple(array[:4] for array in step) for step in play(many, actions)])


def test_games_can_be_exchanged() -> None:
    env, other = LaneShooter(6, 90), LaneShooter(6, 90)
    order, seeds = np.array([4, 5, 0, 3, 1, 2]), list(range(100, 106))
    first = env.reset(seed=seeds)[0]
    np.testing.assert_array_equal(other.reset(seed=[seeds[i] for i in order])[0], first[order])
    actions = random_actions(150, 6)
    exchanged = [tuple(array[order] for array in step) for step in play(env, actions)]
    assert_same(exchanged, play(other, actions[:, order]))


@pytest.mark.parametrize("kwargs", [{}, ALL_STREAMS | {"lives": 3, "open": True, "expert_mistakes": 0.3}])
def test_a_saved_state_goes_on_bit_for_bit(kwargs: dict[str, Any]) -> None:
    environments, restored = (make_envs(ENV_ID, 8, env_kwargs={"max_episode_steps": 150} | kwargs) for _ in range(2))
    environments.reset(3)
    actions = random_actions(200, 8)
    for action in actions[:100]:
        environments.step(action)
    file = io.BytesIO()
    torch.save(pickle.loads(pickle.dumps(environments.state_dict())), file)  # as processes send it to each other
    expected = [(environments.step(action), environments.expert_action()) for action in actions[100:]]
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for action, (result, expert) in zip(actions[100:], expected, strict=True):
        np.testing.assert_equal(restored.step(action)._asdict(), result._asdict())
        np.testing.assert_array_equal(restored.expert_action(), expert)


# Observations


def see(env: LaneShooter, name: str) -> list[float]:
    """A part of what the first game sees."""
    values: list[float] = observe(env.board)[0, ROWS[name]].tolist()
    return values


def test_lanes_are_seen_around_the_own_one() -> None:
    """From 8 on the left to 7 on the right: at lane 2, lane 14 is 4 to the left, place 4 of 16; lane 5 is place 11."""
    env = quiet_game(lane=2)
    put_enemy(env.board, FLIPPER, 14, 4)
    put_enemy(env.board, PULSAR, 14, 12, slot=1)
    env.board.spikes[5] = 0xF000
    env.board.shots[2] = 0b100100
    place = {"enemy_near": (4, 12 / 16), "spike": (11, 4 / 16), "shot_near": (8, 14 / 16)}
    for name, (where, value) in place.items():
        assert see(env, name) == [value if i == where else 0.0 for i in range(16)]


def test_an_open_tube_ends() -> None:
    """At lane 2 there are two lanes on the left; at lane 14, one on the right."""
    env = quiet_game(lane=2, open=True)
    put_enemy(env.board, FLIPPER, 14, 4)
    for name in ("enemy_near", "spike", "shot_near"):
        assert see(env, name) == [-1.0] * 6 + [0.0] * 10
    assert see(env, "relative_lane")[0] == 12 / 16
    env.board.lane[:] = 14
    assert see(env, "spike") == [0.0] * 10 + [-1.0] * 6


def test_enemies_are_seen_one_by_one() -> None:
    env = quiet_game(lane=2)
    put_enemy(env.board, FUSEBALL, 15, 8, slot=3, rise=-128, way=-1)
    kinds = np.array(see(env, "kind")).reshape(5, 7)
    assert np.argwhere(kinds).tolist() == [[4, 3]]
    nobody = {"relative_lane": 0.0, "depth": 127 / 128, "way": 0.0, "rise": 0.0}
    for name, value in {"relative_lane": -3 / 16, "depth": 0.5, "way": -1.0, "rise": -0.5}.items():
        assert see(env, name) == [value if slot == 3 else nobody[name] for slot in range(7)]


def test_what_is_seen_of_oneself() -> None:
    env = quiet_game(lane=3, quota=6, lives=3)
    board = env.board
    board.level[:], board.clock[:], board.zoom[:], board.has_zap[:] = 4, 60, 5 * CELL, False
    board.shots[4] = 0b11
    expected = {
        "lane": -9 / 15, "is_open": 0.0, "is_zooming": 1.0, "zoom": 5 / 16, "level": 4 / 16, "has_zap": 0.0,
        "quota": 6 / 30, "lives": 3 / 9, "shots": 2 / 8, "is_pulsing": 1.0, "pulse_phase": 28 / 32,
    }  # fmt: skip
    assert {name: see(env, name) for name in expected} == {
        name: [pytest.approx(value)] for name, value in expected.items()
    }
    assert [rows.start for rows in ROWS.values()] == [0, *[rows.stop for rows in ROWS.values()]][:-1]
    assert list(ROWS.values())[-1].stop == SIZE


# Pictures


def test_a_picture_of_each_game() -> None:
    environments = Environments(LaneShooter(2, render_mode="rgb_array"), env_spec(ENV_ID))
    environments.reset(0)
    frames = environments.render()
    assert [frame.shape for frame in frames] == [(360, 360, 3)] * 2
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}
    environments.step(np.array([RIGHT, FIRE]))
    assert not np.array_equal(environments.render()[0], frames[0])
    assert not np.array_equal(environments.render()[1], frames[1])
    assert LaneShooter(2).render() is None


@pytest.mark.parametrize(("lane", "place"), [(0, (1, 1)), (4, (1, -1)), (8, (-1, -1)), (12, (-1, 1))])
def test_a_fuseball_is_seen_in_its_lane(lane: int, place: tuple[int, int]) -> None:
    """The middle of lane l is at the angle (l + ½)·22.5° from the lower end of the vertical, towards the right."""
    env = quiet_game(render_mode="rgb_array", lane=(lane + 8) % 16)
    put_enemy(env.board, FUSEBALL, lane, 2)
    pictures = env.render()
    assert pictures is not None
    orange = np.argwhere((np.abs(pictures[0].astype(int) - [250, 150, 40]) < 20).all(-1))
    row, column = orange.mean(0) - 180
    angle = np.degrees(np.arctan2(column, row)) % 360
    assert angle == pytest.approx((lane + 0.5) * 22.5, abs=4)
    assert (np.sign(column), np.sign(row)) == place
