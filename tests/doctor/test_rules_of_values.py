"""Targets, values and replay: the arithmetic by hand."""

import math

import pytest

from rlmods.doctor.line import Line, overall
from rlmods.doctor.replay import (
    ACTOR_CRITIC,
    VALUE_BASED,
    buffer,
    first_batch,
    memory,
    priorities,
    replay_ratio,
    strata,
)
from rlmods.doctor.targets import half_life, hard_copies, share_left, target_mixing
from rlmods.doctor.updates import Rates, effective_batch, gradient_clip, learning_rate, rates
from rlmods.doctor.values import Interval, clamp, discounting, support, value_bound, value_clip


def test_half_life_of_a_soft_target() -> None:
    """The published 57 and 138 updates."""
    assert half_life(0.012, 1) == pytest.approx(57.41, abs=0.01)
    assert half_life(0.005, 1) == pytest.approx(138.28, abs=0.01)
    assert half_life(0.005, 2) == pytest.approx(276.56, abs=0.01)
    assert half_life(0.5, 3) == pytest.approx(3.0)
    assert half_life(1.0, 500) == 0.0


def test_share_of_the_old_target() -> None:
    assert share_left(0.5, 1, 3) == 0.125
    assert share_left(0.5, 2, 3) == 0.5  # one update of the target in three
    assert share_left(1.0, 10, 9) == 1.0
    assert share_left(1.0, 10, 10) == 0.0


def test_mixing_in_updates_and_frames() -> None:
    line = target_mixing(0.005, 1, "target_update_interval", 100_000, 4.0, 1.0)
    assert line.status == "PASS"
    assert "138.3 updates = 553 frames" in line.arithmetic
    assert "0.0067 of it is left" in line.arithmetic  # 0.995^1000 = 0.00665


@pytest.mark.parametrize(
    ("tau", "interval", "num_updates", "status", "word"),
    [
        (1.0, 500, 499, "FAIL", "No target update"),
        (1.0, 500, 2_000, "WARN", "fifth"),
        (1.0, 500, 2_500, "PASS", ""),
        (0.2, 1, 10_000, "WARN", "hardly lags"),  # half of it after 3.1 updates
        (0.05, 1, 10_000, "PASS", ""),  # 13.5
        (0.005, 1, 691, "WARN", "fifth"),
        (0.005, 1, 692, "PASS", ""),
        (1.0, 1, 10_000, "WARN", "hardly lags"),
    ],
)
def test_a_target_that_hardly_moves_or_hardly_lags(
    tau: float, interval: int, num_updates: int, status: str, word: str
) -> None:
    line = target_mixing(tau, interval, "target_update_interval", num_updates, 1.0, 1.0)
    assert line.status == status
    assert word in line.reason


def test_a_target_that_moves_many_times_before_there_is_anything_new() -> None:
    """A copy every 60 updates; 240 of them are four, 512 are 8.53."""
    assert target_mixing(1.0, 60, "target_update_interval", 100_000, 0.1, 240.0).status == "PASS"
    line = target_mixing(1.0, 60, "target_update_interval", 100_000, 0.1, 512.0)
    assert line.status == "WARN"
    assert "8.53 times" in line.reason


def test_full_copies_beside_soft_updates() -> None:
    assert hard_copies(25_000, 0.005, 1, 100_000).status == "PASS"
    assert "hardly matter" in hard_copies(25_000, 0.005, 1, 100_000).reason
    assert hard_copies(138, 0.005, 1, 100_000).status == "WARN"  # half of it is gone after 138.3
    assert hard_copies(139, 0.005, 1, 100_000).status == "PASS"
    assert hard_copies(1_001, 0.005, 1, 1_000).status == "WARN"
    assert hard_copies(10, 0.5, 1, 1_000).status == "PASS"
    assert "hardly lags" in hard_copies(9, 0.5, 1, 1_000).reason


def test_what_is_left_to_the_bootstrap() -> None:
    line = discounting(0.995, 8, None, bootstraps_after=True)
    assert "= 200 steps" in line.arithmetic
    assert "0.995^8 = 0.9607" in line.arithmetic
    assert discounting(0.995, 5, None, bootstraps_after=True).arithmetic.count("0.9752") == 1
    assert "bootstrap" not in discounting(0.995, 5, None, bootstraps_after=False).arithmetic


@pytest.mark.parametrize(
    ("gamma", "n_steps", "limit", "status"),
    [
        (0.99, 1, 10, "PASS"),  # a horizon of ten episodes
        (0.99, 1, 9, "WARN"),
        (0.9, 1, 1_000, "PASS"),
        (0.9, 1, 1_001, "WARN"),
        (0.9, 10, 100, "PASS"),
        (0.9, 11, 100, "WARN"),
    ],
)
def test_horizon_against_episodes_and_returns(gamma: float, n_steps: int, limit: int, status: str) -> None:
    assert discounting(gamma, n_steps, limit, bootstraps_after=True).status == status


def test_value_bound() -> None:
    """Rewards of ±0.162 a frame: no value beyond 32.4, where 324 was called reasonable."""
    line = value_bound(Interval(-32.4, 32.4), [-0.162, 0.162], 0.995)
    assert line.status == "PASS"
    assert "[-32.4, 32.4]" in line.arithmetic
    assert "not known" in value_bound(None, None, 0.995).arithmetic


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ((None, None), "PASS"),
        ((-32.4, 32.4), "PASS"),
        ((-8.0, 8.0), "FAIL"),
        ((None, 8.0), "FAIL"),
        ((None, 40.0), "PASS"),
        ((-324.0, 324.0), "PASS"),
        ((-325.0, 325.0), "WARN"),
    ],
)
def test_a_clamp_against_the_bound(given: tuple[float | None, float | None], status: str) -> None:
    line = clamp("TargetClamp", given, Interval(-32.4, 32.4), cuts=True)
    assert line.status == status
    assert clamp("TargetClamp", given, None, cuts=True).status == "PASS"


def test_a_guard_speaks_where_a_clamp_cuts() -> None:
    bound = Interval(-10.0, 10.0)
    assert "cuts off" in clamp("TargetClamp", (-1.0, 1.0), bound, cuts=True).reason
    assert "speaks of" in clamp("ValueBoundGuard", (-1.0, 1.0), bound, cuts=False).reason


@pytest.mark.parametrize(
    ("given", "status"),
    [((-10.0, 10.0), "PASS"), ((-9.9, 10.0), "FAIL"), ((-100.0, 100.0), "WARN"), ((-50.0, 50.0), "PASS")],
)
def test_a_support_against_the_bound(given: tuple[float, float], status: str) -> None:
    """51 atoms on [-50, 50] are 2 apart: 10 of them lie within [-10, 10]; on [-100, 100] 5."""
    assert support(51, Interval(*given), Interval(-10.0, 10.0)).status == status


def test_a_support_that_could_not_be_checked() -> None:
    line = support(51, Interval(-10.0, 10.0), None)
    assert line.status == "WARN"
    assert "0.4 apart" in line.arithmetic
    assert "reward_bounds" in line.advice


def test_a_clipped_value_needs_many_rollouts() -> None:
    assert value_clip(0.2, Interval(0.0, 100.0), 1_000).status == "PASS"  # 500
    assert value_clip(0.2, Interval(0.0, 100.0), 999).status == "WARN"


@pytest.mark.parametrize(
    ("drawn", "collected", "limit", "status"),
    [
        (32, 4, None, "PASS"),  # 8: DQN on Atari
        (64, 1, None, "PASS"),
        (65, 1, None, "WARN"),
        (256, 1, None, "WARN"),
        (786_432, 2_000, None, "FAIL"),  # 48 updates of 16,384 a second on 2,000 frames: 393
        (786_432, 2_000, 12.0, "PASS"),
    ],
)
def test_replay_ratio_of_values(drawn: int, collected: int, limit: float | None, status: str) -> None:
    assert replay_ratio(drawn, collected, limit, VALUE_BASED).status == status


def test_replay_ratio_of_actors_with_several_critics() -> None:
    assert replay_ratio(256, 1, None, ACTOR_CRITIC).status == "PASS"
    assert replay_ratio(513, 1, None, ACTOR_CRITIC).status == "WARN"
    assert replay_ratio(5_121, 1, None, ACTOR_CRITIC).status == "FAIL"


def test_the_limiter_is_named() -> None:
    line = replay_ratio(786_432, 2_000, 12.0, VALUE_BASED)
    assert "393.2 draws of each, at most 12 by max_replay_ratio" in line.arithmetic
    assert "limiter" in line.reason


def test_effective_batch() -> None:
    line = effective_batch(16_384, 4, 1, 5_000_000)
    assert line.status == "PASS"
    assert "= 65,536 transitions" in line.arithmetic
    assert effective_batch(16_384, 4, 1, 262_144).status == "PASS"  # a quarter
    assert effective_batch(16_384, 4, 1, 262_143).status == "WARN"
    assert "= 128 transitions" in effective_batch(64, 1, 2, 10_000).arithmetic


def test_the_first_batch_and_the_buffer() -> None:
    assert first_batch(64, 64, 0).status == "PASS"
    assert first_batch(65, 64, 0).status == "WARN"
    assert "the last 50%" in buffer(500, 1_000, 100).arithmetic
    assert buffer(99, 1_000, 100).status == "WARN"
    assert buffer(10_000, 1_000, 100).status == "PASS"
    assert buffer(10_001, 1_000, 100).status == "WARN"


def test_memory() -> None:
    gibibyte = 2**30
    assert memory(gibibyte, 0, 2 * gibibyte, 1_000).status == "PASS"
    assert "50.0% of the 2.00 GiB" in memory(gibibyte, 0, 2 * gibibyte, 1_000).arithmetic
    assert memory(gibibyte, 1, 2 * gibibyte, 1_000).status == "WARN"
    full = memory(2 * gibibyte, 1, 2 * gibibyte, 1_000)
    assert full.status == "FAIL"
    assert full.advice.endswith("buffer_size 400")  # 40 % of what is available
    assert memory(2 * gibibyte, 1, 2 * gibibyte, None).advice.endswith("n_steps N with a smaller N")


def test_priorities_and_strata() -> None:
    assert priorities(0.6, 0.4, 16).status == "PASS"
    assert priorities(0.0, 0.4, 16).status == "WARN"
    assert strata({"recent": 0.9, "uniform": 0.1}, 1.0).status == "PASS"
    assert strata({"recent": 1.0}, 1.0).status == "WARN"
    assert strata({"high_reward": 0.5, "uniform": 0.5}, 0.0).status == "WARN"


def test_rates_of_a_line_and_of_a_cosine() -> None:
    line = rates(lambda progress: 1.0 - progress, 0.0, 1.0)
    assert (line.first, line.last, line.peak) == (1.0, 0.0, 1.0)
    assert line.middle == pytest.approx(0.5, abs=1e-3)
    assert line.ended == pytest.approx(0.1, abs=2e-3)
    cosine = rates(lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)), 0.0, 1.0)
    assert cosine.ended == pytest.approx(1.0 - math.acos(-0.8) / math.pi, abs=2e-3)  # 0.205


def test_a_schedule_that_overrides_a_constant() -> None:
    """0.003 was configured; 5e-5 was applied."""
    overridden = learning_rate(3e-3, Rates(5e-5, 5e-5, 5e-5, 5e-5, 0.0))
    assert overridden.status == "FAIL"
    assert "5e-05 all the time" in overridden.arithmetic
    assert learning_rate(1e-3, Rates(1e-3, 5e-4, 0.0, 1e-3, 0.1)).status == "PASS"
    assert learning_rate(1e-3, Rates(5e-4, 5e-4, 5e-4, 5e-4, 0.0)).status == "PASS"
    assert learning_rate(1e-3, Rates(0.0, 0.0, 0.0, 0.0, 0.0), 1.0).reason == "Nothing is learned"
    assert learning_rate(1e-3, Rates(1e-3, 1e-5, 1e-5, 1e-3, 0.6)).status == "WARN"


def test_a_schedule_that_goes_on_where_it_stood() -> None:
    gone = Rates(1e-4, 5e-5, 0.0, 1e-4, 0.1)
    assert learning_rate(1e-3, gone, 0.9).status == "WARN"
    assert "90% of the budget" in learning_rate(1e-3, gone, 0.9).reason


def test_gradient_clip() -> None:
    assert gradient_clip(10.0).status == "PASS"
    assert gradient_clip(None).status == "PASS"
    assert gradient_clip(None, is_squared=True).status == "WARN"
    assert gradient_clip(9e-4).status == "WARN"


def test_a_line_is_a_sentence() -> None:
    line = Line("FAIL", "support", "51 atoms", "Too narrow", "type --model.init_args.v_max 50")
    assert line.text == "FAIL support: 51 atoms. Too narrow; type --model.init_args.v_max 50"
    assert Line("PASS", "support", "51 atoms").text == "PASS support: 51 atoms"


def test_the_gravest_line_decides() -> None:
    lines = [Line(status, "a", "") for status in ("PASS", "WARN", "FAIL")]
    assert [overall(lines[:count]) for count in range(4)] == ["PASS", "PASS", "WARN", "FAIL"]
