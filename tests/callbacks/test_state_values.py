"""ValueBoundGuard on V of states and rollouts, in the place of Q and replay."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, warnings_of
from lightning.pytorch import Trainer
from ppo_runs import PENDULUM, fit_ppo
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.algorithms.segments import Segments
from rlmods.callbacks.value_bound_guard import ValueBoundGuard, with_action_values
from rlmods.data import RolloutDataModule
from rlmods.types import Rollout


def test_values_of_states_stand_for_those_of_actions() -> None:
    """Without the entropy, which is no part of them; Q goes before."""
    value, target, ent_coef = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor(0.1)
    states = {"value": value, "value_target": target, "ent_coef": ent_coef, "entropy": torch.zeros(3)}
    found = with_action_values(states)
    assert found["q_value"] is value
    assert found["td_target"] is target
    assert found.keys() & {"ent_coef", "entropy"} == set()
    of_actions = states | {"q_value": target, "td_target": value}
    assert with_action_values(of_actions) is of_actions


@pytest.mark.parametrize("data", [{}, PENDULUM])
def test_a_healthy_run_is_silent(tmp_path: Path, data: dict[str, Any]) -> None:
    guard = ValueBoundGuard(every_n_iterations=1)
    fit_ppo(tmp_path, guard, arguments={"ent_coef": 0.01}, **data)
    assert guard.raised == []


class TerminalsLost(RolloutDataModule):
    """No step is stored as terminated."""

    def iterate(self, trainer: Trainer) -> Rollout:
        rollout = super().iterate(trainer)
        return rollout._replace(
            terminated=torch.zeros_like(rollout.terminated), discount=torch.full_like(rollout.discount, self.gamma)
        )


def test_lost_terminations_are_named(tmp_path: Path) -> None:
    guard = ValueBoundGuard(every_n_iterations=1)
    once = {"n_epochs": 1, "batch_size": 256}
    fit_ppo(tmp_path, guard, data_class=TerminalsLost, arguments=once, rollouts=14, n_steps=64)
    assert guard.raised == [("episode_ends_not_stored", ACT)]


class Doubled(PPO):
    """Targets are multiplied by 1.5 in each rollout, with the values that they make."""

    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        segments, signals = super().segments(rollout)
        level = 30.0 * 1.5 ** (self.update_steps // 8)
        return segments, signals | {"value_target": signals["value_target"] + level}


def test_targets_that_leave_what_is_possible(tmp_path: Path) -> None:
    """γ = 0.99 and a reward of 1 a step: up to 100."""
    guard = ValueBoundGuard(every_n_iterations=1)
    fit_ppo(tmp_path, guard, model_class=Doubled, rollouts=10)
    assert ("target_out_of_bounds", ACT) in guard.raised
    assert "target_out_of_bounds" in warnings_of(guard)
