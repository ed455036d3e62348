"""What to do next: each step cites what was observed; the advice of an alarm comes first."""

from collections.abc import Sequence
from typing import Any

from rlmods.reports.check import Check
from rlmods.reports.lab_rules import column
from rlmods.reports.run_data import RunData
from rlmods.reports.summary import slope, summarize

_LEVELS = ("info", "warn", "act", "fatal")
_EXPLODING = 10.0
_FIRST = 5


def next_steps(run: RunData, checks: Sequence[Check]) -> list[str]:
    """Sentences; never empty, and never neutral where a check failed."""
    steps = _of_alarms(run)
    steps += [
        f"{check.name}: {check.advice or 'look at the evidence'}. Evidence: {check.reason}"
        for check in sorted(checks, key=lambda check: check.severity)  # what fails before what warns
        if check.failed and check.name != "alarms"
    ]
    steps += [step for name in ("td_loss", "w_norm", "train/loss") for step in _exploding(run, name)]
    if not any(check.failed and check.name == "inert_learning" for check in checks):
        steps += _flat(run)
    applied = sum(check.passed is not None for check in checks)
    return steps or [
        f"no rule found anything wrong ({applied} of {len(checks)} rules applied); a second seed tells more about this "
        "configuration than a longer look at this run"
    ]


def _of_alarms(run: RunData) -> list[str]:
    """The latest alarm of each cause, the gravest first."""
    latest: dict[tuple[Any, Any], dict[str, Any]] = {}
    for alarm in run.alarms():
        evidence = _evidence(alarm)
        latest[evidence.get("safeguard"), evidence.get("cause")] = alarm
    graded = [(_level(alarm), alarm) for alarm in latest.values()]
    return [
        f"{_evidence(alarm).get('cause')} at {alarm.get('env_steps')} environment steps: {alarm.get('message')}"
        for level, alarm in sorted(graded, key=lambda pair: -pair[0])
        if level > 0
    ]


def _evidence(alarm: dict[str, Any]) -> dict[str, Any]:
    return alarm.get("evidence") or {}


def _level(alarm: dict[str, Any]) -> int:
    severity = _evidence(alarm).get("severity")
    return _LEVELS.index(severity) if severity in _LEVELS else 1


def _exploding(run: RunData, name: str) -> list[str]:
    values = column(run, name)
    if len(values) < 2 * _FIRST:
        return []
    first = sum(values[:_FIRST]) / _FIRST
    trend = summarize(*run.curves[name]).slope_last_k
    if not (trend is not None and trend > 0.0 and values[-1] > _EXPLODING * abs(first)):
        return []
    step = (
        f"{name} explodes: last {values[-1]:.4g}, over {_EXPLODING:g} times the mean of its first {_FIRST}, {first:.4g}"
    )
    if run.lab is not None:
        return [
            f"{step}. Run the on-policy, the gamma = 0 and the alpha_pi = 0 check: where it does not explode, what was "
            "taken away is the cause"
        ]
    return [f"{step}. Lower the learning rate, and look at the alarms of ValueBoundGuard (--config safeguards/safe)"]


def _flat(run: RunData) -> list[str]:
    """Judged alone: the noise of td_loss hides nothing of a weight norm that stands."""
    norms = column(run, "w_norm")
    if len(norms) < _FIRST:
        return []
    spread = (max(norms) - min(norms)) / max(1e-8, abs(norms[-1]))
    trend = slope(list(range(len(norms))), norms) or 0.0
    if spread >= 1e-3:
        return []
    return [
        f"w_norm stays within {spread:.2g} of itself (slope {trend:.2g} per iteration): what the run says of learning "
        "dynamics it says of the initial weights. Raise alpha_w, or train longer"
    ]
