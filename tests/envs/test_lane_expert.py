"""The scripted expert of the lane shooter: what it hunts and flees, its mistakes, and that it is good."""

import numpy as np
import pytest
from lane_boards import FIRE, STILL, put_enemy, quiet_game, random_actions

from rlmods.envs.environments import Environments
from rlmods.envs.lane_board import FLIPPER, FUSEBALL, PULSAR, SPIKER, TANKER
from rlmods.envs.lane_shooter import LaneShooter
from rlmods.envs.make import env_spec

ENV_ID = "rlmods/LaneShooter-v0"


def decide(env: LaneShooter) -> tuple[int, bool, bool]:
    """Move, fire and zap in the first game."""
    action = int(env.expert_action()[0])
    return action // 4 - 2, bool(action & 2), bool(action & 1)


def test_it_hunts_by_kind_then_the_nearest_then_the_shallowest() -> None:
    env = quiet_game(lane=5)
    put_enemy(env.board, SPIKER, 4, 8, slot=0)
    assert decide(env) == (-1, True, False)
    for slot, (kind, lane, move) in enumerate(
        [(TANKER, 9, 2), (PULSAR, 1, -2), (FLIPPER, 6, 1), (FUSEBALL, 2, -2), (FUSEBALL, 7, 2)], 1
    ):
        put_enemy(env.board, kind, lane, 8, slot=slot)
        assert decide(env)[0] == move
    put_enemy(env.board, FUSEBALL, 3, 7, slot=6)
    assert decide(env)[0] == -2


def test_it_goes_the_shorter_way_round() -> None:
    for is_open, move in ((False, -2), (True, 2)):
        env = quiet_game(lane=1, open=is_open)
        put_enemy(env.board, FLIPPER, 14, 8)
        assert decide(env) == (move, False, False)


def test_it_waits_and_shoots_in_the_lane() -> None:
    env = quiet_game(lane=5)
    put_enemy(env.board, FLIPPER, 5, 8)
    assert decide(env) == (0, True, False)
    assert int(env.expert_action()[0]) == FIRE


@pytest.mark.parametrize("lane", [0, 1, 14, 15])
def test_it_never_walks_into_a_wall(lane: int) -> None:
    env = quiet_game(lane=lane, open=True)
    for place in range(0, 16, 3):
        put_enemy(env.board, FLIPPER, place, 8)
        assert 0 <= lane + decide(env)[0] <= 15


def test_it_keeps_away_from_the_rim_and_zaps_two_at_once() -> None:
    """The fuseball behind two flippers on the rim is no reason to pass through them; two close by are one for a zap."""
    env = quiet_game(lane=5)
    put_enemy(env.board, FUSEBALL, 9, 8)
    put_enemy(env.board, FLIPPER, 6, 0, slot=1)
    move, fire, zap = decide(env)
    assert (move <= 0, fire, zap) == (True, True, False)
    put_enemy(env.board, FLIPPER, 7, 0, slot=2)
    assert decide(env)[2]
    env.board.has_zap[:] = False
    assert not decide(env)[2]


def test_it_leaves_the_lane_of_a_pulsar_before_the_pulse() -> None:
    env = quiet_game(lane=5)
    put_enemy(env.board, PULSAR, 5, 4)
    assert decide(env)[0] == 0
    env.board.clock[:] = 22
    assert decide(env)[0] != 0


def test_it_flies_where_the_spikes_are_low() -> None:
    env = quiet_game(lane=5)
    env.board.zoom[:] = 0
    for lane, cells in {3: 6, 4: 2, 5: 4, 6: 1, 7: 3}.items():
        env.board.spikes[lane] = 0xFFFF << (16 - cells) & 0xFFFF
    assert decide(env) == (1, True, False)
    env.board.spikes[3:8] = 0
    assert decide(env)[0] == 0


def test_its_mistakes_are_random_and_belong_to_the_state() -> None:
    """With probability 1 every move is as likely, with fire or without, and it never zaps: 10 actions."""
    env, sure = LaneShooter(4000, expert_mistakes=1.0), LaneShooter(4000)
    half = LaneShooter(4000, expert_mistakes=0.5)
    for each in (env, sure, half):
        each.reset(seed=0)
    np.testing.assert_array_equal(env.expert_action(), env.expert_action())
    chosen = np.bincount(env.expert_action(), minlength=20)
    assert not chosen[1::2].any()
    assert (np.abs(chosen[::2] - 400) < 5 * (4000 * 0.1 * 0.9) ** 0.5).all()
    assert set(sure.expert_action().tolist()) == {STILL}
    changed = float((half.expert_action() != STILL).mean())
    assert changed == pytest.approx(0.5 * 0.9, abs=5 * (0.25 / 4000) ** 0.5)
    before = env.expert_action()
    env.step(before)
    assert not np.array_equal(env.expert_action(), before)


def test_it_is_far_better_than_chance_and_worse_with_mistakes() -> None:
    """Who of 64 is still alive after 200 frames of the seventh level: about 52, 19 and 2."""
    alive = []
    for mistakes in (0.0, 0.3, None):
        env = LaneShooter(64, expert_mistakes=mistakes or 0.0)
        env.reset(seed=1)
        env.board.begin_level(slice(None), np.full(64, 7), None)
        playing = np.ones(64, np.bool_)
        for action in random_actions(200, 64):
            playing &= ~env.step(action if mistakes is None else env.expert_action())[2]
        alive.append(int(playing.sum()))
    assert alive[0] > alive[1] + 15
    assert alive[1] > alive[2] + 5


def test_environments_give_it_on() -> None:
    environments = Environments(LaneShooter(3), env_spec(ENV_ID))
    environments.reset(0)
    action, care = environments.expert_action(), environments.needs_care()
    assert action is not None
    assert care is not None
    assert (action.shape, action.dtype, care.shape, care.dtype) == ((3,), np.dtype(np.int64), (3,), np.dtype(np.bool_))
