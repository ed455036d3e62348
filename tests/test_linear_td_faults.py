"""The fault bench of linear TD: its mutations break one thing, and the safeguards tell them from healthy runs."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from linear_td_faults.__main__ import fault_row, report
from linear_td_faults.catalogue import FAULTS, HEALTHY, MODEL, Case
from linear_td_faults.experiment import Alarm, Record, alarms_from, run
from linear_td_faults.mutations import InvertedRatio, NoNormalisingConstant

from rlmods.algorithms import LinearTD
from rlmods.data import RolloutDataModule
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.types import Rollout

CASES = {case.id: case for case in [*FAULTS, *HEALTHY]}
SEED = 100


def small(algorithm: type[LinearTD]) -> tuple[LinearTD, Rollout]:
    """A model and a rollout of it, the same for each class."""
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0",
        100,
        num_envs=3,
        n_steps=4,
        gamma=0.9,
        env_kwargs={"feature_dim": 8, "actor_feature_dim": 4, "max_episode_steps": 5},
    )
    torch.manual_seed(0)
    model = algorithm(data.spec, **MODEL)
    collector = RolloutCollector(data.make_environments(3), gamma=0.9, seed=1)
    return model, collector.collect(model, 4, num_processes=1, device=torch.device("cpu"))


def test_every_case_can_be_built() -> None:
    assert len(CASES) == len(FAULTS) + len(HEALTHY)
    assert all(case.causes for case in FAULTS)
    assert not any(case.causes or case.unseen for case in HEALTHY)
    assert not any(case.algorithm is not LinearTD or case.data_module is not RolloutDataModule for case in HEALTHY)


def test_wrong_ratios_are_wrong_by_what_they_say() -> None:
    model, rollout = small(LinearTD)
    right = model.samples(rollout).density_ratio
    inverted = small(InvertedRatio)[0].samples(rollout)
    torch.testing.assert_close(inverted.density_ratio * right, torch.ones(12))
    torch.testing.assert_close(inverted.ratio, inverted.density_ratio)
    # (0.35/0.4)² = 0.765625
    torch.testing.assert_close(small(NoNormalisingConstant)[0].samples(rollout).density_ratio, 0.765625 * right)


@pytest.mark.parametrize(
    ("name", "num_iterations", "cause"),
    [
        ("no-constant", 10, "ratio_identity"),
        ("stream-each-iteration-moving", 8, "repeated_start"),
        ("critic-forgotten", 8, "parameter_not_optimised"),
    ],
)
def test_a_fault_is_found_by_its_name(name: str, num_iterations: int, cause: str) -> None:
    record = run(CASES[name], SEED, num_iterations=num_iterations)
    assert record["crash"] is None
    assert [alarm["cause"] for alarm in alarms_from(record, "warn")][:1] == [cause]
    assert cause in CASES[name].causes


@pytest.mark.parametrize("name", ["full-triad", "on-policy", "ratio-clip"])
def test_a_healthy_run_is_silent(name: str) -> None:
    record = run(CASES[name], SEED, num_iterations=10)
    assert (record["crash"], record["iterations"], record["alarms"]) == (None, 10, [])


# The table


def make_record(case: Case, seed: int, *alarms: tuple[int, str, str]) -> Record:
    return Record(
        id=case.id,
        seed=seed,
        iterations=40,
        onset=case.onset,
        alarms=[
            Alarm(iteration=iteration, safeguard="x", cause=cause, severity=severity, message="")
            for iteration, cause, severity in alarms
        ],
        crash=None,
        cpu_seconds=1.0,
    )


def test_a_row_counts_from_the_onset_and_the_most_severe_cause_is_the_first() -> None:
    case = CASES["stream-resumed"]
    records = [
        make_record(case, 0, (16, "early", "act"), (24, "other", "warn"), (24, "repeated_stream", "act")),
        make_record(case, 1, (24, "other", "warn"), (32, "repeated_stream", "act")),
    ]
    row = fault_row(case, records)
    assert (row.found, row.right_first, row.delays, row.false_acting) == (2, 1, [4, 12], 1)


def test_the_report_counts() -> None:
    found, unseen, healthy = CASES["no-constant"], CASES["two-steps"], CASES["on-policy"]
    records = [
        make_record(found, 0, (10, "ratio_identity", "warn"), (20, "ratio_identity", "act")),
        make_record(found, 1),
        make_record(unseen, 0),
        make_record(healthy, 0, (8, "inert_update", "warn")),
        make_record(healthy, 1, (8, "violent_update", "act")),
    ]
    lines = report(records).splitlines()
    (row,) = [line for line in lines if line.startswith("| `no-constant`")]
    assert row.endswith("| 1/2 | 1/2 | 10 | 1/1 | ratio_identity |")
    (row,) = [line for line in lines if line.startswith("| `on-policy`")]
    assert row.endswith("| 2 | violent_update | inert_update |")
    assert "| faults that a safeguard should see: runs found | 1/2 |" in lines
    assert "| healthy runs with an acting alarm | 1 |" in lines
