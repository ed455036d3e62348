import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger

from rlmods.algorithms import DQN, DreamerV3
from rlmods.callbacks import TorchTrace
from rlmods.data import ReplayDataModule, SequenceDataModule


def trainer_in(folder: Path, trace: TorchTrace) -> Trainer:
    return Trainer(
        accelerator="cpu",
        callbacks=[trace],
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=1,
    )


def names_in(path: Path) -> set[str]:
    return {event["name"] for event in json.loads(path.read_text())["traceEvents"] if "name" in event}


def test_the_phases_of_an_update_stand_in_the_trace(tmp_path: Path) -> None:
    data = SequenceDataModule(
        "CartPole-v1", 160, num_envs=2, batch_size=2, batch_length=8, train_ratio=8, eval_episodes=1, eval_every=160
    )
    model = DreamerV3(data.spec, size="cpu", imagination_horizon=2)
    trainer_in(tmp_path, TorchTrace(after_updates=1, iterations=2)).fit(model, datamodule=data)
    (path,) = (tmp_path / "traces").iterdir()
    assert {"world_model", "imagination", "behaviour", "backward", "optimizer"} <= names_in(path)


def test_a_run_that_ends_before_leaves_what_there_is(tmp_path: Path) -> None:
    data = ReplayDataModule(
        "CartPole-v1", 64, learning_starts=16, steps_per_iteration=16, updates_per_iteration=1, batch_size=4,
        eval_episodes=1, eval_every=64,
    )  # fmt: skip
    trainer_in(tmp_path, TorchTrace(after_updates=2, iterations=100)).fit(DQN(data.spec), datamodule=data)
    (path,) = (tmp_path / "traces").iterdir()
    assert "aten::addmm" in names_in(path)


def test_nothing_to_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="got iterations = 0"):
        TorchTrace(iterations=0)
