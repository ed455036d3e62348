"""What has no gradient below the free nats may stand still; everything else is told as before."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dreaming import Sayer, sequences
from guarding import fit_stranger, warnings_of
from lightning.pytorch import Trainer, seed_everything
from torch import Tensor

from rlmods.algorithms import DreamerV3
from rlmods.callbacks.liveness_detector import LivenessDetector, LivenessWindow
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.data import SequenceDataModule
from rlmods.types import SequenceBatch

LIVING = LivenessWindow(
    updates=8.0,
    update_ratio={},
    learning_rate={},
    weight_norm={},
    grad_norm={},
    target_distance={},
    target_moved={},
    losses={},
    collected=32.0,
    added=32.0,
    uses=32.0,
    uses_per_transition=1.0,
    progress=0.5,
)


class BelowFreeNats(Sayer):
    """The model has no gradient, and its loss is what is free."""

    def __init__(self) -> None:
        super().__init__(lambda batch, batch_idx: {"dynamics_loss": torch.ones(1)})

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.actor(self.world_model(torch.ones(1, 1)).detach()).square().sum())
        optimizer.step()
        return dict(self.say(batch, batch_idx))


@pytest.mark.parametrize(
    ("may_rest", "expected"),
    [
        ([], {"no_gradient", "pinned_loss"}),
        (["world_model"], {"pinned_loss"}),
        (["dynamics_loss"], {"no_gradient"}),
        (["world_model", "dynamics_loss"], set()),
        (["world", "dynamics"], {"no_gradient", "pinned_loss"}),
    ],
)
def test_what_may_rest_is_named(tmp_path: Path, may_rest: list[str], expected: set[str]) -> None:
    guard = LivenessGuard(may_rest=may_rest, every_n_iterations=2)
    fit_stranger(tmp_path, BelowFreeNats(), [sequences(torch.zeros(1, 2, 1))] * 230, guard)
    assert {cause for cause in warnings_of(guard) if cause in ("no_gradient", "pinned_loss")} == expected


SMALL_ACTOR = {"world_model.rssm": 10.0, "world_model.encoder": 1.0, "actor.hidden": 1e-7, "actor.output": 1e-6}
GROUPS = {name: name.partition(".")[0] for name in SMALL_ACTOR}


@pytest.mark.parametrize(
    ("change", "groups", "dead"),
    [
        ({}, GROUPS, []),  # an actor that knows nothing yet is small as a whole
        ({"actor.hidden": 0.0}, GROUPS, ["actor.hidden"]),
        ({"world_model.encoder": 1e-6}, GROUPS, ["world_model.encoder"]),
        ({"actor.hidden": 0.0, "actor.output": 0.0}, GROUPS, ["actor.hidden", "actor.output"]),
        ({}, {}, ["actor.hidden", "actor.output"]),  # one group
    ],
)
def test_a_gradient_is_held_against_its_parameter_group(
    change: dict[str, float], groups: dict[str, str], dead: list[str]
) -> None:
    detector = LivenessDetector(inert_below=1e-5, violent_above=0.1, target_patience=60)
    window = LIVING._replace(grad_norm={"all": SMALL_ACTOR | change}, module_group=groups)
    verdicts = [verdict for _ in range(3) for verdict in detector.update(window)]
    assert [verdict.evidence["modules"] for verdict in verdicts] == ([dead] if dead else [])


def test_a_rate_that_still_rises_is_judged_when_it_stands() -> None:
    detector = LivenessDetector(inert_below=1e-5, violent_above=0.1, target_patience=60)
    windows = [
        LIVING._replace(
            update_ratio={"q": 1e-6}, learning_rate={"q": rate}, weight_norm={"q": 1.0}, grad_norm={"q": {"net": 1.0}}
        )
        for rate in (1e-7, 2e-7, 3e-7, 4e-7, 4e-7, 4e-7)
    ]
    said = [[verdict.cause for verdict in detector.update(window)] for window in windows]
    assert said == [[], [], [], [], [], ["inert_update"]]


def test_an_untrained_dreamer_of_the_authors_settings_is_alive(tmp_path: Path) -> None:
    """The actor of the first updates has gradients of 1e-7 of the world model's."""
    data = SequenceDataModule(
        "CartPole-v1",
        total_env_steps=160,
        buffer_size=160,
        num_envs=1,
        batch_size=4,
        batch_length=4,
        learning_starts=16,
        train_ratio=16,
        steps_per_iteration=8,
    )
    guard = LivenessGuard(may_rest=["world_model.rssm.prior"], every_n_iterations=2)
    trainer = Trainer(
        default_root_dir=tmp_path,
        accelerator="cpu",
        max_epochs=-1,
        limit_val_batches=0,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        callbacks=[guard],
    )
    seed_everything(0)
    trainer.fit(DreamerV3(data.spec, size="cpu", imagination_horizon=3), datamodule=data)
    assert guard.detector.windows >= 6
    assert not warnings_of(guard)


def test_a_word_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="got may_rest = 'prior', expected a list"):
        LivenessGuard(may_rest="prior")
