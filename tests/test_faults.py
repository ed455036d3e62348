"""The fault bench: its overlays break what they say and not before the onset, and its statistics are right."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from faults.catalogue import FAULTS
from faults.clock import CLOCK
from faults.configurations import CONFIGURATIONS
from faults.environments import Corridor, ScaledReward, Solved, bench_id
from faults.experiment import Task, build, run
from faults.measures import area, collapse, detection, final_return, recovery, tenth_percentile, wilson
from faults.modules import ClipPerTensor, FaultyData, FaultyDQN, HeadOutsideClip, TerminalsLost
from faults.records import Alarm, Arm, Point, Record, path_of, write_record
from faults.report import report
from faults.run import SettingsDifferError, plan, run_missing

from rlmods.functional.norms import global_norm
from rlmods.types import Transition

TRANSITION = Transition(
    observation=torch.zeros(3, 4),
    action=torch.tensor([0, 1, 0]),
    reward=torch.ones(3),
    discount=torch.tensor([0.5, 0.0, 0.5]),
    next_observation=torch.ones(3, 4),
    terminated=torch.tensor([False, True, False]),
    truncated=torch.tensor([False, False, True]),
)


@pytest.fixture(autouse=True)
def clock() -> Iterator[None]:
    yield
    CLOCK.progress = 0.0


def broken_dqn(name: str) -> FaultyDQN:
    model, _, _ = build(Task("faulty", name, 100))
    assert isinstance(model, FaultyDQN)
    return model


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_can_be_built_and_written_down(name: str) -> None:
    task = Task("faulty", name, 100)
    assert json.loads(json.dumps(task.settings())) == task.settings()
    model, data, callbacks = build(task)
    fault = FAULTS[name]
    assert model.target_update_interval == task.settings()["model"].get("target_update_interval") or fault.model
    changed = [fault.algorithm, fault.data_module, fault.callback, fault.env, fault.model]
    assert sum(bool(each) for each in changed) == 1
    assert type(data).__name__ == (fault.data_module or type(data)).__name__
    assert len(callbacks) == (fault.callback is not None)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_healthy_configuration_can_be_built(name: str) -> None:
    model, data, _ = build(Task("healthy", name, 100))
    assert model.spec["env_id"] == data.env_id


def test_a_wrong_discount_begins_at_its_onset() -> None:
    model = broken_dqn("wrong-gamma")
    value = (model.td_target(TRANSITION) - TRANSITION.reward) / 0.5
    CLOCK.progress = 0.31
    torch.testing.assert_close(model.td_target(TRANSITION), 1.0 + TRANSITION.discount * 0.9 / 0.99 * value)


def test_clip_overlays_leave_what_they_should_clip() -> None:
    for name, kind in (("C6-clip-per-tensor", ClipPerTensor), ("C1-head-outside-clip", HeadOutsideClip)):
        model = broken_dqn(name)
        assert isinstance(model, kind)
        for parameter in model.q_network.parameters():
            parameter.grad = torch.ones_like(parameter)
        assert model.max_grad_norm == 0.5
        model.clip()
        norms = [float(gradient.norm()) for gradient in model.gradients()]
        if kind is ClipPerTensor:
            assert norms == pytest.approx([0.5] * 6, rel=1e-3)
        else:
            assert float(global_norm(model.gradients()[:4])) == pytest.approx(0.5, rel=1e-3)
            assert norms[4:] == pytest.approx([256**0.5, 2**0.5])


def test_lost_terminals_bootstrap() -> None:
    _, data, _ = build(Task("faulty", "X07-terminals-lost", 100))
    assert isinstance(data, TerminalsLost)
    stored = data.stored(TRANSITION)
    torch.testing.assert_close(stored.discount, torch.tensor([0.5, 0.99**3, 0.5]))
    assert not stored.terminated.any()
    assert stored.truncated.tolist() == [False, False, True]


def test_nothing_is_stored_of_a_dead_collector() -> None:
    _, data, _ = build(Task("faulty", "X28-collector-dead", 100))
    assert isinstance(data, FaultyData)
    assert all(len(field) == 0 for field in data.stored(TRANSITION))


def test_a_broken_environment_is_intact_before_the_onset() -> None:
    env = gym.make(bench_id(ScaledReward), env_id="CartPole-v1", onset=0.5, factor=100.0)
    env.reset(seed=0)
    assert env.step(0)[1] == 1.0
    CLOCK.progress = 0.5
    assert env.step(1)[1] == 100.0


def test_the_corridor_rewards_its_end_only() -> None:
    env = Corridor()
    env.reset(seed=0)
    assert env.step(1 - int(env.forward[0]))[1:3] == (0.0, False)
    rewards = [env.step(int(env.forward[env.cell]))[1] for _ in range(Corridor.LENGTH - 1)]
    assert rewards == [0.0] * (Corridor.LENGTH - 2) + [1.0]
    solved = Solved()
    solved.reset(seed=0)
    assert [solved.step(1)[1:3] for _ in range(Solved.LENGTH)][-2:] == [(1.0, False), (1.0, True)]


def test_a_run_leaves_its_record() -> None:
    record = run(Task("faulty", "X24-averaged-twice", 100, 1_088))
    assert record["crash"] is None
    assert record["updates"] == 32 * (1 + (1_088 - 512) // 64)
    assert [point["env_steps"] for point in record["evaluations"]] == [1_024, 1_088]
    assert record["alarms"] == []


# Statistics


def make_record(
    means: list[float],
    *,
    arm: Arm = "healthy",
    name: str = "small",
    seed: int = 0,
    alarms: list[Alarm] | None = None,
    every: int = 100,
    budget: int = 1_000,
) -> Record:
    task = Task(arm, name, seed)
    return Record(
        arm=arm,
        name=name,
        configuration=task.configuration,
        seed=seed,
        settings={"data": {"eval_every": every}},
        guards=[],
        evaluations=[Point(env_steps=every * (number + 1), mean=mean) for number, mean in enumerate(means)],
        alarms=alarms or [],
        actions=[],
        stop=None,
        crash=None,
        budget=budget,
        env_steps=every * len(means),
        updates=budget,
        onset_updates=300,
        wall_seconds=1.0,
    )


def make_alarm(env_steps: int, cause: str, severity: str) -> Alarm:
    return Alarm(
        env_steps=env_steps,
        iteration=env_steps,
        updates=env_steps,
        safeguard="x",
        cause=cause,
        severity=severity,
        message="",
    )


def test_wilson_says_what_twenty_quiet_runs_prove() -> None:
    interval = wilson(0, 20)
    assert (interval.low, interval.high) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(19, 20)[2:] == pytest.approx((0.7639, 0.9911), abs=1e-4)
    assert tenth_percentile([float(value) for value in range(11)]) == pytest.approx(1.0)


def test_a_stopped_run_is_held_at_its_last_evaluation() -> None:
    stopped = make_record([100.0, 300.0])
    assert final_return(stopped, 20.0) == 300.0
    # 20 to 100 to 300, then 300 for eight tenths of the budget.
    assert area(stopped, 0.0, 20.0) == pytest.approx(0.1 * 60 + 0.1 * 200 + 0.8 * 300)
    assert area(stopped, 0.5, 20.0) == pytest.approx(300.0)
    assert final_return(make_record([]), 20.0) == 20.0


def test_recovery_is_the_part_of_the_loss_that_was_saved() -> None:
    assert recovery(guarded=75.0, unguarded=50.0, healthy=100.0) == pytest.approx(0.5)
    assert recovery(guarded=0.0, unguarded=50.0, healthy=100.0) == -1.0
    assert recovery(guarded=50.0, unguarded=100.0, healthy=90.0) is None


def test_a_collapse_lasts() -> None:
    healthy = [make_record([400.0] * 10)]
    dip = make_record([400.0, 400.0, 400.0, 20.0, 20.0, 400.0, 400.0, 400.0, 400.0, 400.0])
    assert collapse(dip, healthy, 20.0) is None
    # The mean of three falls below 210, half of the way, at the second evaluation of 20.
    fall = make_record([400.0, 400.0, 400.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0])
    assert collapse(fall, healthy, 20.0) == 500


def test_a_detection_comes_after_the_onset_and_the_most_severe_cause_first() -> None:
    fault = FAULTS["wrong-gamma"]  # from 300 steps on
    record = make_record(
        [1.0],
        arm="faulty-guarded",
        name=fault.id,
        alarms=[
            make_alarm(100, "early", "act"),
            make_alarm(400, "value_gap", "warn"),
            make_alarm(400, "discount_mismatch", "act"),
            make_alarm(400, "rollback_due", "fatal"),
        ],
    )
    found = detection(record, fault, "warn")
    assert found is not None
    assert found.causes == ("discount_mismatch", "value_gap")
    assert (found.env_steps, found.delay_env_steps, found.delay_updates) == (400, 100, 100)
    assert detection(record, fault, "fatal") is None


def test_the_report_counts() -> None:
    fault = FAULTS["X26-detached-trunk"]
    records = []
    for seed in range(2):
        records += [
            make_record([400.0] * 10, seed=seed),
            make_record([396.0] * 10, arm="healthy-guarded", seed=seed),
            make_record([20.0] * 10, arm="faulty", name=fault.id, seed=seed),
            make_record(
                [210.0] * 10,
                arm="faulty-guarded",
                name=fault.id,
                seed=seed,
                alarms=[make_alarm(200, "no_gradient", "warn")] if seed == 0 else [],
            ),
        ]
    lines = report(records).splitlines()
    row = next(line for line in lines if line.startswith("| `X26"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1:7] == ["liveness", "0%", "20 (400)", "**yes**, 2/2", "1/2", "0/2"]
    assert cells[10:] == ["1/1", "0.50"]
    (harmful,) = [line for line in lines if line.startswith("| harmful faults")]
    assert "1/2 = 50% (9% to 91%)" in harmful
    (kept,) = [line for line in lines if line.startswith("| area with")]
    assert "98.9%" in kept


def test_the_runner_refuses_records_of_other_settings(tmp_path: Path) -> None:
    write_record(path_of(tmp_path, "healthy", "small", 0), make_record([1.0]))
    with pytest.raises(SettingsDifferError, match=r"seed_0\.json was made with other settings"):
        run_missing([Task("healthy", "small", 0)], tmp_path, jobs=1)


def test_the_healthy_runs_are_shared_by_the_faults() -> None:
    tasks = list(plan(["X26-detached-trunk", "pinned-loss"], ["healthy", "faulty"], [100]))
    assert [(task.arm, task.name) for task in tasks] == [
        ("healthy", "small"),
        ("faulty", "X26-detached-trunk"),
        ("faulty", "pinned-loss"),
    ]
