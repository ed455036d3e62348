"""Values that contain an entropy, in `ValueBoundGuard` and `TargetClamp`; twins in the probe of targets."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import Stranger, as_lists, causes, fit_stranger, transitions, warnings_of
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from rlmods.callbacks.seen_values import SeenValues, entropy_bonus
from rlmods.callbacks.target_clamp import TargetClamp
from rlmods.callbacks.target_probe import probe_targets
from rlmods.callbacks.value_bound_guard import ValueBoundGuard
from rlmods.callbacks.value_detector import ValueDetector, ValueWindow
from rlmods.types import ReplayBatch, SoftValues, Transition

LN2 = math.log(2.0)


def continuous(reward: float = 1.0, discount: float = 0.5) -> Transition:
    """Eight transitions with actions of two dimensions."""
    return transitions(reward, discount)._replace(action=torch.zeros(8, 2))


def stacked(transition: Transition) -> ReplayBatch:
    """A stack of one mini-batch."""
    stack = Transition(*(field.unsqueeze(0) for field in transition if isinstance(field, Tensor)))
    return ReplayBatch(stack, torch.zeros(1, 8, dtype=torch.int64), torch.ones(1, 8), 8, 0.5)


class Soft(Stranger):
    """Its target network says `value` everywhere; its coefficient falls."""

    def __init__(self, value: float, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = alpha
        with torch.no_grad():
            self.target_net.weight.zero_()
            self.target_net.bias.fill_(value)

    @property
    def entropy_coefficient(self) -> Tensor:
        return torch.tensor(self.alpha)

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        super().training_step(batch, batch_idx)
        self.alpha *= 0.5
        return {"q_value": self.targets[-1], "td_target": self.targets[-1]}


# What was seen


def test_golden_interval_of_the_largest_bonus_so_far() -> None:
    """Reward 1 and discount 0.5: 2, and one bonus of at most 0.6."""
    seen = SeenValues()
    for alpha in (0.1, 0.6, 0.2):
        seen.see(torch.ones(4), torch.full((4,), 0.5))
        seen.see_entropy(torch.tensor(alpha))
    assert seen.interval is not None
    assert seen.size is not None
    assert seen.interval.low == -math.inf
    assert float(seen.interval.high) == pytest.approx(2.6)
    assert float(seen.size) == pytest.approx(2.6)  # from 0, the low of the rewards


def test_before_the_first_transition_nothing_is_known() -> None:
    seen = SeenValues()
    seen.see_entropy(torch.tensor(1.0))
    assert seen.interval is None
    assert seen.size is None


def test_a_reloaded_interval_is_the_same() -> None:
    seen, again = SeenValues(), SeenValues()
    again.load_state_dict(seen.state_dict())
    assert again.interval is None
    seen.see(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 0.9]))
    seen.see_entropy(torch.tensor(0.3))
    again.load_state_dict(seen.state_dict())
    assert as_lists(again.state_dict()) == as_lists(seen.state_dict())
    assert again.interval == seen.interval


def test_golden_bonus_of_two_actions() -> None:
    assert isinstance(Soft(0.0), SoftValues)
    bonus = entropy_bonus(Soft(0.0, alpha=0.2), None, continuous())
    assert float(bonus) == pytest.approx(0.2 * 2.0 * LN2)  # type: ignore[arg-type]


def test_the_signal_goes_before_the_attribute() -> None:
    bonus = entropy_bonus(Soft(0.0), {"ent_coef": torch.tensor([0.1, 0.5])}, continuous())
    assert float(bonus) == pytest.approx(0.5 * 2.0 * LN2)  # type: ignore[arg-type]


def test_hard_values_have_none_and_discrete_actions_no_bound() -> None:
    assert entropy_bonus(Stranger(), {"q_value": torch.ones(1)}, continuous()) is None
    assert float(entropy_bonus(Soft(0.0), None, transitions())) == math.inf  # type: ignore[arg-type]


# The pure detector

SOFT = ValueWindow(*[math.nan] * len(ValueWindow._fields))._replace(
    low=-math.inf,
    high=100.0,
    size=120.0,
    q_outside=0.0,
    target_outside=0.0,
    start_low=0.0,
    start_mean=0.0,
    start_high=0.0,
)


def said(value: float, outside: float) -> list[str]:
    window = SOFT._replace(
        q_low=value, q_high=value, target_low=value, target_mean=value, target_high=value, q_outside=outside
    )
    detector = ValueDetector(slack=0.05, gap=0.5)
    return [cause for _ in range(3) for cause in causes(detector.update(window))]


def test_soft_values_far_below_are_none_of_its_business() -> None:
    assert said(-1e6, 0.0) == []


def test_soft_values_above_are() -> None:
    """A warning in the first window, and in the third what may act."""
    assert said(1e4, 1.0) == [*["value_out_of_bounds"] * 2, "target_out_of_bounds"]


# On modules


def test_a_soft_target_is_clamped_from_above_alone(tmp_path: Path) -> None:
    """The target network's values are clamped to 2 + 1 · 2 ln 2: y = 1 + 0.5 · 3.386; one below is left alone."""
    high, low = Soft(100.0), Soft(-100.0)
    for model in (high, low):
        fit_stranger(tmp_path, model, [continuous()] * 2, TargetClamp(every_n_iterations=1))
    assert all(target.tolist() == pytest.approx([2.0 + LN2] * 8) for target in high.targets)
    assert all(target.tolist() == pytest.approx([-49.0] * 8) for target in low.targets)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-1e4, []), (3.0, []), (1e4, ["value_out_of_bounds", *["target_out_of_bounds"] * 2])],
)
def test_the_guard_of_soft_values(value: float, expected: list[str], tmp_path: Path) -> None:
    """The first target is made within the bounds; then the target network says what it says."""

    class Jump(Soft):
        def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
            signals = super().training_step(batch, batch_idx)
            self.target_net.bias.fill_(value)
            return signals

    guard = ValueBoundGuard(every_n_iterations=1)
    fit_stranger(tmp_path, Jump(0.0), [continuous()] * 6, guard)
    assert warnings_of(guard) == expected


# Twins


class Twins(LightningModule):
    """The least of twin targets bootstraps, times `scale`; the target actor says what no value is."""

    def __init__(self, scale: float = 1.0, width: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.target_actor = nn.Linear(2, 2)
        self.target_critic = TwinCritic(width)
        nn.init.constant_(self.target_actor.bias, 1e3)

    def td_target(self, transition: Transition) -> Tensor:
        observation: Any = transition.next_observation
        value = self.target_critic(observation, self.target_actor(observation)).amin(0)
        target: Tensor = transition.reward + self.scale * transition.discount * value
        return target.detach()


class TwinCritic(nn.Module):
    def __init__(self, twins: int) -> None:
        super().__init__()
        self.twins = nn.Linear(4, twins)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        values: Tensor = self.twins(torch.cat([observation, action], -1)).T
        return values


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_least_of_twins_is_no_other_value(width: int) -> None:
    torch.manual_seed(0)
    probed = probe_targets(Twins(width=width), stacked(continuous()))
    assert float(probed["bootstrap_outside"]) == pytest.approx(0.0, abs=1e-3)
    assert float(probed["discount_ignored"]) == pytest.approx(0.0, abs=1e-3)


def test_the_rounding_of_huge_targets_is_no_other_discount() -> None:
    """1e8 a target rounds by about 8; what was trained on may be clamped to a few hundred."""
    torch.manual_seed(0)
    assert float(probe_targets(Twins(scale=1e8), stacked(continuous()))["discount_ignored"]) == 0.0


def test_another_factor_on_twins_is_found() -> None:
    torch.manual_seed(0)
    assert float(probe_targets(Twins(scale=3.0), stacked(continuous()))["bootstrap_outside"]) > 1.0


def test_values_of_eight_twins_for_eight_transitions_could_be_either() -> None:
    torch.manual_seed(0)
    assert "bootstrap_outside" not in probe_targets(Twins(scale=3.0, width=8), stacked(continuous()))


def test_a_soft_bootstrap_is_no_value_of_the_target_network() -> None:
    class SoftTwins(Twins):
        entropy_coefficient = torch.tensor(1.0)

    torch.manual_seed(0)
    probed = probe_targets(SoftTwins(scale=3.0), stacked(continuous()))
    assert sorted(probed) == ["discount_ignored", "requires_grad"]
