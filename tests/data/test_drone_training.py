"""A training on the swarm: what it logs, and who tells the curriculum how far it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from rlmods.algorithms import PPO
from rlmods.data import RolloutDataModule

ROLLOUT = 16 * 8


class Scales(Callback):
    """Notes how wide the windows of the stages are, in training and in evaluation."""

    def __init__(self) -> None:
        self.training: list[float] = []
        self.evaluation: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.training.append(scale_of(trainer.datamodule.collector.environments))  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        (environments,) = trainer.datamodule._evaluation_environments.values()  # type: ignore[attr-defined]
        self.evaluation.append(scale_of(environments))


def scale_of(environments: Any) -> float:
    return float(environments._vector_env.unwrapped.get_state()["_scale"])


def fit(folder: Path, *callbacks: Callback, num_rollouts: int = 8, **arguments: Any) -> tuple[Trainer, PPO]:
    seed_everything(3)
    env_kwargs = {"curriculum": 0.5, "max_episode_steps": 12, "arena": [2.0, 2.0, 1.5], "counter_metric": True}
    data = RolloutDataModule(
        "rlmods/DroneSwarm-v0",
        num_rollouts * ROLLOUT,
        num_envs=16,
        n_steps=8,
        eval_episodes=8,
        eval_every=4 * ROLLOUT,
        env_kwargs=env_kwargs,
    )
    model = PPO(data.spec, hidden_sizes=(8,), n_epochs=1, batch_size=64)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
    )
    trainer.fit(model, datamodule=data, **arguments)
    return trainer, model


def test_the_curriculum_is_told_by_the_training_and_evaluations_are_at_its_end(tmp_path: Path) -> None:
    """Half of the eight rollouts bring the windows from four times their size to once; episodes end all the while."""
    scales = Scales()
    trainer, _ = fit(tmp_path, scales)
    assert scales.training == pytest.approx([4.0, 3.25, 2.5, 1.75, 1.0, 1.0, 1.0, 1.0])
    assert scales.evaluation == [1.0, 1.0]
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    assert data.rollout_statistics()["rollout/episodes"] >= 16 * (8 * 8 // 12)


def test_rates_of_events_come_with_their_intervals(tmp_path: Path) -> None:
    trainer, _ = fit(tmp_path, num_rollouts=4)
    statistics = trainer.datamodule.rollout_statistics()  # type: ignore[attr-defined]
    for event in ("success", "collision", "out_of_bounds"):
        for group, numbers in (("eval", trainer.callback_metrics), ("rollout", statistics)):
            low, rate, high = (float(numbers[f"{group}/{event}_rate{end}"]) for end in ("_low", "", "_high"))
            assert 0.0 <= low <= rate <= high <= 1.0
            assert low < high
    assert trainer.callback_metrics["eval/episodes"] == 8.0
    # What the environment counts itself is in the curves of the roll-outs and nowhere else.
    assert any(tag.endswith("/success_rate") and tag.count("/") == 2 for tag in statistics)
    assert not any(tag.count("/") == 2 for tag in trainer.callback_metrics)


class Middle(Callback):
    """Leaves a checkpoint in the middle, and torch's random state of then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.random_state = torch.zeros(0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 3:
            trainer.save_checkpoint(self.path)
            self.random_state = torch.get_rng_state()


class Restore(Callback):
    """Goes on with a random state; on the command line a callback of ours does that."""

    def __init__(self, random_state: torch.Tensor) -> None:
        self.random_state = random_state

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.set_rng_state(self.random_state)


def test_a_resumed_training_is_the_one_that_was_never_stopped(tmp_path: Path) -> None:
    """In its weights, its environments' state and what it has counted."""
    middle = Middle(tmp_path / "middle.ckpt")
    whole, first = fit(tmp_path, middle)
    resumed, second = fit(tmp_path, Restore(middle.random_state), ckpt_path=middle.path)
    for name, weight in first.state_dict().items():
        assert torch.equal(weight, second.state_dict()[name]), name
    assert whole.datamodule.fingerprint() == resumed.datamodule.fingerprint()  # type: ignore[attr-defined]
    assert whole.callback_metrics == resumed.callback_metrics
