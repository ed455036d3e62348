"""What a run has come to, as one JSON object: `summary.json` of its folder."""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from rlmods.callbacks.evaluations import Evaluation, interval_half_width
from rlmods.manifest import MANIFEST, Manifest
from rlmods.reports.health import judge, status
from rlmods.reports.run_data import RunData, Series, read_run
from rlmods.reports.schema import check_schema
from rlmods.signals import METRIC_BOUNDS

SUMMARY = "summary.json"
VERSION = 1
CONFIDENCE = 0.95
# Below this share of its peak a learning rate moves nothing: KL and clip fraction say nothing of the settings there.
LEARNING_SHARE = 0.1
_ROUNDING = 1e-6  # of float32, as in the rules of health
_SEVERITIES = ("info", "warn", "act", "fatal")
_WHILE_LEARNING = ("train/approx_kl", "stability/approx_kl_max", "train/clip_fraction")
_LEARNING_RATE = "train/learning_rate"


def write_summary(folder: Path) -> dict[str, Any]:
    """Write `summary.json` of a run folder, whole or not at all.

    Raises:
        RunFolderError: where the folder cannot be read.
    """
    content = summarize_run(folder)
    temporary = folder / f".{SUMMARY}.{os.getpid()}.tmp"
    try:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, folder / SUMMARY)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    return content


def read_summary(folder: Path) -> dict[str, Any]:
    """`summary.json` of a run folder; where there is none, what it would say.

    Raises:
        RunFolderError: where it does not match its schema, or the folder cannot be read.
    """
    path = folder / SUMMARY
    return check_schema(path, "summary") if path.is_file() else summarize_run(folder)


def summarize_run(folder: Path) -> dict[str, Any]:
    """What `summary.json` of a run folder says, read from its other files."""
    run = read_run(folder)
    if (folder / "run.json").is_file():
        check_schema(folder / "run.json", "run")
    summary: dict[str, Any] = _finite(_summary(run, _checkpoints(folder)))
    return summary


def _summary(run: RunData, checkpoints: list[dict[str, Any]]) -> dict[str, Any]:
    record, outcome = run.record, run.outcome()
    checks = judge(run)
    found = evaluations(run)
    starts = record.get("starts") or [{}]
    start_steps = starts[0].get("env_steps") or 0
    origin = record.get("origin") or {}
    model = run.config.get("model")
    return {
        "version": VERSION,
        "run": run.folder.resolve().name,
        "folder": str(run.folder.resolve()),
        "model": str(model["class_path"]).rpartition(".")[2] if isinstance(model, Mapping) else None,
        "env_id": run.configured("data").get("env_id"),
        "parent": record.get("parent_run"),
        "continued": origin.get("continued", "fresh" if record.get("parent_run") is None else "full"),
        "checkpoint_of_parent": origin.get("checkpoint"),
        "config_changes": origin.get("config_changes", []),
        "seed": run.seed,
        "env_steps_at_start": start_steps,
        "env_steps": int(
            max((s.times[-1] for t, s in run.curves.items() if t.startswith("time/") and s.times), default=0)
        ),
        "total_env_steps": run.configured("data").get("total_env_steps"),
        "outcome": {"complete": outcome.complete, "exception": outcome.exception, "reason": outcome.reason},
        "health": {"status": status(checks), "failed": {c.name: c.reason for c in checks if c.failed}},
        "time": _time(run, start_steps),
        "evaluation": _evaluation(found, checkpoints, start_steps),
        "untrained_baseline": _untrained_baseline(run, record.get("parent_run") is None),
        "learning_rate": _learning_rate(run),
        "curves": {tag: _curve(run, tag) for tag in sorted(run.curves)},
        "policy": _policy(run),
        "alarms": _alarms(run),
        "quarantined": _quarantined(run),
        "checkpoints": checkpoints,
    }


# Evaluations


def evaluations(run: RunData) -> list[dict[str, Any]]:
    """Every evaluation, by environment steps: mean, standard error, number of episodes, interval, success rate.

    The interval is Student's, 95 %, two-sided; None for one episode, which shows no spread.
    """
    columns = {
        tag.partition("/")[2]: dict(zip(*series, strict=True))
        for tag, series in run.curves.items()
        if tag.startswith("eval/")
    }
    return [
        _scored(step, {name: values[step] for name, values in columns.items() if step in values})
        for step in sorted(columns.get("mean_reward", {}))
    ]


def _scored(step: float, row: Mapping[str, float]) -> dict[str, Any]:
    mean, std, episodes = row["mean_reward"], row.get("std_reward"), row.get("episodes")
    half_width = standard_error = None
    if std is not None and episodes is not None and episodes > 1 and math.isfinite(std):
        standard_error = std / math.sqrt(episodes - 1)
        half_width = interval_half_width(Evaluation(mean, std, int(episodes)), CONFIDENCE)
    success = [row.get(name) for name in ("success_rate", "success_rate_low", "success_rate_high")]
    is_rate = all(value is not None and -_ROUNDING <= value <= 1.0 + _ROUNDING for value in success)
    return {
        "env_steps": int(step),
        "mean": mean,
        "std": std,
        "standard_error": standard_error,
        "episodes": None if episodes is None or not math.isfinite(episodes) else int(episodes),
        "low": None if half_width is None else mean - half_width,
        "high": None if half_width is None else mean + half_width,
        "success_rate": dict(zip(("rate", "low", "high"), success, strict=True)) if is_rate else None,
    }


def _evaluation(found: list[dict[str, Any]], checkpoints: list[dict[str, Any]], start_steps: int) -> dict[str, Any]:
    """First, last and best; the best is the one with the highest lower bound whose checkpoint is kept and healthy."""
    # Of two of one step the first by name, best-step=…, which no newer one replaces.
    kept = {c["env_steps"]: c["file"] for c in reversed(checkpoints) if not c["unhealthy"]}
    ranked = [e for e in found if e["env_steps"] in kept and e["low"] is not None and math.isfinite(e["low"])]
    best = max(ranked, key=lambda e: e["low"], default=None)
    return {
        "count": len(found),
        "first": found[0] if found else None,
        "warm_start": found[0] if found and found[0]["env_steps"] == start_steps else None,
        "last": found[-1] if found else None,
        "best": None if best is None else best | {"checkpoint": kept[best["env_steps"]]},
        "all": found,
    }


def _untrained_baseline(run: RunData, is_fresh: bool) -> float | None:
    """The return of an untrained policy: as a stage gate measured it, else in the first roll-outs of a fresh run."""
    for gate in run.gates():
        for check in gate["checks"].values():
            measured = (check.get("observed") or {}).get("baseline")
            if isinstance(measured, int | float):
                return float(measured)
    first = run.curve("rollout/ep_rew_mean").values[:1]
    return first[0] if is_fresh and first else None


# Curves


def _curve(run: RunData, tag: str) -> dict[str, Any]:
    series = run.curves[tag]
    rates, peak = _rates(run)
    latest = series.times[-1] if series.times else None
    return {
        **_statistics(series.values),
        "learning_rate_at_last": None if latest is None else _at(rates, latest),
        "while_learning": _statistics(_while_learning(series, rates, peak))
        if tag in _WHILE_LEARNING and rates.times
        else None,
    }


def _statistics(values: list[float]) -> dict[str, Any]:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return {"count": len(values), "first": None, "last": None, "min": None, "max": None, "mean": None}
    return {
        "count": len(values),
        "first": values[0],
        "last": values[-1],
        "min": min(finite),
        "max": max(finite),
        "mean": math.fsum(finite) / len(finite),
    }


def _rates(run: RunData) -> tuple[Series, float]:
    """The learning rate, and its peak: of an annealed one the configured, which may lie before the first point."""
    series = run.curve(_LEARNING_RATE)
    model = run.configured("model")
    configured = model.get("learning_rate")
    goes_on = (run.record.get("origin") or {}).get("continued") == "full"
    has_schedule = model.get("learning_rate_schedule") in ("linear", "cosine")
    falls = has_schedule or model.get("final_learning_rate") is not None
    logged = [value for value in series.values if math.isfinite(value)]
    if falls and not goes_on and isinstance(configured, int | float):
        logged.append(float(configured))
    return series, max(logged, default=math.nan)


def _at(series: Series, time: float) -> float | None:
    """The value that held at a time: the latest one until then."""
    before = [value for when, value in zip(*series, strict=True) if when <= time]
    return before[-1] if before else next(iter(series.values), None)


def _while_learning(series: Series, rates: Series, peak: float) -> list[float]:
    by_time = dict(zip(*rates, strict=True))
    return [v for t, v in zip(*series, strict=True) if by_time.get(t, 0.0) > LEARNING_SHARE * peak]


def _learning_rate(run: RunData) -> dict[str, Any]:
    rates, peak = _rates(run)
    last = rates.values[-1] if rates.values else None
    return {
        "configured": run.configured("model").get("learning_rate"),
        "peak": peak if rates.values else None,
        "last": last,
        "last_share_of_peak": last / peak if last is not None and peak > 0.0 else None,
    }


# The policy, its alarms, its time


def _policy(run: RunData) -> dict[str, Any]:
    """Entropy against that of a uniform policy, σ, and |μ|/σ; in units of half the action range, in nats."""
    action = (run.record.get("spec") or {}).get("action") or {}
    dimensions, bound = _entropy_bound(action)
    entropy, std, mean = (run.curve(tag).values for tag in ("train/entropy", "train/std", "stability/action_mean_abs"))
    saturation = run.curve("stability/action_saturation").values
    return {
        "action": action.get("kind"),
        "dimensions": dimensions,
        "entropy": {"first": entropy[0], "last": entropy[-1], "max": max(entropy)} if entropy else None,
        "entropy_per_dimension": entropy[-1] / dimensions if entropy and dimensions else None,
        "uniform_entropy": bound,
        "uniform_entropy_per_dimension": bound / dimensions if bound is not None and dimensions else None,
        "std": {"first": std[0], "last": std[-1], "max": max(std)} if std else None,
        "mean_over_std": {"first": mean[0] / std[0], "last": mean[-1] / std[-1]}
        if mean and std and std[0] * std[-1] > 0.0
        else None,
        "saturated": saturation[-1] if saturation else None,
    }


def _entropy_bound(action: Mapping[str, Any]) -> tuple[int | None, float | None]:
    """Number of actions, and ln of the volume of [−1, 1]^A, or of the number of choices."""
    if action.get("kind") == "continuous":
        dimensions = math.prod(action["shape"])
        return dimensions, dimensions * math.log(2.0)
    if action.get("kind") == "multi_discrete":
        return len(action["nvec"]), math.fsum(map(math.log, action["nvec"]))
    return (1, math.log(action["n"])) if action.get("kind") == "discrete" else (None, None)


def _alarms(run: RunData) -> list[dict[str, Any]]:
    """Each cause once, with its highest severity, its first step, and how often it was announced."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for event in run.alarms():
        evidence = event.get("evidence") or {}
        key = str(evidence.get("safeguard")), str(evidence.get("cause"))
        severity = evidence["severity"] if evidence.get("severity") in _SEVERITIES else "warn"
        entry = found.setdefault(
            key,
            {
                "safeguard": key[0],
                "cause": key[1],
                "severity": severity,
                "first_env_steps": event.get("env_steps"),
                "count": 0,
                "message": "",
            },
        )
        entry["count"] += 1
        entry["message"] = str(event.get("message", ""))
        entry["severity"] = max(entry["severity"], severity, key=_SEVERITIES.index)
    return list(found.values())


def _quarantined(run: RunData) -> dict[str, Any]:
    """Metrics outside the bounds of their definition, with the value furthest outside; nothing is ranked by them."""
    found: dict[str, Any] = {}
    for tag, series in run.curves.items():
        low, high = METRIC_BOUNDS.get(tag.rpartition("/")[2], (-math.inf, math.inf))
        outside = [v for v in series.values if v < low - _ROUNDING or v > high + _ROUNDING]
        if outside and tag.partition("/")[0] in ("eval", "rollout", "train"):
            found[tag] = max(outside, key=abs)
    for alarm in run.alarms():
        for name, metric in ((alarm.get("evidence") or {}).get("metrics") or {}).items():
            value = metric.get("value") if isinstance(metric, Mapping) else None
            found.setdefault(name, value if isinstance(value, int | float) else None)
    return found


def _time(run: RunData, start_steps: int) -> dict[str, Any]:
    """Seconds, and environment steps per second, of training and of evaluation apart."""
    valid = [event for event in run.events if "time" in event]
    wall = 0.0
    begun: datetime | None = None
    for event in valid:
        when = datetime.fromisoformat(str(event["time"]))
        if event["kind"] in ("start", "resume"):
            begun = when
        elif event["kind"] == "stop" and begun is not None:
            wall, begun = wall + (when - begun).total_seconds(), None
    training, previous = 0.0, float(start_steps)
    for step, fps in zip(*run.curve("time/fps"), strict=True):
        training += (step - previous) / fps if fps > 0.0 else 0.0
        previous = step
    evaluation = run.curve("time/eval_fps").values
    return {
        "started": run.record.get("time"),
        "ended": valid[-1]["time"] if valid else None,
        "wall_seconds": wall,
        "training_seconds": training,
        "training_fps": (previous - start_steps) / training if training > 0.0 else None,
        "evaluation_fps": evaluation[-1] if evaluation else None,
    }


def _checkpoints(folder: Path) -> list[dict[str, Any]]:
    """Those that have a manifest, by environment steps, with what was wrong when each was written."""
    import torch  # late: only here is it needed

    found = []
    for path in sorted((folder / "checkpoints").glob("*.ckpt")):
        manifest = Manifest.read(path.with_name(path.name + MANIFEST))
        if manifest is None or manifest.env_steps is None:
            continue
        try:
            health = torch.load(path, map_location="meta", weights_only=True, mmap=True).get("health", {})
        except Exception as error:  # a damaged file may raise nearly anything
            health = {"file": {f"cannot be read ({type(error).__name__})": "fatal"}}
        unhealthy = [
            f"{guard}: {cause}"
            for guard, causes in health.items()
            for cause, s in causes.items()
            if s in ("act", "fatal")
        ]
        found.append({"file": f"checkpoints/{path.name}", "env_steps": manifest.env_steps, "unhealthy": unhealthy})
    return sorted(found, key=lambda checkpoint: checkpoint["env_steps"])


def _finite(value: Any) -> Any:
    """NaN and infinity, for which JSON has no word, as null: nothing is ranked by them."""
    if isinstance(value, Mapping):
        return {str(name): _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
