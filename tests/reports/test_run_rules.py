"""The health of any run, from its curves and its events."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab_folder import event

from rlmods.reports.check import Check
from rlmods.reports.health import judge, status
from rlmods.reports.next_steps import next_steps
from rlmods.reports.run_data import RunData, Series

START, END = event("start"), event("stop", 500, "training ends")


def alarm(cause: str, severity: str, env_steps: int = 100, **more: Any) -> dict[str, Any]:
    message = f"{cause} was found: do this"
    return event("alarm", env_steps, message, safeguard="guard", cause=cause, severity=severity) | more


def run_with(*events: dict[str, Any], curves: dict[str, list[float]] | None = None) -> RunData:
    """Ten evaluations of ten episodes each, and a loss, with these curves in the place of theirs."""
    values = {
        "train/loss": [1.0 / (position + 1) for position in range(10)],
        "eval/mean_reward": [10.0 * position for position in range(10)],
        "eval/std_reward": [5.0] * 10,
        "eval/episodes": [10.0] * 10,
    } | (curves or {})
    series = {tag: Series([50.0 * (p + 1) for p in range(len(line))], line) for tag, line in values.items()}
    return RunData(Path("run"), series, events=[START, *events, END])


def failed(run: RunData) -> dict[str, Check]:
    return {check.name: check for check in judge(run) if check.failed}


def test_a_healthy_run_passes_and_its_next_step_is_neutral() -> None:
    run = run_with(alarm("worth_knowing", "info"))
    assert failed(run) == {}
    (step,) = next_steps(run, judge(run))
    assert step.startswith("no rule found anything wrong")


@pytest.mark.parametrize(("severity", "expected"), [("warn", "WARN"), ("act", "FAIL"), ("fatal", "FAIL")])
def test_an_alarm_decides_by_its_severity_unless_a_resume_undid_it(severity: str, expected: str) -> None:
    assert status(judge(run_with(alarm("value_bound", severity)))) == expected
    assert status(judge(run_with(alarm("value_bound", severity, superseded=True)))) == "PASS"


def test_the_advice_of_alarms_comes_first_the_gravest_before_the_others() -> None:
    mild, grave = alarm("mild", "warn", 10), alarm("grave", "act", 20)
    run = run_with(mild, grave, alarm("grave", "act", 30), curves={"train/loss": [math.nan] * 10})
    steps = next_steps(run, judge(run))
    assert steps[0] == "grave at 30 environment steps: grave was found: do this"
    assert steps[1] == "mild at 10 environment steps: mild was found: do this"
    assert steps[2].startswith("no_nan_inf: find the first value that is not finite")
    assert len(steps) == 3


def test_values_that_are_not_finite_are_counted_by_curve() -> None:
    check = failed(run_with(curves={"train/loss": [1.0, math.nan, math.inf, *[0.5] * 7]}))["no_nan_inf"]
    assert check.observed["not_finite"] == {"train/loss": 2}
    assert not failed(run_with(curves={"stability/guard/threshold": [math.nan] * 10}))


def test_a_metric_beyond_its_bounds_is_not_what_its_name_says() -> None:
    check = failed(run_with(curves={"eval/success_rate": [*[0.5] * 9, 14.0]}))["metric_bounds"]
    assert check.observed["outside"] == {"eval/success_rate": {"value": 14.0, "low": 0.0, "high": 1.0, "values": 1}}
    assert not failed(run_with(curves={"eval/success_rate": [1.0 + 1e-7] * 10}))


def test_a_fall_that_lasts_to_the_end_fails_and_noise_does_not() -> None:
    rise = [0.0, 20.0, 60.0, 100.0, 100.0]
    check = failed(run_with(curves={"eval/mean_reward": [*rise, *[5.0] * 5]}))["return_collapse"]
    assert "100.0" in check.reason
    assert not failed(run_with(curves={"eval/mean_reward": [*rise, 95.0, 103.0, 96.0, 99.0, 97.0]}))
    assert not failed(run_with(curves={"eval/mean_reward": [*rise, 5.0, 5.0, 5.0, 99.0, 97.0]}))


def test_an_evaluation_that_is_missing_at_the_end_warns() -> None:
    run = run_with(curves={"eval/mean_reward": [1.0, 2.0, 3.0]})
    assert list(failed(run)) == ["evaluation_at_end"]
    assert "at 150 of 500 environment steps" in failed(run)["evaluation_at_end"].reason
    assert status(judge(run)) == "WARN"


def test_an_exception_fails_and_says_what_to_do() -> None:
    run = RunData(Path("run"), run_with().curves, events=[START, event("stop", 60, "x", exception="ValueError: no")])
    check = failed(run)["complete"]
    assert "ValueError: no" in check.advice
    assert "--ckpt_path last" in check.advice


def test_a_stop_by_a_safeguard_fails_and_an_early_stop_that_was_asked_for_warns() -> None:
    for more, expected in (({}, "FAIL"), ({"best": 90.0, "held": 0.0}, "WARN")):
        assert status(judge(run_with(event("stop", 60, "Guard: why", safeguard="guard", **more)))) == expected


@pytest.mark.parametrize(
    ("curves", "passed"),
    [
        ({}, False),
        ({"train/n_updates": [0.0]}, False),
        ({"train/n_updates": [0.0, 7.0]}, True),
        ({"update_steps": [2.0]}, True),
    ],
)
def test_a_run_of_ours_has_made_updates(curves: dict[str, list[float]], passed: bool) -> None:
    run = replace(run_with(curves=curves), record={"seed": 0})
    assert ("updates_made" not in failed(run)) is passed
    assert "updates_made" not in failed(run_with(curves=curves))  # not ours


def test_time_that_goes_back_fails() -> None:
    run = run_with()
    run.curves["train/loss"] = Series([50.0, 40.0], [1.0, 1.0])
    assert "monotone_time" in failed(run)


def test_an_explosion_is_spoken_of() -> None:
    run = run_with(curves={"train/loss": [1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]})
    (step,) = next_steps(run, judge(run))
    assert step.startswith("train/loss explodes: last 32, over 10 times the mean of its first 5, 1")


def gate(name: str, passed: bool | None, severity: str = "warn", **more: Any) -> dict[str, Any]:
    check: dict[str, Any] = {"passed": passed, "severity": severity, "reason": "too much", "advice": "do this"}
    return event("gate", 100, safeguard="gates", gate=name, passed=passed, forced=False, checks={"c": check}) | more


@pytest.mark.parametrize(
    ("gates", "expected"),
    [
        ([gate("G0", True), gate("G1", None)], "PASS"),
        ([gate("G0", False), gate("G1", True)], "WARN"),
        ([gate("G0", False, "act")], "FAIL"),
        ([gate("G0", False, "act", superseded=True)], "PASS"),
    ],
)
def test_a_failed_stage_gate_decides_by_its_severity(gates: list[dict[str, Any]], expected: str) -> None:
    run = run_with(*gates)
    assert status(judge(run)) == expected
    (check,) = [check for check in judge(run) if check.name == "stage_gates"]
    assert (check.passed is None) == (run.gates() == [])
    if check.failed:
        assert (check.reason, check.advice) == ("G0, c: too much", "do this")
