"""Rules of health that hold for every algorithm."""

import math
from collections import Counter

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import CollapseDetector, Evaluation
from rlmods.reports.check import Check, Level, not_applicable
from rlmods.reports.run_data import RunData
from rlmods.signals import METRIC_BOUNDS

_COUNTS = ("train/n_updates", "update_steps")
# NaN elsewhere may mean that there was nothing to measure.
CORE_GROUPS = ("eval", "rollout", "train")
# As in METRIC_BOUNDS; float32 rounds a share of 1 up.
_ROUNDING = 1e-6
# Of the columns that only a probe fills, and NaN in between.
_PROBE_COLUMNS = ("fixed_point", "stability", "dist_", "td_loss_from_Q")


def core_tags(run: RunData) -> list[str]:
    """Of evaluation, training and roll-outs, alphabetical."""
    return sorted(tag for tag in run.curves if tag.partition("/")[0] in CORE_GROUPS and "/" in tag)


def is_probe_column(run: RunData, name: str) -> bool:
    """Whether NaN stands for an iteration without a probe."""
    return name.startswith(_PROBE_COLUMNS) or any(
        name in probe.columns or name.startswith(f"{stem.removesuffix('_probe')}_")
        for stem, probe in run.probes.items()
    )


def complete(run: RunData) -> Check:
    """The training came to the end of its budget; an early stop that was asked for only warns."""
    outcome = run.outcome()
    observed = {"exception": outcome.exception, "last_event": run.events[-1].get("message") if run.events else None}
    advice = "repeat the command with --ckpt_path last to go on"
    if outcome.exception is not None:
        advice = f"remove the cause of the exception ({outcome.exception}), then {advice}"
    if outcome.early_stop:
        advice = "nothing where the task is solved; else look at the evaluations before training on"
    level: Level = "warn" if outcome.early_stop else "fail"
    return Check("complete", outcome.complete, level, outcome.reason, observed, advice)


def updates_made(run: RunData) -> Check:
    """A run of ours has made an update of the weights."""
    if not run.record:
        return not_applicable("updates_made", "there is no run.json: the run is not ours")
    counts = [v for name in _COUNTS for v in run.curve(name).values if math.isfinite(v)]
    updates = max(counts, default=0.0)
    reason = f"{updates:.0f} updates were made" if counts else "no update was ever counted (train/n_updates)"
    advice = "the weights are the initial ones: train longer than the warm-up (data.init_args.total_env_steps), or "
    advice += "lower trainer.log_every_n_steps where the run was too short to be logged"
    return Check("updates_made", updates > 0.0, "fail", reason, {"updates": updates}, advice)


def alarms(run: RunData) -> Check:
    """No safeguard has raised an alarm: one of severity act or fatal fails, one of severity warn warns."""
    if not run.events:
        return not_applicable("alarms", "there is no events.jsonl")
    found = [event.get("evidence") or {} for event in run.alarms()]
    counts = Counter(f"{e.get('safeguard')}: {e.get('cause')} ({e.get('severity')})" for e in found)
    severe = any(evidence.get("severity") in ("act", "fatal") for evidence in found)
    passed = not any(evidence.get("severity") != "info" for evidence in found)
    reason = "; ".join(f"{name}, {count} times" if count > 1 else name for name, count in counts.items())
    level: Level = "fail" if severe else "warn"
    return Check("alarms", passed, level, reason or "no safeguard raised an alarm", {"alarms": dict(counts)})


def stage_gates(run: RunData) -> Check:
    """No check of a stage gate failed: one of severity act fails, one of severity warn warns. Forced ones count."""
    name, gates = "stage_gates", run.gates()
    if not gates:
        return not_applicable(name, "no stage gate was decided")
    failures = [
        (gate, check, answer)
        for gate in gates
        for check, answer in gate["checks"].items()
        if answer.get("passed") is False
    ]
    level: Level = "fail" if any(answer.get("severity") == "act" for *_, answer in failures) else "warn"
    reason = "; ".join(
        f"{gate['gate']}{' (forced)' if gate.get('forced') else ''}, {check}: {answer.get('reason')}"
        for gate, check, answer in failures
    )
    observed = {"gates": {gate["gate"]: gate.get("passed") for gate in gates}}
    advice = "; ".join(dict.fromkeys(str(answer.get("advice")) for *_, answer in failures))
    passed = f"{', '.join(gate['gate'] for gate in gates)}: no check failed"
    return Check(name, not failures, level, reason or passed, observed, advice)


def no_nan_inf(run: RunData) -> Check:
    """All core curves are finite, and there are some."""
    names = core_tags(run)
    if run.rows is not None:
        names += sorted(
            name for name in run.rows.columns if name != run.rows.time_name and not is_probe_column(run, name)
        )
    if run.rows is not None and not (len(run.rows) and set(run.rows.columns) - {run.rows.time_name}):
        reason = f"there are no rows of numbers in {run.rows.path.name}"
        return Check("no_nan_inf", False, "fail", reason, {"rows": len(run.rows), "curves": names}, _NO_VALUES)
    values = {name: run.curves[name].values for name in names}
    bad = {name: sum(not math.isfinite(value) for value in series) for name, series in values.items()}
    bad = {name: count for name, count in bad.items() if count}
    if not any(values.values()):
        return Check("no_nan_inf", False, "fail", "no value was ever logged", {"curves": names}, _NO_VALUES)
    reason = f"not finite: {', '.join(f'{name} ({count} values)' for name, count in bad.items())}"
    return Check(
        "no_nan_inf",
        not bad,
        "fail",
        reason if bad else f"all {len(names)} core curves are finite",
        {"not_finite": bad, "curves": names},
        "find the first value that is not finite: add --config safeguards/safe, NonFiniteGuard leaves the batch",
    )


_NO_VALUES = "train longer than trainer.log_every_n_steps iterations"


def monotone_time(run: RunData) -> Check:
    """Iterations are strictly increasing in the CSV file; environment steps never go back in TensorBoard."""
    if run.rows is not None:
        name, times, strict = run.rows.time_name or "row", run.rows.times, True
        backward = [p for p in range(1, len(times)) if not times[p] > times[p - 1]]
        observed = {"time_column": name, "first_violation_row": backward[0] if backward else None}
    else:
        strict = False
        steps = {tag: run.curves[tag].times for tag in core_tags(run)}
        backward = [1 for times in steps.values() for p in range(1, len(times)) if times[p] < times[p - 1]]
        observed = {"time_column": "env_steps", "first_violation_row": None}
    reason = (
        f"time is {'strictly ' if strict else ''}increasing"
        if not backward
        else f"time stands or goes back: {observed}"
    )
    return Check("monotone_time", not backward, "fail", reason, observed, "keep one run in a folder")


def metric_bounds(run: RunData) -> Check:
    """Every metric lies within the bounds that its definition gives it (`rlmods.signals.METRIC_BOUNDS`)."""
    outside, judged = {}, 0
    for tag in core_tags(run):
        bounds = METRIC_BOUNDS.get(tag.rpartition("/")[2])
        if bounds is None:
            continue
        judged += 1
        low, high = bounds
        worst = [v for v in run.curves[tag].values if v < low - _ROUNDING or v > high + _ROUNDING]
        if worst:
            outside[tag] = {"value": worst[-1], "low": low, "high": high, "values": len(worst)}
    if not judged:
        return not_applicable("metric_bounds", "no curve has a name with declared bounds")
    found = "; ".join(f"{tag} = {o['value']:.4g}, bounds [{o['low']:g}, {o['high']:g}]" for tag, o in outside.items())
    reason = found or f"{judged} metrics lie within their bounds"
    return Check(
        "metric_bounds",
        not outside,
        "fail",
        reason,
        {"outside": outside},
        "mend the metric: it is not what its name says",
    )


def evaluation_at_end(run: RunData) -> Check:
    """The last evaluation is of the last weights: it is the score of the run."""
    name = "evaluation_at_end"
    ends = [run.curves[tag].times[-1] for tag in core_tags(run) if run.curves[tag].times]
    evaluations = run.curves.get("eval/mean_reward")
    if not ends or (evaluations is None and not run.configured("data").get("eval_every")):
        return not_applicable(name, "the run has no evaluations", "warn")
    if not run.outcome().complete:
        return not_applicable(name, "the run has not come to its end", "warn")
    last = evaluations.times[-1] if evaluations is not None and evaluations.times else None
    passed = last is not None and last >= max(ends)
    reason = f"the last evaluation was at {number_of(last)} of {max(ends):.0f} environment steps"
    advice = "evaluate the last checkpoint: python -m rlmods validate --ckpt_path last with the options of the run"
    return Check(name, passed, "warn", reason, {"last_evaluation": last, "last_step": max(ends)}, advice)


def number_of(step: float | None) -> str:
    """A step count in words."""
    return "no step" if step is None else f"{step:.0f}"


def return_collapse(run: RunData) -> Check:
    """At the end the evaluation return is not far below a level that was held, beyond the noise of the episodes."""
    evaluations = _evaluations(run)
    if len(evaluations) < 3:
        return not_applicable("return_collapse", f"{len(evaluations)} evaluations: too few to tell a fall from noise")
    detector = CollapseDetector(after=4, share=0.8, start=None, confidence=0.95)
    verdicts = [detector.update(evaluation) for evaluation in evaluations][-1]
    for verdict in verdicts:
        level: Level = "fail" if verdict.severity >= Severity.ACT else "warn"
        return Check(
            "return_collapse", False, level, verdict.message, verdict.evidence, "train on from the best checkpoint"
        )
    best = max(evaluations, key=lambda evaluation: evaluation.mean)
    reason = f"last evaluation {evaluations[-1].mean:.4g}, best {best.mean:.4g} at {best.env_steps} environment steps"
    return Check("return_collapse", True, "fail", reason, {"last": evaluations[-1].mean, "best": best.mean})


def _evaluations(run: RunData) -> list[Evaluation]:
    means = run.curves.get("eval/mean_reward")
    stds, counts = run.curves.get("eval/std_reward"), run.curves.get("eval/episodes")
    if means is None or stds is None or counts is None:
        return []
    spread, episodes = dict(zip(*stds, strict=True)), dict(zip(*counts, strict=True))
    return [
        Evaluation(mean, spread[step], int(episodes[step]), env_steps=int(step))
        for step, mean in zip(*means, strict=True)
        if step in spread and math.isfinite(episodes.get(step, math.nan))
    ]


def files_intact(run: RunData) -> Check:
    """No file of the folder was damaged."""
    reason = "; ".join(run.notes) or "every line could be read"
    return Check(
        "files_intact",
        not run.notes,
        "warn",
        reason,
        {"damaged": run.notes},
        "mend or remove what is named: it was left out, or read as NaN",
    )
