"""Budget, rollouts, schedules, policies and linear TD: the arithmetic by hand."""

import math

import pytest

from rlmods.doctor.budget import Budget, evaluation_episodes, evaluations, logging, updates, warm_up
from rlmods.doctor.linear import critical_step, following, importance_ratio
from rlmods.doctor.policies import (
    entropy_bonus,
    fixed_temperature,
    initial_std,
    policy_delay,
    target_entropy,
    target_noise,
)
from rlmods.doctor.rollouts import advantage_horizon, policy_step, rollout_batch, schedule_length
from rlmods.doctor.schedules import cloning, expert_curriculum, exploration_noise, exploration_rate, mixed_returns

# 10 iterations of 100 steps; the first update in the third, four updates each.
BUDGET = Budget(1_000, 100, 10, 4, 300)


def test_updates_of_a_run() -> None:
    assert BUDGET.num_updates == 8 * 4
    assert BUDGET.frames_per_update == 25.0
    assert BUDGET._replace(start=500).num_updates == 5 * 4
    assert BUDGET._replace(start=100).num_updates == 8 * 4
    assert "32 updates" in updates(BUDGET).arithmetic
    assert updates(BUDGET).status == "PASS"


def test_a_run_without_updates_or_cut_short() -> None:
    assert updates(BUDGET._replace(first_update=1_100)).status == "FAIL"
    cut = updates(BUDGET._replace(num_iterations=5))
    assert cut.status == "WARN"
    assert "500 of 1,000" in cut.reason


def test_warm_up() -> None:
    line = warm_up(BUDGET, 250, random_actions=True)
    assert line.status == "PASS"
    assert "at 300, 30.0% of the budget" in line.arithmetic
    assert warm_up(BUDGET._replace(first_update=500), 500, random_actions=False).status == "PASS"
    assert warm_up(BUDGET._replace(first_update=600), 600, random_actions=False).status == "WARN"


def test_evaluations_come_in_whole_iterations_and_at_the_end() -> None:
    """Every 250 steps is every second iteration of 100: five of them; of every third, three and the last."""
    line = evaluations(BUDGET, 250, 10, 20)
    assert "every 200 environment steps, 5 evaluations of 10 episodes: at most 1,000 frames, 1 for" in line.arithmetic
    assert "rounded" in line.reason
    assert "4 evaluations" in evaluations(BUDGET, 300, 10, None).arithmetic
    assert "3 evaluations" in evaluations(BUDGET._replace(start=500), 200, 10, None).arithmetic


def test_evaluations_that_never_come_or_cost_more_than_the_training() -> None:
    assert evaluations(BUDGET, 1_000, 10, 20).status == "PASS"
    assert evaluations(BUDGET, 1_001, 10, 20).status == "WARN"
    assert evaluations(BUDGET, 200, 10, 20, allowed=False).status == "WARN"
    assert evaluations(BUDGET, 200, 10, 200).status == "PASS"  # 10 frames for each of training
    assert evaluations(BUDGET, 200, 10, 201).status == "WARN"


def test_episodes_of_an_evaluation() -> None:
    """Student's t with 9 degrees of freedom is 2.262: 2.262 / √10 = 0.715."""
    assert "± 0.72" in evaluation_episodes(10).arithmetic
    assert evaluation_episodes(5).status == "PASS"
    assert evaluation_episodes(4).status == "WARN"
    assert evaluation_episodes(1).status == "WARN"


def test_points_of_a_curve() -> None:
    assert "12 points" in logging(8, 100).arithmetic
    assert logging(100, 100).status == "PASS"
    assert logging(101, 100).status == "WARN"


def test_division_of_a_rollout() -> None:
    line = rollout_batch(8, 32, 1, 256, 20, normalizes=True)
    assert line.status == "PASS"
    assert "= 256 = 1 mini-batches of 256; 20 epochs make 20 updates" in line.arithmetic
    assert rollout_batch(8, 32, 1, 8, 20, normalizes=True).status == "WARN"
    assert rollout_batch(8, 32, 1, 8, 20, normalizes=False).status == "PASS"
    assert rollout_batch(8, 32, 1, 64, 41, normalizes=True).status == "WARN"


def test_advantages_within_a_rollout() -> None:
    """γλ = 0.75: 4 steps."""
    assert advantage_horizon(1.0 - 1e-12, 0.75, 4).status == "PASS"
    assert advantage_horizon(1.0 - 1e-12, 0.75, 3).status == "WARN"
    assert "0.75" not in advantage_horizon(0.9, 0.0, 3).arithmetic


def test_the_limit_of_a_policys_step() -> None:
    """ε²/2 = 0.02."""
    assert "about 0.02; no target_kl" in policy_step(0.2, None).arithmetic
    assert policy_step(0.2, 0.01).status == "PASS"
    assert policy_step(0.2, 6e-4).status == "WARN"  # 1.5 of it is 0.0009, below a twentieth
    assert "hardly ends" in policy_step(0.2, 0.2).reason


def test_number_of_rollouts() -> None:
    assert schedule_length(20, anneals=True).status == "PASS"
    assert schedule_length(19, anneals=True).status == "WARN"
    assert schedule_length(0, anneals=True).status == "FAIL"


@pytest.mark.parametrize(
    ("start", "end", "fraction", "status", "word"),
    [
        (1.0, 0.05, 0.1, "PASS", ""),
        (0.25, 0.25, 0.1, "WARN", "inert"),  # the published one
        (0.0, 0.0, 0.1, "WARN", "Nothing"),
        (0.05, 0.1, 0.1, "WARN", "rises"),
        (1.0, 0.21, 0.5, "WARN", "21%"),
        (1.0, 0.05, 0.009, "WARN", "before the first update"),
        (1.0, 0.05, 0.01, "PASS", ""),
    ],
)
def test_exploration(start: float, end: float, fraction: float, status: str, word: str) -> None:
    line = exploration_rate(start, end, fraction, 100_000, 1_000, 1.0, noisy=False)
    assert line.status == status
    assert word in line.reason


def test_exploration_in_frames() -> None:
    line = exploration_rate(1.0, 0.05, 0.1, 100_000, 1_000, 0.25, noisy=False)
    assert "= 10,000 frames, x 0.25 where" in line.arithmetic
    assert exploration_rate(0.0, 0.0, 0.1, 100_000, 1_000, 1.0, noisy=True).status == "PASS"


def test_exploration_noise() -> None:
    line = exploration_noise(1.0, 0.1, 0.4, 250_000)
    assert line.status == "PASS"
    assert "1 -> 0.1 over 100,000 frames" in line.arithmetic
    assert "31.7%" in line.arithmetic  # of a normal beyond one standard deviation
    assert exploration_noise(0.1, 0.1, 1.0, 1_000).status == "PASS"
    assert exploration_noise(0.0, 0.0, 1.0, 1_000).status == "WARN"
    assert exploration_noise(0.1, 0.2, 1.0, 1_000).status == "WARN"


def test_the_floor_of_a_curriculum() -> None:
    """⌈ln(0.10 / 0.95) / ln 0.996⌉ · 10,000: at 5.62 million frames, not at 17."""
    line = expert_curriculum(0.95, 0.996, 10_000, 0.1, 2.0, budget=20_000_000)
    assert line.status == "PASS"
    assert "at frame 5,620,000" in line.arithmetic
    assert "x 2 where" in line.arithmetic
    assert expert_curriculum(0.95, 0.996, 10_000, 0.1, 1.0, budget=6_244_000).status == "WARN"  # 90 % is 5,619,600
    assert expert_curriculum(0.95, 0.996, 10_000, 0.1, 1.0, budget=6_245_000).status == "PASS"


def test_frames_that_the_network_has_to_itself() -> None:
    """A share of 1, then 0.5, each over half of the budget: a quarter."""
    line = expert_curriculum(1.0, 0.5, 500, 0.25, 1.0, budget=1_000)
    assert "acts on 25% of all frames" in line.arithmetic


@pytest.mark.parametrize(
    ("start", "decay", "decay_steps", "floor", "word"),
    [
        (0.5, 1.0, 100, 0.1, "inert"),
        (0.5, 0.9, 1_001, 0.1, "inert"),
        (0.95, 0.999, 1, 0.95, "less than a tenth"),
        (0.0, 1.0, 1, 0.0, "never acts"),
    ],
)
def test_a_curriculum_that_is_none(start: float, decay: float, decay_steps: int, floor: float, word: str) -> None:
    line = expert_curriculum(start, decay, decay_steps, floor, 1.0, budget=1_000)
    assert line.status == "WARN"
    assert word in line.reason


def test_returns_of_network_and_expert_both() -> None:
    """1 − 0.9⁸ − 0.1⁸ = 57 %; with five steps 41 %."""
    assert mixed_returns(8, 0.1, through_expert=True).status == "WARN"
    assert "57%" in mixed_returns(8, 0.1, through_expert=True).arithmetic
    assert mixed_returns(8, 0.1, through_expert=False).status == "PASS"
    assert mixed_returns(5, 0.1, through_expert=True).status == "PASS"
    assert "0%" in mixed_returns(1, 0.5, through_expert=True).arithmetic


def test_cloning() -> None:
    assert cloning(1.0, 0.001, 0.5, 1_000, 100, has_expert=True).status == "PASS"
    assert "= 500 frames" in cloning(1.0, 0.001, 0.5, 1_000, 100, has_expert=True).arithmetic
    assert cloning(1.0, 1.0, 0.5, 1_000, 100, has_expert=True).status == "WARN"
    assert cloning(1.0, 0.0, 0.5, 1_000, 100, has_expert=False).status == "WARN"
    assert cloning(1.0, 0.0, 0.5, 1_000, 499, has_expert=True).status == "PASS"
    assert cloning(1.0, 0.0, 0.5, 1_000, 500, has_expert=True).status == "WARN"


def test_a_bounded_bonus_against_the_advantages() -> None:
    assert entropy_bonus(0.0, math.log(4.0), 1, 64, bounded=True).status == "PASS"
    line = entropy_bonus(0.01, math.log(4.0), 1, 64, bounded=True)
    assert line.status == "PASS"
    assert "1.39 nats = 0.0139" in line.arithmetic
    assert entropy_bonus(0.1, math.log(4.0), 1, 64, bounded=True).status == "WARN"


def test_a_bonus_without_an_end() -> None:
    """0.12 / √2 = 0.085 against 3 / √8192 = 0.033; 0.01 / √2 = 0.0071 is within the noise."""
    assert entropy_bonus(0.12, 0.0, 4, 8_192, bounded=False).status == "FAIL"
    assert entropy_bonus(0.01, 0.0, 4, 8_192, bounded=False).status == "WARN"
    assert entropy_bonus(0.0, 0.0, 4, 8_192, bounded=False).status == "PASS"


def test_sigma_at_the_start() -> None:
    assert "31.7%" in initial_std(1.0, None, 3).arithmetic
    assert initial_std(1.0, None, 3).status == "WARN"
    assert "68% of the draws" in initial_std(1.0, None, 3).reason  # 1 − 0.683³
    assert initial_std(0.6, None, 3).status == "PASS"
    assert initial_std(1.0, 1.0, 3).status == "PASS"
    assert initial_std(0.04, 1.0, 3).status == "WARN"


def test_target_entropy_against_the_box() -> None:
    """exp(−1) / 2 = 18.4 % of each range; A ln 2 is the most."""
    line = target_entropy(-3.0, 3)
    assert line.status == "PASS"
    assert "18.4%" in line.arithmetic
    assert target_entropy(3.0 * math.log(2.0), 3).status == "FAIL"
    assert target_entropy(0.1, 3).status == "WARN"
    assert target_entropy(-30.0, 3).status == "WARN"


def test_a_fixed_temperature() -> None:
    """0.2 · ln 2 · 0.99 / 0.01."""
    assert "13.72 to a value" in fixed_temperature(0.2, 1, 0.99).arithmetic


def test_noise_on_targets() -> None:
    assert "2.5 of them: 1.2%" in target_noise(0.2, 0.5).arithmetic
    assert target_noise(0.2, 0.5).status == "PASS"
    assert target_noise(0.2, 0.19).status == "WARN"
    assert target_noise(0.0, 0.5).status == "PASS"
    assert target_noise(1.1, 2.0).status == "WARN"


def test_updates_of_the_actor() -> None:
    assert "50 of the actor, 2 an iteration" in policy_delay(2, 100, 4).arithmetic
    assert policy_delay(101, 100, 4).status == "FAIL"
    assert policy_delay(5, 100, 4).status == "WARN"


def test_the_critical_step() -> None:
    assert critical_step(0.1, 0.2, 128).status == "PASS"
    assert critical_step(2.0, 0.2, 128).status == "WARN"
    assert "0.2 |lambda|/sqrt(2048)" in critical_step(None, 0.2, 2_048).arithmetic


def test_the_importance_ratio_before_there_are_data() -> None:
    """The published run: σ_π = 0.4 against 0.25, taken at clipped actions of a disc of radius 1."""
    assert importance_ratio(0.3, 0.3, 2, None, None).status == "PASS"
    assert importance_ratio(0.3, 0.3, 2, 1.0, None).status == "PASS"
    infinite = importance_ratio(0.25, 0.4, 2, None, None)
    assert infinite.status == "FAIL"
    assert "variance is infinite" in infinite.reason
    assert importance_ratio(0.25, 0.4, 2, None, 10.0).status == "WARN"
    clipped = importance_ratio(0.25, 0.4, 2, 0.3, None)
    assert clipped.status == "FAIL"
    assert "E rho is not 1" in clipped.reason
    # [0.35² / (0.3 √(2·0.35² − 0.3²))]² = 1.0758
    assert "E rho^2 = 1.076" in importance_ratio(0.35, 0.3, 2, None, None).arithmetic


def test_the_policy_that_follows() -> None:
    assert "after 6,931 iterations" not in following(0.01, 0.1, 200).arithmetic
    assert "68.97 iterations" in following(0.01, 0.1, 200).arithmetic
    assert following(0.001, 0.1, 200).status == "WARN"
    assert following(0.001, 0.0, 200).status == "PASS"
    assert following(0.0, 0.1, 200).status == "PASS"
