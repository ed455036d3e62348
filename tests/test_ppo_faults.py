"""The fault bench of PPO: each case can be built, faults are found by name, and mutations break what they say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mutation_bench.__main__ import stored
from mutation_bench.case import Case
from mutation_bench.experiment import Alarm, Record, alarms_from, run
from mutation_bench.ppo_advantage_mutations import (
    AdvantageFlipped,
    DiscountTwice,
    NoBootstrapAtEnd,
    TracesCrossEnds,
    TracesUndiscounted,
)
from mutation_bench.ppo_catalogue import BENCH, DATA, FAULTS, HEALTHY, MODEL
from mutation_bench.report import fault_row, report

from rlmods.algorithms import PPO, ppo
from rlmods.data import RolloutDataModule
from rlmods.functional.off_policy import vtrace_advantage
from rlmods.types import Decisions, Rollout

CASES = BENCH.cases
SEED = 100


def test_every_case_is_a_fault_or_healthy() -> None:
    assert len(CASES) == len(FAULTS) + len(HEALTHY)
    assert len(FAULTS) > 20
    assert all(case.causes for case in FAULTS)
    assert not any(case.causes or case.unseen for case in HEALTHY)
    assert not any(case.algorithm is not PPO or case.data_module is not RolloutDataModule for case in HEALTHY)
    assert set(BENCH.smoke) <= CASES.keys()


def advantages(algorithm: type[PPO]) -> torch.Tensor:
    """Three steps of one environment with r = 1, 1, 2 and V = 2 everywhere; the second terminates its episode."""
    torch.manual_seed(0)
    data = RolloutDataModule(**DATA)
    model = algorithm(data.spec, **{**MODEL, "gae_lambda": 0.5})
    *_, (_, weight), (_, bias) = model.networks.critic.named_parameters()
    torch.nn.init.zeros_(weight)
    torch.nn.init.constant_(bias, 2.0)
    ends = torch.tensor([[False], [True], [False]])
    observation = torch.zeros(3, 1, 4)
    decisions = Decisions(torch.zeros(3, 1, dtype=torch.int64), *(torch.zeros(3, 1, n) for n in (1, 0, 0)))
    rollout = Rollout(
        observation=observation,
        action=decisions.sample,
        reward=torch.tensor([[1.0], [1.0], [2.0]]),
        discount=0.5 * ~ends,
        next_observation=observation,
        terminated=ends,
        truncated=torch.zeros_like(ends),
        valid=torch.ones_like(ends),
        env_steps=3,
        progress=0.0,
        decisions=decisions._replace(log_prob=torch.zeros(3, 1)),
    )
    _, signals = model.segments(rollout)
    return signals["advantage"].flatten()


def test_advantages_are_wrong_by_what_they_say() -> None:
    """γ = λ = 0.5: δ = 1 + 1 − 2 = 0, 1 − 2 = −1 at the termination, 2 + 1 − 2 = 1."""
    assert advantages(PPO).tolist() == pytest.approx([-0.25, -1.0, 1.0])
    assert advantages(AdvantageFlipped).tolist() == pytest.approx([0.25, 1.0, -1.0])
    assert advantages(TracesUndiscounted).tolist() == pytest.approx([-0.5, -1.0, 1.0])
    assert advantages(TracesCrossEnds).tolist() == pytest.approx([-0.1875, -0.75, 1.0])
    assert advantages(NoBootstrapAtEnd).tolist() == pytest.approx([-0.25, -1.0, 0.0])
    # γ = 0.25: δ = −0.5, −1, 0.5; the second weighs an eighth in the first.
    assert advantages(DiscountTwice).tolist() == pytest.approx([-0.625, -1.0, 0.5])
    assert ppo.__dict__["vtrace_advantage"] is vtrace_advantage  # and was put back


@pytest.mark.parametrize(
    ("name", "cause"),
    [("memory-forgotten", "first_ratio_not_one"), ("no-bootstrap-truncation", "no_bootstrap_at_truncation")],
)
def test_a_fault_is_found_by_its_name(name: str, cause: str) -> None:
    record = run(BENCH, CASES[name], SEED, total_env_steps=512)
    assert record["crash"] is None
    assert [alarm["cause"] for alarm in alarms_from(record, "warn")][:1] == [cause]
    assert cause in CASES[name].causes


def test_a_healthy_run_is_silent() -> None:
    record = run(BENCH, CASES["cartpole"], SEED, total_env_steps=768)
    assert (record["crash"], record["iterations"], record["updates"]) == (None, 3, 120)
    assert alarms_from(record, "warn") == []


# The table


def make_record(case: Case, seed: int, *alarms: tuple[int, str, str]) -> Record:
    return Record(
        id=case.id,
        seed=seed,
        iterations=32,
        updates=1_280,
        onset=case.onset,
        onset_updates=40 * case.onset,
        alarms=[
            Alarm(iteration=at, updates=40 * at, safeguard="guard", cause=cause, severity=severity, message="")
            for at, cause, severity in alarms
        ],
        mean_reward=10.0,
        crash=None,
        cpu_seconds=1.0,
    )


def test_a_row_counts_updates_from_the_onset() -> None:
    case = CASES["reward-nan"]
    records = [
        make_record(case, 0, (4, "early", "act"), (9, "other", "warn"), (9, "non_finite_reward", "act")),
        make_record(case, 1, (9, "other", "warn"), (10, "non_finite_reward", "act")),
    ]
    row = fault_row(case, records)
    assert (len(row.right), len(row.firsts), row.delays, row.false_acting) == (2, 2, [40, 80], 1)


def test_the_report_counts() -> None:
    found, unseen, healthy = CASES["lr-zero"], CASES["surrogate-flipped"], CASES["lstm"]
    records = [
        make_record(found, 0, (10, "policy_stall", "warn")),
        make_record(found, 1),
        make_record(unseen, 0),
        make_record(healthy, 0, (8, "inert_update", "warn")),
    ]
    lines = report(BENCH, records).splitlines()
    (row,) = [line for line in lines if line.startswith("| `lr-zero`")]
    assert "| 1/2 | 0/2 | guard | 400 | 1/1 | policy_stall |" in row
    assert "| runs with a fault: found | 1/3 |" in lines
    assert "| healthy runs with a warning | 1 |" in lines


def test_where_there_is_no_file_there_are_no_runs(tmp_path: Path) -> None:
    assert stored(tmp_path / "runs.jsonl") == []
