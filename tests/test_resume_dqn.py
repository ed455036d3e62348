"""DQN with its extensions: a run that was stopped and resumed is the run that was never stopped."""

import signal
from pathlib import Path

import pytest
from running import SMALL, Runs, differences, kill_at, newest_checkpoint, newest_run

EXTENDED = """\
model:
  init_args:
    {noisy: true, num_atoms: 11, v_min: 0.0, v_max: 100.0, accumulate_grad_batches: 2, tau: 0.1,
     target_update_interval: 3, target_hard_update_interval: 10, learning_rate_warmup: 0.5, bc_coef: 1.0}
data: {init_args: {total_env_steps: 300, num_envs: 2, prioritized_replay: true}}
"""


def test_interrupted_and_never_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = Runs(tmp_path, SMALL, EXTENDED)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(SystemExit, match="130"):
        runs.fit("stopped", *kill_at(11, signal.SIGINT))
    stopped = newest_run(tmp_path / "stopped")
    algorithm = newest_checkpoint(stopped)["algorithm"]
    # 9 iterations of two updates: between two soft updates, and between two full copies.
    assert (algorithm["update_steps"], algorithm["soft_update_step"], algorithm["hard_update_step"]) == (18, 18, 10)
    runs.fit("stopped", "--ckpt_path", "last")
    assert differences(runs.whole, stopped) == []
