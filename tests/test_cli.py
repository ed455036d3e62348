import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from running import SMALL, newest_checkpoint, newest_run, start

from rlmods.algorithms import DQN
from rlmods.cli import run

DATA = "--data.init_args."


class Trained:
    """A finished run, and how to type commands about it."""

    def __init__(self, folder: Path) -> None:
        (folder / "small.yaml").write_text(SMALL)
        self.options = ["--config", str(folder / "small.yaml"), "--trainer.default_root_dir", str(folder)]
        run(["fit", *self.options])
        self.run = newest_run(folder)
        self.checkpoint = str(self.run / "checkpoints/step=600.ckpt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("trained"))


WITHOUT_TORCH = """
import sys
from rlmods.__main__ import main
for arguments in (["--help"], ["configs"], ["--version"], []):
    sys.argv[1:] = arguments
    main()
heavy = {"torch", "lightning", "numpy", "gymnasium", "jsonargparse"} & set(sys.modules)
assert not heavy, heavy
"""


def test_help_and_configs_need_no_torch() -> None:
    completed = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert (
        "usage: python -m rlmods {fit,validate,test,predict,doctor,report,next,sanity,replay,configs}"
        in completed.stdout
    )
    assert re.search(r"dqn_cartpole +DQN on CartPole-v1", completed.stdout)


def test_unknown_command() -> None:
    completed = start("train", "--config", "dqn_cartpole")
    assert completed.returncode == 2
    commands = "fit, validate, test, predict, doctor, report, next, sanity, replay, configs"
    assert completed.stderr == f"error: got the command 'train', expected one of {commands}\n"


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run([command, "--help"])
    helped = capsys.readouterr().out
    for option in ("--config", "--print_config", "--trainer.default_root_dir", "--model", "--data", "--ckpt_path"):
        assert option in helped
    assert ("--video" in helped) == (command == "test")
    assert ("--observations" in helped) == (command == "predict")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="0"):
        run(["fit", *arguments, "--print_config"])
    return capsys.readouterr().out


@pytest.mark.parametrize("config", [["--config", "dqn_cartpole"], ["--config=dqn_cartpole"], ["-c", "dqn_cartpole"]])
def test_print_config_parses_again(config: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, *config)
    parsed = yaml.safe_load(text)
    assert parsed["data"]["init_args"]["total_env_steps"] == 50_000
    assert parsed["model"]["init_args"]["exploration_final_eps"] == 0.04
    (tmp_path / "again.yaml").write_text(text)
    assert printed(capsys, "--config", str(tmp_path / "again.yaml")) == text


def test_later_configs_and_options_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, gamma in (("a", 0.9), ("b", 0.8)):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{init_args: {{gamma: {gamma}, n_steps: 2}}}}")
    configs = ["-c", "dqn_cartpole", "-c", str(tmp_path / "a.yaml"), "-c", str(tmp_path / "b.yaml")]
    settings = yaml.safe_load(printed(capsys, *configs, DATA + "n_steps=3"))["data"]["init_args"]
    assert (settings["gamma"], settings["n_steps"], settings["env_id"]) == (0.8, 3, "CartPole-v1")


def test_run_folder(trained: Trained) -> None:
    names = {path.name for path in trained.run.iterdir()}
    assert names >= {"config.yaml", "run.json", "events.jsonl", "checkpoints", "replay", "report.md"}
    config = yaml.safe_load((trained.run / "config.yaml").read_text())
    assert config["data"]["init_args"]["gamma"] == 0.99
    assert config["seed_everything"] == 0
    record = json.loads((trained.run / "run.json").read_text())
    assert (record["seed"], record["parent_run"], record["resumed_from"]) == (0, None, None)
    assert record["versions"]["torch"] == torch.__version__


def test_saved_config_runs_again_to_the_same_weights(trained: Trained, tmp_path: Path) -> None:
    options = ["--config", str(trained.run / "config.yaml"), "--trainer.default_root_dir", str(tmp_path)]
    run(["fit", *options])
    first, second = newest_checkpoint(trained.run)["state_dict"], newest_checkpoint(newest_run(tmp_path))["state_dict"]
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_what_a_new_user_sees(tmp_path: Path) -> None:
    options = [DATA + "total_env_steps=512", DATA + "learning_starts=256", DATA + "eval_episodes=1"]
    options += [DATA + "updates_per_iteration=1", "--trainer.log_every_n_steps=1"]
    completed = start("fit", "--config", "dqn_cartpole", *options, cwd=tmp_path)
    assert completed.returncode == 0, completed.stderr
    for noise in ("Warning", "warn", "Tip", "deprecated", "site-packages"):
        assert noise not in completed.stderr
    # Eight environments step together: up to seven steps more.
    assert re.search(r"5(1[2-9])/512 env steps", completed.stderr)
    *_, where, report = completed.stderr.splitlines()
    assert where == "The run is in lightning_logs/version_0; to look at it: tensorboard --logdir lightning_logs"
    assert re.fullmatch(
        r"report: PASS \(all \d+ checks that apply passed\), lightning_logs/version_0/report.html", report
    )


def metrics(output: str, group: str) -> dict[str, float]:
    rows = (line.strip("│ \n").split("│") for line in output.splitlines() if f"{group}/" in line)
    return {name.strip(): float(value) for name, value in rows}


def test_validate_repeats_the_last_evaluation(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    results = []
    for checkpoint in (trained.checkpoint, "last"):
        run(["validate", *trained.options, "--ckpt_path", checkpoint])
        results.append(metrics(capsys.readouterr().out, "eval"))
    assert results[0] == results[1]
    best = newest_checkpoint(trained.run)["callbacks"]
    (state,) = (value for key, value in best.items() if "eval/mean_reward" in key)
    assert results[0]["eval/mean_reward"] == float(state["current_score"])
    assert len(list(trained.run.parent.iterdir())) == 1


def test_test_writes_a_video(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["test", *trained.options, "--ckpt_path", trained.checkpoint, "--video", str(tmp_path / "videos")])
    assert metrics(capsys.readouterr().out, "test").keys() >= {"test/mean_reward", "test/std_reward"}
    (file,) = (tmp_path / "videos").iterdir()
    assert file.name == "env_steps=600.mp4"
    video = cv2.VideoCapture(str(file))
    frames = []
    while (read := video.read())[0]:
        frames.append(read[1])
    run(["predict", *trained.options, "--ckpt_path", "last", "--output", str(tmp_path / "rollout.npz")])
    rollout = np.load(tmp_path / "rollout.npz")
    assert len(frames) == int((rollout["episode"] == 0).sum())
    assert not np.array_equal(frames[0], frames[-1])


def test_predict_plays_episodes(trained: Trained, tmp_path: Path) -> None:
    output = tmp_path / "new/rollout.npz"
    run(["predict", *trained.options, "--ckpt_path", trained.checkpoint, "--output", str(output)])
    rollout = np.load(output)
    steps = len(rollout["action"])
    assert rollout["observation"].shape == (steps, 4)
    assert set(rollout["episode"]) == {0, 1}
    assert (rollout["terminated"] | rollout["truncated"]).sum() == 2


def test_predict_answers_observations(trained: Trained, tmp_path: Path) -> None:
    observations = np.random.default_rng(0).normal(size=(50, 4))
    np.save(tmp_path / "observations.npy", observations)
    files = ["--observations", str(tmp_path / "observations.npy"), "--output", str(tmp_path / "actions.npz")]
    run(["predict", *trained.options, "--ckpt_path", trained.checkpoint, *files])
    agent = DQN.load_from_checkpoint(trained.checkpoint)
    expected = agent.q_network(torch.from_numpy(observations).float()).argmax(-1)
    assert np.array_equal(np.load(tmp_path / "actions.npz")["action"], expected.numpy())


def test_two_processes(trained: Trained, tmp_path: Path) -> None:
    options = [*trained.options[:2], "--trainer.default_root_dir", str(tmp_path), DATA + "total_env_steps=320"]
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    completed = start("fit", *options, *ddp)
    assert completed.returncode == 0, completed.stderr
    assert len(list((tmp_path / "lightning_logs").iterdir())) == 1
    state = newest_checkpoint(newest_run(tmp_path))["ReplayDataModule"]
    assert (state["env_steps"], state["iterations"], len(state["processes"])) == (320, 8, 2)
    assert {name.split("/")[1] for name in state["manifest"]["files"]} == {"rank0", "rank1"}
