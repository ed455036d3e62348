"""Everything that a run folder says, read once."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from rlmods.callbacks.repeated_stream import RepeatedStretch, repeated_stretches
from rlmods.reports.lab_settings import LabSettings, read_lab_settings
from rlmods.reports.tables import RunFolderError, Table, read_table

LEARNING_CURVES = "learning_curves.csv"
# Of these the ratio depends on the random data, and hardly on the weights.
_DATA_COLUMNS = ("mean_rho2", "mean_rho")
# The search for repetitions takes a time that is quadratic in the rows; this is about two seconds.
_MOST_ROWS = 10_000
_EXPECTED = (
    f"expected a run folder with {LEARNING_CURVES} or events.out.* of TensorBoard: type "
    "python -m rlmods report lightning_logs/version_0"
)


class Series(NamedTuple):
    """A curve."""

    times: list[float]  # environment steps; iterations, where it comes from a CSV file
    values: list[float]


class Outcome(NamedTuple):
    """How a run ended."""

    complete: bool | None  # None where nothing tells
    exception: str | None
    reason: str
    early_stop: bool = False  # as it was asked for: solved, or no better for long


@dataclass(frozen=True)
class RunData:
    """A run folder.

    Attributes:
        curves: by TensorBoard tag or CSV column. Where both have it, the column is taken: TensorBoard keeps float32.
        rows: `learning_curves.csv`.
        probes: `probes/*.csv`, by file name without its end.
        events: lines of `events.jsonl`.
        record: `run.json`.
        config: `config.yaml`, or `config.json` of the original program.
        environment: `env_resolved.json` of the original program.
        lab: the settings, where it is a run of the off-policy laboratory.
        notes: what was damaged, and passed over.
    """

    folder: Path
    curves: dict[str, Series]
    rows: Table | None = None
    probes: dict[str, Table] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    lab: LabSettings | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def seed(self) -> Any:
        """As the run was started with."""
        return self.record.get("seed", self.config.get("seed_everything", self.config.get("seed")))

    def curve(self, name: str) -> Series:
        """A curve, empty where the run has none of that name."""
        return self.curves.get(name, Series([], []))

    def configured(self, part: str) -> Mapping[str, Any]:
        """The arguments of `model` or `data`."""
        section = self.config.get(part)
        arguments = section.get("init_args") if isinstance(section, Mapping) else None
        return arguments if isinstance(arguments, Mapping) else {}

    def alarms(self) -> list[dict[str, Any]]:
        """The alarms that a resume has not undone."""
        return [event for event in self.events if event.get("kind") == "alarm" and not event.get("superseded")]

    def gates(self) -> list[dict[str, Any]]:
        """What the stage gates said last, each with its `checks`, in order; without what a resume has undone."""
        events = [event for event in self.events if event.get("kind") == "gate" and not event.get("superseded")]
        evidence = [event.get("evidence") or {} for event in events]
        latest = {(e.get("safeguard"), e["gate"]): e for e in evidence if isinstance(e.get("checks"), dict)}
        return list(latest.values())

    @cached_property
    def repetitions(self) -> list[RepeatedStretch] | None:
        """Rows of the CSV file (the last 10,000) whose random data are those of earlier rows; None if none can tell."""
        name = next((name for name in _DATA_COLUMNS if name in self.curves), None)
        if self.rows is None or name is None:
            return None
        skipped = max(0, len(self.rows) - _MOST_ROWS)
        found = repeated_stretches(self.curves[name].values[skipped:])
        return [RepeatedStretch(first + skipped, last + skipped, lag) for first, last, lag in found]

    @property
    def repeated_rows(self) -> set[int]:
        """Positions of the rows that are no further evidence."""
        return {row for stretch in self.repetitions or [] for row in range(stretch.first, stretch.last + 1)}

    def outcome(self) -> Outcome:
        """How the run ended."""
        if not self.events:
            return _outcome_of_rows(self.rows, self.lab)
        return _outcome_of_events(self.events, self.configured("data").get("total_env_steps"))


def read_run(folder: Path) -> RunData:
    """Read a run folder: ours, or one of the original off-policy program.

    Raises:
        RunFolderError: where it is none, or a file in it cannot be understood.
    """
    if not folder.is_dir():
        raise RunFolderError(f"got {folder}, which is no folder, {_EXPECTED}")
    event_files = sorted(folder.glob("events.out.*"))
    has_rows = (folder / LEARNING_CURVES).is_file()
    if not event_files and not has_rows:
        raise RunFolderError(f"got {folder} without {LEARNING_CURVES} or events.out.*, {_EXPECTED}")
    rows = read_table(folder / LEARNING_CURVES) if has_rows else None
    probes, damaged = _read_probes(folder / "probes")
    events, notes = _read_events(folder / "events.jsonl")
    config = read_mapping(folder / "config.yaml") or read_mapping(folder / "config.json")
    environment = read_mapping(folder / "env_resolved.json")
    columns = rows.columns if rows is not None else {}
    tables = [table for table in (rows, *probes.values()) if table is not None]
    return RunData(
        folder=folder,
        curves=_curves(rows, _read_tensorboard(folder) if event_files else {}),
        rows=rows,
        probes=probes,
        events=events,
        record=read_mapping(folder / "run.json"),
        config=config,
        environment=environment,
        lab=read_lab_settings(config, environment, columns),
        notes=[*notes, *damaged, *(note for table in tables for note in table.notes)],
    )


def _read_probes(folder: Path) -> tuple[dict[str, Table], list[str]]:
    probes, notes = {}, []
    for path in sorted(folder.glob("*.csv")):
        try:
            probes[path.stem] = read_table(path)
        except RunFolderError as error:  # the learning curves say enough for a report
            notes.append(f"probes/{path.name} is left out: {error}")
    return probes, notes


def _curves(rows: Table | None, scalars: dict[str, Series]) -> dict[str, Series]:
    columns = {} if rows is None else {name: v for name, v in rows.columns.items() if name != rows.time_name}
    own = {name: Series(rows.times, values) for name, values in columns.items()} if rows is not None else {}
    return own | {tag: series for tag, series in scalars.items() if tag.rpartition("/")[2] not in columns}


def _read_tensorboard(folder: Path) -> dict[str, Series]:
    # Late: it takes half a second.
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    # What was drawn beyond the checkpoint of a resume it drops by itself; 0 keeps all points.
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    curves = {}
    for tag in sorted(accumulator.Tags()["scalars"]):
        points = accumulator.Scalars(tag)
        curves[tag] = Series([float(point.step) for point in points], [float(point.value) for point in points])
    return curves


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file with a mapping; empty where there is no file.

    Raises:
        RunFolderError: where it cannot be read, or holds something else.
    """
    if not path.is_file():
        return {}
    try:
        text = path.read_text()
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RunFolderError(f"got {path}, which cannot be read: {reason}. Mend it, or move it away") from error
    if not isinstance(content, dict):
        raise RunFolderError(f"got {path} with a {type(content).__name__}, expected a mapping of names to values")
    return content


def _read_events(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    events, notes = [], []
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            event = None
        if _is_event(event):
            events.append(event)
        elif line.strip():
            notes.append(f"{path.name}: line {number} is damaged and left out")
    return events, notes


def _is_event(event: Any) -> bool:
    """Whether a line is as `append_event` writes it."""
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return False
    if not isinstance(event.get("evidence") or {}, dict) or not isinstance(event.get("env_steps") or 0, int | float):
        return False
    try:
        return "time" not in event or datetime.fromisoformat(event["time"]).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _outcome_of_events(events: list[dict[str, Any]], budget: Any) -> Outcome:
    valid = [event for event in events if not event.get("superseded")]
    begins = [position for position, event in enumerate(valid) if event["kind"] in ("start", "resume")]
    stops = [event for event in valid[begins[-1] if begins else 0 :] if event["kind"] == "stop"]
    for stop in reversed(stops):
        evidence = stop.get("evidence") or {}
        if "exception" in evidence:
            return Outcome(False, str(evidence["exception"]), f"ended by an exception: {evidence['exception']}")
        if "signal" in evidence:
            return Outcome(False, None, f"ended by a signal: {stop.get('message')}")
        if "safeguard" not in evidence:
            early = next((other for other in stops if "safeguard" in (other.get("evidence") or {})), None)
            return _outcome_of_end(early, budget)
    return Outcome(False, None, "no end is on record: the run still goes on, or was killed")


def _outcome_of_end(early: dict[str, Any] | None, budget: Any) -> Outcome:
    if early is None:
        return Outcome(True, None, "the training came to its end")
    reason, step = f"ended by a safeguard: {early.get('message')}", early.get("env_steps")
    if isinstance(step, int) and isinstance(budget, int):
        if step >= budget:
            return Outcome(True, None, reason)
        reason = f"ended by a safeguard at {step} of {budget} environment steps: {early.get('message')}"
    # How long the best was held only EvalEarlyStopping says, where it ends the run as it was asked to.
    return Outcome(False, None, reason, early_stop="held" in early["evidence"])


def _outcome_of_rows(rows: Table | None, lab: LabSettings | None) -> Outcome:
    if rows is None or lab is None or lab.outer_iters is None:
        return Outcome(None, None, "there is no events.jsonl to tell")
    done = int(max((time for time in rows.times if math.isfinite(time)), default=-1.0)) + 1
    return Outcome(done >= lab.outer_iters, None, f"{done} of {lab.outer_iters} iterations are on record")
