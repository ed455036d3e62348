"""One run of a case under the safeguards of `configs/safeguards/off_policy.yaml`, and what they said."""

import importlib
import json
import logging
import tempfile
import warnings
from pathlib import Path
from time import process_time
from typing import Any, TypedDict

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from rlmods.callbacks import GlobalRNG
from rlmods.configs import find_config

from .catalogue import DATA, ENV, MODEL, Case

NUM_ITERATIONS = 40
ENV_ID = "rlmods/TorusGobletGhost-v0"
SEVERITIES = ("info", "warn", "act", "fatal")


class Alarm(TypedDict):
    """As `events.jsonl` has it."""

    iteration: int
    safeguard: str
    cause: str
    severity: str
    message: str


class Record(TypedDict):
    """A run."""

    id: str
    seed: int
    iterations: int
    onset: int
    alarms: list[Alarm]
    crash: str | None
    cpu_seconds: float


class SaveAt(Callback):
    """A checkpoint after an iteration: one of the end of a run would say that the run is over."""

    def __init__(self, path: Path, iteration: int) -> None:
        self.path, self.iteration = path, iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save."""
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)


def run(case: Case, seed: int, *, num_iterations: int = NUM_ITERATIONS) -> Record:
    """Train, and report."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "rlmods"):
        logging.getLogger(name).setLevel(logging.ERROR)
    started, crash, trainer = process_time(), None, None
    with tempfile.TemporaryDirectory() as folder:
        try:
            trainer = _fit(case, seed, num_iterations, Path(folder))
        except Exception as exception:
            torch.set_flush_denormal(False)
            crash = f"{type(exception).__name__}: {exception}"
        alarms = _alarms(Path(folder) / "events.jsonl")
    return Record(
        id=case.id,
        seed=seed,
        iterations=0 if trainer is None else trainer.global_step,
        onset=case.onset,
        alarms=alarms,
        crash=crash,
        cpu_seconds=round(process_time() - started, 2),
    )


def _fit(case: Case, seed: int, num_iterations: int, folder: Path) -> Trainer:
    """In two parts, where the case resumes; the second knows of the first what a new process would."""
    parts = [-1] if case.resume_at is None else [case.resume_at, -1]
    saved = None
    for max_steps in parts:
        seed_everything(seed, verbose=False)
        settings = {**DATA, **case.data}
        steps = settings["num_envs"] * settings["n_steps"] * num_iterations
        data = case.data_module(ENV_ID, steps, env_kwargs={**ENV, **case.env}, **settings)
        model = case.algorithm(data.spec, **{**MODEL, "seed": seed, **case.model})
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            max_steps=max_steps,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[GlobalRNG(), *guards(), SaveAt(folder / "part.ckpt", max_steps)],
        )
        trainer.fit(model, datamodule=data, ckpt_path=saved)
        saved = folder / "part.ckpt"
    return trainer


def guards() -> list[Callback]:
    """Those of the preset, new."""
    entries = yaml.safe_load(find_config("safeguards/off_policy").read_text())["trainer"]["callbacks+"]
    return [_make(entry) for entry in entries]


def _make(entry: dict[str, Any]) -> Callback:
    module, _, name = entry["class_path"].rpartition(".")
    callback: Callback = getattr(importlib.import_module(module), name)(**entry.get("init_args", {}))
    return callback


def _alarms(path: Path) -> list[Alarm]:
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        Alarm(
            iteration=event["iteration"],
            safeguard=event["evidence"]["safeguard"],
            cause=event["evidence"]["cause"],
            severity=event["evidence"]["severity"],
            message=event["message"],
        )
        for event in events
        if event["kind"] == "alarm"
    ]


def alarms_from(record: Record, severity: str) -> list[Alarm]:
    """Those of this severity or a higher one after the onset, in order; of one iteration the most severe first."""
    least = SEVERITIES.index(severity)
    found = [
        alarm
        for alarm in record["alarms"]
        if SEVERITIES.index(alarm["severity"]) >= least and alarm["iteration"] >= record["onset"]
    ]
    return sorted(found, key=lambda alarm: (alarm["iteration"], -SEVERITIES.index(alarm["severity"])))
