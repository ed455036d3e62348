"""One run: a configuration, perhaps a fault over it, perhaps safeguards, trained by Lightning in this process."""

import json
import logging
import tempfile
import warnings
from bisect import bisect_right
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger

from rlmods.algorithms import DQN
from rlmods.callbacks import Curves
from rlmods.callbacks.safeguard import Safeguard
from rlmods.data import ReplayDataModule

from .catalogue import FAULTS, Fault, broken_environment
from .clock import CLOCK
from .configurations import CONFIGURATIONS
from .guards import guards
from .modules import Faulty
from .records import Alarm, Arm, Crash, Event, Point, Record


class Task(NamedTuple):
    """What to run."""

    arm: Arm
    name: str  # of the fault; of the configuration in the healthy arms
    seed: int
    budget: int | None = None  # environment steps, instead of the configuration's

    @property
    def fault(self) -> Fault | None:
        """None in the healthy arms."""
        return FAULTS[self.name] if self.arm.startswith("faulty") else None

    @property
    def configuration(self) -> str:
        """What is trained, or what the fault is laid over."""
        return self.name if self.fault is None else self.fault.base

    @property
    def is_guarded(self) -> bool:
        """Whether safeguards watch."""
        return self.arm.endswith("guarded")

    def settings(self) -> dict[str, Any]:
        """All that decides about the outcome, but for the seed and the code."""
        settings = CONFIGURATIONS[self.configuration].settings()
        if self.budget is not None:
            settings["data"]["total_env_steps"] = self.budget
        if self.fault is not None:
            settings["fault"] = self.fault.settings()
        return settings


class Recorder(Callback):
    """Notes the evaluations and the clock of the updates."""

    def __init__(self, score: str) -> None:
        self.score = score
        self.evaluations: list[Point] = []
        self.clock: list[tuple[int, int]] = []  # (environment steps, updates) after each iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the updates."""
        self.clock.append((batch.env_steps, getattr(pl_module, "update_steps", 0)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the evaluation."""
        mean = float(trainer.callback_metrics[self.score])
        point = Point(env_steps=self.env_steps, mean=mean)
        if self.evaluations and self.evaluations[-1]["env_steps"] == point["env_steps"]:
            self.evaluations.pop()
        self.evaluations.append(point)

    @property
    def env_steps(self) -> int:
        """Trained so far."""
        return self.clock[-1][0] if self.clock else 0

    def updates_at(self, env_steps: int) -> int:
        """Updates made up to then."""
        position = bisect_right(self.clock, (env_steps, 2**62))
        return self.clock[position - 1][1] if position else 0


def run(task: Task) -> Record:
    """Train, and report."""
    torch.set_num_threads(1)
    _silence()
    started = perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model, data, callbacks = build(task)
        watching = guards() if task.is_guarded else []
        recorder = Recorder(CONFIGURATIONS[task.configuration].score)
        logger = TensorBoardLogger(folder, default_hp_metric=False)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            num_sanity_val_steps=0,
            logger=logger,
            log_every_n_steps=8,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[CLOCK, recorder, Curves(), *callbacks, *watching],
        )
        crash = _fit(trainer, model, data, recorder)
        logger.finalize("success")
        events = _read_events(Path(logger.log_dir) / "events.jsonl")
    return _record(task, recorder, events, crash, watching, perf_counter() - started)


def build(task: Task) -> tuple[DQN, ReplayDataModule, list[Callback]]:
    """The module, the data module and the fault's callbacks."""
    seed_everything(task.seed, verbose=False)
    settings = task.settings()
    fault = task.fault
    if fault is None:
        data = ReplayDataModule(**settings["data"])
        return DQN(data.spec, **settings["model"]), data, []
    if fault.env:
        settings["data"] |= broken_environment(fault, settings["data"]["env_id"])
    data = (fault.data_module or ReplayDataModule)(**settings["data"])
    model = (fault.algorithm or DQN)(data.spec, **(settings["model"] | dict(fault.model)))
    callbacks = [] if fault.callback is None else [fault.callback()]
    for broken in (model, data, *callbacks):
        if isinstance(broken, Faulty):
            broken.onset = fault.onset
            broken.magnitude = fault.magnitude
    return model, data, list(callbacks)


def _fit(trainer: Trainer, model: DQN, data: ReplayDataModule, recorder: Recorder) -> Crash | None:
    try:
        trainer.fit(model, datamodule=data)
    except Exception as exception:
        torch.set_flush_denormal(False)
        return Crash(
            type=type(exception).__name__,
            message=str(exception),
            safeguard=_raised_by(exception),
            env_steps=recorder.env_steps,
        )
    return None


def _raised_by(exception: BaseException) -> str | None:
    """The safeguard in whose method an exception was raised."""
    trace, found = exception.__traceback__, None
    while trace is not None:
        owner = trace.tb_frame.f_locals.get("self")
        found = owner.name if isinstance(owner, Safeguard) else found
        trace = trace.tb_next
    return found


def _read_events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _record(
    task: Task,
    recorder: Recorder,
    events: list[dict[str, Any]],
    crash: Crash | None,
    watching: list[Callback],
    wall_seconds: float,
) -> Record:
    settings = task.settings()
    budget: int = settings["data"]["total_env_steps"]
    onset = 0.0 if task.fault is None else task.fault.onset
    by_kind = {kind: [event for event in events if event["kind"] == kind] for kind in ("alarm", "action", "stop")}
    return Record(
        arm=task.arm,
        name=task.name,
        configuration=task.configuration,
        seed=task.seed,
        settings=settings,
        guards=[type(guard).__name__ for guard in watching],
        evaluations=recorder.evaluations,
        alarms=[
            Alarm(
                iteration=event["iteration"],
                updates=recorder.updates_at(event["env_steps"]),
                cause=event["evidence"]["cause"],
                severity=event["evidence"]["severity"],
                **_event(event),
            )
            for event in by_kind["alarm"]
        ],
        actions=[_event(event) for event in by_kind["action"]],
        stop=_event(by_kind["stop"][0]) if by_kind["stop"] else None,
        crash=crash,
        budget=budget,
        env_steps=recorder.env_steps,
        updates=recorder.clock[-1][1] if recorder.clock else 0,
        onset_updates=recorder.updates_at(round(onset * budget)),
        wall_seconds=round(wall_seconds, 2),
    )


def _event(event: dict[str, Any]) -> Event:
    return Event(
        env_steps=event["env_steps"],
        safeguard=event["evidence"].get("safeguard", ""),
        message=event["message"],
    )


def _silence() -> None:
    """Keep back what Lightning and the alarms say on the console: the record holds it."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "rlmods"):
        logging.getLogger(name).setLevel(logging.ERROR)
