"""A new run that continues another: what it begins with, what is changed, and what is refused."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from running import curves, newest_checkpoint, newest_run
from torch.optim import AdamW

from rlmods.best_checkpoint import BestCheckpoint
from rlmods.callback_merge import merged_callbacks
from rlmods.callbacks import RunRecord
from rlmods.chain import (
    Change,
    Kind,
    config_changes,
    find_parent,
    seeds_without_effect,
    split_arguments,
    stated_kind_and_root,
)
from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.cli import run
from rlmods.configs import find_config
from rlmods.reports import run_summary
from rlmods.reports.next_command import main as next_command
from rlmods.reports.run_summary import read_summary, write_summary
from rlmods.reports.tables import RunFolderError
from rlmods.warm_start import apply_settings

M, D = "--model.init_args.", "--data.init_args."
CONFIG = """\
trainer: {accelerator: cpu, log_every_n_steps: 1, enable_progress_bar: false, enable_model_summary: false}
model:
  class_path: rlmods.algorithms.PPO
  init_args: {hidden_sizes: [8], n_epochs: 2, batch_size: 32, optimizer: adamw, weight_decay: 0.01, ent_coef: 0.02}
data:
  class_path: rlmods.data.RolloutDataModule
  init_args: {env_id: CartPole-v1, total_env_steps: 256, num_envs: 4, n_steps: 16, eval_every: 128, eval_episodes: 3}
"""


class Family:
    """A parent, and children that continue it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "config.yaml"
        self.config.write_text(CONFIG)
        self.parent = self.fit("--config", str(self.config))

    def fit(self, *arguments: str) -> Path:
        run(["fit", *arguments, "--trainer.default_root_dir", str(self.folder)])
        return newest_run(self.folder)

    def from_parent(self, *arguments: str) -> Path:
        return self.fit("--from", str(self.parent), *arguments)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Family:
    return Family(tmp_path_factory.mktemp("family"))


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return content


def settings(folder: Path) -> dict[str, Any]:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    merged: dict[str, Any] = config["model"]["init_args"] | config["data"]["init_args"]
    return merged


@pytest.fixture(scope="module")
def full(family: Family) -> Path:
    """A child with the full state: a larger budget, another weight decay, and nothing else said."""
    return family.from_parent(D + "total_env_steps=512", M + "weight_decay=0.3")


def test_a_child_goes_on_where_its_parent_was(family: Family, full: Path) -> None:
    assert full != family.parent
    origin, parent = record(full), read_summary(family.parent)
    assert origin["parent_run"] == str(family.parent)
    assert origin["origin"]["continued"] == "full"
    child = read_summary(full)
    assert child["env_steps_at_start"] == parent["env_steps"]
    assert child["env_steps"] >= 480
    # The same weights, episodes and seeds: the same evaluation, to the last digit.
    assert child["evaluation"]["warm_start"] == parent["evaluation"]["last"]
    first = newest_checkpoint(family.parent)["algorithm"]["update_steps"]
    assert newest_checkpoint(full)["algorithm"]["update_steps"] > first
    assert curves(full)["train/n_updates"][0][1] > first


def test_what_is_not_named_stays_as_the_parent_had_it(family: Family, full: Path) -> None:
    before, now = settings(family.parent), settings(full)
    assert {name for name in now if now[name] != before[name]} == {"total_env_steps", "weight_decay"}
    assert now["ent_coef"] == 0.02
    (group,) = [g for g in newest_checkpoint(full)["optimizer_states"][0]["param_groups"] if g["name"] == "actor"]
    assert group["weight_decay"] == 0.3, "the restored optimiser has the setting of the child"


def test_the_table_names_what_is_changed_and_what_goes_back(
    family: Family, full: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    child = family.fit("--from", str(full), "--weights_only_from", "true", M + "weight_decay=0.01", M + "vf_coef=0.7")
    changes = {change["key"].rpartition(".")[2]: change for change in record(child)["origin"]["config_changes"]}
    assert changes.keys() == {"weight_decay", "vf_coef"}
    assert (changes["weight_decay"]["parent"], changes["weight_decay"]["reverted"]) == (0.3, True)
    assert (changes["vf_coef"]["before"], changes["vf_coef"]["reverted"]) == (0.5, False)
    said = capsys.readouterr().err + caplog.text
    assert "model.init_args.weight_decay  0.01               0.3     0.01  reverted" in said
    assert "clocks, optimiser, schedules and random numbers begin anew" in said
    summary = read_summary(child)
    assert (summary["continued"], summary["env_steps_at_start"]) == ("weights", 0)
    # 2 epochs of 2 mini-batches: the first iteration of the one, the fifth of the other.
    assert [curves(folder)["train/n_updates"][0][1] for folder in (child, full)] == [4.0, 20.0]
    assert summary["evaluation"]["warm_start"]["mean"] == read_summary(full)["evaluation"]["last"]["mean"]


def test_a_value_of_the_default_is_a_revert(family: Family) -> None:
    parent = find_parent(str(family.parent), family.folder, Kind(None, None), weights_only=True)
    now = yaml.safe_load((family.parent / "config.yaml").read_text())
    now["model"]["init_args"]["ent_coef"] = 0.0
    (change,) = config_changes(now, parent)
    assert change == ("model.init_args.ent_coef", 0.0, 0.02, 0.0, True)


def rewrite(folder: Path, low: float | None, **changes: Any) -> None:
    """A summary that says another best."""
    summary = write_summary(folder)
    summary["evaluation"]["best"]["low"] = low
    (folder / "summary.json").write_text(json.dumps(summary | changes))


def test_best_and_latest(family: Family, full: Path) -> None:
    kind = Kind("PPO", "CartPole-v1")

    def best() -> Path:
        return find_parent("best", family.folder, kind, weights_only=False).folder

    others = [r for r in (family.folder / "lightning_logs").iterdir() if r not in (family.parent, full)]
    for other in others:
        rewrite(other, None)  # NaN, as it was written
    rewrite(family.parent, 50.0)
    rewrite(full, 40.0)
    assert best() == family.parent
    rewrite(family.parent, 50.0, quarantined={"eval/mean_reward": 1e9})
    assert best() == full
    rewrite(full, None)
    with pytest.raises(FileNotFoundError, match="no run of PPO on CartPole-v1 with a healthy checkpoint"):
        best()
    assert find_parent("latest", family.folder, kind, weights_only=False).folder == newest_run(family.folder)
    for folder in (family.parent, full, *others):
        write_summary(folder)


def test_an_unhealthy_checkpoint_is_passed_over(family: Family) -> None:
    newest = find_parent(str(family.parent), family.folder, Kind(None, None), weights_only=False).checkpoint
    checkpoint = torch.load(newest, weights_only=True)
    assert checkpoint.get("health", {}) == {}
    copy = family.folder / "sick" / "lightning_logs" / "version_0"
    (copy / "checkpoints").mkdir(parents=True)
    (copy / "config.yaml").write_text((family.parent / "config.yaml").read_text())
    sick = checkpoint | {"health": {"value_bound": {"q_above_bound": "act"}}}
    AtomicCheckpointIO().save_checkpoint(sick, copy / "checkpoints/a.ckpt")
    with pytest.raises(FileNotFoundError, match=r"a.ckpt: it is unhealthy \(q_above_bound\)"):
        find_parent(str(copy), family.folder, Kind(None, None), weights_only=False)
    named = find_parent(str(copy / "checkpoints/a.ckpt"), family.folder, Kind(None, None), weights_only=False)
    assert named.checkpoint.name == "a.ckpt"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--from", "nowhere"], "got --from nowhere, expected a run folder, a checkpoint in it, best, latest or fresh"),
        (["--from", "PARENT"], "the budget is spent; .* or take the weights alone: type --weights_only_from true"),
        (["--from", "PARENT", D + "gamma=0.5", D + "total_env_steps=512"], "got gamma = 0.5, .* the weights alone"),
        (["--from", "PARENT", "--config", "dqn_cartpole"], "a run with the algorithm PPO, expected DQN"),
        (["--from", "PARENT", D + "env_id=Acrobot-v1"], "with the environment CartPole-v1, expected Acrobot-v1"),
        (["--from", "PARENT", "--weights_only_from", "true", M + "hidden_sizes=[9]"], r"whose networks.* is \[8, 4\]"),
        (
            ["--from", "PARENT", D + "total_env_steps=512", M + "optimizer=muon"],
            "does not fit another optimizer; type --weights_only_from true",
        ),
        (["--from", "PARENT", "--ckpt_path", "last"], "got --ckpt_path and --from, expected one"),
        (["--from"], "got --from without a value"),
        (["--from", "best", "--from", "latest"], "got --from twice, expected one"),
        (["--from", "PARENT", M + "lstm_hidden_size=8"], "type --model.init_args.lstm_hidden_size null"),
        (["--weights_only_from", "true"], "without a run to take them from: type --from RUN"),
        (["--from", "best", "--config", "sac_pendulum"], "there is no run of SAC on Pendulum-v1"),
    ],
)
def test_what_is_refused_before_anything_is_written(
    family: Family, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    before = sorted((family.folder / "lightning_logs").iterdir())
    words = [str(family.parent) if word == "PARENT" else word for word in options]
    root = [] if words[-1] == "--from" else ["--trainer.default_root_dir", str(family.folder)]
    config = ["--config", str(family.config)] if "--from" not in words or words[-1] == "--from" else []
    with pytest.raises(SystemExit, match="2"):
        run(["fit", *config, *root, *words])
    error = capsys.readouterr().err.replace("\n", " ")
    assert re.search(said, error), error
    assert sorted((family.folder / "lightning_logs").iterdir()) == before


def test_a_summary_that_does_not_match_its_schema(family: Family, full: Path) -> None:
    """The other run is still found."""
    path = family.parent / "summary.json"
    summary = json.loads(path.read_text())
    summary["evaluation"]["last"]["mean"] = "good"
    path.write_text(json.dumps(summary))
    with pytest.raises(RunFolderError, match=r"evaluation\.last.*remove the file, and it is made anew"):
        read_summary(family.parent)
    others = find_parent("best", family.folder, Kind(None, None), weights_only=False)
    assert others.folder != family.parent
    assert "remove the file, and it is made anew" in others.refused[family.parent]
    path.write_text("{")
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_summary(family.parent)
    path.unlink()
    assert read_summary(family.parent)["run"] == family.parent.name
    write_summary(family.parent)


def test_next_writes_what_fit_from_takes(family: Family, full: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = read_summary(full)
    fallen = [score | {"mean": 1.0, "standard_error": 0.1, "episodes": 20} for score in summary["evaluation"]["all"]]
    parent = read_summary(family.parent)
    parent["evaluation"]["best"] |= {"low": 90.0, "mean": 100.0, "standard_error": 1.0, "episodes": 20}
    (family.parent / "summary.json").write_text(json.dumps(parent))
    (full / "summary.json").write_text(json.dumps(summary | {"evaluation": summary["evaluation"] | {"all": fallen}}))
    assert next_command([str(full)]) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert "# hypothesis: model.init_args.weight_decay from 0.3 to 0.01" in (full / "next_config.yaml").read_text()
    with pytest.raises(SystemExit, match="0"):
        run([*shlex.split(command)[3:], "--print_config"])
    merged = yaml.safe_load(capsys.readouterr().out)
    assert merged["model"]["init_args"]["weight_decay"] == 0.01
    assert merged["data"]["init_args"]["total_env_steps"] == 512
    for folder in (family.parent, full):
        write_summary(folder)


def test_the_probe_of_next_can_be_run(family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    assert next_command([str(family.parent)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("insufficient evidence (too_few_episodes)") for line in said)
    run(shlex.split(said[-1].removeprefix("run this probe: "))[3:])
    assert "eval/mean_reward" in capsys.readouterr().out


@pytest.fixture
def two_tasks(family: Family, tmp_path: Path) -> Path:
    """A root with two runs: the first one of the task easy and high, the second of the task hard and low."""
    for number, (task, low) in enumerate((("easy", 90.0), ("hard", 10.0))):
        copy = tmp_path / f"lightning_logs/version_{number}"
        shutil.copytree(family.parent, copy)
        config = yaml.safe_load((copy / "config.yaml").read_text())
        config["data"]["init_args"]["env_kwargs"] = {"task": task}
        (copy / "config.yaml").write_text(yaml.safe_dump(config))
        rewrite(copy, low)
    return tmp_path


def test_best_compares_runs_of_one_task(two_tasks: Path) -> None:
    easy, hard = (two_tasks / f"lightning_logs/version_{number}" for number in (0, 1))
    newest = find_parent("best", two_tasks, Kind("PPO", None), weights_only=False)
    assert newest.folder == hard
    assert newest.refused[easy] == "its environment is another one (env_kwargs.task easy instead of hard)"
    for words in (["--data.env_kwargs.task=easy"], ["--data.init_args.env_kwargs", '{"task": "easy"}']):
        kind, _ = stated_kind_and_root(words)
        assert find_parent("best", two_tasks, kind, weights_only=False).folder == easy
    kind, _ = stated_kind_and_root(["--data.env_kwargs.task", "other"])
    with pytest.raises(FileNotFoundError, match=r"task easy instead of other.* --from with the folder of a run"):
        find_parent("best", two_tasks, kind, weights_only=False)


def test_what_is_damaged_is_passed_over_with_its_reason(two_tasks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    easy, hard = (two_tasks / f"lightning_logs/version_{number}" for number in (0, 1))
    for text in ("a: [", "[1]", ""):
        (easy / "config.yaml").write_text(text)
        assert "config.yaml" in find_parent("best", two_tasks, Kind("PPO", None), weights_only=False).refused[easy]
    with pytest.raises(RunFolderError, match=r"config\.yaml with a NoneType, expected a mapping"):
        find_parent(str(easy), two_tasks, Kind(None, None), weights_only=False)
    assert next_command([str(easy)]) == 2
    best = hard / read_summary(hard)["evaluation"]["best"]["checkpoint"]
    best.write_bytes(best.read_bytes()[:-9])
    found = find_parent("best", two_tasks, Kind("PPO", None), weights_only=False)
    assert found.folder == hard
    assert found.checkpoint != best
    assert "it is damaged: truncated" in found.refused[best]
    assert next_command([str(hard)]) == 0
    assert f"passed over {best}: it is damaged" in capsys.readouterr().out


def test_callbacks_that_are_named_twice_are_merged() -> None:
    guards = [{"class_path": "rlmods.callbacks.NonFiniteGuard", "init_args": {"window": 7, "name": "non_finite"}}]
    guards += [{"class_path": "rlmods.callbacks.ValueBoundGuard", "init_args": {"name": "another"}}]
    base = yaml.safe_dump({"trainer": {"callbacks": guards, "max_epochs": 1}})
    preset = str(find_config("safeguards/observe"))
    words = merged_callbacks(["fit", "--config", base, "--config", preset])
    assert words[:3] == ["fit", "--config", base]
    callbacks = yaml.safe_load(words[4])["trainer"]["callbacks"]
    names = [item["class_path"].rpartition(".")[2] for item in callbacks]
    assert (names.count("NonFiniteGuard"), names.count("ValueBoundGuard"), names.count("LivenessGuard")) == (1, 2, 1)
    assert callbacks[0]["init_args"] == {"window": 7, "name": "non_finite", "mode": "observe"}
    alone = ["fit", "--config=trainer: {max_epochs: 1}\n", "--config", preset]
    assert merged_callbacks(alone) == alone


def test_a_seed_of_nobody_and_a_seed_without_effect(family: Family) -> None:
    assert RunRecord(False).seed is None  # as --seed_everything false gives it
    changes = [Change("seed_everything", 0, 0, 1, False), Change("model.init_args.gamma", 0, 0, 1, False)]
    for only, expected in ((False, ["seed_everything"]), (True, [])):
        parent = find_parent(str(family.parent), family.folder, Kind(None, None), weights_only=only)
        assert seeds_without_effect(parent, changes) == expected


def test_a_child_that_goes_on_has_no_summary_of_before(
    family: Family, full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "lightning_logs/version_0"
    shutil.copytree(full, copy)
    monkeypatch.setattr(run_summary, "write_summary", None)  # as where it is killed before its end
    options = ["--trainer.default_root_dir", str(tmp_path), D + "total_env_steps=640", D + "eval_every=640"]
    with pytest.warns(UserWarning, match="no report was written"):
        run(["fit", "--config", str(copy / "config.yaml"), "--ckpt_path", "last", *options])
    assert newest_run(tmp_path) == copy
    assert not (copy / "summary.json").exists()
    origin = record(copy)["origin"]
    changes = {change["key"].rpartition(".")[2]: change["now"] for change in origin["config_changes"]}
    assert changes == {"total_env_steps": 640, "eval_every": 640, "weight_decay": 0.3}
    assert (origin["continued"], record(copy)["parent_run"]) == ("full", str(family.parent))


def test_arguments() -> None:
    assert split_arguments(["fit", "--from", "best", "-c", "x"]) == (["fit", "-c", "x"], "best", False)
    assert split_arguments(["fit", "--from=a", "--weights_only_from=True"]) == (["fit"], "a", True)


def test_optimisers_keep_their_state_and_take_the_settings() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    restored, configured = AdamW([weight], lr=0.1, weight_decay=0.5), AdamW([weight], lr=0.2, weight_decay=0.0)
    weight.grad = torch.ones(2)
    restored.step()
    apply_settings([restored], [configured])
    assert (restored.param_groups[0]["lr"], restored.param_groups[0]["weight_decay"]) == (0.2, 0.0)
    assert restored.state[weight]["step"] == 1


class _Metrics:
    def __init__(self, **metrics: float) -> None:
        self.callback_metrics = {f"eval/{name}": torch.tensor(value) for name, value in metrics.items()}
        self.current_epoch = self.global_step = 0


def test_the_best_checkpoint_is_that_of_the_lower_bound() -> None:
    def low(**metrics: float) -> float:
        candidates = BestCheckpoint()._monitor_candidates(_Metrics(**metrics))  # type: ignore[arg-type]
        return float(candidates["eval/mean_reward_low"])

    # Student's 97.5 % quantile for 3 degrees of freedom is 3.1824: 10 − 3.1824 · 2/√3.
    assert low(mean_reward=10.0, std_reward=2.0, episodes=4.0) == pytest.approx(10.0 - 3.1824463 * 2.0 / 3.0**0.5)
    assert low(mean_reward=20.0, std_reward=40.0, episodes=4.0) < low(mean_reward=10.0, std_reward=2.0, episodes=4.0)
    assert low(mean_reward=7.0, std_reward=0.0, episodes=1.0) == 7.0
    assert "eval/mean_reward_low" not in BestCheckpoint()._monitor_candidates(_Metrics())  # type: ignore[arg-type]


def test_next_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert next_command([str(tmp_path)]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
