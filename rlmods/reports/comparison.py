"""Several runs side by side: what was set differently, and what came out."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlmods.reports.document import Document, Figure, Grid, Items, Section
from rlmods.reports.run_data import RunData
from rlmods.reports.run_report import Report, core_metrics, key_hparams, one_line
from rlmods.reports.seed_scores import scores_blocks, scores_json, seed_groups
from rlmods.reports.summary import number

_ABSENT = "(absent)"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name. Items of a list with a `class_path` are named by their class, others by position."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            flat |= flatten(_named(value), f"{key}.")
        else:
            flat[key] = value
    return flat


def _named(items: Sequence[Any]) -> dict[str, Any]:
    """So that one callback more at the front does not make all others differ."""
    seen: Counter[str] = Counter()
    named = {}
    for position, item in enumerate(items):
        path = item.get("class_path") if isinstance(item, Mapping) else None
        name = str(path).rpartition(".")[2] if path else str(position)
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}#{seen[name]}"] = item
    return named


def differing_settings(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Settings that are not the same in all, by dotted name; what a configuration lacks is "(absent)"."""
    flats = [flatten(config) for config in configs]
    names = sorted({name for flat in flats for name in flat})
    values = {name: [flat.get(name, _ABSENT) for flat in flats] for name in names}
    return {name: row for name, row in values.items() if any(_word(value) != _word(row[0]) for value in row)}


def labels(runs: Sequence[RunData]) -> list[str]:
    """The shortest ends of the paths that tell the runs apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for length in range(1, max(map(len, parts)) + 1):
        short = ["/".join(part[-length:]) for part in parts]
        if len(set(short)) == len(short):
            return short
    return [f"{position + 1}: {run.folder}" for position, run in enumerate(runs)]  # the same folder twice


def common_curves(runs: Sequence[RunData]) -> list[str]:
    """Core metrics that at least two of the runs have, in the order of their reports."""
    names = [name for run in runs for name in core_metrics(run)]
    return [name for name, count in Counter(names).items() if count > 1]


def compare(reports: Mapping[str, Report], figures: Sequence[Figure]) -> Document:
    """The document.

    Args:
        reports: of two runs or more, by label.
        figures: the curves over each other.
    """
    runs = [report.run for report in reports.values()]
    header = ["setting", *reports]
    changed = [[name, *map(_word, row)] for name, row in differing_settings([run.config for run in runs]).items()]
    sections = [
        Section("Runs", [_overview(reports)]),
        Section(
            "Settings that Differ", [Grid(header, changed) if changed else Items(["none: the runs are repetitions"])]
        ),
        Section("Scores over Seeds", scores_blocks(_scores(reports))),
        Section("Health", [_health(reports)]),
        Section("Core Metrics (last)", [_last(reports), *figures]),
    ]
    statuses = ", ".join(f"{label}: {report.status}" for label, report in reports.items())
    return Document("Comparison of Runs", "", f"{statuses}; {len(changed)} settings differ", sections)


def _scores(reports: Mapping[str, Report]) -> list[dict[str, Any]]:
    runs = {label: report.run for label, report in reports.items()}
    return scores_json(runs, seed_groups(runs, [flatten(run.config) for run in runs.values()]))


def _overview(reports: Mapping[str, Report]) -> Grid:
    rows = [
        [
            label,
            str(r.run.folder),
            _word(r.run.seed),
            str(r.run.record.get("code_revision") or "-"),
            r.status,
            one_line(r),
        ]
        for label, r in reports.items()
    ]
    return Grid(["run", "folder", "seed", "commit", "status", "because of"], rows)


def _health(reports: Mapping[str, Report]) -> Grid:
    words = [{check.name: check.word for check in report.checks} for report in reports.values()]
    names = [name for name in words[0] if any(word[name] != "not applicable" for word in words)]
    return Grid(["check", *reports], [[name, *(word[name] for word in words)] for name in names])


def _last(reports: Mapping[str, Report]) -> Grid:
    metrics = [core_metrics(report.run) for report in reports.values()]
    names = list(dict.fromkeys(name for metric in metrics for name in metric))
    rows = [[name, *(number(metric[name].last) if name in metric else "-" for metric in metrics)] for name in names]
    return Grid(["metric", *reports], rows)


def comparison_json(reports: Mapping[str, Report]) -> dict[str, Any]:
    """Folder, status, settings that differ, the last values, and the scores over seeds."""
    runs = {label: report.run for label, report in reports.items()}
    changed = differing_settings([run.config for run in runs.values()])
    return {
        "runs": {
            label: {
                "run_dir": str(report.run.folder),
                "status": report.status,
                "failed": {check.name: check.reason for check in report.checks if check.failed},
                "key_hparams": key_hparams(report.run),
                "core_metrics": {name: summary._asdict() for name, summary in core_metrics(report.run).items()},
            }
            for label, report in reports.items()
        },
        "settings": {name: dict(zip(runs, row, strict=True)) for name, row in changed.items()},
        "scores_over_seeds": _scores(reports),
    }


def _word(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
