"""Overrides while the run goes on: a file in the run folder that is read between two iterations."""

from pathlib import Path
from typing import Any, Final, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rlmods.callbacks.control_settings import parse_control
from rlmods.callbacks.events import append_event, run_folder
from rlmods.types import ExpertShareControl, ExplorationControl, LearningRateControl

FILE_NAME = "control.yaml"


class _Target(NamedTuple):
    """What a key sets, and to what where the schedule is to hold."""

    protocol: type
    attribute: str
    schedule: float | None


_TARGETS: Final = {
    "expert_share": _Target(ExpertShareControl, "expert_share_override", None),
    "exploration_rate": _Target(ExplorationControl, "exploration_override", None),
    "learning_rate_scale": _Target(LearningRateControl, "learning_rate_scale", 1.0),
}


class _Reading(NamedTuple):
    """A version of the file."""

    version: list[int]  # when it was changed, in ns, and its size
    settings: dict[str, float | None]
    problem: str | None  # why nothing of it is used


class ControlFile(Callback):
    """Reads `control.yaml` of the run folder whenever it was changed, at the end of an iteration.

    Keys: `expert_share` (of a data module with an expert), `exploration_rate` (of DQN) and `learning_rate_scale` (a
    factor, of all algorithms). A number takes the place of the schedule, null gives it back; a key that the file does
    not name stays as it is. Schedules go on counting under an override. Each change is an event in `events.jsonl`.

    A file that cannot be used (broken, an unknown key, a value out of range, a key that nothing here listens to)
    changes nothing: the run goes on, and an event of severity warn says why.

    Overrides are part of a checkpoint. `learning_rate_scale` is kept by the module itself, where a rollback lowers it
    too: a number written here, or null, replaces what a rollback has made of it.
    """

    def __init__(self) -> None:
        self.overrides: dict[str, float] = {}
        self._version: list[int] | None = None  # of the file, when it was last read
        self._path: Path | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the overrides of the checkpoint in force again, and look whether there is a file."""
        folder = run_folder(trainer)
        self._path = None if folder is None else folder / FILE_NAME
        for key, value in self.overrides.items():
            if key != "learning_rate_scale":
                self._set(trainer, pl_module, key, value)
        self._look(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look whether the file was changed."""
        self._look(trainer, pl_module)

    def _look(self, trainer: Trainer, pl_module: LightningModule) -> None:
        reading = self._read() if trainer.is_global_zero else None
        if trainer.world_size > 1:
            reading = trainer.strategy.broadcast(reading)
        if reading is None:
            return
        self._version = reading.version
        problem = reading.problem or self._unheard(trainer, pl_module, reading.settings)
        if problem is not None:
            message = f"{FILE_NAME} is not used: {problem}"
            append_event(trainer, "control", message, {"severity": "warn", "cause": "control_file_refused"})
            rank_zero_warn(message)
            return
        for key, value in reading.settings.items():
            # A rollback changes what is in force, too.
            before, after = self._in_force(trainer, pl_module, key), _attribute(key, value)
            if after != before:
                self._change(trainer, pl_module, key, before, value)

    def _read(self) -> _Reading | None:
        """The file, if it was changed since the last time."""
        if self._path is None:
            return None
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        version = [status.st_mtime_ns, status.st_size]
        if version == self._version:
            return None
        try:
            return _Reading(version, parse_control(self._path.read_text()), None)
        except (ValueError, OSError) as error:  # of a text that is none, too
            return _Reading(version, {}, str(error))

    def _unheard(self, trainer: Trainer, pl_module: LightningModule, settings: dict[str, float | None]) -> str | None:
        unheard = [key for key in settings if self._listener(trainer, pl_module, key) is None]
        if not unheard:
            return None
        data = type(trainer.datamodule).__name__  # type: ignore[attr-defined]
        return (
            f"it has the keys {unheard}, to which neither {type(pl_module).__name__} nor {data} listens: leave them out"
        )

    def _listener(self, trainer: Trainer, pl_module: LightningModule, key: str) -> Any:
        """Who has the attribute that a key sets; None where nobody has."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        return next((each for each in (data, pl_module) if isinstance(each, _TARGETS[key].protocol)), None)

    def _in_force(self, trainer: Trainer, pl_module: LightningModule, key: str) -> float | None:
        value: float | None = getattr(self._listener(trainer, pl_module, key), _TARGETS[key].attribute)
        return value

    def _change(
        self, trainer: Trainer, pl_module: LightningModule, key: str, before: float | None, value: float | None
    ) -> None:
        self.overrides.pop(key, None)
        if value is not None:
            self.overrides[key] = value
        self._set(trainer, pl_module, key, value)
        before = None if before == _TARGETS[key].schedule else before
        message = f"{key}: {_word(before)} -> {_word(value)}"
        append_event(trainer, "control", message, {"severity": "info", "key": key, "before": before, "after": value})
        rank_zero_info(f"{FILE_NAME}: {message}")

    def _set(self, trainer: Trainer, pl_module: LightningModule, key: str, value: float | None) -> None:
        listener = self._listener(trainer, pl_module, key)
        if listener is not None:
            setattr(listener, _TARGETS[key].attribute, _attribute(key, value))

    def state_dict(self) -> dict[str, Any]:
        """The overrides, and which version of the file they are from."""
        return {"overrides": dict(self.overrides), "version": self._version}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.overrides = dict(state_dict["overrides"])
        self._version = state_dict["version"]


def _attribute(key: str, value: float | None) -> float | None:
    """What a value of the file makes of the attribute."""
    return _TARGETS[key].schedule if value is None else value


def _word(value: float | None) -> str:
    return "schedule" if value is None else f"{value:g}"
