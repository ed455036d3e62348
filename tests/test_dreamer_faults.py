"""The fault bench of DreamerV3: each case can be built, and faults are found by name."""

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from mutation_bench.dreamer_catalogue import BENCH, DATA, FAULTS, HEALTHY, MODEL, Case
from mutation_bench.dreamer_mutations import Dreamer
from mutation_bench.experiment import alarms_from, run

from rlmods.configs import find_config
from rlmods.data import SequenceDataModule

CASES = {case.id: case for case in [*FAULTS, *HEALTHY]}


def test_every_case_is_a_fault_or_healthy() -> None:
    assert len(CASES) == len(FAULTS) + len(HEALTHY)
    assert len(FAULTS) >= 15
    assert len(HEALTHY) >= 8
    assert all(case.causes for case in FAULTS)
    assert not any(case.causes or case.unseen for case in HEALTHY)
    assert not any(case.algorithm is not Dreamer or case.data_module is not SequenceDataModule for case in HEALTHY)
    assert set(BENCH.smoke) <= CASES.keys()


def test_the_safeguards_are_those_of_the_preset() -> None:
    """But for when they begin to speak."""
    bench, shipped = (
        yaml.safe_load(find_config(name).read_text()) for name in (BENCH.preset, "safeguards/world_model")
    )
    classes = [[entry["class_path"] for entry in preset["trainer"]["callbacks+"]] for preset in (bench, shipped)]
    assert classes[0] == classes[1]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_case_can_be_built(case: Case) -> None:
    data: Any = case.data_module(**{**DATA, **case.data})
    case.algorithm(data.spec, **{**MODEL, **case.model})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("support-147", ["support_too_small"]), ("ends-lost", ["episode_ends_lost"]), ("cartpole", [])],
)
def test_a_fault_is_found_and_a_healthy_run_is_silent(name: str, expected: list[str]) -> None:
    record = run(BENCH, CASES[name], 100, total_env_steps=132)
    assert record["crash"] is None
    assert record["updates"] > 0
    assert [alarm["cause"] for alarm in alarms_from(record, "warn")] == expected
