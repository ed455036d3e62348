"""What `summary.json` says, from curves and events that can be checked by hand."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlmods.reports.run_data import RunData, Series
from rlmods.reports.run_summary import _finite, _summary, evaluations
from rlmods.reports.schema import check_schema
from rlmods.reports.tables import RunFolderError

RECORD: dict[str, Any] = {
    "parent_run": None, "time": "2026-01-01T00:00:00+00:00", "command": ["rlmods"], "seed": 1, "resumed_from": None,
    "env_steps": 0, "versions": {"torch": "2"}, "machine": {}, "starts": [{"time": "t", "env_steps": 0}],
    "spec": {"action": {"kind": "continuous", "shape": [4]}},
}  # fmt: skip


def run_of(curves: Mapping[str, list[float]], events: list[dict[str, Any]] | None = None) -> RunData:
    """A run whose points lie at 100, 200, … environment steps."""
    drawn = {name: Series([100.0 * (i + 1) for i in range(len(values))], values) for name, values in curves.items()}
    return RunData(Path("version_7"), drawn, events=events or [], record=dict(RECORD))


def summary_of(run: RunData, checkpoints: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    summary: dict[str, Any] = _finite(_summary(run, checkpoints or []))
    return summary


EVALUATED = {
    "eval/mean_reward": [10.0, 20.0, math.nan],
    "eval/std_reward": [2.0, 40.0, 1.0],
    "eval/episodes": [4.0, 4.0, 4.0],
}


def test_an_evaluation_has_its_error_and_its_interval() -> None:
    first = evaluations(run_of(EVALUATED))[0]
    # Population std 2 of 4 episodes: s/√n = 2/√3; the quantile of Student's t with 3 degrees of freedom is 3.1824463.
    assert first["standard_error"] == pytest.approx(2.0 / math.sqrt(3.0))
    assert first["low"] == pytest.approx(10.0 - 3.1824463 * 2.0 / math.sqrt(3.0))
    assert (first["env_steps"], first["episodes"], first["success_rate"]) == (100, 4, None)


def test_one_episode_has_no_interval() -> None:
    (only,) = evaluations(run_of({"eval/mean_reward": [5.0], "eval/std_reward": [0.0], "eval/episodes": [1.0]}))
    assert (only["mean"], only["standard_error"], only["low"]) == (5.0, None, None)


def test_the_best_has_the_highest_lower_bound_of_a_healthy_checkpoint() -> None:
    files = [
        {"file": f"checkpoints/{name}.ckpt", "env_steps": step, "unhealthy": []}
        for step, name in ((100, "best-a"), (100, "newest-a"), (200, "b"), (300, "c"))
    ]
    found = summary_of(run_of(EVALUATED), files)["evaluation"]
    # The second has the higher mean and a far lower bound, the third is no number.
    assert (found["best"]["env_steps"], found["best"]["checkpoint"]) == (100, "checkpoints/best-a.ckpt")
    assert found["last"]["mean"] is None
    sick = [file | {"unhealthy": ["g: x"] if file["env_steps"] == 100 else []} for file in files]
    assert summary_of(run_of(EVALUATED), sick)["evaluation"]["best"]["env_steps"] == 200
    assert summary_of(run_of(EVALUATED))["evaluation"]["best"] is None


def test_a_rate_in_its_bounds_has_an_interval_and_a_count_is_quarantined() -> None:
    names = ("eval/success_rate", "eval/success_rate_low", "eval/success_rate_high")
    rate = evaluations(run_of(EVALUATED | dict(zip(names, ([0.5], [0.2], [0.8]), strict=True))))[0]
    assert rate["success_rate"] == {"rate": 0.5, "low": 0.2, "high": 0.8}
    counted = run_of(EVALUATED | dict(zip(names, ([894.5], [0.2], [0.8]), strict=True)))
    assert evaluations(counted)[0]["success_rate"] is None
    summary = summary_of(counted, [{"file": "checkpoints/a.ckpt", "env_steps": 100, "unhealthy": []}])
    assert summary["quarantined"] == {"eval/success_rate": 894.5}
    assert summary["evaluation"]["best"]["checkpoint"] == "checkpoints/a.ckpt"


def test_kl_is_read_while_the_learning_rate_was_up() -> None:
    run = run_of(
        {
            "train/learning_rate": [1e-3, 5e-4, 1e-5, 0.0],
            "train/approx_kl": [0.02, 0.01, 1e-6, 0.0],
            "train/loss": [4.0, 2.0],
        }
    )
    summary = summary_of(run)
    kl = summary["curves"]["train/approx_kl"]
    assert (kl["last"], kl["learning_rate_at_last"], kl["mean"]) == (0.0, 0.0, pytest.approx(0.00750025))
    assert kl["while_learning"]["mean"] == pytest.approx(0.015)
    assert kl["while_learning"]["count"] == 2
    assert summary["curves"]["train/loss"]["while_learning"] is None
    assert summary["curves"]["train/loss"]["learning_rate_at_last"] == 5e-4
    assert summary["learning_rate"]["last_share_of_peak"] == 0.0


def test_an_annealed_rate_has_its_peak_before_the_first_point() -> None:
    run = run_of({"train/learning_rate": [4e-4, 8e-5], "train/approx_kl": [0.02, 0.01]})
    for schedule, peak, count in (("linear", 1e-3, 1), ("constant", 4e-4, 2)):
        settings = {"learning_rate": 1e-3, "learning_rate_schedule": schedule}
        run.config["model"] = {"class_path": "rlmods.algorithms.PPO", "init_args": settings}
        summary = summary_of(run)
        assert summary["learning_rate"]["peak"] == peak
        assert summary["curves"]["train/approx_kl"]["while_learning"]["count"] == count
    # A child with the full state begins within its schedule.
    run.config["model"]["init_args"]["learning_rate_schedule"] = "linear"
    run.record.update({"origin": {"continued": "full", "checkpoint": None, "config_changes": []}})
    assert summary_of(run)["learning_rate"]["peak"] == 4e-4


def test_entropy_stands_beside_that_of_a_uniform_policy() -> None:
    # H = 4 (½ ln 2πe + ln σ) with σ = 2, and ln 2 for each side of the box.
    entropy = 4.0 * (0.5 * math.log(2.0 * math.pi * math.e) + math.log(2.0))
    run = run_of({"train/entropy": [5.0, entropy], "train/std": [1.0, 2.0], "stability/action_mean_abs": [0.5, 0.5]})
    policy = summary_of(run)["policy"]
    assert policy["uniform_entropy"] == pytest.approx(2.7726, abs=1e-4)
    assert policy["entropy_per_dimension"] == pytest.approx(1.4189385 + math.log(2.0))
    assert policy["mean_over_std"] == {"first": 0.5, "last": 0.25}


def event(kind: str, env_steps: int, **evidence: Any) -> dict[str, Any]:
    return {"kind": kind, "env_steps": env_steps, "message": "m", "evidence": evidence}


def test_alarms_are_counted_by_cause() -> None:
    alarms = [
        event("alarm", 10, safeguard="g", cause="a", severity="warn"),
        event("alarm", 20, safeguard="g", cause="a", severity="act"),
        event("alarm", 30, safeguard="g", cause="a", severity="warn"),
        event("alarm", 15, safeguard="h", cause="a", severity="info"),
        event("alarm", 40, safeguard="i", cause="b", severity="act") | {"superseded": True},
    ]
    first, second = summary_of(run_of(EVALUATED, alarms))["alarms"]
    assert (first["severity"], first["first_env_steps"], first["count"]) == ("act", 10, 3)
    assert (second["safeguard"], second["count"]) == ("h", 1)


def test_training_and_evaluation_have_their_own_speed() -> None:
    # 100 steps at 50 a second, 100 at 100 a second: 3 seconds; an evaluation is no part of them.
    clock = summary_of(run_of({"time/fps": [50.0, 100.0], "time/eval_fps": [1000.0]}))["time"]
    assert (clock["training_seconds"], clock["evaluation_fps"]) == (3.0, 1000.0)
    assert clock["training_fps"] == pytest.approx(200.0 / 3.0)


def test_the_schemas_take_what_is_written_and_refuse_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    good = summary_of(run_of(EVALUATED))
    path.write_text(json.dumps(good, allow_nan=False))
    assert check_schema(path, "summary") == good
    for broken, said in (
        (good | {"seed": "one"}, "seed: 'one' is not of type"),
        (good | {"version": 2}, "version: 1 was expected"),
        ({name: value for name, value in good.items() if name != "alarms"}, "the whole: 'alarms' is a required"),
        (good | {"time": good["time"] | {"wall_seconds": -1}}, "time.wall_seconds: -1 is less than"),
        (
            good | {"learning_rate": good["learning_rate"] | {"peak": "high"}},
            "learning_rate.peak: 'high' is not of type",
        ),
        (good | {"policy": good["policy"] | {"entropy": 1.0}}, "policy.entropy: 1.0 is not of type"),
        (good | {"evaluation": good["evaluation"] | {"best": good["evaluation"]["first"]}}, "'checkpoint' is a requi"),
        (good | {"untrained_baseline": math.nan}, "cannot be read: NaN, for which JSON has no number"),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(RunFolderError, match=said):
            check_schema(path, "summary")
    run_file = tmp_path / "run.json"
    run_file.write_text(json.dumps(RECORD))
    check_schema(run_file, "run")
    run_file.write_text(json.dumps(RECORD | {"starts": []}))
    with pytest.raises(RunFolderError, match=r"starts: .* take it from a copy of the run folder"):
        check_schema(run_file, "run")
