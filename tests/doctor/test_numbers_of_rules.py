"""The numbers that rules of runs show, and what they say to type, by hand."""

import pytest

from rlmods.doctor.line import Line
from rlmods.doctor.linear import critical_step, following, importance_ratio
from rlmods.doctor.policies import entropy_bonus, fixed_temperature, policy_delay, target_noise
from rlmods.doctor.rollouts import advantage_horizon, policy_step
from rlmods.doctor.schedules import (
    cloning,
    expert,
    expert_curriculum,
    exploration_noise,
    exploration_rate,
    mixed_returns,
)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (advantage_horizon(0.9, 0.5, 2), "0.2 of the weights"),  # 0.45²
        (policy_step(0.2, 0.01), "1.5 x 0.01 = 0.015"),
        (mixed_returns(3, 0.2, through_expert=True), "48% of the returns"),  # 1 − 0.8³ − 0.2³
        (entropy_bonus(0.2, 1.0, 1, 64, bounded=False), "a correlation of 0.14"),  # 0.2/√2
        (fixed_temperature(0.1, 2, 0.9), "adds at most 1.248"),  # 0.1 · 2 ln 2 · 9
        (critical_step(0.5, 0.1, 4), "1 - 0.5 = 0.5"),
        (importance_ratio(1.0, 0.5, 1, None, None), "66.1% of the samples"),  # 0.5 √1.75
    ],
    ids=lambda value: value.name if isinstance(value, Line) else "",
)
def test_what_is_shown(line: Line, words: str) -> None:
    assert words in line.arithmetic


def test_an_infinite_variance_is_shown_with_both_sides() -> None:
    assert "sigma_pi^2 = 9 >= 2 sigma_mu^2 = 4.5" in importance_ratio(1.5, 3.0, 1, None, None).reason


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (advantage_horizon(0.5, 0.9, 1), "n_steps 2"),  # 1/(1 − 0.45) = 1.8
        (exploration_rate(1.0, 0.05, 0.1, 1_000, 200, 1.0, noisy=False), "exploration_fraction 0.4"),
        (expert_curriculum(0.9, 1.0, 100, 0.1, 1.0, budget=1_000), "expert_share_decay 0.6444"),  # (1/9)^(100/500)
        (expert_curriculum(0.9, 1.0, 200, 0.1, 1.0, budget=1_000), "expert_share_decay_steps 10"),
        (cloning(1.0, 0.0, 0.1, 1_000, 200, has_expert=True), "bc_fraction 0.7"),
        (entropy_bonus(0.1, 2.0, 1, 64, bounded=True), "ent_coef 0.01"),  # a fifth of a tenth, over 2 nats
        (target_noise(0.4, 0.2), "target_noise_clip 1.0"),
    ],
    ids=lambda value: value.name if isinstance(value, Line) else "",
)
def test_what_to_type(line: Line, advice: str) -> None:
    assert line.status == "WARN"
    assert line.advice.endswith(advice)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (exploration_noise(0.8, 0.6, 0.5, 100), "WARN"),
        (exploration_noise(0.8, 0.4, 0.5, 100), "PASS"),
        (expert("CartPole-v1", exists=False), "FAIL"),
        (expert("rlmods/LaneShooter-v0", exists=True), "PASS"),
        (policy_delay(2, 100, 4.0), "PASS"),
        (following(0.01, 0.1, 50), "WARN"),  # ln 2/0.01 = 69 iterations
        (following(0.01, 0.1, 90), "PASS"),
        (following(0.01, 0.0, 50), "PASS"),  # a target policy that stands still
    ],
    ids=lambda value: value.name if isinstance(value, Line) else "",
)
def test_what_is_wrong_and_what_is_not(line: Line, status: str) -> None:
    assert line.status == status


def test_a_limit_beyond_the_clip_is_noted() -> None:
    """The KL of the clip is 0.02, ten times that 0.2: 1.5 · 0.2 lies beyond it, 1.5 · 0.1 does not."""
    assert [bool(policy_step(0.2, target_kl).reason) for target_kl in (0.1, 0.2)] == [False, True]
