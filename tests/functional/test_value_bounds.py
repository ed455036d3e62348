import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.value_bounds import (
    ValueInterval,
    discounted_value_bounds,
    explained_variance,
    longest_bootstrap,
    soft_value_interval,
    value_interval,
)


def interval(reward: list[float], discount: list[float]) -> tuple[float, float]:
    found = value_interval(torch.tensor(reward), torch.tensor(discount))
    return float(found.low), float(found.high)


def test_golden_cartpole() -> None:
    """Reward 1 a step, at most for ever: 1/(1 − 0.99) = 100; 0 after the end."""
    assert interval([1.0, 1.0, 1.0], [0.99, 0.0, 0.99]) == pytest.approx((0.0, 100.0), rel=1e-4)


def test_golden_three_steps_have_the_interval_of_one() -> None:
    """1 + 0.99 + 0.9801 = 2.9701; near the end a horizon of two steps and of one."""
    found = interval([2.9701, 2.9701, 1.99, 1.0], [0.99**3, 0.0, 0.0, 0.0])
    assert found == pytest.approx((0.0, 100.0), rel=1e-4)


def test_golden_negative_rewards_that_never_end() -> None:
    """As in Pendulum: the worst for ever below, 0 above, which a state near an end may have."""
    assert interval([-16.0, -0.5, -4.0], [0.9, 0.9, 0.9]) == pytest.approx((-160.0, 0.0), rel=1e-5)


def test_golden_one_reward_at_the_end() -> None:
    assert interval([0.0, 0.0, 1.0], [0.99, 0.99, 0.0]) == (0.0, 1.0)


def test_golden_step_cost_and_goal() -> None:
    assert interval([-0.1, 1.0], [0.9, 0.0]) == pytest.approx((-1.0, 1.0))


def test_before_the_first_reward_the_interval_is_a_point() -> None:
    assert interval([0.0, 0.0], [0.99, 0.0]) == (0.0, 0.0)


@pytest.mark.parametrize("discount", [1.0, 1.01])
def test_a_discount_of_one_or_more_leaves_no_bound_on_its_side(discount: float) -> None:
    assert interval([1.0], [discount])[1] > 1e29
    assert interval([-1.0], [discount])[0] < -1e29
    assert interval([0.0], [discount]) == (0.0, 0.0)


def test_rewards_that_are_not_finite_say_nothing() -> None:
    assert interval([1.0, math.nan, math.inf, -math.inf], [0.5] * 4) == (0.0, 2.0)


def test_no_transitions_allow_nothing_and_change_nothing() -> None:
    nothing = value_interval(torch.zeros(0, 8), torch.zeros(0, 8))
    assert (float(nothing.low), float(nothing.high)) == (math.inf, -math.inf)
    hull = ValueInterval(torch.tensor(1.0), torch.tensor(2.0)).hull(nothing)
    assert (float(hull.low), float(hull.high)) == (1.0, 2.0)


def test_shapes_are_any() -> None:
    stacked = value_interval(torch.ones(4, 16), torch.full((4, 16), 0.5))
    assert stacked.low.shape == stacked.high.shape == ()


_REWARDS = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8)


@given(_REWARDS, st.lists(st.floats(0, 0.9375, width=32), min_size=8, max_size=8), st.floats(0, 1))
def test_targets_of_values_inside_stay_inside(rewards: list[float], discounts: list[float], at: float) -> None:
    reward, discount = torch.tensor(rewards), torch.tensor(discounts[: len(rewards)])
    low, high = value_interval(reward, discount)
    value: Tensor = low + at * (high - low)
    target = reward + discount * value
    rounding = 1e-4 * max(float(high - low), float(low.abs()), float(high.abs()))
    assert bool((target >= low - rounding).all())
    assert bool((target <= high + rounding).all())


def soft_interval(reward: Tensor, discount: Tensor, entropy_bonus: float) -> ValueInterval:
    hard = value_interval(reward, discount)
    return soft_value_interval(hard, longest_bootstrap(discount), torch.tensor(entropy_bonus))


def test_golden_soft_values() -> None:
    """Reward 1, γ = 0.99, α = 0.2, one action in [−1, 1]: (1 + 0.99 · 0.2 · ln 2)/0.01 = 100 + 13.72."""
    found = soft_interval(torch.tensor([1.0, 0.5]), torch.tensor([0.99, 0.0]), 0.2 * math.log(2.0))
    assert float(found.high) == pytest.approx(113.7243, rel=1e-4)
    assert float(found.low) == -math.inf


def test_golden_soft_values_of_costs() -> None:
    """Costs allow 0 at most; γ/(1 − γ) = 9 bonuses of 0.5 are added."""
    assert float(soft_interval(torch.tensor([-16.0, 0.0]), torch.full((2,), 0.9), 0.5).high) == pytest.approx(4.5)


def test_without_entropy_the_upper_end_is_that_of_the_rewards() -> None:
    assert float(soft_interval(torch.ones(3), torch.full((3,), 0.5), 0.0).high) == 2.0


def test_no_transitions_allow_no_soft_values() -> None:
    assert float(soft_interval(torch.zeros(0), torch.zeros(0), 1.0).high) == -math.inf


@given(_REWARDS, st.lists(st.floats(0, 0.9375, width=32), min_size=8, max_size=8), st.floats(0, 2), st.floats(-50, 0))
def test_soft_targets_of_values_below_the_end_stay_below(
    rewards: list[float], discounts: list[float], bonus: float, below: float
) -> None:
    reward, discount = torch.tensor(rewards), torch.tensor(discounts[: len(rewards)])
    high = soft_interval(reward, discount, bonus).high
    target = reward + discount * (high + below + bonus)
    assert bool((target <= high + 1e-4 * max(float(high.abs()), 1.0)).all())


def test_golden_bounds_before_training() -> None:
    """1/(1 − 0.99) = 100; three steps with 0.5 make 1 + 0.5 + 0.25 = 1.75; without a discount T steps make T."""
    assert discounted_value_bounds(1.0, 1.0, 0.99) == pytest.approx((0.0, 100.0))
    assert discounted_value_bounds(-16.0, -2.0, 0.9) == pytest.approx((-160.0, 0.0))
    assert discounted_value_bounds(-1.0, 2.0, 0.5, 3) == (-1.75, 3.5)
    assert discounted_value_bounds(-1.0, 2.0, 1.0, 200) == (-200.0, 400.0)
    assert discounted_value_bounds(-1.0, 0.0, 1.0) == (-math.inf, 0.0)


@given(st.floats(-10, 0, width=32), st.floats(0, 10, width=32), st.floats(0, 0.9375, width=32))
def test_bounds_before_training_are_those_of_transitions_with_such_rewards(
    low: float, high: float, gamma: float
) -> None:
    seen = value_interval(torch.tensor([low, high]), torch.full((2,), gamma))
    expected = discounted_value_bounds(low, high, gamma)
    assert [float(seen.low), float(seen.high)] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.0, -1.0, 0.9), "rewards from 1.0 to -1.0"),
        ((0.0, 1.0, 1.5), "gamma = 1.5, expected a discount"),
        ((0.0, 1.0, 0.9, 0), "max_episode_steps = 0, expected at least 1"),
    ],
)
def test_bounds_of_impossible_numbers_are_refused(arguments: tuple[float, float, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discounted_value_bounds(*arguments)


def test_golden_explained_variance() -> None:
    """Targets 0 and 2 (variance 1), errors −0.5 and 0.5 (variance 0.25)."""
    target = torch.tensor([0.0, 2.0])
    assert float(explained_variance(target, torch.tensor([-0.5, 0.5]))) == pytest.approx(0.75)
    assert float(explained_variance(target, torch.tensor([7.0, 7.0]))) == pytest.approx(1.0)
    assert float(explained_variance(target, torch.tensor([-2.0, 2.0]))) == pytest.approx(-3.0)


def test_constant_targets_have_nothing_to_explain() -> None:
    assert math.isnan(float(explained_variance(torch.full((8,), 100.0), torch.randn(8))))
