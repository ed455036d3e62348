import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import SMALL, newest_checkpoint, newest_run, start

from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.cli import run

DATA = "--data.init_args."
CALLBACKS = "--trainer.callbacks"


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "small.yaml").write_text(SMALL)
    root = folder / "root"
    run(["fit", "-c", str(folder / "small.yaml"), "--trainer.default_root_dir", str(root)])
    return root


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence with which a command ends that cannot be carried out."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        run(list(arguments))
    error = capsys.readouterr().err
    assert end.value.code == 2, error
    assert "Traceback" not in error
    sentence = error[error.rindex("error: ") :]
    assert "Union" not in sentence
    return sentence


BAD: dict[str, tuple[list[str], list[str]]] = {
    "abbreviated key": (["--trainer.max_epoch", "3"], ["trainer.max_epoch"]),
    "misspelt key of the trainer": (["--trainer.max_stepz", "3"], ["trainer.max_stepz"]),
    "misspelt key of the data": ([DATA + "bufer_size", "9"], ["bufer_size", "fit --help"]),
    "misspelt key of the model": (["--model.init_args.learning_rat", "9"], ["learning_rat"]),
    "a word for a number": (["--model.init_args.learning_rate", "fast"], ["learning_rate", "float", "fast"]),
    "batch over buffer": (
        [DATA + "batch_size", "64", DATA + "buffer_size", "32"],
        ["batch_size = 64 with buffer_size = 32", "fits in the buffer", DATA + "buffer_size 64"],
    ),
    "discount of 1": ([DATA + "gamma", "1.0"], ["gamma = 1.0", "[0, 1)", DATA + "gamma 0.99"]),
    "negative discount": ([DATA + "gamma", "-0.1"], ["gamma = -0.1", "[0, 1)"]),
    "continuous actions": ([DATA + "env_id", "Pendulum-v1"], ["continuous", "Pendulum-v1", "discrete", "env_id"]),
    "no such environment": ([DATA + "env_id", "CartPole-v9"], ["CartPole-v9", "Did you mean CartPole-v1"]),
    "no Atari": ([DATA + "env_id", "ALE/Pong-v5"], ["ALE/Pong-v5", 'pip install "gymnasium[atari]"']),
    "fewer steps than an iteration": (
        [DATA + "total_env_steps", "10", DATA + "learning_starts", "0"],
        ["total_env_steps = 10", "at least one iteration", DATA + "total_env_steps 20"],
    ),
    "gradient_clip_val": (
        ["--trainer.gradient_clip_val", "0.5"],
        ["gradient_clip_val = 0.5", "--model.init_args.max_grad_norm 0.5", "max_grad_norm.critic 0.5"],
    ),
    "16 bit": (["--trainer.precision", "16-mixed"], ["16-mixed", "bf16-mixed", "--trainer.precision"]),
    "last without a run": (
        ["--ckpt_path", "last"],
        ["no intact checkpoint of DQN on CartPole-v1", "leave --ckpt_path"],
    ),
    "no such checkpoint": (["--ckpt_path", "no.ckpt"], ["no.ckpt", "--ckpt_path last"]),
    "rhythm of Lightning": (["--trainer.val_check_interval", "0.5"], ["val_check_interval=0.5", DATA + "eval_every"]),
    "more than the memory": (
        [DATA + "buffer_size", "10000000000000"],
        ["a replay buffer of", "are available", DATA + "buffer_size"],
    ),
    "priority exponent": (
        [DATA + "prioritized_replay", "true", DATA + "prioritized_replay_alpha", "3"],
        ["prioritized_replay_alpha is 3.0"],
    ),
    "no such accelerator": (["--trainer.accelerator", "tpv"], ["tpv"]),
    "accumulation": (["--trainer.accumulate_grad_batches", "4"], ["accumulate_grad_batches=4"]),
    "resized vectors": ([DATA + "resize", "[84, 84]"], ["without an image leave resize out"]),
    "clamp upside down": (
        [f"{CALLBACKS}+=rlmods.callbacks.TargetClamp", f"{CALLBACKS}.low=3", f"{CALLBACKS}.high=1"],
        ["TargetClamp got low = 3.0 and high = 1.0, expected low < high"],
    ),
    "two safeguards of one name": (
        [f"{CALLBACKS}+=rlmods.callbacks.LivenessGuard"] * 2,
        ["2 callbacks LivenessGuard with the name 'liveness'", "LivenessGuard(name=...)"],
    ),
    "group that no optimiser has": (
        [f"{CALLBACKS}+=rlmods.callbacks.KLSpikePause", f"{CALLBACKS}.groups=[actor]"],
        ["KLSpikePause", "['actor']", "['q']"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_refused_before_anything_is_written(
    case: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, words = BAD[case]
    root = tmp_path / "root"
    sentence = refusal(capsys, "fit", "-c", str(small), "--trainer.default_root_dir", str(root), *arguments)
    for word in words:
        assert word in sentence
    assert not root.exists()


def test_a_signal_that_never_comes_is_a_sentence(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Known at the first update only."""
    root = ["--trainer.default_root_dir", str(tmp_path)]
    pause = [f"{CALLBACKS}+=rlmods.callbacks.KLSpikePause", f"{CALLBACKS}.groups=[q]"]
    sentence = refusal(capsys, "fit", "-c", str(small), *root, *pause)
    assert "KLSpikePause needs the signals ['approx_kl'], but training_step returned ['exploration_rate'," in sentence


def test_unknown_key_in_a_file(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("data: {init_args: {clamp_targets: true}}")
    assert "clamp_targets" in refusal(capsys, "fit", "-c", str(small), "-c", str(more))
    more.write_text("trainer: {max_stepz: 3}")
    assert "max_stepz" in refusal(capsys, "fit", "-c", str(small), "-c", str(more))


def test_no_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    assert "data, fit.model" in refusal(capsys, "fit")
    assert "dqn_cartpole" in refusal(capsys, "fit", "--config", "dqn_cartpol")


@pytest.mark.parametrize("root", ["/dev/null/x", "small.yaml"])
def test_log_folder_that_cannot_be_written(
    root: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sentence = refusal(capsys, "fit", "-c", str(small), "--trainer.default_root_dir", root)
    assert f"trainer.default_root_dir = {root}, which cannot be written" in sentence
    assert "type --trainer.default_root_dir FOLDER" in sentence
    assert os.listdir(tmp_path) == ["small.yaml"]


def resume_refusal(capsys: pytest.CaptureFixture[str], small: Path, checkpoint: Path, *more: str) -> str:
    """The same for a checkpoint; nothing may change on disk."""
    root = small.parent / "root"
    folder = checkpoint.parent.parent
    before = sorted(folder.rglob("*"))
    sentence = refusal(
        capsys, "fit", "-c", str(small), "--trainer.default_root_dir", str(root), "--ckpt_path", str(checkpoint), *more
    )
    assert not root.exists()
    assert sorted(folder.rglob("*")) == before
    return sentence


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """One in a run folder of its own."""
    copy = tmp_path / "copied/lightning_logs/version_0"
    shutil.copytree(newest_run(trained), copy)
    return copy / "checkpoints/step=420.ckpt"


def truncate(path: Path) -> None:
    os.truncate(path, 2000)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(("harm", "reason"), [(truncate, "truncated: 2000 of"), (flip, "its sha256 differs")])
def test_damaged_checkpoint(
    harm: Callable[[Path], None], reason: str, small: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(checkpoint)
    sentence = resume_refusal(capsys, small, checkpoint)
    assert f"{checkpoint} is damaged: " in sentence
    assert reason in sentence
    assert f"type --ckpt_path {checkpoint.with_name('step=600.ckpt')}" in sentence


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    AtomicCheckpointIO().save_checkpoint(content, path)


def test_checkpoint_of_another_algorithm(small: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def become_td3(content: dict[str, Any]) -> None:
        content["algorithm"]["name"] = content["ReplayDataModule"]["manifest"]["model"] = "TD3"

    rewrite(checkpoint, become_td3)
    sentence = resume_refusal(capsys, small, checkpoint)
    assert "model TD3, expected model DQN" in sentence
    checkpoint.with_name(f"{checkpoint.name}.manifest.json").unlink()
    sentence = resume_refusal(capsys, small, checkpoint)
    assert "got a checkpoint of TD3, expected one of DQN" in sentence


def test_checkpoint_of_another_shape(small: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    acrobot = [DATA + "env_id", "Acrobot-v1"]
    assert "env_id CartPole-v1, expected env_id Acrobot-v1" in resume_refusal(capsys, small, checkpoint, *acrobot)
    checkpoint.with_name(f"{checkpoint.name}.manifest.json").unlink()
    sentence = resume_refusal(capsys, small, checkpoint, *acrobot)
    assert "CartPole-v1 with observation {'shape': [4]" in sentence
    assert "expected observation {'shape': [6]" in sentence
    assert "type the --config" in sentence


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--model.init_args.hidden_sizes=[32]", ["q_network", "[16", "[32", "config.yaml"]),
        (DATA + "gamma=0.9", ["gamma = 0.9", "gamma = 0.99", "a resume cannot change"]),
        (DATA + "n_steps=3", ["n_steps = 3", DATA + "n_steps 1"]),
        (DATA + "total_env_steps=400", ["environment step 420 of 400", "budget", DATA + "total_env_steps N"]),
    ],
)
def test_resume_with_other_settings(
    option: str, words: list[str], small: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = resume_refusal(capsys, small, checkpoint, option)
    for word in words:
        assert word in sentence


def test_replay_of_the_checkpoint_is_gone(small: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(checkpoint.parent.parent / "replay")
    assert "replay" in resume_refusal(capsys, small, checkpoint)


def test_observations_that_are_none(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["predict", "-c", str(small), "--output", str(tmp_path / "actions.npz")]
    assert "no.npy" in refusal(capsys, *arguments, "--observations", "no.npy")
    np.save(tmp_path / "wide.npy", np.zeros((3, 7), dtype=np.float32))
    sentence = refusal(capsys, *arguments, "--observations", str(tmp_path / "wide.npy"))
    assert "[3, 7]" in sentence
    assert "[B, 4]" in sentence
    assert not (tmp_path / "actions.npz").exists()


@pytest.mark.parametrize("victim", ["checkpoint", "replay"])
def test_full_disk(victim: str, small: Path, tmp_path: Path) -> None:
    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limits[0], limits[0]))

    arguments = ["fit", "-c", str(small), "--trainer.default_root_dir", str(tmp_path / "root")]
    run([*arguments, DATA + "total_env_steps", "160"])
    (first,) = (tmp_path / "root/lightning_logs/version_0/checkpoints").glob("step=140.ckpt")
    limits = [first.stat().st_size + 300 if victim == "checkpoint" else 7000]
    more = [DATA + "total_env_steps", "600", "--ckpt_path", "last"]
    completed = start(*arguments, *more, preexec_fn=limit)
    assert completed.returncode == 1, completed.stderr
    assert "Traceback" not in completed.stderr
    error = completed.stderr[completed.stderr.index("error: ") :].lower()
    assert re.search(r"could not write .*file too large", error)
    assert re.search(r"intact.* free some space", error)
    assert ("/replay/" in error) == (victim == "replay")
    run([*arguments, *more])
    assert newest_checkpoint(newest_run(tmp_path / "root"))["ReplayDataModule"]["env_steps"] == 600
