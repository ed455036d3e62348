"""Evaluations leave the training as it was, told by the fingerprint of its environments."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer

from rlmods.algorithms import DQN, TD3, LinearTD
from rlmods.data import ReplayDataModule, RolloutDataModule
from rlmods.data.fingerprint import fingerprint_of
from rlmods.types import TrainingEnvironments

REPLAY: dict[str, Any] = {
    "learning_starts": 20,
    "steps_per_iteration": 12,
    "updates_per_iteration": 2,
    "batch_size": 8,
    "buffer_size": 100,
    "eval_episodes": 2,
    "eval_every": 24,
}


class Around(Callback):
    """The fingerprint and the random state around every evaluation, and after every iteration."""

    def __init__(self) -> None:
        self.before: list[str | None] = []
        self.after: list[str | None] = []
        self.moved: list[str | None] = []
        self.random: list[torch.Tensor] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before.append(trainer.datamodule.fingerprint())  # type: ignore[attr-defined]
        self.random.append(torch.get_rng_state())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.after.append(trainer.datamodule.fingerprint())  # type: ignore[attr-defined]
        assert torch.equal(torch.get_rng_state(), self.random[-1])

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.moved.append(trainer.datamodule.fingerprint())  # type: ignore[attr-defined]


def native_cartpole() -> tuple[LightningModule, Any]:
    data = ReplayDataModule("CartPole-v1", 72, num_envs=4, vectorization="native", n_steps=3, **REPLAY)
    return DQN(data.spec, hidden_sizes=[8]), data


def sync_cartpole() -> tuple[LightningModule, Any]:
    data = ReplayDataModule("CartPole-v1", 72, num_envs=2, vectorization="sync", prioritized_replay=True, **REPLAY)
    return DQN(data.spec, hidden_sizes=[8]), data


def pendulum() -> tuple[LightningModule, Any]:
    data = ReplayDataModule("Pendulum-v1", 72, env_kwargs={"max_episode_steps": 9}, **REPLAY)
    return TD3(data.spec, hidden_sizes=[8, 8]), data


def inverted_pendulum() -> tuple[LightningModule, Any]:
    pytest.importorskip("mujoco")
    data = ReplayDataModule("InvertedPendulum-v5", 72, num_envs=2, **REPLAY)
    return TD3(data.spec, hidden_sizes=[8, 8]), data


def laboratory() -> tuple[LightningModule, Any]:
    kwargs = {"max_episode_steps": 12}
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0", 72, num_envs=2, n_steps=6, eval_episodes=2, eval_every=24, env_kwargs=kwargs
    )
    return LinearTD(data.spec), data


@pytest.mark.parametrize("make", [native_cartpole, sync_cartpole, pendulum, inverted_pendulum, laboratory])
def test_an_evaluation_leaves_the_training_environments_bit_for_bit(
    make: Callable[[], tuple[LightningModule, Any]], tmp_path: Path
) -> None:
    seed_everything(0)
    model, data = make()
    assert data.fingerprint() is None
    around = Around()
    make_trainer(tmp_path, around, logger=False, enable_checkpointing=False).fit(model, datamodule=data)
    assert len(around.before) >= 3
    assert around.before == around.after
    # It is no constant: every iteration changes it.
    assert None not in around.moved
    assert len(set(around.moved)) == len(around.moved)


def test_what_cannot_be_saved_has_no_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlmods.envs.environments import Environments

    monkeypatch.setattr(Environments, "state_dict", lambda environments: None)
    seed_everything(0)
    model, data = native_cartpole()
    around = Around()
    make_trainer(tmp_path, around, logger=False, enable_checkpointing=False).fit(model, datamodule=data)
    assert set(around.before) == set(around.after) == {None}


def test_a_data_module_is_a_source_of_fingerprints() -> None:
    assert isinstance(native_cartpole()[1], TrainingEnvironments)


def test_the_training_episodes_that_ended_are_known(tmp_path: Path) -> None:
    seed_everything(0)
    model, data = pendulum()
    make_trainer(tmp_path, logger=False, enable_checkpointing=False).fit(model, datamodule=data)
    # 72 steps in episodes of 9; a frame that only resets belongs to none.
    assert len(data.episode_returns()) == 8
    assert data.rollout_statistics()["rollout/ep_rew_mean"] == pytest.approx(sum(data.episode_returns()) / 8)


STATE: dict[str, Any] = {"a": torch.tensor([1.0, 2.0]), "b": [1, "x", None, (True, 0.5)]}


def test_equal_states_have_equal_fingerprints() -> None:
    copy = {"a": torch.tensor([0.0, 1.0, 2.0])[1:], "b": [1, "x", None, (True, 0.5)]}
    assert fingerprint_of(copy) == fingerprint_of(STATE)


@pytest.mark.parametrize(
    "change",
    [
        {"a": torch.tensor([1.0, 2.0 + 2.4e-7])},  # the last bit
        {"a": torch.tensor([1.0, 2.0], dtype=torch.float64)},
        {"a": torch.tensor([[1.0, 2.0]])},
        {"b": [1, "x", None, [True, 0.5]]},
        {"b": [1.0, "x", None, (True, 0.5)]},
        {"b": [1, "x", None, (1, 0.5)]},
        {"c": None},
    ],
)
def test_what_differs_in_one_bit_or_type_has_another(change: dict[str, Any]) -> None:
    assert fingerprint_of(STATE | change) != fingerprint_of(STATE)


def test_the_sign_of_zero_counts() -> None:
    assert fingerprint_of(torch.tensor(0.0)) != fingerprint_of(torch.tensor(-0.0))


def test_other_things_are_refused() -> None:
    with pytest.raises(TypeError, match="got set, expected a tensor"):
        fingerprint_of({"a": {1}})
