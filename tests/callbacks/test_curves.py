import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import Curves, EnvStepsProgressBar
from rlmods.data import ReplayDataModule


def fit(folder: Path, model: LightningModule, data: ReplayDataModule | None, *callbacks: Callback) -> None:
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        enable_checkpointing=False,
        enable_progress_bar=any(isinstance(callback, EnvStepsProgressBar) for callback in callbacks),
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=2,
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule=data)


def read_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    (file,) = folder.rglob("events.out.*")
    events = EventAccumulator(str(file))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def make_data(**settings: Any) -> ReplayDataModule:
    defaults: dict[str, Any] = {"learning_starts": 100, "steps_per_iteration": 50, "updates_per_iteration": 2}
    return ReplayDataModule("CartPole-v1", 500, **(defaults | {"eval_every": 150, "eval_episodes": 3} | settings))


class Keep(Callback):
    """Keeps the TD errors of each iteration."""

    def __init__(self) -> None:
        self.td_errors: list[Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.td_errors.append(outputs["td_error"])


def test_every_tag_is_drawn_over_environment_steps(tmp_path: Path) -> None:
    data, keep = make_data(), Keep()
    fit(tmp_path, DQN(data.spec), data, Curves(), keep)
    curves = read_curves(tmp_path)
    on_the_log = {
        "rollout/ep_rew_mean",
        "rollout/ep_len_mean",
        "time/fps",
        "time/updates_per_s",
        "time/total_timesteps",
        "time/replay_ratio",
        "time/share_learn",
        "time/share_collect",
        "time/share_policy",
        "time/share_environments",
        "system/cpu_percent_of_machine",
        "system/memory_gib",
    }
    of_training = {
        "train/loss", "train/q_mean", "train/td_error_abs", "train/td_target", "train/learning_rate",
        "train/n_updates", "rollout/exploration_rate", "stability/q_max", "stability/grad_norm/q",
        "stability/target_age_soft", "stability/target_age_hard",
    }  # fmt: skip
    of_evaluation = {
        "eval/mean_reward", "eval/std_reward", "eval/mean_ep_length", "eval/mean_discounted_reward", "eval/q_start",
        "eval/q_gap", "eval/q_gap_sem",
        "eval/episodes", "time/eval_fps", "time/fps_end_to_end",
    }  # fmt: skip
    assert set(curves) == on_the_log | of_training | of_evaluation
    for tag, points in curves.items():
        steps = [step for step, _ in points]
        assert steps == ([150, 300, 450, 500] if tag in of_evaluation else [100, 200, 300, 400, 500]), tag
    # The mean over the two iterations of the last interval, not the last value.
    expected = torch.stack(keep.td_errors[-2:]).abs().mean().item()
    assert curves["train/td_error_abs"][-1][1] == pytest.approx(expected)
    assert curves["train/n_updates"][-1] == (500, 18.0)
    assert curves["time/total_timesteps"][-1] == (500, 500.0)
    # 9 iterations with 2 updates of 64, each with 50 new transitions.
    assert curves["time/replay_ratio"][-1][1] == pytest.approx(9 * 2 * 64 / (9 * 50))


def test_a_nan_is_seen_in_the_curve(tmp_path: Path) -> None:
    class Broken(DQN):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            signals = super().training_step(batch, batch_idx)
            return signals | {"loss": signals["loss"] * torch.nan} if signals else signals

    data = make_data()
    fit(tmp_path, Broken(data.spec), data, Curves())
    assert all(value != value for _, value in read_curves(tmp_path)["train/loss"])


def test_a_data_module_without_a_clock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected one with env_steps, total_env_steps and rollout_statistics"):
        fit(tmp_path, BoringModel(), None, Curves())


def test_state_round_trip() -> None:
    curves, restored = Curves(), Curves()
    curves._interval = {"loss": {"train/loss": [torch.tensor(1.0), torch.tensor(2.0)]}}
    restored.load_state_dict(curves.state_dict())
    assert restored.state_dict()["interval"]["loss"]["train/loss"].tolist() == [1.0, 2.0]


def test_without_a_terminal_the_progress_is_a_line_an_evaluation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data()
    fit(tmp_path, DQN(data.spec), data, EnvStepsProgressBar())
    lines = [line for line in capsys.readouterr().err.splitlines() if "env steps" in line]
    assert [line.split(" env steps")[0] for line in lines] == ["150/500", "300/500", "450/500", "500/500"]
    assert all(part in lines[-1] for part in ("/s, return", "eval", "±", "s left"))
    panel = r"train [\d,]+/s, eval [\d,]+/s, end to end [\d,]+/s; cpu \d+ % of \d+ cores, memory \d+\.\d GiB; "
    shares = r"collect \d+ % \(policy \d+ %, environments \d+ %\), learn \d+ %"
    assert all(re.search(f"left; {panel}{shares}; replay ratio 2.56$", line) for line in lines)


def test_in_a_terminal_the_progress_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    data = make_data()
    fit(tmp_path, DQN(data.spec), data, EnvStepsProgressBar(refresh_seconds=0.0))
    drawn = capsys.readouterr().err
    assert "DQN" in drawn
    assert "500/500 env steps" in drawn
    assert "end to end" in drawn
