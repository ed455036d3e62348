"""The checks of the stage gates, by hand."""

import math
from typing import Any

import pytest

from rlmods.callbacks import stage_checks as checks
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.stage_checks import Baseline, StageEvidence, baseline_of
from rlmods.callbacks.stage_gate_detector import CHECKS, GateVerdict, decide, refusal

NAN = math.nan
# CartPole's: rewards of 1 and a discount of 0.99 allow values from 0 to 100.
MEASURED = {
    "q_low": 10.0,
    "q_high": 90.0,
    "q_mean": 50.0,
    "q_std": 2.0,
    "q_policy_mean": 55.0,
    "squared_error": 4.0,
    "target_variance": 16.0,
    "saturated": 0.2,
    "terminated": 0.05,
    "value_size": 100.0,
}


def evaluations(*means: float, std: float = 3.0, episodes: int = 10) -> list[Evaluation]:
    return [Evaluation(mean, std, episodes, env_steps=100 * (p + 1)) for p, mean in enumerate(means)]


def healthy(**changes: Any) -> StageEvidence:
    fields: dict[str, Any] = {
        "measured": MEASURED,
        "evaluations": evaluations(20.0, 50.0, 80.0, 100.0, 100.0),
        "baseline": Baseline(20.0, 1.0, 10),
        "untouched": True,
        "unreached": [],
        "alarms": [],
    }
    return StageEvidence(**(fields | changes))


def with_measured(**changes: float) -> StageEvidence:
    return healthy(measured=MEASURED | changes)


def without(*names: str) -> StageEvidence:
    return healthy(measured={name: value for name, value in MEASURED.items() if name not in names})


def failed(gate: str, evidence: StageEvidence) -> list[str]:
    return [check.name for check in decide(gate, 1, 1, evidence).failed]


@pytest.mark.parametrize("gate", CHECKS)
def test_a_healthy_run_passes_every_check_of_every_gate(gate: str) -> None:
    verdict = decide(gate, 5_000, 5_120, healthy())
    assert verdict.passed is True
    assert [check.passed for check in verdict.checks] == [True] * len(CHECKS[gate])
    assert verdict.verdicts() == []


@pytest.mark.parametrize("gate", CHECKS)
def test_what_is_not_there_is_not_checked_and_not_passed(gate: str) -> None:
    verdict = decide(gate, 5_000, 5_120, StageEvidence())
    assert verdict.passed is None
    assert {check.passed for check in verdict.checks} == {None}
    assert all(check.reason.startswith("not checked: ") for check in verdict.checks)
    assert verdict.describe() == (
        f"stage gate {gate} not checked (0 failed, 0 passed, {len(CHECKS[gate])} not checked)"
    )


@pytest.mark.parametrize(
    ("evidence", "passes"),
    [
        (with_measured(q_high=150.0), True),
        (with_measured(q_high=150.1), False),
        (with_measured(q_low=-150.1), False),
        (with_measured(q_low=NAN), False),
        (with_measured(q_high=math.inf), False),
        (with_measured(value_size=0.0), None),  # no reward yet
        (with_measured(value_size=1e30), None),  # a discount of 1
        (without("value_size"), None),
    ],
)
def test_q_may_reach_one_and_a_half_times_the_size_of_the_interval(
    evidence: StageEvidence, passes: bool | None
) -> None:
    assert checks.q_range(evidence).passed is passes


@pytest.mark.parametrize(
    ("evidence", "passes"),
    [
        (with_measured(q_policy_mean=60.0), True),  # a tenth of 100
        (with_measured(q_policy_mean=60.1), False),
        (with_measured(q_policy_mean=39.9), False),
        (with_measured(q_policy_mean=79.9, q_std=10.0), True),  # three standard deviations
        (with_measured(q_policy_mean=80.1, q_std=10.0), False),
        (with_measured(q_policy_mean=51.1, value_size=10.0, q_std=0.1), False),  # of a task of a tenth of the scale
        (with_measured(q_policy_mean=NAN), False),
        (without("q_policy_mean"), None),
    ],
)
def test_the_gap_is_measured_by_the_interval_and_the_spread(evidence: StageEvidence, passes: bool | None) -> None:
    assert checks.q_policy_gap(evidence).passed is passes


def test_without_an_interval_the_gap_may_be_ten() -> None:
    assert checks.q_policy_gap(without("value_size")).observed == {"gap": 5.0, "limit": 10.0}


def test_the_original_run_fails_at_5000_steps() -> None:
    # Q at the data 15.4 of a normal spread, Q at the policy's action 1.8e6, all actions at their ends.
    measured = MEASURED | {"q_mean": 15.4, "q_std": 10.0, "q_policy_mean": 1.8e6, "saturated": 1.0}
    assert failed("G1", healthy(measured=measured)) == ["q_policy_gap", "saturation"]


@pytest.mark.parametrize(
    ("gate", "evidence", "names"),
    [
        ("G0", healthy(unreached=["actor.weight"]), ["gradients"]),
        ("G0", healthy(alarms=["value_bound value_out_of_bounds"]), ["alarms"]),
        ("G1", with_measured(saturated=0.5), ["saturation"]),
        ("G1", with_measured(saturated=NAN), ["saturation"]),
        ("G1", healthy(untouched=False), ["environments_untouched"]),
        ("G2", healthy(untouched=False), ["environments_untouched"]),
        # Standard errors 3/sqrt(9) = 1 and 1: the limit is 20 + 2 sqrt(2) = 22.83.
        ("G2", healthy(evaluations=evaluations(22.8)), ["above_random"]),
        ("G2", healthy(evaluations=evaluations(22.9)), []),
        ("G2", healthy(evaluations=evaluations(NAN)), ["above_random"]),
        ("G2", healthy(evaluations=evaluations(90.0, 80.0, 70.0, 60.0, 50.0)), ["no_decline"]),
        ("G2", healthy(evaluations=evaluations(90.0, 80.0, 70.0, 75.0, 50.0)), []),
        # Falls one after the other, but not beyond two standard errors of the first and the last.
        ("G2", healthy(evaluations=evaluations(90.0, 89.5, 89.0, 88.5, 88.0)), []),
        ("G2", with_measured(squared_error=15.9), []),
        ("G2", with_measured(squared_error=16.1), ["critic_error"]),
        ("G2", with_measured(squared_error=NAN), ["critic_error"]),
        # An error of 1 where values reach 100 is none, however equal the targets are.
        ("G2", with_measured(squared_error=1.0, target_variance=0.1), []),
        ("G2", with_measured(squared_error=1.1, target_variance=0.1), ["critic_error"]),
        ("G3", with_measured(terminated=0.3), ["terminal_share"]),
        ("G3", healthy(evaluations=evaluations(100.0, 100.0, 50.0, 50.0)), ["improving"]),
        ("G3", healthy(evaluations=evaluations(100.0, 100.0, 100.0, 100.0)), []),  # a solved task
        ("G4", healthy(evaluations=evaluations(NAN)), ["above_random", "score"]),
    ],
)
def test_each_check_fails_for_its_own_reason(gate: str, evidence: StageEvidence, names: list[str]) -> None:
    assert failed(gate, evidence) == names


def test_the_score_has_students_interval() -> None:
    # Ten episodes of population std 3: 2.262 * 3 / sqrt(9) on both sides.
    observed = checks.score(healthy(evaluations=evaluations(50.0))).observed
    assert observed["low"] == pytest.approx(50.0 - 2.262157, abs=1e-5)
    assert observed["high"] == pytest.approx(50.0 + 2.262157, abs=1e-5)


def test_the_baseline_needs_two_episodes() -> None:
    assert baseline_of([7.0]) is None
    # Sample variance 2, standard error sqrt(2 / 2).
    assert baseline_of([8.0, 10.0]) == Baseline(9.0, 1.0, 2)


def test_only_identities_may_act() -> None:
    everything = healthy(
        measured=dict.fromkeys(MEASURED, NAN), evaluations=evaluations(*[NAN] * 5), untouched=False, unreached=["a"]
    )._replace(alarms=["x y"])
    severities = {v.cause: v.severity for gate in CHECKS for v in decide(gate, 1, 1, everything).verdicts()}
    assert {cause.partition("_")[2] for cause, severity in severities.items() if severity >= Severity.ACT} == {
        "alarms",
        "environments_untouched",
    }


def test_a_verdict_survives_being_saved() -> None:
    verdict = decide("G1", 5_000, 5_120, with_measured(saturated=0.6))
    assert GateVerdict.from_dict(verdict.to_dict()) == verdict
    assert verdict.describe() == "stage gate G1 failed (1 failed, 4 passed, 0 not checked)"


def saved(*, enforced: bool = True, forced: bool = False, saturated: float = 0.6) -> dict[str, Any]:
    verdict = decide("G1", 5_000, 5_120, with_measured(saturated=saturated))._replace(forced=forced)
    return {"stage_gates": {"enforced": enforced, "gates": [verdict.to_dict()]}}


def test_a_failed_gate_is_refused_with_its_numbers() -> None:
    said = refusal(saved())
    assert said is not None
    assert "G1 at 5120 environment steps, saturation: 60.0% of the actions have |tanh| > 0.99" in said
    assert "--force_gates true" in said
    assert "q_range" not in said


@pytest.mark.parametrize("stages", [saved(enforced=False), saved(forced=True), saved(saturated=0.1), {}])
def test_what_passed_was_forced_or_only_observed_is_not_refused(stages: dict[str, Any]) -> None:
    assert refusal(stages) is None
