"""An update from several mini-batches that is not finite: which of them, and what is kept."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import fit_small
from lightning.pytorch import Callback, LightningModule, Trainer
from test_non_finite_guard import OnDevice

from rlmods.algorithms import DQN
from rlmods.callbacks import NonFiniteGuard
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.failure_bundle import minibatch_of, unpack
from rlmods.replay_failure import main
from rlmods.types import ReplayBatch, Transition

OPTIONS: dict[str, Any] = {
    "arguments": {"accumulate_grad_batches": 2},
    "updates_per_iteration": 6,
    "total_env_steps": 240,
    "logger": False,
}


class BadReward(Callback):
    """One NaN, or infinity, in a mini-batch of the iteration number 10."""

    def __init__(self, minibatch: int, value: float = math.nan) -> None:
        self.minibatch = minibatch
        self.value = value
        self.reward = torch.empty(0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 10:
            batch.transition.reward[self.minibatch, 5] = self.value
            self.reward = batch.transition.reward.clone()


def test_the_minibatches_of_an_update() -> None:
    """Five of them, two for each update: the last has one. There is no fourth update."""
    column = torch.arange(5.0)[:, None]
    batch = ReplayBatch(Transition(*[column] * 7), column.long(), column, 0, 0.0, column > 2)
    kept = [minibatch_of(batch, update, 2) for update in range(4)]
    assert [each.index.flatten().tolist() for each in kept] == [[0, 1], [2, 3], [4], [0, 1, 2, 3, 4]]
    assert kept[1].by_expert.flatten().tolist() == [False, True]
    assert kept[3] is batch


@pytest.mark.parametrize("guard_class", [NonFiniteGuard, OnDevice])
@pytest.mark.parametrize(("minibatch", "update"), [(0, 0), (3, 1), (4, 2)])
def test_the_update_and_its_minibatch_are_named_and_kept(
    tmp_path: Path, guard_class: type[NonFiniteGuard], minibatch: int, update: int, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, fault = guard_class(), BadReward(minibatch)
    fit_small(tmp_path, fault, guard, **OPTIONS)
    assert guard.raised == [("non_finite_reward", Severity.ACT)]
    assert guard.finding is not None
    assert (guard.finding.element, guard.finding.update) == ([minibatch, 5], update)
    (folder,) = (tmp_path / "failures").iterdir()
    kept = unpack(torch.load(folder / "batch.pt", weights_only=True))
    torch.testing.assert_close(
        kept.transition.reward, fault.reward[2 * update : 2 * update + 2], rtol=0, atol=0, equal_nan=True
    )
    assert main([str(folder)]) == 0
    assert f"now:  non_finite_reward: batch.transition.reward[{minibatch % 2}, 5] is nan" in capsys.readouterr().out


def test_a_loss_that_saturates_is_found_by_its_minibatch(tmp_path: Path) -> None:
    """Huber's gradient is finite where it is infinite itself: no update is bad, and yet the third has the cause."""
    guard = NonFiniteGuard()
    fit_small(tmp_path, BadReward(5, math.inf), guard, model_class=Saturating, **OPTIONS)
    assert guard.finding is not None
    assert (guard.finding.cause, guard.finding.element, guard.finding.update) == ("non_finite_reward", [5, 5], 2)


class Saturating(DQN):
    """Clamps its targets, so that an infinite reward leaves gradients finite."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: torch.Tensor | None = None) -> torch.Tensor:
        return super().td_target(transition, bootstrap).clamp(-100.0, 100.0)
