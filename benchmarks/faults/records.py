"""What a run of the bench leaves behind: one JSON file."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

Arm = Literal["healthy", "healthy-guarded", "faulty", "faulty-guarded"]
ARMS: tuple[Arm, ...] = get_args(Arm)

SEVERITIES = ("info", "warn", "act", "fatal")


class Point(TypedDict):
    """An evaluation."""

    env_steps: int
    mean: float


class Alarm(TypedDict):
    """An alarm, as `events.jsonl` has it, with the updates made before it."""

    env_steps: int
    iteration: int
    updates: int
    safeguard: str
    cause: str
    severity: str
    message: str


class Event(TypedDict):
    """An action or a stop."""

    env_steps: int
    safeguard: str
    message: str


class Crash(TypedDict):
    """An exception that ended the run, and the safeguard that raised it, if one did."""

    type: str
    message: str
    safeguard: str | None
    env_steps: int


class Record(TypedDict):
    """A run."""

    arm: Arm
    name: str  # of the fault; of the configuration in the healthy arms
    configuration: str
    seed: int
    settings: dict[str, Any]
    guards: list[str]  # classes
    evaluations: list[Point]
    alarms: list[Alarm]
    actions: list[Event]
    stop: Event | None
    crash: Crash | None
    budget: int  # environment steps
    env_steps: int
    updates: int
    onset_updates: int  # made before the onset
    wall_seconds: float


def path_of(folder: Path, arm: Arm, name: str, seed: int) -> Path:
    return folder / arm / name / f"seed_{seed}.json"


def read_record(path: Path) -> Record:
    record: Record = json.loads(path.read_text())
    return record


def read_records(folder: Path) -> Iterator[Record]:
    for arm in ARMS:
        for path in sorted((folder / arm).glob("*/seed_*.json")):
            yield read_record(path)


def write_record(path: Path, record: Record) -> None:
    """Whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)
