import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from running import start

from rlmods.algorithms import DQN
from rlmods.callbacks.non_finite_guard import NonFiniteGuard
from rlmods.data import ReplayDataModule
from rlmods.replay_failure import main


class BadReward(Callback):
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 10:
            batch.transition.reward[2, 5] = math.nan


def fit(folder: Path, module: Any, callback: Callback, data: Any) -> Path:
    """The bundle of a run."""
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[callback, NonFiniteGuard()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    (bundle,) = (folder / "failures").iterdir()
    return bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the real DQN, with one NaN reward in the third mini-batch of an iteration."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text("model: {}\n")
    settings: dict[str, Any] = {"steps_per_iteration": 20, "updates_per_iteration": 4, "learning_starts": 60}
    data = ReplayDataModule("CartPole-v1", 300, batch_size=8, eval_episodes=1, eval_every=10_000, seed=0, **settings)
    return fit(folder, DQN(data.spec, hidden_sizes=(16,)), BadReward(), data)


def test_the_command_in_the_bundle_repeats_the_failure(bundle: Path) -> None:
    failure = json.loads((bundle / "failure.json").read_text())
    assert failure["command"] == f"python -m rlmods replay {bundle}"
    assert (bundle / "config.yaml").read_text() == "model: {}\n"
    before = sorted(bundle.parent.rglob("*"))
    completed = start(*failure["command"].split()[3:], cwd=bundle.parent)
    assert completed.returncode == 0, completed.stderr
    assert "now:  non_finite_reward: batch.transition.reward[0, 5] is nan" in completed.stdout
    assert completed.stdout.endswith("reproduced\n")
    assert sorted(bundle.parent.rglob("*")) == before


def copy_of(bundle: Path, folder: Path) -> Path:
    copied = folder / "copy"
    copied.mkdir()
    for file in bundle.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    return copied


def test_another_state_of_affairs_is_not_reproduced(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_of(bundle, tmp_path)
    batch = torch.load(copied / "batch.pt", weights_only=True)
    reward = batch["fields"][0]["fields"][2]
    reward[reward.isnan()] = 1.0
    torch.save(batch, copied / "batch.pt")
    assert main([str(copied)]) == 1
    assert "everything is finite: not reproduced" in capsys.readouterr().out
    state = torch.load(copied / "state.ckpt", weights_only=True)
    state["state_dict"]["q_network.1.bias"].fill_(math.nan)
    torch.save(state, copied / "state.ckpt")
    assert main([str(copied)]) == 1
    assert "another cause: not reproduced" in capsys.readouterr().out


def test_damaged_and_wrong_folders(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "got 0 arguments, expected one folder" in fails()
    assert "expected the folder of a failure" in fails(str(tmp_path))
    copied = copy_of(bundle, tmp_path)
    whole = (copied / "state.ckpt").read_bytes()
    (copied / "state.ckpt").write_bytes(whole[:100])
    assert "is damaged" in fails(str(copied))
    torch.save({"class_path": Path("runs code")}, copied / "state.ckpt")
    assert "is damaged, or holds more than numbers" in fails(str(copied))
    (copied / "state.ckpt").unlink()
    assert "is damaged, it cannot be read" in fails(str(copied))
    for path, message in {"no.such.Module": "cannot be imported", "pathlib.Path": "expected a LightningModule"}.items():
        state = torch.load(bundle / "state.ckpt", weights_only=True) | {"class_path": path}
        torch.save(state, copied / "state.ckpt")
        assert message in fails(str(copied))


STRANGER = """
import torch
from lightning.pytorch import LightningModule

class Root(LightningModule):
    def __init__(self, size, function=None):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(size, 1)

    def training_step(self, batch, batch_idx):
        return (self.layer(batch["x"]).exp() * 0.0).sqrt().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


def test_a_strangers_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stranger_of_replay.py").write_text(STRANGER)
    monkeypatch.syspath_prepend(str(tmp_path))
    import stranger_of_replay  # type: ignore[import-not-found]

    loader: Any = torch.utils.data.DataLoader([{"x": torch.ones(2)}], batch_size=None)  # type: ignore[arg-type]
    bundle = fit(tmp_path, stranger_of_replay.Root(2), Callback(), loader)
    completed = start("replay", bundle, modules=tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert "now:  non_finite_gradient: the gradient of layer.bias[0] is nan" in completed.stdout
    assert "Function 'MulBackward0' returned nan values" in completed.stdout  # infinity of the root, times 0
    elsewhere = start("replay", bundle)
    assert elsewhere.returncode == 2
    assert "stranger_of_replay.Root cannot be imported" in elsewhere.stderr
    assert "PYTHONPATH" in elsewhere.stderr


def test_help_lists_it_without_torch() -> None:
    command = "import sys; from rlmods.__main__ import main; sys.argv[1:] = ['--help']; main(); "
    check = "assert 'torch' not in sys.modules"
    completed = subprocess.run([sys.executable, "-c", command + check], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "replay    repeat the update" in completed.stdout
