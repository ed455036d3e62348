from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.data import PrioritizedReplayBuffer, ReplayDataModule
from rlmods.types import ExperienceSource, Feedback, ReplayBatch

SETTINGS: dict[str, Any] = {
    "total_env_steps": 100,
    "learning_starts": 30,
    "steps_per_iteration": 10,
    "updates_per_iteration": 3,
    "batch_size": 4,
    "eval_every": 40,
    "eval_episodes": 2,
}


def make_data(**settings: Any) -> ReplayDataModule:
    return ReplayDataModule("CartPole-v1", **(SETTINGS | settings))


def fit(folder: Path, data: ReplayDataModule, model: LightningModule, **options: Any) -> Trainer:
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **({"max_epochs": 1} | options),
    )
    trainer.fit(model, datamodule=data)
    return trainer


class Spy(DQN):
    """Keeps what it was given."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.batches: list[ReplayBatch] = []
        self.evaluated_at: list[int] = []

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        self.batches.append(batch)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated_at.append(batch.env_steps)
        super().validation_step(batch, batch_idx)


def test_it_keeps_its_protocols() -> None:
    data = make_data()
    assert isinstance(data, ExperienceSource)
    assert isinstance(data, Feedback)


def test_batches_carry_the_clock_and_warm_up_has_no_updates(tmp_path: Path) -> None:
    data = make_data()
    model = Spy(data.spec)
    fit(tmp_path, data, model)
    assert [batch.env_steps for batch in model.batches] == list(range(10, 101, 10))
    assert [batch.num_updates for batch in model.batches] == [0, 0, *[3] * 8]
    assert [batch.progress for batch in model.batches] == pytest.approx([i / 10 for i in range(1, 11)])
    last = model.batches[-1]
    assert last.index.shape == last.importance_weight.shape == last.transition.reward.shape == (3, 4)
    assert isinstance(last.transition.observation, Tensor)
    assert last.transition.observation.shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("settings", "options", "expected"),
    [
        ({}, {}, [40, 80, 100]),
        ({"eval_every": 45}, {}, [40, 80, 100]),
        ({"eval_every": 50}, {}, [50, 100]),
        ({"eval_every": 1000}, {}, [100]),
        ({"eval_every": 1}, {"limit_train_batches": 2}, [10, 20]),
        ({}, {"limit_train_batches": 5}, [40, 50]),
        ({}, {"max_steps": 6}, [40, 60]),
        ({}, {"max_epochs": 1000}, [40, 80, 100]),
        ({"total_env_steps": 95}, {}, [40, 80, 95]),
    ],
)
def test_evaluations_follow_eval_every_and_there_is_one_at_the_very_end(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], expected: list[int]
) -> None:
    data = make_data(**settings)
    model = Spy(data.spec)
    fit(tmp_path, data, model, **options)
    assert model.evaluated_at == expected


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 30),
        ({"learning_starts": 0}, 10),
        ({"learning_starts": 31}, 40),
        ({"n_steps": 3}, 28),
        ({"n_steps": 3, "num_envs": 5}, 20),
        ({"buffer_size": 25}, 25),
    ],
)
def test_what_the_replay_holds_at_the_first_update(settings: dict[str, Any], size: int, tmp_path: Path) -> None:
    data = make_data(**settings)

    class Look(DQN):
        held: int | None = None

        def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
            if batch.num_updates and self.held is None:
                self.held = data.replay_size
            return super().training_step(batch, batch_idx)

    model = Look(data.spec)
    fit(tmp_path, data, model)
    assert data.first_replay_size == size
    assert model.held is not None
    assert size <= model.held <= size + (data.n_steps - 1) * data.num_envs


def test_native_environments_meet_the_budget_within_one_vector_step(tmp_path: Path) -> None:
    data = make_data(num_envs=8, steps_per_iteration=16, total_env_steps=800, learning_starts=100)
    model = Spy(data.spec)
    fit(tmp_path, data, model)
    assert len(model.batches) == 50
    assert 800 <= data.env_steps < 808
    assert model.batches[-1].progress == 1.0


def test_the_trainer_must_not_own_the_rhythm_of_evaluations(tmp_path: Path) -> None:
    data = make_data()
    with pytest.raises(ValueError, match=r"val_check_interval=5.*--data.init_args.eval_every"):
        fit(tmp_path, data, DQN(spec=data.spec), val_check_interval=5)


def test_a_module_that_cannot_act_is_refused(tmp_path: Path) -> None:
    class Mute(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(TypeError, match=r"got Mute without a method act\(observation"):
        fit(tmp_path, make_data(), Mute())


def test_td_errors_come_back_as_priorities(tmp_path: Path) -> None:
    data = make_data(prioritized_replay=True, prioritized_replay_alpha=1.0)
    model = Spy(data.spec)
    fit(tmp_path, data, model)
    assert isinstance(data.replay, PrioritizedReplayBuffer)
    index = model.batches[-1].index.flatten()
    before = data.replay.sample(1, 64, 1.0)
    data.feedback(index, td_error=torch.full_like(index, 5, dtype=torch.float32))
    weights = data.replay.sample(4, 64, 1.0)
    drawn = torch.isin(weights.index, index)
    assert bool(drawn.float().mean() > torch.isin(before.index, index).float().mean())


def test_what_a_pixel_environment_needs_is_said_before_it_is_allocated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_data(buffer_size=1000)
    with caplog.at_level("INFO"):
        fit(tmp_path, data, DQN(spec=data.spec), limit_train_batches=1)
    assert "1,000 transitions of 56 bytes" in caplog.text
