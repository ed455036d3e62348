"""The run's log of alarms, actions, stops and resumes: one JSON object a line, in `events.jsonl` of the run folder."""

import json
import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from rlmods.types import ExperienceSource

FILE_NAME = "events.jsonl"


def run_folder(trainer: Trainer) -> Path | None:
    """The folder of the run; None in a `fast_dev_run`, which leaves nothing. Every process must call it."""
    folder = trainer.log_dir  # a broadcast, where there are several processes
    return None if trainer.fast_dev_run else Path(folder or trainer.default_root_dir)  # type: ignore[attr-defined]


def append_event(trainer: Trainer, kind: str, message: str, evidence: Mapping[str, Any]) -> None:
    """Append an event. Every process must call it; the first one writes.

    Args:
        trainer: of the run.
        kind: "start", "resume", "stop", "alarm", "action", "gate", "probe", "control" or "settings".
        message: in words, for a person.
        evidence: the numbers behind it; must be JSON, but for NaN and infinity, which are written as words.
    """
    folder = run_folder(trainer)
    if folder is None or not trainer.is_global_zero:
        return
    source = trainer.datamodule  # type: ignore[attr-defined]
    event = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "kind": kind,
        "env_steps": source.env_steps if isinstance(source, ExperienceSource) else None,
        "iteration": trainer.global_step,
        "message": message,
        "evidence": _without_non_finite(dict(evidence)),
    }
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / FILE_NAME).open("a") as file:
        file.write(json.dumps(event) + "\n")


def _without_non_finite(value: Any) -> Any:
    """JSON has no word for NaN and infinity."""
    if isinstance(value, Mapping):
        return {name: _without_non_finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def mark_events_beyond(folder: Path, env_steps: int) -> None:
    """Mark the events later than `env_steps` as `superseded`: the run goes on from there, and they never happened.

    A last line that a crash cut short is kept under `damaged`.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return
    marked = [json.dumps(_marked(line, env_steps)) + "\n" for line in path.read_text().splitlines()]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(marked))
    os.replace(temporary, path)


def _marked(line: str, env_steps: int) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(line)
    except json.JSONDecodeError:
        return {"damaged": line}
    if (event.get("env_steps") or 0) > env_steps:
        event["superseded"] = True
    return event
