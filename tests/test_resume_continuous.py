"""TD3 and SAC: a run that was stopped and resumed is the run that was never stopped."""

import signal
from pathlib import Path

import pytest
from running import Runs, differences, kill_at, newest_checkpoint, newest_run

TRAINER = "trainer: {accelerator: cpu, log_every_n_steps: 3, enable_progress_bar: false, enable_model_summary: false}"
DATA = """
data:
  class_path: rlmods.data.ReplayDataModule
  init_args:
    env_id: Pendulum-v1
    total_env_steps: 400
    num_envs: 2
    n_steps: 2
    learning_starts: 60
    steps_per_iteration: 20
    updates_per_iteration: 5
    batch_size: 8
    buffer_size: 200
    prioritized_replay: true
    eval_episodes: 2
    eval_every: 100
"""
MODELS = {
    "td3": "{hidden_sizes: [8], max_grad_norm: {critic: 1.0, actor: 0.5}, final_exploration_noise: 0.0}",
    "sac": "{hidden_sizes: [8], target_update_interval: 2}",
}


@pytest.mark.parametrize("name", MODELS)
def test_interrupted_and_never_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = f"model: {{class_path: rlmods.algorithms.{name.upper()}, init_args: {MODELS[name]}}}"
    runs = Runs(tmp_path, TRAINER + "\n" + model + DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    # An odd number of updates in an iteration: the delay of the actor goes on where it stood.
    with pytest.raises(SystemExit, match="130"):
        runs.fit("stopped", *kill_at(11, signal.SIGINT))
    stopped = newest_run(tmp_path / "stopped")
    assert newest_checkpoint(stopped)["algorithm"]["update_steps"] == 45
    runs.fit("stopped", "--ckpt_path", "last")
    assert differences(runs.whole, stopped) == []
