import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.strategies import ModelParallelStrategy
from test_skeleton import make_data, make_trainer, weights
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import SequentialLR, StepLR
from torch.utils.data import DataLoader

from rlmods.algorithms import DQN
from rlmods.callbacks import GlobalRNG
from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.rollback import Rollback, RollbackBudget
from rlmods.callbacks.safeguard import Safeguard
from rlmods.callbacks.snapshots import fold_rng, scale_learning_rates

ITERATIONS = 12
EVERY = 3  # iterations between evaluations


class Toy(LightningModule):
    """Adam and a scheduler, manual; its evaluations are given."""

    def __init__(self, evaluations: list[float] | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(2, 1)
        self.evaluations = evaluations or [1.0]

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.layer(batch + torch.rand(1)).square().sum())
        optimizer.step()
        scheduler: Any = self.lr_schedulers()
        scheduler.step()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        position = min(self.trainer.global_step // EVERY, len(self.evaluations)) - 1
        self.log("eval/mean_reward", self.evaluations[position])

    def configure_optimizers(self) -> Any:
        optimizer = Adam(self.parameters(), lr=0.1)
        return [optimizer], [StepLR(optimizer, step_size=5, gamma=0.5)]


class Alarm(Safeguard):
    """Raises an alarm at the end of some iterations, for one window."""

    def __init__(
        self, *iterations: int, cause: str = "target_out_of_bounds", severity: Severity = Severity.ACT
    ) -> None:
        super().__init__(name="alarm", mode="observe")
        self.iterations = iterations
        self.cause = cause
        self.severity = severity
        self.rearmed = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        is_wrong = batch_idx + 1 in self.iterations
        self.report(trainer, [Verdict(self.cause, self.severity, "it is wrong", {})] if is_wrong else [])

    def rearm(self) -> None:
        super().rearm()
        self.rearmed += 1


class Ledger(Callback):
    """Copies of the state at the beginning of each iteration's training step, and a random number of each."""

    def __init__(self) -> None:
        self.states: list[dict[str, Any]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        (optimizer,) = trainer.optimizers
        self.states.append(
            {
                "weights": weights(pl_module),
                "moments": [state["exp_avg"].clone() for state in optimizer.state.values()],
                "steps": [float(state["step"]) for state in optimizer.state.values()],
                "learning_rate": optimizer.param_groups[0]["lr"],
                "global_step": trainer.global_step,
                "rng": torch.get_rng_state(),
            }
        )


def fit(
    folder: Path,
    *callbacks: Callback,
    model: LightningModule | None = None,
    iterations: int = ITERATIONS,
    ckpt_path: str | Path | None = None,
) -> LightningModule:
    """The order of the callbacks is that of the arguments; all batches are alike."""
    model = model or Toy()
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=1,
        max_steps=iterations,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        logger=False,
        callbacks=list(callbacks),
        val_check_interval=EVERY,
    )
    batches: Any = torch.ones(ITERATIONS, 2)
    trainer.fit(model, DataLoader(batches), DataLoader(batches[:1]), ckpt_path=ckpt_path)
    return model


def actions(folder: Path, kind: str = "action") -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


def test_weights_moments_schedule_and_random_state_are_those_of_the_green_state(tmp_path: Path) -> None:
    """Green before iteration 7 (two evaluations); alarm at the end of 8, rollback before 9 is trained."""
    seed_everything(0)
    alarm, rollback, ledger = Alarm(8), Rollback(), Ledger()
    fit(tmp_path, rollback, ledger, alarm)
    green, restored = ledger.states[6], ledger.states[8]
    assert torch.equal(green["weights"], restored["weights"])
    assert not torch.equal(ledger.states[7]["weights"], restored["weights"])
    assert all(torch.equal(*pair) for pair in zip(green["moments"], restored["moments"], strict=True))
    assert green["steps"] == restored["steps"] == [6.0, 6.0]
    torch.set_rng_state(green["rng"])
    fold_rng(1)
    assert torch.equal(torch.get_rng_state(), restored["rng"])
    # The schedule halves it after iterations 5 and 10; the rollback brings iteration 7 back: 10 comes after 12.
    assert green["learning_rate"] == 0.05
    assert [state["learning_rate"] for state in ledger.states[8:]] == [0.025] * 4
    assert [state["global_step"] for state in ledger.states] == list(range(ITERATIONS))
    assert alarm.rearmed == 1
    assert rollback.raised == []
    (action,) = actions(tmp_path)
    assert action["evidence"]["alarms"] == ["alarm: target_out_of_bounds"]
    assert (action["evidence"]["from"], action["evidence"]["to"]) == (8, 6)
    assert action["evidence"]["learning_rates_before"] == {"0.0": 0.05}
    assert action["evidence"]["learning_rates_after"] == {"0.0": 0.025}


def test_the_order_of_the_callbacks_does_not_matter(tmp_path: Path) -> None:
    after = []
    for order in (1, -1):
        seed_everything(0)
        after.append(weights(fit(tmp_path, *[Rollback(), Alarm(8)][::order])))
    assert torch.equal(*after)


def test_changed_randomness_depends_on_the_state_and_on_the_number() -> None:
    def drawn(seed: int, number: int) -> tuple[float, float, float]:
        seed_everything(seed)
        fold_rng(number)
        return torch.rand(1).item(), float(np.random.rand()), random.random()  # noqa: NPY002

    assert drawn(0, 1) == drawn(0, 1)
    assert not set(drawn(0, 1)) & set(drawn(0, 2))
    assert not set(drawn(0, 1)) & set(drawn(1, 1))


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    seed_everything(0)
    rollback = Rollback()
    guarded = fit(tmp_path, Alarm(), rollback)
    seed_everything(0)
    assert torch.equal(weights(guarded), weights(fit(tmp_path)))
    assert not (tmp_path / "events.jsonl").exists()
    # The evaluation at the end is followed by no iteration.
    assert [snapshot["clock"] for snapshot in rollback.snapshots] == [6, 9]


@pytest.mark.parametrize(
    "alarm", [Alarm(4, severity=Severity.WARN), Alarm(4, cause="metric_out_of_range"), Alarm(4, cause="my_cause")]
)
def test_what_it_does_not_react_to(alarm: Alarm, tmp_path: Path) -> None:
    fit(tmp_path, alarm, rollback := Rollback())
    assert rollback.budget.rollbacks == 0


def test_a_cause_of_the_user(tmp_path: Path) -> None:
    fit(tmp_path, Alarm(4, cause="my_cause"), rollback := Rollback(causes=["my_cause"]))
    assert rollback.budget.rollbacks == 1


def test_what_is_green(tmp_path: Path) -> None:
    """Of four evaluations the second is worse, and a warning is active at the third."""
    rollback = Rollback(keep=5)
    fit(tmp_path, Alarm(9, severity=Severity.WARN), rollback, model=Toy([5.0, 4.0, 6.0, 6.0]))
    assert [snapshot["clock"] for snapshot in rollback.snapshots] == [0, 3]
    assert rollback.raised == [("state_not_green", Severity.INFO)]


def test_a_wrong_metric_is_no_reason_to_forget_good_weights(tmp_path: Path) -> None:
    fit(tmp_path, Alarm(3, 6, 9, cause="metric_out_of_range"), rollback := Rollback(keep=5))
    assert [snapshot["clock"] for snapshot in rollback.snapshots] == [0, 3, 6, 9]


def test_weights_that_are_no_numbers_are_never_green(tmp_path: Path) -> None:
    class Break(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx == 4:
                pl_module.layer.weight.data.fill_(math.nan)

    fit(tmp_path, Alarm(), rollback := Rollback(), Break())
    assert [snapshot["clock"] for snapshot in rollback.snapshots] == [0, 3]


def test_nothing_to_go_back_to(tmp_path: Path) -> None:
    model = Toy()
    model.layer.weight.data.fill_(math.nan)
    fit(tmp_path, Alarm(2), rollback := Rollback(), model=model)
    assert rollback.raised == [("no_green_state", Severity.WARN)]


def test_golden_standard_error() -> None:
    """Best 10; 9.5 lies within a standard error of 0.6, 9.3 does not."""
    budget = RollbackBudget(max_rollbacks=3, cooldown=1)
    assert [budget.is_good(mean, 0.6) for mean in (10.0, 9.5, 9.3, math.nan, 10.0)] == [True, True, False, False, True]


def test_golden_distances() -> None:
    budget = RollbackBudget(max_rollbacks=3, cooldown=10)
    ends = []
    for _ in range(3):
        assert not budget.is_spent
        budget.spend()
        ends.append(budget.resting_until)
    assert ends == [10, 20, 40]
    assert budget.is_spent


@pytest.mark.parametrize("mode", ["act", "stop"])
def test_a_spent_budget_ends_the_run(mode: Any, tmp_path: Path) -> None:
    """Rollbacks after 1 and 2 (and a rest of 1 iteration each); the third alarm is the last."""
    rollback = Rollback(max_rollbacks=2, cooldown=1, mode=mode)
    fit(tmp_path, Alarm(1, 2, 4, 5, 6), rollback)
    assert rollback.budget.rollbacks == 2
    assert rollback.raised == [("rollbacks_spent", Severity.FATAL)]
    (stop,) = actions(tmp_path, "stop")
    assert stop["iteration"] == 4
    assert rollback.learning_rate_scale == 0.25


def test_an_alarm_in_the_rest_counts_if_it_lasts(tmp_path: Path) -> None:
    """Rollback after 1, a rest until before iteration 6. One alarm ends before, the other is still active then."""
    fit(tmp_path, Alarm(1, 3), rollback := Rollback(cooldown=4))
    assert rollback.budget.rollbacks == 1
    fit(tmp_path, Alarm(1, 4, 5), rollback := Rollback(cooldown=4))
    assert rollback.budget.rollbacks == 2


def test_a_failure_that_comes_back_goes_further_back(tmp_path: Path) -> None:
    """Green before 4 and 7; rollbacks before 9 and 10 with none between them, the next green state before 13."""
    fit(tmp_path, Alarm(8, 9), Rollback(cooldown=1))
    assert [action["evidence"]["to"] for action in actions(tmp_path)] == [6, 3]
    assert actions(tmp_path)[1]["evidence"]["learning_rates_after"] == {"0.0": 0.025}  # 0.1 there, and twice halved


def test_training_on_leaves_a_snapshot_as_it_is(tmp_path: Path) -> None:
    ledger = Ledger()
    fit(tmp_path, Rollback(keep=1, cooldown=1), ledger, Alarm(7, 8))
    green, *restored = ledger.states[6:9]
    for state in restored:
        assert torch.equal(green["weights"], state["weights"])
        assert all(torch.equal(*pair) for pair in zip(green["moments"], state["moments"], strict=True))
    assert [state["learning_rate"] for state in restored] == [0.025, 0.0125]


def test_observing_changes_nothing(tmp_path: Path) -> None:
    seed_everything(0)
    rollback = Rollback(mode="observe")
    guarded = fit(tmp_path, Alarm(4), rollback)
    seed_everything(0)
    assert torch.equal(weights(guarded), weights(fit(tmp_path)))
    assert rollback.raised == [("rollback_due", Severity.WARN)]


class WritesItsOwnLearningRate(Toy):
    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.trainer.optimizers[0].param_groups[0]["lr"] = 0.1


def test_a_learning_rate_that_is_not_lowered(tmp_path: Path) -> None:
    rollback = Rollback()
    fit(tmp_path, Alarm(4), rollback, model=WritesItsOwnLearningRate())
    assert rollback.raised == [("learning_rate_not_lowered", Severity.WARN)]
    (alarm,) = [event for event in actions(tmp_path, "alarm") if event["evidence"]["safeguard"] == "rollback"]
    assert alarm["evidence"]["groups"] == {"0.0": [0.1, 0.1]}


def test_nested_schedules_are_lowered() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = Adam([parameter], lr=0.1)
    parts: list[Any] = [StepLR(optimizer, 1), StepLR(optimizer, 1)]
    trainer = Trainer(logger=False, enable_checkpointing=False)
    trainer.strategy.optimizers = [optimizer]
    scheduler: Any = SequentialLR(optimizer, parts, [5])
    trainer.strategy.lr_scheduler_configs = [type("Config", (), {"scheduler": scheduler})()]
    scale_learning_rates(trainer, 0.5)
    assert optimizer.param_groups[0]["lr"] == 0.05
    assert [part.base_lrs for part in parts] == [[0.05], [0.05]]


class Explode(Callback):
    """Multiplies the weights at the end of an iteration, once."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.mul_(1000.0)


@pytest.mark.parametrize("iteration", [6, 8])  # between two evaluations; before one, whose return is not green
def test_a_dqn_whose_weights_explode(iteration: int, tmp_path: Path) -> None:
    """Evaluations after iterations 4, 8 and 12; K = 4 updates in each iteration from the second on."""
    seed_everything(0)
    data = make_data(total_env_steps=120)
    model, rollback, ledger = DQN(data.spec, learning_rate=1e-3), Rollback(), Ledger()
    trainer = make_trainer(tmp_path, rollback, ledger, Explode(iteration), Alarm(iteration))
    trainer.fit(model, datamodule=data)
    assert torch.equal(ledger.states[iteration]["weights"], ledger.states[4]["weights"])
    assert model.learning_rate_scale == 0.5
    assert trainer.optimizers[0].param_groups[0]["lr"] == 5e-4
    assert rollback.raised == []
    assert weights(model).abs().max() < 10.0
    assert model.update_steps == 11 * 4  # goes on counting
    assert trainer.global_step == 12


def test_the_updates_after_a_rollback_differ_in_random_numbers_only(tmp_path: Path) -> None:
    seed_everything(0)
    ledger = Ledger()
    fit(tmp_path, Rollback(learning_rate_factor=0.999999), ledger, Alarm(8))
    first, second = ledger.states[7]["weights"], ledger.states[9]["weights"]
    assert not torch.allclose(first, second, atol=1e-5)


class Save(Callback):
    """Writes a checkpoint at the end of an iteration, or of the evaluation after it."""

    def __init__(self, folder: Path, iteration: int, *, evaluating: bool) -> None:
        self.path = folder / "saved.ckpt"
        self.iteration = iteration
        self.evaluating = evaluating

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.iteration and not self.evaluating:
            trainer.save_checkpoint(self.path)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self.iteration and self.evaluating:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(
    ("iteration", "evaluating"),
    [
        (6, True),  # between the evaluation and the snapshot
        (8, False),  # between the alarm and the rollback
        (10, False),  # after the rollback
    ],
)
def test_a_resumed_run_is_one_that_was_never_stopped(iteration: int, evaluating: bool, tmp_path: Path) -> None:
    """The toy draws from the global random state, which comes back with `GlobalRNG`."""

    def guards() -> tuple[GlobalRNG, Rollback, Alarm]:
        return GlobalRNG(), Rollback(cooldown=1), Alarm(8, 11)

    seed_everything(0)
    straight = guards()
    save = Save(tmp_path, iteration, evaluating=evaluating)
    expected = weights(fit(tmp_path, *straight, save))
    torch.load(save.path, weights_only=True)
    resumed = guards()
    seed_everything(1)
    assert torch.equal(weights(fit(tmp_path, *resumed, ckpt_path=save.path)), expected)
    assert straight[1].budget.rollbacks == resumed[1].budget.rollbacks == 2


class Boring(BoringModel):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """None is wanted."""


def boring_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=1,
        limit_train_batches=10,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        callbacks=list(callbacks),
        **options,
    )


def test_automatic_optimisation_without_evaluations(tmp_path: Path) -> None:
    """Green before iterations 3 and 6; the alarm at the end of 7 goes back to the latter."""
    weight = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            weight.append(weights(pl_module))

    rollback = Rollback(snapshot_every_n_iterations=3)
    trainer = boring_trainer(tmp_path, Explode(7), Alarm(7), rollback, Look(), limit_val_batches=0)
    trainer.fit(Boring())
    assert torch.equal(weight[7], weight[5])
    # Halved, and a tenth by its schedule at the end of the epoch.
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 0.1)
    assert trainer.global_step == 10
    assert rollback.raised == []


def test_an_evaluation_without_the_metric(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"Rollback needs 'eval/mean_reward'.*logged after the evaluation is \['x'\]"):
        boring_trainer(tmp_path, Alarm(), Rollback(), limit_val_batches=1).fit(LogsX())
    boring_trainer(tmp_path, Alarm(), Rollback(monitor=None), limit_val_batches=1).fit(Boring())


class LogsX(BoringModel):
    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("x", 1.0)


def test_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="other safeguards, and found none"):
        boring_trainer(tmp_path, Rollback()).fit(BoringModel())
    trainer = Trainer(strategy=ModelParallelStrategy(), accelerator="cpu", devices=1, logger=False)
    with pytest.raises(ValueError, match="got the strategy ModelParallelStrategy"):
        Rollback().setup(trainer, BoringModel(), "fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"causes": "kl_spike"}, "causes = 'kl_spike'.*expected lists"),
        ({"harmless": "kl_spike"}, "harmless = 'kl_spike', expected lists"),
        ({"causes": []}, r"causes = \[\]"),
        ({"max_rollbacks": 0}, "max_rollbacks = 0"),
        ({"cooldown": 0}, "cooldown = 0"),
        ({"learning_rate_factor": 1.0}, "learning_rate_factor = 1.0"),
        ({"keep": 0}, "keep = 0"),
        ({"snapshot_every_n_iterations": 0}, "snapshot_every_n_iterations = 0"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rollback(**arguments)
