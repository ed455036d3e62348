"""The report of one run: as a document, and as JSON with all the evidence."""

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from rlmods.reports.check import Check
from rlmods.reports.document import Block, Document, Facts, Figure, Grid, Items, Section
from rlmods.reports.health import judge, status
from rlmods.reports.next_steps import next_steps
from rlmods.reports.run_data import RunData
from rlmods.reports.run_rules import core_tags
from rlmods.reports.stability_rules import scale_checks
from rlmods.reports.summary import COLUMNS, Summary, number, summarize

LAB_METRICS = ("td_loss", "w_norm", "mean_rho2", "tracking_gap", "critic_teacher_error")
_LAB_FURTHER = ("mean_rho", "delta_w_norm", "clip_fraction")
_LAB_SAMPLES = (
    *("iter", "td_loss", "critic_teacher_error", "tracking_gap", "mean_rho2", "w_norm"),
    *("fixed_point_gap", "stability_proxy", "dist_mmd2"),
)
_EVALUATION_SAMPLES = ("mean_reward", "std_reward", "mean_ep_length", "episodes")
_SHOWN_ROWS, _KEPT_ROWS = 8, 20
# Tag: where the configuration says what it should be.
_EFFECTIVE = {
    "train/learning_rate": ("model", "learning_rate"),
    "learning_rate": ("model", "learning_rate"),  # the column of learning_curves.csv
    "rollout/exploration_rate": ("model", "exploration_final_eps"),
    "stability/liveness/uses_per_transition": ("", ""),
    "time/fps": ("", ""),
}
_KEY_DATA = ("env_id", "total_env_steps", "num_envs", "gamma", "n_steps", "batch_size", "buffer_size")


class Report(NamedTuple):
    """What is found about a run."""

    run: RunData
    checks: list[Check]
    status: str
    steps: list[str]
    timestamp: str


def examine(run: RunData, timestamp: datetime) -> Report:
    """Judge a run.

    Args:
        run: as it was read.
        timestamp: of the report.
    """
    checks = judge(run)
    return Report(run, checks, status(checks), next_steps(run, checks), timestamp.isoformat(timespec="seconds"))


def one_line(report: Report) -> str:
    """The status, and what it is due to."""
    failed = [check.name for check in report.checks if check.failed]
    applied = sum(check.passed is not None for check in report.checks)
    return ", ".join(failed) if failed else f"all {applied} checks that apply passed"


def core_metrics(run: RunData) -> dict[str, Summary]:
    """By curve: those of the laboratory in the original's order, then evaluation, roll-outs and training."""
    names = [name for name in (*LAB_METRICS, *_LAB_FURTHER) if name in run.curves] if run.rows is not None else []
    return {name: summarize(*run.curves[name]) for name in [*names, *core_tags(run)]}


def probe_metrics(run: RunData) -> dict[str, dict[str, Summary]]:
    """By probe, by column."""
    return {
        name: {column: summarize(table.times, table.columns[column]) for column in sorted(table.columns)}
        for name, table in sorted(run.probes.items())
    }


def samples(run: RunData) -> tuple[list[str], list[dict[str, float]]]:
    """The columns that the tables show, and all rows: of the CSV file, else of the evaluations."""
    if run.rows is not None:
        shown = [name for name in _LAB_SAMPLES if name in run.rows.columns] or list(run.rows.columns)[:9]
        return shown, [run.rows.row(position) for position in range(len(run.rows))]
    tags = [tag for tag in core_tags(run) if tag.startswith("eval/")]
    by_step: dict[float, dict[str, float]] = {}
    for tag in tags:
        for step, value in zip(*run.curves[tag], strict=True):
            by_step.setdefault(step, {"env_steps": step})[tag] = value
    first = [f"eval/{name}" for name in _EVALUATION_SAMPLES if f"eval/{name}" in tags]
    return ["env_steps", *first, *(tag for tag in tags if tag not in first)], [
        by_step[step] for step in sorted(by_step)
    ]


def to_document(report: Report, figures: Sequence[Figure]) -> Document:
    """The report in the order in which it is read."""
    run = report.run
    shown, rows = samples(run)
    sections = [
        Section("Run Info", [_run_info(report)]),
        Section("Health", [Items([f"status: {report.status} ({one_line(report)})"]), _health(report.checks)]),
        Section("Scale Checks", _scale(run)),
        Section("Core Metrics", [_metrics(core_metrics(run)), *figures]),
        Section("Probe Metrics", sections=[Section(name, [_metrics(m)]) for name, m in probe_metrics(run).items()]),
        Section("Stages", _stages(run)),
        Section("Alarms", _alarms(run)),
        Section("Samples (Head)", [_rows(shown, rows[:_SHOWN_ROWS])]),
        Section("Samples (Tail)", [_rows(shown, rows[-_SHOWN_ROWS:])]),
        Section("Next Steps", [Items(report.steps)]),
    ]
    return Document("Run Report", report.status, one_line(report), sections)


def _run_info(report: Report) -> Facts:
    run, record = report.run, report.run.record
    outcome = run.outcome()
    resumes = [event for event in run.events if event.get("kind") == "resume"]
    machine, versions = record.get("machine") or {}, record.get("versions") or {}
    pairs = [
        ("run_dir", str(run.folder)),
        ("timestamp", report.timestamp),
        ("seed", _word(run.seed)),
        ("key_hparams", _pairs(key_hparams(run))),
        ("effective", _pairs(effective_settings(run))),
        ("started", _word(record.get("time"))),
        ("command", " ".join(map(str, record.get("command") or []))),
        ("commit", _word(record.get("code_revision"))),
        ("versions", _pairs(versions)),
        ("machine", _pairs(machine)),
        ("resumed", "; ".join(f"at {e.get('env_steps')} environment steps ({e.get('time')})" for e in resumes)),
        ("parent_run", _word(record.get("parent_run"))),
        ("outcome", outcome.reason),
        ("incomplete", "-" if outcome.complete is None else str(not outcome.complete).lower()),
        ("exception", outcome.exception or ""),
        ("damaged", "; ".join(run.notes)),
    ]
    return Facts([(name, value) for name, value in pairs if value not in ("", "-")])


def key_hparams(run: RunData) -> dict[str, Any]:
    """What a person tells runs apart by."""
    if run.lab is not None:
        return run.lab.key_hparams
    model, data = run.config.get("model"), run.configured("data")
    name = (
        {"model": model["class_path"].rpartition(".")[2]} if isinstance(model, dict) and "class_path" in model else {}
    )
    plain = {k: v for k, v in run.configured("model").items() if isinstance(v, int | float | str) or v is None}
    return name | {key: data[key] for key in _KEY_DATA if key in data} | plain


def effective_settings(run: RunData) -> dict[str, str]:
    """What the curves say at their end, with what was configured: a schedule may have overridden it."""
    found = {}
    for tag, (part, name) in _EFFECTIVE.items():
        last = summarize(*run.curves[tag]).last if tag in run.curves else None
        configured = run.configured(part).get(name) if part else None
        if last is not None:
            found[tag] = number(last) + (f" (configured {name}={configured})" if configured is not None else "")
    return found


def _health(checks: Iterable[Check]) -> Grid:
    rows = [[check.name, check.word, check.reason, _observed(check.observed)] for check in checks]
    return Grid(["check", "result", "reason", "observed"], rows)


def _observed(observed: Mapping[str, Any]) -> str:
    """Short: the JSON has all of it."""
    short = [
        f"{name}={number(value) if isinstance(value, float) else value}"
        for name, value in observed.items()
        if isinstance(value, int | float | str)
    ]
    return ", ".join(short)


def _scale(run: RunData) -> list[Block]:
    scales = scale_checks(run)
    if scales is None:
        return [Items(["not a run of the off-policy laboratory"])]
    names = ("train_step_scale", "stability_probe_step_scale", "stability_probe_step_scale_ratio")
    words = [_word(value if value is None else float(f"{value:.12g}")) for value in scales]
    return [Facts(list(zip(names, [words[0], words[1], f"{words[2]} (expect ~1.0)"], strict=True)))]


def _metrics(summaries: Mapping[str, Summary]) -> Grid:
    return Grid(list(COLUMNS), [[name, *map(number, summary)] for name, summary in summaries.items()])


def _alarms(run: RunData) -> list[Block]:
    rows = []
    for event in run.events:
        evidence = event.get("evidence") or {}
        what = [_word(event.get("time")), _word(event.get("env_steps")), str(event["kind"])]
        what += [_word(evidence.get(name)) for name in ("safeguard", "cause", "severity")]
        rows.append([*what, str(event.get("message", "")), "superseded" if event.get("superseded") else ""])
    if not rows:
        return []
    return [Grid(["time", "env_steps", "kind", "safeguard", "cause", "severity", "message", "note"], rows)]


def _stages(run: RunData) -> list[Block]:
    """What each check of each gate said."""
    words = {True: "PASS", None: "not checked"}
    rows = [
        [
            f"{gate['gate']}{' (forced)' if gate.get('forced') else ''}",
            _word(gate.get("env_steps")),
            name,
            words.get(check.get("passed"), "FAIL" if check.get("severity") == "act" else "WARN"),
            _word(check.get("reason")),
        ]
        for gate in run.gates()
        for name, check in gate["checks"].items()
    ]
    return [Grid(["gate", "env_steps", "check", "result", "reason"], rows)] if rows else []


def _rows(shown: Sequence[str], rows: Iterable[Mapping[str, float]]) -> Grid:
    cells = [
        [_count(row[name]) if name in ("iter", "env_steps") else number(row.get(name)) for name in shown]
        for row in rows
    ]
    return Grid(list(shown), cells)


def _count(value: float) -> str:
    """Whole, unless the cell was damaged."""
    return str(int(value)) if math.isfinite(value) else number(value)


def _word(value: Any) -> str:
    return "-" if value is None else str(value)


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())


def to_json(report: Report) -> dict[str, Any]:
    """Everything, with the evidence; NaN and infinity, for which JSON has no word, as the words nan and inf."""
    run, outcome = report.run, report.run.outcome()
    shown, rows = samples(run)
    scales = scale_checks(run) or (None, None, None)
    content = {
        "meta": {
            "run_dir": str(run.folder),
            "timestamp": report.timestamp,
            "host": platform.node(),
            "seed": run.seed,
            "commit": run.record.get("code_revision"),
            "record": run.record,
        },
        "config": {"resolved": run.config, "environment": run.environment, "key_hparams": key_hparams(run)},
        "effective_settings": effective_settings(run),
        "files": _files(run),
        "health": {
            "status": report.status,
            "reasons": [f"{check.name}: {check.reason}" for check in report.checks if check.failed],
            "checks": {check.name: _check(check) for check in report.checks},
        },
        "incomplete": None if outcome.complete is None else not outcome.complete,
        "exception": outcome.exception,
        "scale_checks": {
            "train_step_scale": scales[0],
            "stability_probe_step_scale": scales[1],
            "stability_probe_step_scale_ratio": scales[2],
        },
        "core_metrics": {name: summary._asdict() for name, summary in core_metrics(run).items()},
        "probe_metrics": {
            probe: {name: summary._asdict() for name, summary in metrics.items()}
            for probe, metrics in probe_metrics(run).items()
        },
        "stages": run.gates(),
        "events": run.events,
        "samples": {"columns": shown, "head": rows[:_KEPT_ROWS], "tail": rows[-_KEPT_ROWS:]},
        "next_steps": report.steps,
    }
    finite: dict[str, Any] = plain(content)
    return finite


def _check(check: Check) -> dict[str, Any]:
    return {
        "pass": check.passed,
        "applicable": check.passed is not None,
        "severity": check.severity,
        "reason": check.reason,
        "observed": dict(check.observed),
        "advice": check.advice,
    }


def _files(run: RunData) -> dict[str, Any]:
    names = ("learning_curves.csv", "config.yaml", "config.json", "env_resolved.json", "run.json", "events.jsonl")
    return {
        **{name: str(run.folder / name) for name in names if (run.folder / name).is_file()},
        "probes": [str(table.path) for _, table in sorted(run.probes.items())],
        "tensorboard": [str(path) for path in sorted(run.folder.glob("events.out.*"))],
        "checkpoints": str(run.folder / "checkpoints") if (run.folder / "checkpoints").is_dir() else None,
    }


def plain(value: Any) -> Any:
    """What JSON can say."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | int | float) or value is None else str(value)
