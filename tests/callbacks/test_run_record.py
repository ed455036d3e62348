import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger

from rlmods.callbacks import RunRecord

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|not empty|ended before the epoch)")


def fit(folder: Path, steps: int, ckpt_path: Path | None = None) -> dict[str, Any]:
    """A stranger's module with our callback; what it wrote."""
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[RunRecord(seed=7)],
    )
    trainer.fit(BoringModel(), ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "checkpoints" / f"{steps}.ckpt", weights_only=False)
    record: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return record


def kinds(folder: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in (folder / "events.jsonl").read_text().splitlines()]


def test_where_a_run_comes_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        record = fit(tmp_path / "run", 2)
    assert record["command"] == sys.argv
    assert record["seed"] == 7
    assert record["parent_run"] is record["resumed_from"] is None
    assert record["versions"]["torch"] == torch.__version__
    assert record["machine"]["torch_threads"] == torch.get_num_threads()
    assert len(record["starts"]) == 1
    assert kinds(tmp_path / "run") == ["start", "stop"]
    assert f"The run is in {tmp_path / 'run'}" in caplog.text


def test_a_resume_in_the_same_folder_and_in_another(tmp_path: Path) -> None:
    fit(tmp_path / "run", 2)
    checkpoint = tmp_path / "run/checkpoints/2.ckpt"
    here = fit(tmp_path / "run", 3, checkpoint)
    assert (here["parent_run"], here["resumed_from"]) == (None, str(checkpoint))
    assert [start["resumed_from"] for start in here["starts"]] == [None, str(checkpoint)]
    assert kinds(tmp_path / "run") == ["start", "stop", "resume", "stop"]
    there = fit(tmp_path / "other", 3, checkpoint)
    assert there["parent_run"] == str(tmp_path / "run")
    assert kinds(tmp_path / "other") == ["resume", "stop"]
    assert len(there["starts"]) == 1
