import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, Stranger, events, fit_stranger, transitions
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo_runs import PENDULUM, fit_ppo
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.algorithms.segments import Segments
from rlmods.callbacks.advantage_detector import AdvantageDetector, AdvantageWindow
from rlmods.callbacks.advantage_guard import AdvantageGuard, measure_advantages
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.types import Decisions, Rollout

HEALTHY = AdvantageWindow(
    size=2.0,
    rounding=10.0,
    mismatch=0.0,
    delta=1.0,
    trace=0.95,
    residual=1e-6,
    free=[1.0, 1.0, 1.0, 0.95],
    terminal_error=0.0,
    value=9.0,
    truncated_value=8.0,
    last_value=8.0,
)


def said(window: AdvantageWindow) -> list[tuple[str, Severity]]:
    return [(verdict.cause, verdict.severity) for verdict in AdvantageDetector().update(window)]


# The pure detector


@pytest.mark.parametrize(
    "window",
    [
        HEALTHY,
        HEALTHY._replace(delta=0.5),  # a clipped importance ratio
        HEALTHY._replace(size=0.0, residual=0.0),  # nothing to fit
        HEALTHY._replace(value=0.0, truncated_value=0.0, last_value=0.0),  # a critic of zeros
        HEALTHY._replace(truncated_value=math.nan, last_value=math.nan, terminal_error=math.nan),  # none in the rollout
        HEALTHY._replace(size=math.nan, mismatch=math.nan, residual=math.nan, delta=math.nan, trace=math.nan),
    ],
)
def test_what_is_right_or_not_known_is_silent(window: AdvantageWindow) -> None:
    assert said(window) == []


def test_golden_limit() -> None:
    """0.001 · 2 + 0.00001 · 10 = 0.0021."""
    assert said(HEALTHY._replace(mismatch=0.0022)) == [("advantage_mismatch", ACT)]
    assert said(HEALTHY._replace(residual=0.0022)) == [("advantage_recursion", ACT)]
    assert said(HEALTHY._replace(terminal_error=0.0022)) == [("bootstraps_through_termination", ACT)]
    assert said(HEALTHY._replace(mismatch=0.0020, residual=0.0020, terminal_error=0.0020)) == []


def test_an_end_without_bootstrap() -> None:
    """A ten thousandth of 9."""
    assert said(HEALTHY._replace(truncated_value=8e-4)) == [("no_bootstrap_at_truncation", ACT)]
    assert said(HEALTHY._replace(last_value=8e-4)) == [("no_bootstrap_at_rollout_end", ACT)]
    assert said(HEALTHY._replace(last_value=1e-3)) == []


def test_where_the_recursion_is_broken_its_ends_are_not_named() -> None:
    assert said(HEALTHY._replace(residual=1.0, terminal_error=1.0)) == [("advantage_recursion", ACT)]


# What is measured


def rollout_of(reward: Tensor, terminated: Tensor, truncated: Tensor, gamma: float, valid: Tensor) -> Rollout:
    nothing = torch.zeros(*reward.shape, 1)
    discount = gamma * (~terminated).double()
    return Rollout(nothing, nothing[..., 0], reward, discount, nothing, terminated, truncated, valid, 0, 0.0)


def generalised(rollout: Rollout, value: Tensor, next_value: Tensor, lam: float) -> Tensor:
    """Equation 16 of Schulman et al. 2016, step by step."""
    advantage = torch.zeros_like(value)
    following = torch.zeros(value.shape[1], dtype=value.dtype)
    for t in reversed(range(len(value))):
        delta = rollout.reward[t] + rollout.discount[t] * next_value[t] - value[t]
        ended = rollout.terminated[t] | rollout.truncated[t]
        following = delta + lam * rollout.discount[t] * following.where(~ended, 0.0)
        advantage[t] = following
    return advantage


def random_rollout(seed: int, gamma: float = 0.9) -> tuple[Rollout, Tensor, Tensor]:
    """30 steps of 3 environments with ends of both kinds; V and V of the true next observations."""
    generator = torch.Generator().manual_seed(seed)

    def rand() -> Tensor:
        return torch.rand(30, 3, generator=generator, dtype=torch.float64)

    terminated, truncated = rand() < 0.1, rand() < 0.1
    truncated &= ~terminated
    rollout = rollout_of(rand() - 0.3, terminated, truncated, gamma, torch.ones(30, 3, dtype=torch.bool))
    value, last = 5.0 * rand(), 5.0 * rand() + 1.0
    following = torch.cat([value[1:], last[-1:]])
    following = following.where(~(terminated | truncated), last)
    return rollout, value, following


def window_of(rollout: Rollout, value: Tensor, advantage: Tensor) -> AdvantageWindow:
    valid = rollout.valid
    columns = [column[valid].unsqueeze(0).float() for column in (value, advantage + value, advantage)]
    row = measure_advantages(rollout, *columns, is_transformed=False).tolist()
    names = [name for name in AdvantageWindow._fields if name != "free"]
    return AdvantageWindow(**dict(zip(names, row, strict=False)), free=row[len(names) :])


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.floats(0.0, 0.999))
def test_generalised_advantages_obey_all_identities(seed: int, lam: float, gamma: float) -> None:
    rollout, value, following = random_rollout(seed, gamma)
    window = window_of(rollout, value, generalised(rollout, value, following, lam))
    assert said(window) == []
    assert window.delta == pytest.approx(1.0, abs=1e-4)
    assert window.residual < 1e-5
    if gamma > 0.1:
        assert window.trace == pytest.approx(lam, abs=1e-4)


def test_golden_advantages_of_three_steps() -> None:
    """γ = λ = 0.5, r = 1, V = 2, 4, 8 and 16 at the end: δ = 1, 1, 1, so A = 1.3125, 1.25, 1."""
    ones = torch.ones(3, 1, dtype=torch.float64)
    never = torch.zeros(3, 1, dtype=torch.bool)
    rollout = rollout_of(ones, never, never, 0.5, ~never)
    value = torch.tensor([[2.0], [4.0], [8.0]], dtype=torch.float64)
    advantage = generalised(rollout, value, torch.tensor([[4.0], [8.0], [16.0]], dtype=torch.float64), 0.5)
    assert advantage.flatten().tolist() == [1.3125, 1.25, 1.0]
    window = window_of(rollout, value, advantage)
    assert [window.last_value, window.mismatch] == pytest.approx([16.0, 0.0])
    assert math.isnan(window.residual)  # two steps are too few for a fit
    assert math.isnan(window.terminal_error)


def test_the_coefficients_tell_what_was_scaled() -> None:
    rollout, value, following = random_rollout(1)
    tenth = rollout._replace(reward=0.1 * rollout.reward)
    window = window_of(rollout, value, generalised(tenth, value, following, 0.5))
    assert said(window) == [("advantage_recursion", ACT)]
    assert window.free == pytest.approx([0.1, 1.0, 1.0, 0.5], abs=1e-4)
    squared = rollout._replace(discount=rollout.discount.square())
    window = window_of(rollout, value, generalised(squared, value, following, 0.5))
    assert window.free == pytest.approx([1.0, 0.9, 1.0, 0.45], abs=1e-4)


@pytest.mark.parametrize(("of_advantage", "lam"), [(-1.0, 0.5), (1.2, 0.0), (1.0, 1.2)])
def test_what_no_lambda_and_no_ratio_makes(of_advantage: float, lam: float) -> None:
    """The sign, a factor, traces that grow."""
    rollout, value, following = random_rollout(5)
    window = window_of(rollout, value, of_advantage * generalised(rollout, value, following, lam))
    assert said(window) == [("advantage_recursion", ACT)]


def test_a_clipped_ratio_is_fitted() -> None:
    """ρ̄ = 0.5 makes δ count half."""
    rollout, value, following = random_rollout(6)
    halved = generalised(rollout._replace(reward=0.5 * rollout.reward), 0.5 * value, 0.5 * following, 0.5)
    window = window_of(rollout, value, halved)
    assert said(window) == []
    assert [window.delta, window.trace] == pytest.approx([0.5, 0.5], abs=1e-4)


def test_where_all_steps_are_alike_no_coefficients_are_needed() -> None:
    """r = 1, V = 0, γ = λ = 0.5: A = 4/3 but near the end, so that δ and γ A′ are proportional."""
    ones = torch.ones(64, 2, dtype=torch.float64)
    never = torch.zeros(64, 2, dtype=torch.bool)
    rollout = rollout_of(ones, never, never, 0.5, ~never)
    advantage = generalised(rollout, 0.0 * ones, 0.0 * ones, 0.5)
    assert advantage[0, 0] == pytest.approx(4.0 / 3.0)
    assert said(window_of(rollout, 0.0 * ones, advantage)) == []


def test_steps_that_only_reset_an_environment_are_left_out() -> None:
    rollout, value, following = random_rollout(2)
    valid = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)) < 0.9
    # What follows a step that does not count is no end of an episode here, so only its neighbours are left out.
    advantage = generalised(rollout, value, following, 0.5)
    assert window_of(rollout._replace(valid=valid), value, advantage).residual < 1e-5


def test_rounding_of_large_values_is_no_defect() -> None:
    rollout, value, following = random_rollout(3)
    level = 1e5 * torch.ones(30, 3, dtype=torch.float64)
    advantage = generalised(rollout, value + level, following + level, 0.5)
    assert said(window_of(rollout, value + level, advantage)) == []


def test_rewards_that_are_not_finite_say_nothing() -> None:
    rollout, value, following = random_rollout(4)
    rollout.reward[7, 1] = math.nan
    assert said(window_of(rollout, value, generalised(rollout, value, following, 0.5))) == []


# On real runs


@pytest.mark.parametrize(
    ("arguments", "data"),
    [
        ({}, {}),
        ({"gae_lambda": 0.0}, PENDULUM),
        ({"lstm_hidden_size": 8}, PENDULUM),
        ({"vtrace_rho_bar": 1.0, "vtrace_c_bar": 1.0}, {}),
    ],
)
def test_a_healthy_run_is_silent(tmp_path: Path, arguments: dict[str, Any], data: dict[str, Any]) -> None:
    guard = AdvantageGuard()
    fit_ppo(tmp_path, guard, arguments=arguments, rollouts=3, **data)
    assert guard.raised == []


class TruncationIsWorthNothing(PPO):
    def next_value(self, rollout: Rollout, decisions: Decisions, value: Tensor) -> Tensor:
        return super().next_value(rollout, decisions, value).where(~rollout.truncated, 0.0)


class NoTerminalMask(PPO):
    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        return super().segments(rollout._replace(discount=torch.full_like(rollout.discount, 0.99)))


@pytest.mark.parametrize(
    ("model_class", "data", "cause"),
    [
        (TruncationIsWorthNothing, PENDULUM, "no_bootstrap_at_truncation"),
        (NoTerminalMask, {}, "bootstraps_through_termination"),
    ],
)
def test_a_wrong_end_is_named(tmp_path: Path, model_class: type[PPO], data: dict[str, Any], cause: str) -> None:
    guard = AdvantageGuard()
    trainer = fit_ppo(tmp_path, guard, model_class=model_class, rollouts=2, **data)
    assert guard.raised == [(cause, ACT)]
    assert events(trainer)[0]["iteration"] == 1


def test_under_target_transforms_the_recursion_is_not_held(tmp_path: Path) -> None:
    class Clamped(PPO):
        def on_fit_start(self) -> None:
            self.target_transforms.append(lambda target: target.clamp(max=0.5))

    guard = AdvantageGuard()
    fit_ppo(tmp_path, guard, model_class=Clamped, rollouts=2)
    assert guard.raised == []


def test_a_batch_that_is_no_rollout_is_refused(tmp_path: Path) -> None:
    class Talkative(Stranger):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            super().training_step(batch, batch_idx)
            return {name: torch.zeros(1, 8) for name in ("value", "value_target", "advantage")}

    with pytest.raises(MissingInputError, match=r"needs batches of rlmods\.types\.Rollout, but got a Transition"):
        fit_stranger(tmp_path, Talkative(), [transitions()], AdvantageGuard())
