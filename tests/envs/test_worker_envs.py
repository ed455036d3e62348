import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from rlmods.envs import worker_pool
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.worker_envs import WorkerEnvironments
from rlmods.envs.worker_pool import WorkerError
from rlmods.types import StepResult

TOLD, UNRULY = "unruly_environments:Told-v0", "unruly_environments:Unruly-v0"


def make_workers(
    env_id: str, num_envs: int, num_workers: int, *, double_buffering: bool = False, **env_kwargs: Any
) -> WorkerEnvironments:
    spec = env_spec(env_id, {} if env_id == UNRULY and env_kwargs["manner"] == "refuse" else env_kwargs)
    make = partial(make_envs, env_id, env_kwargs=env_kwargs, borrow=True)
    return WorkerEnvironments(make, spec, num_envs, num_workers, double_buffering=double_buffering)


def actions(env_id: str, generator: np.random.Generator, num_envs: int) -> Any:
    return generator.uniform(-1, 1, (num_envs, 2)) if env_id == TOLD else generator.integers(0, 2, num_envs)


def parts_of(result: StepResult, rows: slice) -> dict[str, Any]:
    """Every array of some environments, by name."""
    named: dict[str, Any] = {}
    for name, field in result._asdict().items():
        named |= {
            f"{name}/{key}": array[rows] for key, array in (field if isinstance(field, dict) else {"": field}).items()
        }
    return named


def assert_same(result: StepResult, expected: StepResult, rows: slice) -> None:
    got, wanted = parts_of(result, slice(None)), parts_of(expected, rows)
    for name, array in wanted.items():
        if name.startswith(("reported_rates/", "sums/")) and name not in got:
            assert np.isnan(array).all(), name  # ended in another part alone
            continue
        assert got[name].dtype == array.dtype, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def are_gone(pids: list[int], within: float = 5.0) -> bool:
    """Neither running nor zombies."""
    deadline = time.monotonic() + within
    while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not any(psutil.pid_exists(pid) for pid in pids)


def step_all(workers: WorkerEnvironments, steps: int) -> None:
    for _ in range(steps):
        for part in workers.parts:
            part.start(np.zeros(part.num_envs, np.int64))
        for part in workers.parts:
            part.finish()


@pytest.mark.parametrize(
    ("env_id", "num_workers", "double_buffering"),
    [("CartPole-v1", 1, True), ("CartPole-v1", 2, False), (TOLD, 2, True), (TOLD, 4, False)],
)
def test_they_are_bit_for_bit_those_of_one_process(env_id: str, num_workers: int, double_buffering: bool) -> None:
    kwargs = {"max_episode_steps": 9}
    workers = make_workers(env_id, 4, num_workers, double_buffering=double_buffering, **kwargs)
    expected = make_envs(env_id, 4, env_kwargs=kwargs, vectorization="sync")
    generator = np.random.default_rng(0)
    first, wanted = workers.reset(7), expected.reset(7)
    assert parts_of_observation(first).keys() == parts_of_observation(wanted).keys()
    for key, array in parts_of_observation(wanted).items():
        np.testing.assert_array_equal(parts_of_observation(first)[key], array)
    size = 4 // len(workers.parts)
    for _ in range(40):
        action = actions(env_id, generator, 4)
        for number, part in enumerate(workers.parts):
            part.start(action[number * size : (number + 1) * size])
        result = expected.step(action)
        for number, part in enumerate(workers.parts):
            assert_same(part.finish(), result, slice(number * size, (number + 1) * size))
    pids = workers.pids
    assert len(pids) == num_workers
    workers.close()
    assert are_gone(pids)


def parts_of_observation(observation: Any) -> dict[str, Any]:
    return observation if isinstance(observation, dict) else {"": observation}


def test_a_native_implementation_is_used_where_it_is_faster_and_its_reset_frames_are_masked() -> None:
    workers = make_workers("CartPole-v1", 10, 2, max_episode_steps=4)
    workers.reset(0)
    (part,) = workers.parts
    valid = []
    for _ in range(10):
        part.start(np.arange(10) % 2)
        valid.append(part.finish().valid)
    workers.close()
    assert workers.autoreset_mode == "NextStep"
    assert [bool(row.all()) for row in valid] == [True] * 4 + [False] + [True] * 4 + [False]
    # Each worker draws its own random numbers, which follow from the seed.
    again, other = (make_envs("CartPole-v1", 5).reset_share(0, first) for first in (0, 5))
    assert not np.array_equal(again, other)  # type: ignore[arg-type]


def test_no_array_is_overwritten_by_a_later_step() -> None:
    workers = make_workers(TOLD, 2, 1)
    workers.reset(0)
    (part,) = workers.parts
    part.start(np.ones((2, 2)))
    result = part.finish()
    before = {name: array.copy() for name, array in parts_of(result, slice(None)).items()}
    for _ in range(5):
        part.start(np.full((2, 2), 0.5))
        part.finish()
    workers.close()
    assert all(
        np.array_equal(array, before[name], equal_nan=True) for name, array in parts_of(result, slice(None)).items()
    )


def test_they_go_on_from_a_state(tmp_path: Path) -> None:
    first, second = (make_workers("CartPole-v1", 4, 2, double_buffering=True) for _ in range(2))
    first.reset(3)
    step_all(first, 5)
    state = first.state_dict()
    assert first.can_save
    torch.save(state, tmp_path / "state.pt")
    second.reset(99)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(30):
        for part, other in zip(first.parts, second.parts, strict=True):
            part.start(np.ones(2, np.int64))
            other.start(np.ones(2, np.int64))
            assert_same(part.finish(), other.finish(), slice(None))
    alone = make_workers("CartPole-v1", 4, 1)
    with pytest.raises(ValueError, match=r"expected the number of workers and groups.*\(2, 2\), got \(1, 1\)"):
        alone.load_state_dict(state)  # type: ignore[arg-type]
    for workers in (first, second, alone):
        workers.close()
    assert first.state_dict() is None


def test_a_step_that_nobody_waits_for_is_waited_for_before_the_next_request() -> None:
    """As after an exception of the policy of the other half."""
    workers = make_workers("CartPole-v1", 4, 2, double_buffering=True)
    workers.reset(0)
    workers.parts[0].start(np.zeros(2, np.int64))
    assert workers.state_dict() is not None
    assert not workers.parts[0].is_stepping
    step_all(workers, 2)
    workers.close()


# What goes wrong


@pytest.mark.parametrize(
    ("manner", "message"),
    [
        ("raise", r"worker 1 of 2 \(2 environments of unruly_environments:Unruly-v0\) raised.*the rotor has no blades"),
        ("die", r"worker 1 of 2 .* was ended by SIGKILL.*type a smaller num_workers"),
        ("leave", r"worker 1 of 2 .* ended by itself with exit code 7"),
    ],
)
def test_a_worker_that_fails_ends_all_of_them(manner: str, message: str) -> None:
    workers = make_workers(UNRULY, 4, 2, manner=manner)
    workers.reset(0)
    pids = workers.pids
    step_all(workers, 2)
    with pytest.raises(WorkerError, match=f"(?s){message}") as raised:
        step_all(workers, 1)
    assert ("Traceback" in str(raised.value)) == (manner == "raise")
    assert are_gone(pids)
    assert workers.state_dict() is None
    workers.close()
    with pytest.raises(WorkerError, match="the workers have been ended"):
        step_all(workers, 1)


def test_a_worker_that_is_killed_while_it_waits() -> None:
    workers = make_workers("CartPole-v1", 4, 2)
    workers.reset(0)
    pids = workers.pids
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match=r"worker 2 of 2 .* was ended by SIGKILL"):
        step_all(workers, 1)
    assert are_gone(pids)


def test_ctrl_c_and_sigterm_are_for_the_main_process() -> None:
    workers = make_workers("CartPole-v1", 4, 2)
    workers.reset(0)
    for pid in workers.pids:
        os.kill(pid, signal.SIGINT)
        os.kill(pid, signal.SIGTERM)
    step_all(workers, 2)
    assert workers.state_dict() is not None
    workers.close()


def test_a_worker_that_hangs_is_ended_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_pool, "_GRACE", 0.1)
    workers = make_workers(UNRULY, 2, 1, manner="hang")
    workers.reset(0)
    pids = workers.pids
    step_all(workers, 2)
    workers.parts[0].start(np.zeros(2, np.int64))
    workers.close()
    assert are_gone(pids)


def test_environments_that_a_worker_cannot_make() -> None:
    spec = env_spec("CartPole-v1")
    make = partial(make_envs, UNRULY, env_kwargs={"manner": "refuse"})
    with pytest.raises(WorkerError, match=r"(?s)worker 1 of 2 .* raised.*RuntimeError: no display"):
        WorkerEnvironments(make, spec, 4, 2)


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_it_lacks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace('if __name__ == "__main__":', "if True:"))
    ended = subprocess.run([sys.executable, str(script), ""], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert 'put what it does under if __name__ == "__main__":' in ended.stderr.splitlines()[-1]


def test_workers_that_are_forgotten_end() -> None:
    workers = make_workers("CartPole-v1", 2, 1)
    pids = workers.pids
    del workers
    assert are_gone(pids)


SCRIPT = """
import os, signal, sys
from functools import partial
from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.worker_envs import WorkerEnvironments

if __name__ == "__main__":
    workers = WorkerEnvironments(partial(make_envs, "CartPole-v1"), env_spec("CartPole-v1"), 4, 2)
    workers.reset(0)
    print(*workers.pids, flush=True)
    if sys.argv[1] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("nobody has closed them")
"""


@pytest.mark.parametrize("how", [pytest.param("kill", marks=pytest.mark.slow), "raise"])
def test_they_end_with_the_main_process_and_leave_nothing(tmp_path: Path, how: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = subprocess.run([sys.executable, str(script), how], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == (-9 if how == "kill" else 1)
    assert are_gone([int(pid) for pid in ended.stdout.split()])
    # No word of a resource tracker, nor of a process that was waited for.
    assert how == "kill" or re.fullmatch(r"Traceback .*\n(  .*\n)+RuntimeError: nobody has closed them\n", ended.stderr)
    assert how == "raise" or ended.stderr == ""


def test_a_plain_environment_has_one_part_that_steps_when_it_is_waited_for() -> None:
    environments = make_envs("CartPole-v1", 2)
    expected = make_envs("CartPole-v1", 2)
    environments.reset(0)
    expected.reset(0)
    (part,) = environments.parts
    assert isinstance(part, Environments)
    part.start(np.zeros(2, np.int64))
    assert_same(part.finish(), expected.step(np.zeros(2, np.int64)), slice(None))
