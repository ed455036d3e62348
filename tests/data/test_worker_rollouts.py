"""Rollouts from environments in worker processes, with and without double buffering."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_datamodule import fit
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.callbacks import GlobalRNG
from rlmods.data import RolloutDataModule
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.envs.worker_envs import WorkerEnvironments
from rlmods.envs.worker_pool import WorkerError
from rlmods.types import Observation, Rollout

CPU = torch.device("cpu")
WORKERS: dict[str, Any] = {"vectorization": "workers", "num_workers": 2}


def make_data(**options: Any) -> RolloutDataModule:
    defaults = {"num_envs": 4, "n_steps": 12, "gamma": 0.9, "eval_episodes": 2, "eval_every": 96, "seed": 0}
    kwargs = {"env_id": "CartPole-v1", "total_env_steps": 144, "env_kwargs": {"max_episode_steps": 9}}
    return RolloutDataModule(**(kwargs | defaults | options))  # type: ignore[arg-type]


def make_ppo(data: RolloutDataModule, **options: Any) -> PPO:
    return PPO(data.spec, hidden_sizes=(8,), batch_size=12, n_epochs=2, **options)


def weights(model: LightningModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(folder: Path, data: RolloutDataModule, *callbacks: Callback, **options: Any) -> tuple[PPO, Trainer]:
    torch.manual_seed(0)
    model = make_ppo(data, **options)
    trainer = fit(folder, data, model, callbacks=[GlobalRNG(), *callbacks])  # type: ignore[arg-type]
    return model, trainer


class Leaning:
    """Pushes the cart to the side to which the pole leans, and keeps what it was given."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, Tensor)
        self.sizes.append(len(observation))
        return (observation[:, 2] > 0).long()


def same(first: Rollout, second: Rollout) -> bool:
    pairs: Any = zip(first, second, strict=True)
    return all(torch.equal(one, other) if isinstance(one, Tensor) else one == other for one, other in pairs)


def collector_of(data: RolloutDataModule) -> RolloutCollector:
    data.trainer = Trainer(logger=False, enable_progress_bar=False, accelerator="cpu")
    data.begin_fit(data.trainer)
    assert data.collector is not None
    return data.collector


def test_the_weights_are_those_of_environments_one_after_the_other(tmp_path: Path) -> None:
    """Two workers change nothing: all actions are drawn at once, and each environment has its own seed."""
    alone, _ = train(tmp_path, make_data(vectorization="sync"))
    shared, _ = train(tmp_path, make_data(**WORKERS))
    assert torch.equal(weights(alone), weights(shared))


def test_double_buffering_collects_the_same_steps_half_by_half() -> None:
    """With a policy that draws nothing, so that the order in which the halves are asked does not matter."""
    alone, halves = make_data(vectorization="sync"), make_data(**WORKERS, double_buffering=True)
    expected, collector = collector_of(alone), collector_of(halves)
    for _ in range(2):
        policy = Leaning()
        rollout = collector.collect(policy, 12, num_processes=1, device=CPU)
        assert same(rollout, expected.collect(Leaning(), 12, num_processes=1, device=CPU))
        assert policy.sizes == [2] * 24
        assert rollout.truncated.any()
    assert collector.episodes.means() == expected.episodes.means()
    assert torch.equal(*(torch.from_numpy(np.asarray(one.observation)) for one in (collector, expected)))
    assert 0.0 < collector.seconds.policy + collector.seconds.environments < collector.seconds.total
    collector.close()


class SaveAt(Callback):
    """Saves a checkpoint after an iteration, as a stop would."""

    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration = iteration
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.iteration:
            trainer.save_checkpoint(self.path)


def test_stop_and_resume_equals_never_stopped(tmp_path: Path) -> None:
    """In the middle of episodes, with the memory of an LSTM, and with workers that begin anew."""
    settings: dict[str, Any] = {**WORKERS, "double_buffering": True}
    options: dict[str, Any] = {"lstm_hidden_size": 4, "bptt_horizon": 6}
    whole, _ = train(tmp_path, make_data(**settings), SaveAt(2, tmp_path / "stopped.ckpt"), **options)
    data = make_data(**settings)
    goes_on = make_ppo(data, **options)
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, max_epochs=1, enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, callbacks=[GlobalRNG()], num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(goes_on, datamodule=data, ckpt_path=tmp_path / "stopped.ckpt", weights_only=True)
    assert (goes_on.update_steps, whole.update_steps) == (24, 24)
    assert torch.equal(weights(goes_on), weights(whole))


def test_the_memory_of_each_environment_is_its_own() -> None:
    """With an LSTM: zeros where an episode begins, else what it was after the step before, in both halves."""
    data = make_data(**WORKERS, double_buffering=True)
    collector = collector_of(data)
    rollout = collector.collect(make_ppo(data, lstm_hidden_size=4), 12, num_processes=1, device=CPU)
    collector.close()
    assert rollout.decisions is not None
    state, after = rollout.decisions.state, rollout.decisions.next_state
    begins = torch.cat([torch.ones(1, 4, dtype=torch.bool), (rollout.terminated | rollout.truncated)[:-1]])
    expected = torch.cat([torch.zeros_like(after[:1]), after[:-1]]) * ~begins.unsqueeze(-1)
    assert torch.equal(state, expected)
    assert bool(begins[1:].any(0).all())
    assert collector.state is not None
    assert collector.state.shape == (4, 8)


def test_an_evaluation_plays_in_this_process(tmp_path: Path) -> None:
    data = make_data(**WORKERS)
    made: list[str] = []

    class Look(Callback):
        def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            assert data.collector is not None
            made.append(type(data.collector.environments).__name__)

        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            made.extend(type(one).__name__ for one in data._evaluation_environments.values())

    model = make_ppo(data)
    fit(tmp_path, data, model, callbacks=[Look()])  # type: ignore[arg-type]
    assert made == ["WorkerEnvironments", "Environments"] * 2


# What goes wrong


class Misfortune(Callback):
    """In the second iteration kills a worker, or raises."""

    def __init__(self, *, kills: bool) -> None:
        self.kills = kills
        self.pids: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        collector = trainer.datamodule.collector  # type: ignore[attr-defined]
        assert isinstance(collector.environments, WorkerEnvironments)
        self.pids = collector.environments.pids
        if batch_idx == 1 and self.kills:
            os.kill(self.pids[0], signal.SIGKILL)
        elif batch_idx == 1:
            raise RuntimeError("out of luck")


@pytest.mark.parametrize("kills", [True, False])
def test_the_run_stops_and_no_process_is_left(tmp_path: Path, kills: bool) -> None:
    data, misfortune = make_data(**WORKERS, double_buffering=True), Misfortune(kills=kills)
    error = (
        pytest.raises(WorkerError, match="was ended by SIGKILL") if kills else pytest.raises(RuntimeError, match="luck")
    )
    with error:
        fit(tmp_path, data, make_ppo(data), callbacks=[misfortune])  # type: ignore[arg-type]
    for pid in misfortune.pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    # What is left can be asked: the environments of a worker that is dead have no state.
    assert data.collector is not None
    assert (data.collector.state_dict()["environments"] is None) == kills


# Settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_workers": 3}, "got num_envs = 4 with 3 workers, expected a multiple of 3: type "
         "--data.init_args.num_envs 3 or 6, or num_workers 2"),
        ({"num_envs": 5, "double_buffering": True}, "got num_envs = 5 with 2 workers x 2 groups, expected a multiple "
         "of 4: type --data.init_args.num_envs 4 or 8"),
        ({"num_envs": 6, "double_buffering": True}, "got num_envs = 6 with 2 workers x 2 groups, expected a multiple "
         "of 4: type --data.init_args.num_envs 4 or 8, or num_workers 1, or double_buffering false"),
        ({"num_envs": 1}, "got num_envs = 1 with 2 workers, expected a multiple of 2: type --data.init_args.num_envs 2"
         ", or num_workers 1"),
        ({"num_envs": 1, "double_buffering": True}, "expected a multiple of 4: type --data.init_args.num_envs 4"),
        ({"num_workers": 0}, 'got num_workers = 0 with vectorization = "workers", expected at least 1: type '
         "--data.init_args.num_workers 1"),
        ({"num_workers": None}, 'got num_workers = None with vectorization = "workers", expected at least 1'),
        ({"vectorization": "auto"}, "got num_workers = 2 with vectorization = auto, expected worker processes, which "
         "alone have it: type --data.init_args.vectorization workers, or leave num_workers out"),
        ({"vectorization": "sync", "num_workers": None, "double_buffering": True}, "got double_buffering = True with "
         "vectorization = sync"),
        ({"total_env_steps": 47}, "got total_env_steps = 47 with num_envs = 4 and n_steps = 12, expected at least one "
         "rollout, num_envs x n_steps: type --data.init_args.total_env_steps 48 or more, or a smaller n_steps"),
    ],
)  # fmt: skip
def test_what_does_not_divide_is_refused_with_the_mend(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        make_data(**(WORKERS | options))


def test_the_mends_are_accepted() -> None:
    for mend in ({"num_envs": 8}, {"num_envs": 6, "num_workers": 1}, {"num_envs": 6, "double_buffering": False}):
        make_data(**(WORKERS | {"double_buffering": True} | mend), total_env_steps=200)


def test_a_resume_cannot_change_how_the_environments_are_shared_out(tmp_path: Path) -> None:
    data = make_data(**WORKERS)
    trainer = fit(tmp_path, data, make_ppo(data), max_steps=1)  # type: ignore[arg-type]
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    state = torch.load(tmp_path / "one.ckpt", weights_only=True)["RolloutDataModule"]
    make_data(**WORKERS).check_checkpoint(state, 1)
    with pytest.raises(ValueError, match="got num_workers = 4, but the checkpoint was written with num_workers = 2"):
        make_data(**(WORKERS | {"num_workers": 4})).check_checkpoint(state, 1)
    with pytest.raises(ValueError, match="got double_buffering = True, but the checkpoint was written with"):
        make_data(**WORKERS, double_buffering=True).check_checkpoint(state, 1)
    # A checkpoint that is older than the setting.
    del state["settings"]["num_workers"]
    make_data(**WORKERS).check_checkpoint(state, 1)


def test_more_workers_than_cores_are_warned_of_and_the_factors_are_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    with pytest.warns(
        UserWarning, match=r"got num_workers = 2 on a machine of 1 cores: .*--data\.init_args\.num_workers 1"
    ):
        collector_of(make_data(**WORKERS, num_envs=8, double_buffering=True)).close()
    assert "environments: 8 = 2 workers x 2 groups x 2" in caplog.text


# The command line

CONFIG = """\
trainer: {accelerator: cpu, log_every_n_steps: 1, enable_model_summary: false}
model:
  class_path: rlmods.algorithms.PPO
  init_args: {hidden_sizes: [8], batch_size: 12, n_epochs: 1}
data:
  class_path: rlmods.data.RolloutDataModule
  init_args:
    env_id: CartPole-v1
    total_env_steps: 1000000
    num_envs: 4
    n_steps: 12
    vectorization: workers
    num_workers: 2
    double_buffering: true
    eval_every: 480
    eval_episodes: 2
"""


@pytest.mark.slow
def test_ctrl_c_ends_a_run_of_the_command_line_with_a_state_and_without_a_word(tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too, as every process of the terminal."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "rlmods", "fit", "--config", "config.yaml"]
    with subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    ) as fit_process:
        assert fit_process.stderr is not None
        said = [next(line for line in fit_process.stderr if "end to end" in line)]
        pids = [child.pid for child in psutil.Process(fit_process.pid).children(recursive=True)]
        os.killpg(fit_process.pid, signal.SIGINT)
        said += fit_process.stderr.readlines()
        assert fit_process.wait() == 130
    assert re.search(r"train [\d,]+/s, eval [\d,]+/s, end to end [\d,]+/s; cpu \d+ % of \d+ cores, memory", said[0])
    assert not [line for line in said if "Traceback" in line or "leaked" in line or "Error" in line]
    (path,) = tmp_path.rglob("interrupted.ckpt")
    state = torch.load(path, weights_only=True)["RolloutDataModule"]["processes"][0]["collector"]
    assert len(state["environments"]["workers"]) == 2
    assert len(pids) >= 3  # the server of the workers, and two of them
    deadline = time.monotonic() + 5.0
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(psutil.pid_exists, pids))
