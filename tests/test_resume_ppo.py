"""PPO: a run that was stopped and resumed is the run that was never stopped."""

import signal
from pathlib import Path

import pytest
from running import Runs, differences, kill_at, newest_checkpoint, newest_run

TRAINER = "trainer: {accelerator: cpu, log_every_n_steps: 3, enable_progress_bar: false, enable_model_summary: false}"
CASES = {
    "cartpole": (
        "{hidden_sizes: [8], n_epochs: 2, batch_size: 48, learning_rate_schedule: linear, target_kl: 0.01}",
        "{env_id: CartPole-v1, num_envs: 6, n_steps: 16, total_env_steps: 1440, eval_every: 480, eval_episodes: 2}",
    ),
    "lstm": (
        "{hidden_sizes: [8], lstm_hidden_size: 4, bptt_horizon: 8, n_epochs: 2, batch_size: 16, prio_alpha: 0.6,"
        " vtrace_rho_bar: 1.0, vtrace_c_bar: 1.0, optimizer: muon, ent_coef: 0.01, clip_range_schedule: cosine}",
        "{env_id: Pendulum-v1, num_envs: 2, n_steps: 16, total_env_steps: 480, eval_every: 160, eval_episodes: 2}",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_interrupted_and_never_stopped(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = CASES[name]
    config = (
        f"{TRAINER}\nmodel: {{class_path: rlmods.algorithms.PPO, init_args: {model}}}\n"
        f"data: {{class_path: rlmods.data.RolloutDataModule, init_args: {data}}}\n"
    )
    runs = Runs(tmp_path, config)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match="130"):
        runs.fit("stopped", *kill_at(7, signal.SIGINT))
    stopped = newest_run(tmp_path / "stopped")
    assert newest_checkpoint(stopped)["algorithm"]["update_steps"] > 0
    runs.fit("stopped", "--ckpt_path", "last")
    assert differences(runs.whole, stopped) == []
