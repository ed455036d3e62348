"""The fault bench of TD3 and SAC: each case can be built, faults are found by name, and the tables count."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mutation_bench.__main__ import stored
from mutation_bench.case import Case
from mutation_bench.experiment import Alarm, Record, alarms_from, run
from mutation_bench.report import fault_row, report
from mutation_bench.td3_catalogue import BENCH, DATA, FAULTS, HEALTHY, LEDGE, MODEL
from mutation_bench.td3_mutations import CustomTarget, OwnDiscount, TerminalsBootstrap

from rlmods.algorithms import SAC, TD3
from rlmods.data import ReplayDataModule
from rlmods.types import Transition

CASES = BENCH.cases
SEED = 100


def test_every_case_is_a_fault_or_healthy() -> None:
    assert len(CASES) == len(FAULTS) + len(HEALTHY)
    assert all(case.causes for case in FAULTS)
    assert not any(case.causes or case.unseen for case in HEALTHY)
    assert not any(case.algorithm not in (TD3, SAC) or case.data_module is not ReplayDataModule for case in HEALTHY)
    assert set(BENCH.smoke) <= CASES.keys()


def transitions(*, terminated: bool) -> Transition:
    """Two of `Ledge`; the second ends its episode, or not."""
    ends = torch.tensor([False, terminated])
    return Transition(
        observation=torch.tensor([[0.1], [-0.9]]),
        action=torch.tensor([[0.0], [0.2]]),
        reward=torch.ones(2),
        discount=0.9 * ~ends,
        next_observation=torch.tensor([[0.2], [-1.1]]),
        terminated=ends,
        truncated=torch.zeros(2, dtype=torch.bool),
    )


def td_targets(algorithm: type[TD3], *, terminated: bool) -> torch.Tensor:
    torch.manual_seed(0)
    model = algorithm(ReplayDataModule(**{**DATA, **LEDGE}).spec, **{**MODEL, "target_policy_noise": 0.0})
    return model.td_target(transitions(terminated=terminated))


def test_targets_are_wrong_by_what_they_say() -> None:
    for terminated in (False, True):
        whole = td_targets(TD3, terminated=terminated)
        torch.testing.assert_close(td_targets(CustomTarget, terminated=terminated), whole)
    open_ended, masked = td_targets(TD3, terminated=False), td_targets(TD3, terminated=True)
    assert masked[1] == 1.0
    torch.testing.assert_close(td_targets(TerminalsBootstrap, terminated=True), open_ended)
    # R + γ′/γ · (target − R)
    torch.testing.assert_close(td_targets(OwnDiscount, terminated=True), 1.0 + 0.98 / 0.9 * (open_ended - 1.0))


@pytest.mark.parametrize(
    ("name", "cause"), [("actor-replaced", "stale_parameters"), ("own-discount", "bootstraps_through_termination")]
)
def test_a_fault_is_found_by_its_name(name: str, cause: str) -> None:
    record = run(BENCH, CASES[name], SEED, total_env_steps=480)
    assert (record["crash"], record["iterations"], record["updates"]) == (None, 30, 88)
    assert [alarm["cause"] for alarm in alarms_from(record, "warn")][:1] == [cause]
    assert cause in CASES[name].causes


def test_a_healthy_run_is_silent() -> None:
    record = run(BENCH, CASES["td3-clip"], SEED, total_env_steps=480)
    assert (record["crash"], alarms_from(record, "warn")) == (None, [])


# The table


def make_record(case: Case, seed: int, *alarms: tuple[int, str, str]) -> Record:
    return Record(
        id=case.id,
        seed=seed,
        iterations=120,
        updates=800,
        onset=case.onset,
        onset_updates=8 * case.onset,
        alarms=[
            Alarm(iteration=at, updates=8 * at, safeguard="guard", cause=cause, severity=severity, message="")
            for at, cause, severity in alarms
        ],
        mean_reward=-1.0,
        crash=None,
        cpu_seconds=1.0,
    )


def test_a_row_counts_updates_from_the_onset() -> None:
    case = CASES["collector-dead"]
    records = [
        make_record(case, 0, (16, "early", "act"), (64, "other", "warn"), (64, "no_new_experience", "act")),
        make_record(case, 1, (64, "other", "warn"), (72, "no_new_experience", "act")),
    ]
    row = fault_row(case, records)
    assert (len(row.right), len(row.firsts), row.delays, row.false_acting) == (2, 2, [32, 96], 1)


def test_the_report_counts() -> None:
    found, unseen, healthy = CASES["target-frozen"], CASES["never-explores"], CASES["ddpg"]
    records = [
        make_record(found, 0, (10, "target_never_moves", "warn")),
        make_record(found, 1),
        make_record(unseen, 0),
        make_record(healthy, 0, (8, "inert_update", "warn")),
        make_record(healthy, 1, (8, "violent_update", "act")),
    ]
    lines = report(BENCH, records).splitlines()
    (row,) = [line for line in lines if line.startswith("| `target-frozen`")]
    assert "| 1/2 | 0/2 | guard | 80 | 1/1 | target_never_moves |" in row
    (row,) = [line for line in lines if line.startswith("| `ddpg`")]
    assert row.endswith("| 2 | -1 | violent_update | inert_update |")
    assert "| runs with a fault: found | 1/3 |" in lines
    assert "| faults found in no run | 1 of 2 |" in lines
    assert "| healthy runs with an acting alarm | 1 |" in lines


def test_of_a_run_that_was_made_twice_the_last_counts(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    assert stored(path) == []
    path.write_text('{"id": "a", "seed": 0, "updates": 1}\n{"id": "a", "seed": 0, "updates": 2}\n')
    assert [record["updates"] for record in stored(path)] == [2]
