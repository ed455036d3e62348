"""The gates on real runs: what they say, that they are kept, and that a failed one is not passed by a resume."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import Stranger, as_lists, events, fit_small, fit_stranger, transitions
from lightning.pytorch import LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer
from torch import Tensor
from torch.optim import Optimizer

from rlmods.algorithms import DQN, TD3
from rlmods.callbacks import StageGates, ValueBoundGuard
from rlmods.callbacks.safeguard import Safeguard
from rlmods.data import ReplayDataModule

SHORT: dict[str, Any] = {"eval_every": 160, "eval_episodes": 2}


def answers(gates: StageGates) -> dict[str, dict[str, bool | None]]:
    return {name: {check.name: check.passed for check in gate.checks} for name, gate in gates.gates.items()}


class ExplodingDQN(DQN):
    """Its targets, and so Q, are a thousand times too large."""

    def td_target(self, transition: Any, bootstrap: Tensor | None = None) -> Tensor:
        return 1_000.0 * super().td_target(transition, bootstrap)


class MeddlingDQN(DQN):
    """Evaluates on the training environments."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        collector = self.trainer.datamodule.collector  # type: ignore[attr-defined]
        collector.observation = collector.environments.reset(0)
        return super().validation_step(batch, batch_idx)


class HalfDeadDQN(DQN):
    """Its optimiser holds a layer that no loss reaches."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.spare = torch.nn.Linear(2, 2)

    def configure_optimizers(self) -> Optimizer:
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["params"] += list(self.spare.parameters())
        return optimizer


def test_a_healthy_run_passes_and_says_what_it_did_not_check(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[200])
    trainer = fit_small(tmp_path, gates, ValueBoundGuard(), **SHORT)
    assert gates.gates["G1"].env_steps == 320  # at the first evaluation from 200 on
    assert answers(gates) == {
        "G0": {"gradients": True, "alarms": True},
        "G1": {
            "alarms": True,
            "q_range": True,
            "environments_untouched": True,
            "q_policy_gap": None,  # DQN has no actor
            "saturation": None,
        },
    }
    assert gates.raised == []
    said = events(trainer, "gate")
    assert [event["evidence"]["gate"] for event in said] == ["G1", "G0"]
    assert said[0]["evidence"]["checks"]["q_policy_gap"]["reason"] == (
        "not checked: training_step does not return q_policy"
    )


@pytest.mark.learning
def test_a_run_that_learns_passes_every_gate(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[1_000, 4_000, 6_000, 8_000])
    fit_small(
        tmp_path,
        gates,
        ValueBoundGuard(),
        total_env_steps=8_000,
        learning_starts=500,
        updates_per_iteration=16,
        batch_size=64,
        buffer_size=10_000,
        eval_episodes=10,
        eval_every=1_000,
        arguments={"hidden_sizes": [64, 64], "target_update_interval": 250, "exploration_fraction": 0.2},
    )
    found = answers(gates)
    assert list(found) == ["G0", "G1", "G2", "G3", "G4"]
    assert [gate.describe() for gate in gates.gates.values() if gate.passed is not True] == []
    unchecked = {name for checks in found.values() for name, passed in checks.items() if passed is None}
    assert unchecked == {"q_policy_gap", "saturation"}


def test_the_baseline_is_what_the_untrained_policy_got(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[100_000])
    trainer = fit_small(tmp_path, gates, learning_starts=639)
    returns = trainer.datamodule.episode_returns()  # type: ignore[attr-defined]
    assert gates.baseline is not None
    # The first batch with an update is that of the last iteration: all episodes of the run ended before it.
    assert gates.baseline.episodes == len(returns) > 10
    assert gates.baseline.mean == pytest.approx(sum(returns) / len(returns))


def test_a_given_baseline_goes_before(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[160, 320], baseline=-1.0)
    fit_small(tmp_path, gates, **SHORT, total_env_steps=336)
    assert gates.baseline == (-1.0, 0.0, 0)
    assert answers(gates)["G2"]["above_random"] is True


@pytest.mark.parametrize(
    ("model_class", "gate", "check"),
    [
        (ExplodingDQN, "G1", "q_range"),
        (MeddlingDQN, "G1", "environments_untouched"),
        (HalfDeadDQN, "G0", "gradients"),
    ],
)
def test_a_broken_run_fails_at_the_check_for_it(model_class: type[DQN], gate: str, check: str, tmp_path: Path) -> None:
    gates = StageGates(env_steps=[320])
    arguments = {"learning_rate": 0.1} if model_class is ExplodingDQN else {}
    trainer = fit_small(tmp_path, gates, model_class=model_class, arguments=arguments, **SHORT)
    assert [name for name, passed in answers(gates)[gate].items() if passed is False] == [check]
    (alarm,) = events(trainer)
    assert alarm["evidence"]["cause"] == f"{gate.lower()}_{check}"
    assert gates.stopped is None  # mode act


def test_in_mode_stop_a_failed_gate_ends_the_run(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[320], mode="stop")
    trainer = fit_small(tmp_path, gates, model_class=HalfDeadDQN)
    assert gates.stopped == "stage gate G0 failed (1 failed, 0 passed, 1 not checked)"
    # Iterations of 4 updates, the first at environment step 64: 100 of them are made at step 448.
    assert gates.gates["G0"].env_steps == trainer.datamodule.env_steps == 448  # type: ignore[attr-defined]


class Alarmed(Safeguard):
    """Has an alarm that may act, all the time."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        from rlmods.callbacks.detectors import Severity, Verdict

        self.report(trainer, [Verdict("broken", Severity.ACT, "it is broken", {})])


def test_an_alarm_of_another_safeguard_fails_the_gate(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[5])
    fit_stranger(tmp_path, Stranger(), [transitions()] * 5, Alarmed(name="other", mode="observe"), gates)
    (check,) = gates.gates["G1"].failed
    assert check.reason == "1 alarms of severity act are active, expected 0: other broken"


def test_the_checkpoint_says_it_to_anybody(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[320])
    trainer = fit_small(tmp_path, gates, model_class=MeddlingDQN, **SHORT, total_env_steps=336)
    path = newest_checkpoint_of(trainer)
    stage = torch.load(path, weights_only=True)["stages"]["stage_gates"]
    assert stage["enforced"] is True
    gate = stage["gates"][0]
    assert (gate["gate"], gate["passed"], gate["env_steps"]) == ("G1", False, 320)
    assert gate["checks"]["environments_untouched"]["passed"] is False


def newest_checkpoint_of(trainer: Trainer) -> Path:
    return max(Path(str(trainer.log_dir)).glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)


def fit_meddling(folder: Path, gates: StageGates, **options: Any) -> Trainer:
    return fit_small(folder, gates, model_class=MeddlingDQN, **(SHORT | options))


def failed_run(folder: Path, gates: StageGates) -> Path:
    """A checkpoint at step 480 of 640 of a run that failed G1 at 320."""
    return newest_checkpoint_of(fit_meddling(folder, gates, max_steps=30))


def test_a_resume_past_a_failed_gate_is_refused_unless_forced(tmp_path: Path) -> None:
    checkpoint = failed_run(tmp_path / "first", StageGates(env_steps=[320]))
    with pytest.raises(ValueError, match=r"G1 at 320 environment steps, environments_untouched.*force=True"):
        fit_meddling(tmp_path / "refused", StageGates(env_steps=[320]), ckpt_path=checkpoint)
    assert not list((tmp_path / "refused").rglob("*.ckpt"))
    forced = StageGates(env_steps=[320], force=True)
    trainer = fit_meddling(tmp_path / "forced", forced, ckpt_path=checkpoint)
    assert forced.gates["G1"].forced
    (said,) = [event for event in events(trainer, "gate") if event["evidence"]["forced"]]
    assert "because it was forced" in said["message"]
    # What was forced once is on record, and blocks no more.
    again = StageGates(env_steps=[320])
    fit_meddling(tmp_path / "again", again, ckpt_path=newest_checkpoint_of(trainer), total_env_steps=800)
    assert again.gates["G1"].forced


def test_a_run_that_was_only_observed_may_be_resumed(tmp_path: Path) -> None:
    checkpoint = failed_run(tmp_path / "first", StageGates(env_steps=[320], mode="observe"))
    gates = StageGates(env_steps=[320], mode="observe")
    fit_meddling(tmp_path / "second", gates, ckpt_path=checkpoint)
    assert answers(gates)["G1"]["environments_untouched"] is False


def test_a_resumed_run_decides_like_one_that_was_never_stopped(tmp_path: Path) -> None:
    def gates() -> StageGates:
        return StageGates(env_steps=[160, 500], mode="observe")

    whole, first, second = gates(), gates(), gates()
    fit_small(tmp_path / "whole", whole, **SHORT)
    # Two of the first 100 updates are left for after the resume.
    trainer = fit_small(tmp_path / "first", first, max_steps=22, **SHORT)
    assert "G0" not in first.gates
    fit_small(tmp_path / "second", second, ckpt_path=newest_checkpoint_of(trainer), **SHORT)
    assert list(whole.gates) == ["G1", "G0", "G2"]
    # The stopped run made one evaluation more, at its end.
    assert second.evaluations[:2] == whole.evaluations[:2]
    first.evaluations = second.evaluations = whole.evaluations = []
    states = [as_lists(gate.state_dict()) for gate in (whole, second)]
    for state in states:
        for gate in state["gates"]:
            gate["checks"].pop("no_decline", None)  # it counts the evaluations
    assert states[0] == states[1]


def fit_pendulum(folder: Path, gates: StageGates, **settings: Any) -> None:
    seed_everything(0)
    data = ReplayDataModule(
        "Pendulum-v1",
        total_env_steps=400,
        env_kwargs={"max_episode_steps": 20},
        learning_starts=100,
        steps_per_iteration=10,
        updates_per_iteration=5,
        batch_size=16,
        eval_episodes=3,
        eval_every=100,
    )
    model = TD3(data.spec, hidden_sizes=[16, 16], **settings)
    make_trainer(folder, gates, enable_checkpointing=False).fit(model, datamodule=data)


def test_td3_gives_every_signal(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[100, 200, 300, 400], mode="observe")
    fit_pendulum(tmp_path, gates)
    found = answers(gates)
    assert list(found) == ["G1", "G2", "G0", "G3", "G4"]
    assert found["G0"]["gradients"] is True
    assert [name for gate in ("G2", "G3", "G4") for name, passed in found[gate].items() if passed is None] == [
        *("alarms", "no_decline", "alarms", "improving", "alarms")
    ]
    assert gates.baseline is not None


def test_a_strangers_module_without_evaluations_is_gated_by_its_iterations(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[5])
    fit_stranger(tmp_path, Stranger(), [transitions() for _ in range(120)], gates)
    assert gates.gates["G1"].env_steps == 5
    assert gates.gates["G0"].env_steps == 100
    assert answers(gates) == {
        "G1": dict.fromkeys(["alarms", "q_range", "environments_untouched", "q_policy_gap", "saturation"]),
        "G0": {"gradients": True, "alarms": None},
    }


def test_a_run_that_was_not_seen_from_its_start_has_no_baseline(tmp_path: Path) -> None:
    trainer = fit_small(tmp_path / "first", max_steps=30, **SHORT)
    gates = StageGates(env_steps=[500])
    fit_small(tmp_path / "second", gates, ckpt_path=newest_checkpoint_of(trainer), **SHORT)
    assert gates.baseline is None


@pytest.mark.parametrize("env_steps", [[], [0], [200, 100], [5, 5], [1, 2, 3, 4, 5]])
def test_steps_must_rise(env_steps: list[int]) -> None:
    with pytest.raises(ValueError, match=r"one to four rising numbers"):
        StageGates(env_steps=env_steps)


def test_the_training_is_the_same_with_and_without_it(tmp_path: Path) -> None:
    weights = []
    for folder, callbacks in (("with", [StageGates(env_steps=[100, 300])]), ("without", [])):
        trainer = fit_small(tmp_path / folder, *callbacks, **SHORT, total_env_steps=336)
        weights.append(torch.cat([p.detach().flatten() for p in trainer.lightning_module.parameters()]))
    assert torch.equal(*weights)


def test_an_actor_that_is_driven_to_its_ends_fails(tmp_path: Path) -> None:
    gates = StageGates(env_steps=[300])
    fit_pendulum(tmp_path, gates, learning_rate=0.3)
    assert answers(gates)["G1"]["saturation"] is False
    assert answers(gates)["G0"]["gradients"] is True  # it was alive at first


# Two processes

DDP = """
import sys, torch, torch.distributed
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/callbacks")
from guarding import small_data
from lightning.pytorch import seed_everything
from rlmods.algorithms import DQN
from rlmods.callbacks import StageGates
from test_skeleton import make_trainer
torch.set_num_threads(1)

class MeddlesInTheSecondProcess(DQN):
    def validation_step(self, batch, batch_idx):
        if self.trainer.global_rank == 1:
            self.trainer.datamodule.collector.environments.reset(0)
        return super().validation_step(batch, batch_idx)

seed_everything(0)
data = small_data(total_env_steps=1280, eval_every=320)
gates = StageGates(env_steps=[320])
trainer = make_trainer(Path(sys.argv[2]), gates, strategy="ddp", devices=2)
trainer.fit(MeddlesInTheSecondProcess(spec=data.spec, hidden_sizes=[32]), datamodule=data)
gathered = [None, None]
torch.distributed.all_gather_object(gathered, gates.state_dict())
if trainer.is_global_zero:
    states = [[state["gates"], list(state["baseline"]), state["raised"]] for state in gathered]
    torch.save([repr(state) for state in states], Path(sys.argv[2]) / "ranks.pt")
"""


@pytest.mark.slow
def test_what_one_process_sees_fails_the_gate_of_all(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DDP)
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr
    first, second = torch.load(tmp_path / "ranks.pt", weights_only=True)
    assert first == second
    assert "g1_environments_untouched" in first
