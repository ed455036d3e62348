"""What happens in a frame of the lane shooter, with numbers that can be counted by hand."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lane_boards import FIRE, LEFT, RIGHT, STILL, ZAP, enemies, frames, put_enemy, quiet_game, rewards

from rlmods.envs.lane_board import CELL, DEEP, FLIPPER, FUSEBALL, KINDS, PULSAR, SPIKER, TANKER, Board
from rlmods.envs.lane_rules import encode_action

# Shots and points


@pytest.mark.parametrize(("kind", "points"), list(enumerate([1.5, 0.5, 1.0, 2.0, 2.5], 1)), ids=KINDS)
def test_a_shot_kills_an_enemy_in_its_lane_and_gives_its_points(kind: int, points: float) -> None:
    """A shot that begins in cell 0 is in cell 3 in the fourth frame; 100 points are a reward of 1."""
    env = quiet_game()
    put_enemy(env.board, kind, 5, 3.5)
    assert rewards(env, FIRE, STILL, STILL) == [0.0] * 3
    assert rewards(env, STILL) == [pytest.approx(points)]
    assert [enemy[0] for enemy in enemies(env.board)] == ([FLIPPER] * 2 if kind == TANKER else [])
    assert not env.board.shots.any()


def test_a_shot_passes_other_lanes() -> None:
    env = quiet_game()
    put_enemy(env.board, FLIPPER, 6, 3.5)
    assert not any(rewards(env, FIRE, *[STILL] * 17))
    assert len(enemies(env.board)) == 1
    assert not env.board.shots.any()  # it has left at the bottom


def test_there_are_eight_shots_at_most() -> None:
    """Of 16 frames with fire the first eight shoot; in the 17th the first shot has gone."""
    env = quiet_game()
    put_enemy(env.board, FLIPPER, 0, 15)
    in_flight = []
    for _ in range(18):
        rewards(env, FIRE)
        in_flight.append(int(np.bitwise_count(env.board.shots).sum()))
    assert in_flight == [1, 2, 3, 4, 5, 6, 7] + [8] * 11
    assert int(env.board.shots[5, 0]) == 0xFC03  # six of the first ones, and two of late
    assert np.flatnonzero(env.board.shots.any(1)).tolist() == [5]


@settings(max_examples=40, deadline=None)
@given(depth=st.integers(2 * CELL, DEEP), rise=st.integers(-255, 255), wait=st.integers(0, 3))
def test_a_shot_and_an_enemy_that_meet_do_not_pass_each_other(depth: int, rise: int, wait: int) -> None:
    assume(0 < depth + rise * (wait + 1) <= DEEP)
    env = quiet_game(lane=5)
    put_enemy(env.board, FLIPPER, 5, depth / CELL, rise=rise)
    seen = rewards(env, *[STILL] * wait, FIRE, *[STILL] * 16)
    left = depth + rise * (wait + 17) > DEEP  # whoever goes down leaves the tube before a shot comes
    assert (sum(seen) == pytest.approx(1.5)) or left


# Ways


def test_a_closed_tube_has_no_walls_and_an_open_one_has_two() -> None:
    for is_open, lane, move, expected in [
        (False, 15, RIGHT, 0), (False, 0, LEFT, 15), (False, 15, 16, 1), (False, 0, 0, 14),
        (True, 15, RIGHT, 15), (True, 0, LEFT, 0), (True, 14, 16, 15), (True, 1, 0, 0), (True, 3, 16, 5),
    ]:  # fmt: skip
        env = quiet_game(lane=lane, open=is_open)
        put_enemy(env.board, FLIPPER, 8, 10)
        rewards(env, move)
        assert env.board.lane.tolist() == [expected]


@pytest.mark.parametrize(("is_open", "lanes"), [(False, [15, 14, 13]), (True, [0, 1, 2])])
def test_a_flipper_goes_round_or_turns_at_the_wall(is_open: bool, lanes: list[int]) -> None:
    """At a chance of 255 of 256 it goes on in all of these frames."""
    env = quiet_game(lane=8, open=is_open)
    put_enemy(env.board, FLIPPER, 0, 10, way=-1, restless=255)
    seen = []
    for _ in range(3):
        rewards(env, STILL)
        seen.append(enemies(env.board)[0][1])
    assert seen == lanes


@pytest.mark.parametrize(
    ("is_open", "lane", "place", "expected"), [(False, 1, 14, 15), (True, 1, 14, 13), (False, 9, 2, 3), (True, 9, 2, 3)]
)
def test_on_the_rim_they_come_the_shorter_way(is_open: bool, lane: int, place: int, expected: int) -> None:
    env = quiet_game(lane=lane, open=is_open)
    for slot, kind in enumerate((FLIPPER, PULSAR)):
        put_enemy(env.board, kind, place, 0, slot=slot, way=-1, restless=255)
    rewards(env, STILL)
    assert [place for _, place, _ in enemies(env.board)] == [expected] * 2


def test_a_fuseball_goes_both_ways() -> None:
    env = quiet_game(lane=8)
    put_enemy(env.board, FUSEBALL, 0, 10, restless=255)
    places = [0]
    for _ in range(30):
        rewards(env, STILL)
        places.append(enemies(env.board)[0][1])
    assert {(after - before) % 16 for before, after in pairwise(places)} == {1, 15}


def test_climbing_ends_at_the_rim() -> None:
    env = quiet_game(lane=8)
    put_enemy(env.board, FLIPPER, 0, 1, rise=-100)
    seen = []
    for _ in range(4):
        rewards(env, STILL)
        seen.append(enemies(env.board)[0][2] * CELL)
    assert seen == [156, 56, 0, 0]
    assert env.board.rise[0, 0] == 0
    assert env.board.restless[0, 0] > 0


# Tankers, spikers, pulsars


def test_a_tanker_becomes_two_flippers_where_it_is_shot() -> None:
    env = quiet_game()
    put_enemy(env.board, TANKER, 5, 3.5)
    rewards(env, FIRE, *[STILL] * 3)
    assert enemies(env.board) == [(FLIPPER, 6, 3.5), (FLIPPER, 4, 3.5)]
    assert (env.board.rise[:2] < 0).all()
    assert env.board.way[:2, 0].tolist() == [1, -1]


def test_a_tanker_splits_by_itself_near_the_rim_and_pays_nothing() -> None:
    env = quiet_game(lane=5)
    put_enemy(env.board, TANKER, 0, 2.25, rise=-100)
    assert rewards(env, STILL) == [0.0]
    assert sorted(place for kind, place, _ in enemies(env.board) if kind == FLIPPER) == [1, 15]


def test_at_a_wall_and_in_a_full_tube_it_does_what_it_can() -> None:
    env = quiet_game(lane=8, open=True)
    put_enemy(env.board, TANKER, 15, 1)
    rewards(env, STILL)
    assert [enemy[:2] for enemy in enemies(env.board)] == [(FLIPPER, 15), (FLIPPER, 14)]
    env = quiet_game(lane=8)
    for slot in range(1, 7):
        put_enemy(env.board, FLIPPER, 0, 10, slot=slot)
    put_enemy(env.board, TANKER, 15, 1)
    rewards(env, STILL)
    assert [enemy[:2] for enemy in enemies(env.board)] == [(FLIPPER, 0)] * 7


def test_a_spiker_leaves_a_spike_turns_and_goes() -> None:
    """Up in steps of a cell from cell 6; below cell 3 it turns round, and at the bottom it leaves."""
    env = quiet_game(lane=0)
    put_enemy(env.board, SPIKER, 9, 6.5, rise=-CELL)
    spikes = []
    while enemies(env.board):
        rewards(env, STILL)
        spikes.append(int(env.board.spikes[9, 0]))
    assert spikes[-1] in {0xFFFF << cell & 0xFFFF for cell in range(2, 7)}  # a byte may have turned it earlier
    assert env.board.spikes[:9].sum() + env.board.spikes[10:].sum() == 0
    assert env.board.is_zooming.tolist() == [True]


def test_a_shot_takes_a_cell_of_a_spike_and_pays_a_point() -> None:
    env = quiet_game()
    put_enemy(env.board, FLIPPER, 0, 15)
    env.board.spikes[5] = 0xFFFF << 3 & 0xFFFF
    assert rewards(env, FIRE, FIRE, STILL, STILL, STILL, STILL) == pytest.approx([0, 0, 0, 0.01, 0, 0.01])
    assert int(env.board.spikes[5, 0]) == 0xFFFF << 5 & 0xFFFF
    assert not env.board.shots.any()


@pytest.mark.parametrize(("lane", "cell", "dies"), [(5, 5, True), (6, 5, False), (5, 13, False)])
def test_a_pulsar_kills_its_lane_in_the_last_quarter_of_its_period(lane: int, cell: int, dies: bool) -> None:
    """Of 32 frames the first 23 are harmless: in the 24th the clock of the level says 24."""
    env = quiet_game()
    put_enemy(env.board, PULSAR, lane, cell)
    results = frames(env, *[STILL] * 24)
    assert not any(terminated[0] for _, terminated, _ in results[:-1])
    assert results[-1] == ([-5.0] if dies else [0.0], [dies], [False])


# The player


def test_an_enemy_on_the_rim_kills_in_the_players_lane_and_a_shot_may_come_first() -> None:
    for kind in (FLIPPER, FUSEBALL, PULSAR):
        env = quiet_game(2)
        put_enemy(env.board, kind, 5, 0.1, rise=-100)
        _, reward, terminated, _, infos = env.step(np.array([STILL, FIRE]))
        assert terminated.tolist() == [True, False]
        assert reward[0] == -5.0
        assert reward[1] > 0.0
        assert infos["final_info"]["episode_sums"]["death"][0] == -5.0


def test_a_life_that_is_not_the_last_one_clears_the_tube() -> None:
    env = quiet_game(lives=2, death_penalty=3.0)
    put_enemy(env.board, FLIPPER, 5, 0)
    put_enemy(env.board, TANKER, 9, 8, slot=3)
    env.board.spikes[4] = 0xF000
    assert frames(env, STILL) == [([-3.0], [False], [False])]
    assert not enemies(env.board)
    assert (env.board.lives.tolist(), int(env.board.spikes[4, 0])) == ([1], 0xF000)
    put_enemy(env.board, FLIPPER, 5, 0)
    assert frames(env, STILL) == [([-3.0], [True], [False])]
    assert env.board.lives.tolist() == [2]  # of a new game


def test_the_superzap_ends_all_enemies_once_a_level() -> None:
    """A fuseball, a tanker and a pulsar: 250 + 100 + 200 points, and the tanker has no parts."""
    env = quiet_game(quota=0)
    for slot, kind in enumerate((FUSEBALL, TANKER, PULSAR)):
        put_enemy(env.board, kind, 9 + slot, 8, slot=slot)
    env.board.spikes[5] = 0xC000
    assert rewards(env, ZAP) == [pytest.approx(5.5)]
    assert env.board.is_zooming.tolist() == [True]
    env.board.zoom[:] = -1
    put_enemy(env.board, FLIPPER, 9, 8)
    assert rewards(env, ZAP) == [0.0]
    assert len(enemies(env.board)) == 1
    env.board.begin_level(slice(None), np.array([2]), None)
    env.board.quota[:] = 0
    put_enemy(env.board, FLIPPER, 9, 8)
    assert rewards(env, ZAP) == [pytest.approx(1.5)]


# Levels


def test_a_spike_kills_in_the_zoom_phase() -> None:
    """Half a cell a frame: the spike that begins in cell 8 is met in the 16th frame of the flight."""
    env = quiet_game(3)
    env.board.lane[:] = [5, 6, 7]
    env.board.spikes[5] = 0xFF00
    frames(env, STILL)
    assert env.needs_care().all()
    results = frames(env, *[STILL] * 16)
    assert [terminated for _, terminated, _ in results[:-1]] == [[False] * 3] * 15
    assert results[-1] == ([-5.0, 0.0, 0.0], [True, False, False], [False] * 3)
    assert env.needs_care().tolist() == [False, True, True]


def test_at_the_bottom_the_next_level_begins() -> None:
    """500 points after 32 frames of flight; the superzap is back, the spikes are gone."""
    env = quiet_game(max_episode_steps=34)
    env.board.has_zap[:] = False
    env.board.spikes[9] = 0xFF00
    seen = rewards(env, *[STILL] * 33)
    assert seen == [0.0] * 32 + [5.0]
    board = env.board
    assert (board.level.tolist(), board.quota.tolist(), board.has_zap.tolist()) == ([2], [10], [True])
    assert not board.spikes.any()
    assert board.zoom.tolist() == [-1]
    sums = env.step(np.array([STILL]))[4]["final_info"]["episode_sums"]
    assert (sums["points"].tolist(), sums["levels"].tolist()) == ([5.0], [1.0])


def test_a_shot_shortens_the_spike_ahead() -> None:
    """From cell 2 in the fifth frame of the flight: in cell 8 in its eleventh, before the player, who is in cell 5."""
    env = quiet_game()
    env.board.spikes[5] = 0xFF00
    rewards(env, *[STILL] * 5, FIRE)
    assert int(env.board.shots[5, 0]) == 1 << 2
    assert rewards(env, *[STILL] * 6) == pytest.approx([0] * 5 + [0.01])
    assert int(env.board.spikes[5, 0]) == 0xFE00


def test_lost_in_the_tube_the_flight_begins_again() -> None:
    env = quiet_game(lives=3)
    env.board.spikes[5] = 0xFF00
    rewards(env, *[STILL] * 17)
    assert (env.board.lives.tolist(), env.board.zoom.tolist()) == ([2], [0])
    assert int(env.board.spikes[5, 0]) == 0xFF00


def test_levels() -> None:
    board = Board(6)
    board.begin_level(slice(None), np.array([1, 2, 3, 4, 5, 99]), None)
    assert board.is_open.tolist() == [False, False, True, True, False, True]
    assert board.quota.tolist() == [8, 10, 12, 14, 16, 30]
    assert board.stage.tolist() == [0, 1, 2, 3, 4, 15]
    for is_open in (True, False):
        board.begin_level(slice(None), board.level, is_open)
        assert board.is_open.tolist() == [is_open] * 6


def test_a_quota_appears_and_no_more() -> None:
    """Enemies that vanish at once: each frame has at most one, and of a level's eight none is left."""
    env = quiet_game(16, quota=8, max_episode_steps=10_000)
    appeared = np.zeros(16, np.int64)
    for _ in range(400):
        rewards(env, STILL)
        appeared += (env.board.kind > 0).sum(0)
        assert set(np.unique(env.board.kind)) <= {0, FLIPPER, SPIKER}  # of the first level
        env.board.free(slice(None), slice(None))
        env.board.zoom[:] = -1
    assert appeared.tolist() == [8] * 16


@pytest.mark.parametrize("action", [-1, 20])
def test_another_action_is_refused(action: int) -> None:
    with pytest.raises(ValueError, match=f"got actions from .*{action}.*, expected 0 to 19"):
        quiet_game(2).step(np.array([5, action]))


def test_actions_in_numbers() -> None:
    moves = np.arange(-2, 3)
    assert encode_action(moves, np.zeros(5), np.zeros(5)).tolist() == [0, 4, 8, 12, 16]
    assert encode_action(moves, np.ones(5), np.ones(5)).tolist() == [3, 7, 11, 15, 19]
