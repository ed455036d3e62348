"""A rollback between a rollout and what is learned from it."""

from pathlib import Path
from typing import Any

import torch
from guarding import WARN
from lightning.pytorch import LightningModule, Trainer
from ppo_runs import fit_ppo
from test_skeleton import weights

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.policy_update_guard import PolicyUpdateGuard
from rlmods.callbacks.rollback import Rollback
from rlmods.callbacks.safeguard import Safeguard


class OneAlarm(Safeguard):
    """Raises an alarm at the end of the third iteration, and keeps the weights of all."""

    def __init__(self) -> None:
        super().__init__(name="one", mode="act")
        self.before: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.before.append(weights(pl_module))
        alarm = Verdict("non_finite_parameter", Severity.ACT, "a test", {})
        self.report(trainer, [alarm] if batch_idx == 2 else [])


def test_the_rollout_of_the_policy_that_was_left_is_not_learned_from(tmp_path: Path) -> None:
    alarm, guard = OneAlarm(), PolicyUpdateGuard()
    rollback = Rollback(monitor=None, snapshot_every_n_iterations=2)
    trainer = fit_ppo(tmp_path, alarm, guard, rollback, arguments={"learning_rate": 0.01}, rollouts=6)
    assert rollback.budget.rollbacks == 1
    # Back to the state after the first iteration, and there through the fourth; after it there is learning again.
    torch.testing.assert_close(alarm.before[3], alarm.before[0], rtol=0.0, atol=0.0)
    assert not torch.equal(alarm.before[4], alarm.before[3])
    assert [cause for cause, severity in guard.raised if severity >= WARN] == []
    assert trainer.global_step == 6
