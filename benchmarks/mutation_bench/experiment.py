"""One run of a case under the safeguards of a preset, and what they said."""

import importlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import process_time
from typing import Any, TypedDict

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from rlmods.callbacks import GlobalRNG
from rlmods.configs import find_config

from .case import Bench, Case

SEVERITIES = ("info", "warn", "act", "fatal")


class Alarm(TypedDict):
    """As `events.jsonl` has it; `updates` were made when it came."""

    iteration: int
    updates: int
    safeguard: str
    cause: str
    severity: str
    message: str


class Record(TypedDict):
    """A run."""

    id: str
    seed: int
    iterations: int
    updates: int
    onset: int
    onset_updates: int
    alarms: list[Alarm]
    mean_reward: float | None  # of the last evaluation; None where it is not finite
    crash: str | None
    cpu_seconds: float


class Updates(Callback):
    """How many updates the module had made after each iteration."""

    def __init__(self) -> None:
        self.after: list[int] = [0]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the module's clock."""
        self.after.append(pl_module.update_steps)  # type: ignore[arg-type]

    def at(self, iteration: int) -> int:
        """After so many iterations."""
        return self.after[min(iteration, len(self.after) - 1)]


def run(bench: Bench, case: Case, seed: int, *, total_env_steps: int | None = None) -> Record:
    """Train, and report.

    Args:
        bench: preset and arguments that the case shares with others.
        case: what is run.
        seed: of everything.
        total_env_steps: instead of the case's own.
    """
    torch.set_num_threads(1)
    started, crash, updates = process_time(), None, Updates()
    with quiet(), tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(Path(folder), updates, bench.preset)
        try:
            fit(trainer, bench, case, seed, total_env_steps)
        except Exception as exception:
            torch.set_flush_denormal(False)
            crash = f"{type(exception).__name__}: {exception}"
        alarms = _alarms(Path(folder) / "events.jsonl", updates)
    mean_reward = float(trainer.callback_metrics.get("eval/mean_reward", math.nan))
    return Record(
        id=case.id,
        seed=seed,
        iterations=trainer.global_step,
        updates=updates.after[-1],
        onset=case.onset,
        onset_updates=updates.at(case.onset),
        alarms=alarms,
        mean_reward=round(mean_reward, 3) if math.isfinite(mean_reward) else None,
        crash=crash,
        cpu_seconds=round(process_time() - started, 2),
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Without warnings and what trainers say; afterwards as before."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "rlmods")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _trainer(folder: Path, updates: Updates, preset: str) -> Trainer:
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[GlobalRNG(), updates, *guards(preset)],
    )


def fit(trainer: Trainer, bench: Bench, case: Case, seed: int, total_env_steps: int | None) -> None:
    seed_everything(seed, verbose=False)
    settings: dict[str, Any] = {**bench.data, **case.data}
    if total_env_steps is not None:
        settings["total_env_steps"] = total_env_steps
    data_module: Any = case.data_module
    algorithm: Any = case.algorithm
    data = data_module(**settings)
    model = algorithm(data.spec, **{**bench.model, **case.model})
    trainer.fit(model, datamodule=data)


def guards(preset: str) -> list[Callback]:
    """Those of the preset, new."""
    entries = yaml.safe_load(find_config(preset).read_text())["trainer"]["callbacks+"]
    return [_make(entry) for entry in entries]


def _make(entry: dict[str, Any]) -> Callback:
    module, _, name = entry["class_path"].rpartition(".")
    callback: Callback = getattr(importlib.import_module(module), name)(**entry.get("init_args", {}))
    return callback


def _alarms(path: Path, updates: Updates) -> list[Alarm]:
    events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [
        Alarm(
            iteration=event["iteration"],
            updates=updates.at(event["iteration"]),
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
