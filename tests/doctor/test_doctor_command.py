"""The doctor on real configurations, from the command line to the numbers of live objects."""

import json
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from running import SMALL, newest_checkpoint, newest_run

import rlmods.callbacks
from rlmods import algorithms, data
from rlmods.cli import run
from rlmods.configs import find_config, shipped_configs
from rlmods.doctor.command import Diagnosis, diagnose, main
from rlmods.doctor.effective import defaults_of, without_reader
from rlmods.doctor.examination import examine
from rlmods.doctor.line import Line
from rlmods.doctor.settings import given_in_vain, unread
from rlmods.doctor.subject import Subject, attach
from rlmods.doctor.unread import unread_arguments
from rlmods.reports.comparison import flatten

SHIPPED = [name for name in shipped_configs() if not name.startswith(("safeguards/", "postmortem/"))]
PUMP = ["postmortem/ppo_entropy_pump_parent", "postmortem/ppo_entropy_pump"]

# The published run with an expert, on an environment of ours: 48 updates of 16,384 a second on 2,000 frames, rewards
# with a bonus, a clamp at 8, a schedule of ε that is none.
EXPERT = """\
model:
  class_path: rlmods.algorithms.DQN
  init_args:
    {tau: 0.005, target_update_interval: 1, target_hard_update_interval: 25000, accumulate_grad_batches: 4,
     learning_rate: 3.0e-3, exploration_initial_eps: 0.25, exploration_final_eps: 0.25, exploration_care_scale: 0.25,
     max_grad_norm: 5.0}
data:
  class_path: rlmods.data.ExpertDataModule
  init_args:
    {env_id: rlmods/LaneShooter-v0, total_env_steps: 20000000, num_envs: 40, steps_per_iteration: 2000,
     updates_per_iteration: 48, batch_size: 16384, buffer_size: 1000000, learning_starts: 50000, gamma: 0.995,
     n_steps: 8, expert_care_scale: 2.0, eval_every: 1000000,
     env_kwargs: {points_clip: 0.1, death_penalty: 0.03, shaping: 0.012, bonus: 0.05}}
trainer:
  callbacks+:
    - class_path: rlmods.callbacks.TargetClamp
      init_args: {low: -8.0, high: 8.0}
"""


def lines_of(diagnosis: Diagnosis) -> dict[str, Line]:
    return {line.name: line for line in diagnosis.lines}


def effective(diagnosis: Diagnosis) -> dict[str, Any]:
    return {setting.name: setting.effective for setting in diagnosis.settings}


def built(name: str) -> tuple[Subject, dict[str, Any]]:
    """What a shipped configuration makes, without the second that the command line takes to parse it."""
    config = yaml.safe_load(find_config(name).read_text())
    parts = [
        config[part] if isinstance(config[part], dict) else {"class_path": config[part]} for part in ("data", "model")
    ]
    source, model = (
        (getattr(import_module(part["class_path"].rpartition(".")[0]), part["class_path"].rpartition(".")[2]), part)
        for part in parts
    )
    experience = source[0](**source[1].get("init_args", {}))
    module = model[0](experience.spec, **model[1].get("init_args", {}))
    subject, refusal = attach(module, experience, Trainer(accelerator="cpu", logger=False, log_every_n_steps=1), 0)
    assert refusal == ""
    return subject, flatten(config)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_configurations_do_not_fail(name: str) -> None:
    subject, configured = built(name)
    in_vain = given_in_vain(configured, defaults_of(subject), without_reader(subject))
    lines = [*examine(subject), unread(configured, in_vain)]
    assert [line.text for line in lines if line.status == "FAIL"] == []
    assert len(lines) > 10


def test_the_page_shows_what_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text()
    command, said = re.search(
        r"^```sh\n\$? ?(python -m rlmods doctor dqn_cartpole .*?)^```$.*?^```text\n(.*?)^```$", page, re.M | re.S
    ).groups()  # type: ignore[union-attr]
    assert main(shlex.split(command)[4:]) == 1
    # Except for what the machine has.
    out = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("PASS memory")]
    shown = [line for line in said.splitlines() if line not in ("...", "") and not line.startswith("PASS memory")]
    assert [line for line in shown if line not in out] == []
    assert len(shown) > 20


def test_the_seed_of_the_laboratory_had_no_density_ratio() -> None:
    line = lines_of(diagnose(["postmortem/linear_td_seed"]))["importance_ratio"]
    assert line.status == "FAIL"
    assert "E rho = 0.63" in line.arithmetic


@pytest.mark.filterwarnings("ignore:action_distribution is unbounded")
def test_the_entropy_pump_is_louder_than_the_noise() -> None:
    line = lines_of(diagnose(PUMP))["entropy_bonus"]
    assert line.status == "FAIL"
    assert "ent_coef 0.12" in line.arithmetic
    assert lines_of(diagnose(PUMP[:1]))["entropy_bonus"].status == "WARN"


def test_the_published_run_with_an_expert(tmp_path: Path) -> None:
    """γ = 0.995 and at most 0.162 a frame: 32.4, so a clamp at 8 cuts values off, and a Q of 324 is none."""
    file = tmp_path / "expert.yaml"
    file.write_text(EXPERT)
    diagnosis = diagnose([str(file)])
    lines = lines_of(diagnosis)
    assert diagnosis.status == "FAIL"
    assert lines["replay_ratio"].status == "FAIL"
    assert "393.2 draws" in lines["replay_ratio"].arithmetic
    assert "[-8.4, 32.4]" in lines["value_bound"].arithmetic
    assert lines["TargetClamp"].status == "FAIL"
    assert lines["exploration"].status == "WARN"
    assert "at frame 5,620,000" in lines["expert_curriculum"].arithmetic
    assert "= 65,536 transitions" in lines["effective_batch"].arithmetic
    assert "138.3 updates" in lines["target_mixing"].arithmetic
    assert lines["hard_copies"].status == "PASS"
    assert lines["expert"].status == "PASS"
    assert "57% of the returns" in lines["mixed_returns"].arithmetic
    assert lines["unread_settings"].status == "PASS"
    assert effective(diagnosis)["data.init_args.learning_starts"] == 50_000
    limited = lines_of(diagnose([str(file), "--data.init_args.max_replay_ratio", "12"]))
    assert limited["replay_ratio"].status == "PASS"
    # 12 · 2,000 of 16,384 · 4 an update.
    assert "0.3662 an iteration" in limited["updates"].arithmetic


def test_an_expert_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "expert.yaml"
    file.write_text(EXPERT)
    options = ["--data.init_args.env_id", "CartPole-v1", "--data.init_args.env_kwargs", "null"]
    lines = lines_of(diagnose([str(file), *options]))
    assert lines["expert"].status == "FAIL"
    assert lines["unread_settings"].status == "FAIL"
    assert "exploration_care_scale = 0.25: CartPole-v1 never says" in lines["unread_settings"].arithmetic
    assert "expert_care_scale = 2.0" in lines["unread_settings"].arithmetic


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def test_what_is_in_effect_is_what_the_run_does(small: Path, tmp_path: Path) -> None:
    """The doctor's number of updates, first learning rate and rhythm are those of the real run."""
    options = ["--model.init_args.final_learning_rate", "0.0", "--trainer.default_root_dir", str(tmp_path / "root")]
    diagnosis = diagnose([str(small), *options])
    assert not (tmp_path / "root").exists()
    seen = effective(diagnosis)
    run(["fit", "--config", str(small), *options])
    assert "112 updates" in lines_of(diagnosis)["updates"].arithmetic  # of 30 iterations the last 28, with 4 each
    assert newest_checkpoint(newest_run(tmp_path / "root"))["algorithm"]["update_steps"] == 112
    # 60 of 600 steps are spent at the first update.
    assert seen["model.init_args.learning_rate"] == pytest.approx(0.9e-3)
    assert seen["model.init_args.final_learning_rate"] == 0.0
    assert seen["data.init_args.eval_every"] == 140
    differing = {setting.name for setting in diagnosis.settings if setting.differs}
    assert "model.init_args.learning_rate" in differing
    assert "data.init_args.gamma" not in differing


def test_a_run_that_goes_on_is_examined_from_there(small: Path, tmp_path: Path) -> None:
    root = ["--trainer.default_root_dir", str(tmp_path / "root")]
    run(["fit", "--config", str(small), *root])
    longer = ["--data.init_args.total_env_steps", "800"]
    lines = lines_of(diagnose([str(small), *root, *longer, "--ckpt_path", "last"]))
    assert "40 updates" in lines["updates"].arithmetic  # ten iterations more
    again = lines_of(diagnose(["--from", "latest", *root, *longer]))
    assert "40 updates" in again["updates"].arithmetic
    anew = lines_of(diagnose(["--from", "latest", "--weights_only_from", "true", *root, *longer]))
    assert "152 updates" in anew["updates"].arithmetic
    assert [folder.name for folder in (tmp_path / "root" / "lightning_logs").iterdir()] == ["version_0"]


def test_what_a_model_refuses_is_a_line(small: Path) -> None:
    lines = diagnose([str(small), "--model.init_args.accumulate_grad_batches", "3"]).lines
    assert lines[0].status == "FAIL"
    assert lines[0].name == "refused"
    assert "accumulate_grad_batches = 3" in lines[0].arithmetic


def test_settings_that_nobody_reads(small: Path) -> None:
    options = ["--data.init_args.prioritized_replay_alpha", "0.8", "--model.init_args.noisy_std", "0.3"]
    diagnosis = diagnose([str(small), *options])
    assert effective(diagnosis)["model.init_args.noisy_std"] == "no effect"
    line = lines_of(diagnosis)["unread_settings"]
    assert line.status == "FAIL"
    assert "data.init_args.prioritized_replay_alpha = 0.8: prioritized_replay is false" in line.arithmetic
    assert "model.init_args.noisy_std = 0.3: noisy is false" in line.arithmetic
    warmup = lines_of(diagnose([str(small), "--model.init_args.learning_rate_warmup", "0.05"]))["unread_settings"]
    assert "it is over at the first update, at 60" in warmup.arithmetic
    care = [f"--model.init_args.exploration_{name}" for name in ("initial_eps=0", "final_eps=0", "care_scale=0.5")]
    line = lines_of(diagnose([str(small), *care]))["unread_settings"]
    assert "exploration_care_scale = 0.5: exploration_initial_eps and exploration_final_eps are 0" in line.arithmetic
    assert lines_of(diagnose([str(small), *options[:1], "0.6"]))["unread_settings"].status == "PASS"


def test_the_code_to_leave_with(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(small)]) == 0
    said = capsys.readouterr().out
    assert "PASS replay_ratio: 32 drawn for 20 new transitions: 1.6 draws of each" in said
    assert said.rstrip().splitlines()[-1] in ("PASS", "WARN")
    assert main(["--json", str(small), "--model.init_args.noisy_std", "0.3"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "FAIL"
    assert {line["status"] for line in found["lines"]} >= {"PASS", "FAIL"}
    (rate,) = [s for s in found["settings"] if s["name"] == "model.init_args.learning_rate"]
    assert (rate["configured"], rate["effective"], rate["differs"]) == (1e-3, 1e-3, False)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["without a configuration", "doctor dqn_cartpole"]),
        (["no_such_config"], ["no_such_config", "expected a file or one of these names"]),
        (["dqn_cartpole", "--data.init_args.bufer_size", "9"], ["bufer_size"]),
        (["dqn_cartpole", "--data.init_args.gamma", "1.0"], ["gamma = 1.0", "[0, 1)"]),
    ],
)
def test_what_fit_refuses_is_refused_alike(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err
    for word in words:
        assert word in error


def test_modules_of_others_are_examined_as_far_as_they_are_known() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, log_every_n_steps=1)
    experience = data.ReplayDataModule("CartPole-v1", 2_000)
    lines = {line.name: line for line in examine(attach(LightningModule(), experience, trainer, 0)[0])}
    assert "1,024" in lines["updates"].arithmetic
    assert "LightningModule is no algorithm of rlmods" in lines["algorithm"].arithmetic
    (line,) = examine(attach(LightningModule(), LightningDataModule(), trainer, 0)[0])
    assert (line.status, line.name) == ("WARN", "data")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "python -m rlmods doctor CONFIG" in capsys.readouterr().out


class Forgetful:
    """As a model of somebody else might be: one of its arguments is only kept."""

    def __init__(self, used: int, kept_and_read: int, clamp_targets_nowhere: bool = True) -> None:
        self.size = used + 1
        self.kept_and_read = kept_and_read
        self.clamp_targets_nowhere: bool = clamp_targets_nowhere

    def read(self) -> int:
        return self.kept_and_read


def test_an_argument_that_nobody_reads_is_found_in_the_source() -> None:
    # Not as one word, which would be a key that is looked up.
    assert unread_arguments(Forgetful) == ["_".join(("clamp", "targets", "nowhere"))]


STRANGE = """\
from lightning.pytorch import Callback
from rlmods.algorithms import DQN


class Clamped(DQN):
    def __init__(self, spec, clamp_nothing: bool = True, **options):
        super().__init__(spec, **options)
        self.clamp_nothing = clamp_nothing


class Watcher(Callback):
    def __init__(self, every: int = 1, watch_nothing: float = 8.0):
        self.every, self.watch_nothing = every + 1, 0.0
"""


def test_a_flag_that_is_only_declared_is_an_error(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As clamp_targets was in the published run: on by default, and read by nobody."""
    (tmp_path / "strange.py").write_text(STRANGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    changes = tmp_path / "changes.yaml"
    changes.write_text("{model: {class_path: strange.Clamped}, trainer: {callbacks: [{class_path: strange.Watcher}]}}")
    line = lines_of(diagnose([str(small), str(changes)]))["unread_settings"]
    assert line.status == "FAIL"
    assert "model.init_args.clamp_nothing = True: no code of Clamped reads it" in line.arithmetic
    assert "trainer.callbacks.Watcher.init_args.watch_nothing = 8.0: no code of Watcher" in line.arithmetic
    assert "every" not in line.arithmetic


OURS = [getattr(module, name) for module in (algorithms, data, rlmods.callbacks) for name in module.__all__]


@pytest.mark.parametrize("kind", [kind for kind in OURS if isinstance(kind, type)], ids=lambda kind: kind.__name__)
def test_every_argument_of_ours_is_read(kind: type[Any]) -> None:
    assert unread_arguments(kind) == []
