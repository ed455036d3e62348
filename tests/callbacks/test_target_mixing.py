"""How a target network really follows, and whether the table of settings says so."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import fit_small, warnings_of
from lightning.pytorch import LightningModule
from torch import nn

from rlmods.algorithms import DQN
from rlmods.callbacks import EffectiveSettings
from rlmods.callbacks.applied_settings import Applied, mixing_not_in_effect
from rlmods.callbacks.target_mixing import TargetMixing
from rlmods.networks.target import polyak_update


class Pair(LightningModule):
    """A network and its target, which nobody trains but the test."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Linear(4, 4)
        self.target_critic = nn.Linear(4, 4).requires_grad_(False)


def follow(weights: list[float], sampled: set[int]) -> tuple[list[int], list[tuple[int, float]]]:
    """An update each, and a target update with this weight after it; 0 makes none."""
    torch.manual_seed(0)
    module, mixing = Pair(), TargetMixing()
    optimizer = torch.optim.SGD(module.critic.parameters(), lr=0.1)
    mixing.begin(module, [optimizer])
    for number, weight in enumerate(weights):
        mixing.is_sampling = number in sampled
        module.critic(torch.randn(8, 4)).square().sum().backward()
        mixing.before_step(optimizer)
        optimizer.step()
        mixing.after_step(optimizer)
        optimizer.zero_grad()
        if weight:
            polyak_update(module.target_critic.parameters(), module.critic.parameters(), weight)
    return mixing.take()


def test_weights_and_the_updates_in_between() -> None:
    intervals, weights = follow([0.0, 0.3, 0.0, 0.0, 0.005, 1.0], sampled={0, 1, 2, 4, 5})
    assert intervals == [3, 1]
    assert [update for update, _ in weights] == [2, 5, 6]
    assert [weight for _, weight in weights] == pytest.approx([0.3, 0.005, 1.0], rel=1e-3)


def test_without_samples_updates_are_counted_alone() -> None:
    assert follow([0.1] * 4, sampled=set()) == ([1, 1, 1], [])


def test_a_module_without_a_target_has_nothing_to_look_at() -> None:
    module, mixing = nn.Linear(2, 2), TargetMixing()
    owner = LightningModule()
    owner.critic = module
    mixing.begin(owner, [torch.optim.SGD(module.parameters(), lr=0.1)])
    assert not mixing.has_target
    assert mixing.take() == ([], [])


@pytest.mark.parametrize(
    ("low", "high", "speaks"),
    [(0.005, 0.005, False), (0.0049, 0.0051, False), (0.005, 1.0, False), (0.05, 0.05, True), (0.0, 0.004, True)],
)
def test_a_weight_that_was_never_the_configured_one(low: float, high: float, speaks: bool) -> None:
    verdict = mixing_not_in_effect(Applied("tau", 0.005, low, high, low, high))
    assert (verdict is not None) is speaks


class FollowsFaster(DQN):
    """Two target updates in the place of one."""

    def _update_target(self) -> None:
        super()._update_target()
        super()._update_target()


class Unclipped(DQN):
    """Its limit is not read."""

    def optimize(self, optimizer: Any, loss: Any, max_grad_norm: Any, *, counts: bool) -> Any:
        return super().optimize(optimizer, loss, None, counts=counts)


SOFT: dict[str, Any] = {
    "tau": 0.05,
    "target_update_interval": 2,
    "target_hard_update_interval": 15,
    "max_grad_norm": 0.01,
}


def run(folder: Path, model_class: type[DQN] = DQN, **arguments: Any) -> EffectiveSettings:
    guard = EffectiveSettings()
    fit_small(folder, guard, model_class=model_class, arguments=arguments, total_env_steps=320, logger=False)
    return guard


def test_the_rows_of_a_healthy_run(tmp_path: Path) -> None:
    """68 updates, 4 an iteration: target updates after every second, full copies besides after every fifteenth."""
    guard = run(tmp_path, **SOFT)
    assert guard.raised == []
    rows = guard.rows
    assert [rows["tau"].low, rows["tau"].high] == pytest.approx([0.05, 0.05], rel=1e-2)
    assert rows["target_hard_update_interval"] == ("target_hard_update_interval", *[15.0] * 5)
    assert (rows["target_update_interval"].configured, rows["target_update_interval"].high) == (2.0, 2.0)
    assert rows["max_grad_norm"].configured == 0.01
    assert rows["max_grad_norm"].high == pytest.approx(0.01, rel=1e-4)


def test_copies_are_a_weight_of_one(tmp_path: Path) -> None:
    guard = run(tmp_path, target_update_interval=7)
    assert guard.raised == []
    assert guard.rows["tau"][1:] == pytest.approx([1.0] * 5, abs=1e-4)
    assert guard.rows["target_update_interval"] == ("target_update_interval", *[7.0] * 5)


def test_a_target_that_follows_faster_is_named(tmp_path: Path) -> None:
    """1 − 0.95² = 0.0975."""
    guard = run(tmp_path, FollowsFaster, tau=0.05, target_update_interval=1)
    assert warnings_of(guard) == ["setting_not_in_effect"]
    assert guard.rows["tau"].low == pytest.approx(0.0975, rel=1e-2)


def test_a_limit_that_is_not_read_stands_beside_the_norm_of_the_step(tmp_path: Path) -> None:
    guard = run(tmp_path, Unclipped, max_grad_norm=0.01)
    assert guard.rows["max_grad_norm"].low > 0.02
