"""With an expert, strata and a control file: a run that was stopped and resumed is the run that was never stopped."""

import signal
from pathlib import Path

import pytest
from running import Runs, curves, differences, kill_at, newest_checkpoint, newest_run, replay_rows

CONFIG = """\
trainer:
  {accelerator: cpu, log_every_n_steps: 3, enable_progress_bar: false, enable_model_summary: false,
   callbacks: [{class_path: rlmods.callbacks.ControlFile}]}
model:
  class_path: rlmods.algorithms.DQN
  init_args: {hidden_sizes: [8], exploration_fraction: 0.5, bc_coef: 1.0, exploration_care_scale: 0.25}
data:
  class_path: rlmods.data.ExpertDataModule
  init_args:
    env_id: rlmods/LaneShooter-v0
    env_kwargs: {max_episode_steps: 40}
    total_env_steps: 480
    num_envs: 4
    n_steps: 3
    n_step_through_expert: false
    learning_starts: 40
    steps_per_iteration: 20
    updates_per_iteration: 3
    batch_size: 8
    buffer_size: 200
    eval_episodes: 2
    eval_every: 160
    expert_share: 0.8
    expert_share_decay: 0.5
    expert_share_decay_steps: 100
    expert_care_scale: 2.0
    max_replay_ratio: 1.0
    replay_strata: {recent: 0.25, high_reward: 0.25, before_end: 0.25, uniform: 0.25}
"""


def test_interrupted_and_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, CONFIG)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match="130"):
        runs.fit("stopped", *kill_at(13, signal.SIGINT))
    stopped = newest_run(tmp_path / "stopped")
    process = newest_checkpoint(stopped)["ExpertDataModule"]["processes"][0]
    assert process["drawing"]["drawn"] > 0
    assert any(name.endswith(".expert.pt") for name in process["files"])
    runs.fit("stopped", "--ckpt_path", "last")
    assert differences(runs.whole, stopped) == []
    assert bool(replay_rows(stopped)["by_expert"].any())
    drawn = curves(stopped)
    assert len({value for _, value in drawn["eval/expert_mean_reward"]}) == 1
    assert max(value for _, value in drawn["time/replay_ratio"]) <= 1.0
