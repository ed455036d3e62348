import csv
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, WARN, Stranger, events, fit_small, fit_stranger, transitions
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger
from running import curves
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.callbacks.safeguard import MissingInputError, Mode, Safeguard, StepSafeguard, require_signals
from rlmods.callbacks.target_clamp import TargetClamp
from rlmods.callbacks.value_bound_guard import ValueBoundGuard


def verdict(severity: Severity, cause: str = "too_hot") -> Verdict:
    return Verdict(cause, severity, "it is 40 degrees, expected 20: open a window", {"degrees": 40.0, "limit": 20.0})


class Scripted(Safeguard):
    """Reports what it is given, a list of verdicts a batch."""

    def __init__(self, *script: list[Verdict], name: str = "scripted", mode: Mode = "act") -> None:
        super().__init__(name=name, mode=mode)
        self.script = list(script)
        self.announced: list[list[str]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        found = self.script[batch_idx] if batch_idx < len(self.script) else []
        self.announced.append([verdict.cause for verdict in self.report(trainer, found)])
        self.draw(trainer, {"degrees": 40.0})


def batches(number: int) -> list[Any]:
    return [transitions() for _ in range(number)]


def test_a_cause_is_announced_when_it_begins_worsens_and_comes_back(tmp_path: Path) -> None:
    warn, act = [verdict(WARN)], [verdict(ACT)]
    guard = Scripted(warn, warn, act, warn, [], warn)
    trainer = fit_stranger(tmp_path, Stranger(), batches(6), guard)
    assert [bool(announced) for announced in guard.announced] == [True, False, True, False, False, True]
    assert guard.raised == [("too_hot", WARN), ("too_hot", ACT), ("too_hot", WARN)]
    assert guard.active == {"too_hot": WARN}
    assert [event["evidence"]["severity"] for event in events(trainer)] == ["warn", "act", "warn"]


def test_an_alarm_carries_its_evidence_and_the_learning_rate_that_is_used(tmp_path: Path) -> None:
    guard = Scripted([], [verdict(WARN)])
    trainer = fit_stranger(tmp_path, Stranger(), batches(2), guard)
    (event,) = events(trainer)
    assert event["message"] == "it is 40 degrees, expected 20: open a window"
    assert event["iteration"] == 2
    assert event["evidence"] == {
        "safeguard": "scripted",
        "cause": "too_hot",
        "severity": "warn",
        "degrees": 40.0,
        "limit": 20.0,
        "learning_rate": {"0.0": 0.01},
    }


def test_an_alarm_is_said_in_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rlmods"):
        script = [verdict(WARN), verdict(Severity.INFO, "worth_knowing")]
        fit_stranger(tmp_path, Stranger(), batches(1), Scripted(script))
    said = [(record.levelname, record.getMessage()) for record in caplog.records if record.name.startswith("rlmods")]
    sentence = "Scripted: it is 40 degrees, expected 20: open a window"
    assert said == [("WARNING", sentence), ("INFO", sentence)]


def test_alarms_are_curves_in_tensorboard(tmp_path: Path) -> None:
    trainer = fit_stranger(tmp_path, Stranger(), batches(3), Scripted([], [verdict(ACT)]))
    drawn = curves(Path(str(trainer.log_dir)))
    assert [value for _, value in drawn["stability/scripted/alarm"]] == [-1.0, 2.0, -1.0]
    assert [value for _, value in drawn["stability/scripted/degrees"]] == [40.0] * 3


def test_alarms_are_columns_in_a_csv_on_the_axis_of_environment_steps(tmp_path: Path) -> None:
    guard = Scripted([], [verdict(WARN)])
    trainer = fit_small(tmp_path, guard, logger=CSVLogger(tmp_path), total_env_steps=64, learning_starts=32)
    with (Path(str(trainer.log_dir)) / "metrics.csv").open() as file:
        rows = [(row["step"], row["stability/scripted/alarm"]) for row in csv.DictReader(file)]
    # At the beginning, and where the severity changes; else every 50 iterations.
    assert [row for row in rows if row[1]] == [("16", "-1.0"), ("32", "1.0"), ("48", "-1.0")]


@pytest.mark.parametrize(
    ("mode", "severity", "iterations"), [("stop", ACT, 1), ("stop", WARN, 6), ("act", ACT, 6), ("observe", ACT, 6)]
)
def test_only_the_mode_stop_ends_the_run(tmp_path: Path, mode: Mode, severity: Severity, iterations: int) -> None:
    guard = Scripted([verdict(severity)], mode=mode)
    trainer = fit_stranger(tmp_path, Stranger(), batches(6), guard)
    assert trainer.global_step == iterations
    assert (guard.stopped is not None) == (iterations == 1)
    assert len(events(trainer, "stop")) == (iterations == 1)


def test_the_real_dqn_is_stopped(tmp_path: Path) -> None:
    guard = LivenessGuard(every_n_iterations=2, mode="stop")
    trainer = fit_small(tmp_path, guard, Scripted(*[[]] * 3, [verdict(ACT)], mode="stop"))
    assert trainer.global_step == 4
    assert guard.stopped is None


def test_a_checkpoint_says_what_is_wrong(tmp_path: Path) -> None:
    guard = Scripted([], [verdict(WARN)])
    trainer = fit_stranger(tmp_path, Stranger(), batches(2), guard)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["health"] == {"scripted": {"too_hot": "warn"}}
    reloaded = Scripted()
    reloaded.load_state_dict(checkpoint["callbacks"][guard.state_key])
    assert (reloaded.active, reloaded.raised) == (guard.active, guard.raised)


@pytest.mark.parametrize("guard_class", [ValueBoundGuard, LivenessGuard, TargetClamp])
def test_two_of_one_name_are_refused_and_of_two_names_are_not(
    tmp_path: Path, guard_class: type[ValueBoundGuard] | type[LivenessGuard] | type[TargetClamp]
) -> None:
    with pytest.raises(ValueError, match=f"got 2 callbacks {guard_class.__name__} with the name '"):
        fit_stranger(tmp_path, Stranger(), batches(1), guard_class(), guard_class())
    trainer = fit_small(tmp_path, guard_class(), guard_class(name="other"), total_env_steps=96)
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert sum(key.startswith(guard_class.__name__) for key in saved) == 2


@pytest.mark.parametrize("name", ["", "a/b"])
def test_names_that_are_no_tags_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected a word without a slash"):
        Scripted(name=name)


def test_missing_signals_are_named_with_those_that_were_found() -> None:
    require_signals(Scripted(), {"q_value": 1, "loss": 2}, ["q_value"])
    with pytest.raises(MissingInputError, match=r"Scripted needs the signals \['kl'\].*returned \['loss', 'q_value'\]"):
        require_signals(Scripted(), {"q_value": 1, "loss": 2}, ["q_value", "kl"])
    with pytest.raises(MissingInputError, match="returned nothing"):
        require_signals(Scripted(), None, ["kl"])


# Around each step


class Steps(StepSafeguard):
    def __init__(self) -> None:
        super().__init__(name="steps", mode="observe")
        self.calls: list[str] = []

    def before_step(self, optimizer: Optimizer) -> None:
        if any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]):
            self.calls.append("before")

    def after_step(self, optimizer: Optimizer) -> None:
        self.calls.append("after")


def test_in_automatic_mode_each_step_is_seen_with_its_gradients(tmp_path: Path) -> None:
    guard = Steps()
    fit_stranger(tmp_path, BoringModel(), [torch.randn(2, 32)] * 3, guard)
    assert guard.calls == ["before", "after"] * 3


def test_in_manual_mode_raw_and_wrapped_steps_are_seen(tmp_path: Path) -> None:
    """Three iterations of warm-up with a step each that has no gradients, then two of 4 updates."""
    guard = Steps()
    fit_small(tmp_path, guard, total_env_steps=80)
    assert guard.calls == ["after"] * 3 + ["before", "after"] * 8


def test_the_hooks_are_gone_after_an_exception(tmp_path: Path) -> None:
    class Failure(Steps):
        def after_step(self, optimizer: Optimizer) -> None:
            raise RuntimeError("on purpose")

    stranger, guard = Stranger(), Failure()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit_stranger(tmp_path, stranger, batches(1), guard)
    optimizer: Any = stranger.optimizers()
    assert not optimizer.optimizer._optimizer_step_pre_hooks
    assert not optimizer.optimizer._optimizer_step_post_hooks
