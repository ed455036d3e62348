"""The fault bench of expert curricula: each case can be built, and faults are found by name."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mutation_bench.experiment import Alarm, Record, alarms_from, run
from mutation_bench.expert_catalogue import BENCH, DATA, FAULTS, HEALTHY, MODEL, Case
from mutation_bench.expert_mutations import HorizonIgnored, _RecentBySlot
from mutation_bench.report import report

from rlmods.algorithms import DQN
from rlmods.data import ExpertDataModule, StratifiedReplayBuffer
from rlmods.types import EnvSpec, Transition

CASES = {case.id: case for case in [*FAULTS, *HEALTHY]}
SPEC: EnvSpec = {
    "env_id": "test",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}


def test_every_case_is_a_fault_or_healthy() -> None:
    assert len(CASES) == len(FAULTS) + len(HEALTHY)
    assert len(FAULTS) >= 10
    assert len(HEALTHY) >= 10
    assert all(case.causes for case in FAULTS)
    assert not any(case.causes or case.unseen for case in HEALTHY)
    assert not any(case.algorithm is not DQN or case.data_module is not ExpertDataModule for case in HEALTHY)
    assert set(BENCH.smoke) <= CASES.keys()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_can_be_built(case: Case) -> None:
    data = case.data_module(**{**DATA, **case.data})
    case.algorithm(data.spec, **{**MODEL, **case.model})


def rows(first: int, last: int) -> Transition:
    number = torch.arange(first, last)
    column = number.float()
    flags = torch.zeros_like(number, dtype=torch.bool)
    return Transition(column[:, None], number % 2, column, column, column[:, None], flags, flags)


@pytest.mark.parametrize(("kind", "is_recent"), [(StratifiedReplayBuffer, True), (_RecentBySlot, False)])
def test_after_the_ring_wraps_the_highest_slots_are_not_the_recent_ones(
    kind: type[StratifiedReplayBuffer], is_recent: bool
) -> None:
    """Of 12 transitions in 8 slots those of the slots 0 to 3 are the newest."""
    buffer = kind(SPEC, 8, seed=0, replay_strata={"recent": 1.0})
    buffer.extend(rows(0, 12))
    drawn = buffer.sample(1, 64, 1.0).index.numpy()
    assert np.isin(drawn, [2, 3]).all() == is_recent


def test_a_horizon_that_is_ignored_is_a_full_one() -> None:
    data = ExpertDataModule(**DATA)
    model = HorizonIgnored(data.spec, **MODEL)

    class Trainer:
        datamodule = data

    model._trainer = Trainer()  # type: ignore[assignment]
    transition = rows(0, 3)._replace(
        observation=torch.zeros(3, 122),
        next_observation=torch.zeros(3, 122),
        reward=torch.zeros(3),
        discount=torch.tensor([0.95, 0.95**3, 0.0]),
    )
    target = model.td_target(transition)
    assert target[0] == pytest.approx(float(target[1]))
    assert target[2] == 0.0
    assert DQN.td_target(model, transition)[0] == pytest.approx(float(target[1]) / 0.95**2)


def test_a_fault_is_found_and_a_healthy_run_is_silent() -> None:
    for name, expected in (("rate-replaced", ["setting_not_in_effect"]), ("curriculum", [])):
        record = run(BENCH, CASES[name], 100, total_env_steps=2_048)
        assert record["crash"] is None
        assert [alarm["cause"] for alarm in alarms_from(record, "warn")] == expected


def test_the_report_counts() -> None:
    alarm = Alarm(
        iteration=9,
        updates=36,
        safeguard="effective_settings",
        cause="share_not_in_effect",
        severity="warn",
        message="",
    )
    empty = Record(
        id="",
        seed=0,
        iterations=16,
        updates=64,
        onset=0,
        onset_updates=0,
        alarms=[],
        mean_reward=1.0,
        crash=None,
        cpu_seconds=1.0,
    )
    records: list[Record] = [
        {**empty, "id": "floor-not-enforced", "alarms": [alarm]},
        {**empty, "id": "flag-shifted"},
        {**empty, "id": "half", "alarms": [alarm]},
    ]
    lines = report(BENCH, records).splitlines()
    (row,) = [line for line in lines if line.startswith("| `floor-not-enforced`")]
    assert "| 1/1 | 0/1 | effective_settings | 36 | 1/1 | share_not_in_effect |" in row
    assert "| runs with a fault: found | 1/2 |" in lines
    assert "| healthy runs with a warning | 1 |" in lines
