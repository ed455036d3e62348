"""The doctor on DreamerV3: its settings, and the traps on the real module, on versions of it and on broken ones."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from dreamers import BOX, OBSERVATIONS, TWO_CHOICES, env_spec, make_dreamer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from mutation_bench import dreamer_mutations as broken
from mutation_bench.dreamer_mutations import Dreamer

from rlmods.doctor.command import diagnose
from rlmods.doctor.line import Line
from rlmods.doctor.values import Interval
from rlmods.doctor.world_model import kl, train_ratio, value_support, warm_up
from rlmods.doctor.world_model_traps import TRAPS, traps
from rlmods.types import ActionSpec


def failed(lines: list[Line]) -> list[str]:
    return [line.name.removeprefix("trap/") for line in lines if line.status != "PASS"]


@pytest.mark.parametrize(("kind", "action"), [("vector", TWO_CHOICES), ("both", BOX)])
def test_the_module_falls_into_no_trap(kind: str, action: ActionSpec) -> None:
    model = make_dreamer(env_spec(OBSERVATIONS[kind], action))
    before = torch.get_rng_state()
    lines = traps(model)
    assert failed(lines) == []
    assert len(lines) == len(TRAPS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("action", "untried"),
    [
        (ActionSpec(kind="continuous", n=0, shape=[1], low=[10.0], high=[30.0]), set()),
        (ActionSpec(kind="discrete", n=1, shape=[], low=[], high=[]), {"trap/sees_observations"}),
        (ActionSpec(kind="multi_discrete", n=0, nvec=[1, 3], shape=[2], low=[], high=[]), set()),
    ],
)
def test_actions_far_from_0_and_without_a_choice_are_no_trap(action: ActionSpec, untried: set[str]) -> None:
    lines = traps(make_dreamer(env_spec(action=action)))
    assert failed(lines) == []
    assert {f"trap/{name}" for name, _, _ in TRAPS} - {line.name for line in lines} == untried


@pytest.mark.parametrize("version", ["v1_2023", "v2_2024"])
def test_neither_do_the_versions_before(version: str) -> None:
    assert failed(traps(make_dreamer(env_spec(), version=version))) == []


@pytest.mark.parametrize(
    ("module", "trap"),
    [
        (broken.KLAveraged, "free_nats"),
        (broken.StraightThroughFreeNats, "free_nats"),
        (broken.PriorSeesPosterior, "prior_before_posterior"),
        (broken.ActionNotReset, "beginnings"),
        (broken.ResetsLate, "beginnings"),
        (broken.RecurrenceDetached, "remembers"),
        (broken.PosteriorIgnoresH, "remembers"),
        (broken.LambdaReturnShifted, "lambda_return"),
        (broken.ContinuationUnused, "dreams_end"),
        (broken.NoContinuationWeight, "dreams_end"),
        (broken.TruncationAsTermination, "time_limits"),
        (broken.PolicyIsBlind, "sees_observations"),
        (broken.ValueNotZero, "first_prediction"),
        (broken.RunningMaximum, "forgets_spikes"),
    ],
)
def test_each_broken_line_is_found_by_its_own_trap(module: type[Dreamer], trap: str) -> None:
    torch.manual_seed(0)
    lines = traps(module(env_spec(), size="1M", imagination_horizon=3))
    assert failed(lines) == [trap]
    assert not any("could not be tried" in line.reason for line in lines)


def test_the_same_loop_with_nothing_broken_passes() -> None:
    assert failed(traps(broken.Stepwise(env_spec(), size="1M"))) == []


def test_a_module_that_cannot_be_tried_says_why() -> None:
    class Other(Dreamer):
        def decide(self, *arguments: Any, **options: Any) -> Any:
            raise RuntimeError("no policy here")

    (line,) = [line for line in traps(Other(env_spec())) if line.status != "PASS"]
    assert line.name == "trap/sees_observations"
    assert line.reason == "It could not be tried: RuntimeError: no policy here"


# Settings


@pytest.mark.parametrize(("ratio", "status"), [(1.0, "WARN"), (32.0, "PASS"), (1_024.0, "PASS"), (1_025.0, "WARN")])
def test_updates_for_each_step(ratio: float, status: str) -> None:
    """The published run took a ratio of 1 for the paper's."""
    line = train_ratio(ratio, 16, 64)
    assert line.status == status
    assert f"= {ratio / 1024:.4g} updates for each environment step" in line.arithmetic


@pytest.mark.parametrize(
    ("last_bin", "num_bins", "high", "status", "word"),
    [
        (147.41, 11, 333.0, "FAIL", "cannot say"),
        (4.85e8, 255, 333.0, "PASS", ""),
        (4.85e8, 11, 333.0, "WARN", "far apart"),
    ],
)
def test_bins_of_the_value(last_bin: float, num_bins: int, high: float, status: str, word: str) -> None:
    line = value_support(last_bin, num_bins, 5.0, Interval(0.0, high))
    assert line.status == status
    assert word in line.reason


@pytest.mark.parametrize(("last_bin", "status"), [(147.41, "WARN"), (4.85e8, "PASS")])
def test_bins_of_values_that_are_not_known(last_bin: float, status: str) -> None:
    assert value_support(last_bin, 255, 5.0, None).status == status


@pytest.mark.parametrize(
    ("settings", "status", "word"),
    [
        ((1.0, 0.1, 1.0, 0.01), "PASS", ""),
        ((0.5, 0.1, 1.0, 0.01), "PASS", ""),  # 2023
        ((0.99, 0.99, 1.0, 0.01), "WARN", "forgets what it sees"),
        ((1.0, 0.1, 1.0, 0.0), "WARN", "infinite"),
        ((1.0, 0.1, 0.0, 0.01), "WARN", "No nat is free"),
        ((0.0, 0.1, 1.0, 0.01), "FAIL", "Nothing moves the prior"),
    ],
)
def test_the_balance_of_the_kl(settings: tuple[float, float, float, float], status: str, word: str) -> None:
    line = kl(*settings)
    assert line.status == status
    assert word in line.reason


@pytest.mark.parametrize(("updates", "status"), [(250, "PASS"), (251, "WARN")])
def test_a_warm_up_within_the_run(updates: int, status: str) -> None:
    assert warm_up(updates, 1_000).status == status


def test_the_shipped_configuration_and_a_published_one() -> None:
    """1,250 iterations of 32 steps, the first of which wait for 1,024 rows: 32 of them; 8 updates each."""
    diagnosis = diagnose(["dreamer_v3_cartpole"])
    assert [line.text for line in diagnosis.lines if line.status == "FAIL"] == []
    (line,) = [line for line in diagnosis.lines if line.name == "updates"]
    assert "9,752 updates" in line.arithmetic
    assert sum(line.name.startswith("trap/") for line in diagnosis.lines) == len(TRAPS)
    bins = ["--model.init_args.num_bins=11", "--model.init_args.log_bound=5"]
    published = diagnose(["dreamer_v3_cartpole", *bins])
    assert [line.name for line in published.lines if line.status == "FAIL"] == ["refused", "value_support"]


def test_what_the_version_decides_is_in_effect() -> None:
    diagnosis = diagnose(["dreamer_v3_paper_2023", "--model.init_args.actor_unimix", "0.02"])
    effective = {setting.name: setting.effective for setting in diagnosis.settings}
    assert effective["model.init_args.beta_dyn"] == 0.5
    assert effective["model.init_args.behaviour_learning_rate"] == 3e-5
    assert effective["model.init_args.replay_value_coef"] == 0.0
    assert effective["model.init_args.actor_unimix"] == "no effect"
    assert effective["data.init_args.learning_starts"] == 1024
