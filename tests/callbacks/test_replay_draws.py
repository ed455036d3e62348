"""What is drawn and imitated: identities of a mini-batch, on made-up ones and in runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expert_cart_pole import ENV_ID
from guarding import ACT, warnings_of
from lightning.pytorch import seed_everything
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import EffectiveSettings
from rlmods.callbacks.replay_draws import clones_itself, imitation_of_nobody, strata_not_drawn, stratum_members
from rlmods.data import ExpertDataModule, StratifiedReplayBuffer
from rlmods.data.replay import ReplayBuffer
from rlmods.envs.environments import Environments
from rlmods.types import Minibatch, ReplayBatch, Transition

SIZES = {"recent": 2, "high_reward": 1, "before_end": 3, "uniform": 8}


def drawn(index: list[list[int]], *, ended: bool = False) -> ReplayBatch:
    """Slots `[K, B]`, and CartPole's observations."""
    slots = torch.tensor(index)
    flags = torch.full(slots.shape, ended)
    column = torch.ones(slots.shape)
    observation = torch.randn(*slots.shape, 4, generator=torch.Generator().manual_seed(0))
    transition = Transition(observation, slots % 2, column, 0.9 * column, observation, flags, flags)
    return ReplayBatch(transition, slots, column, 0, 0.0, slots % 3 == 0)


def test_the_recent_ones_of_a_ring_that_has_wrapped() -> None:
    """Of 12 transitions in 8 slots number 11, the newest, lies in slot 3, and number 10 in slot 2."""
    members = stratum_members(drawn([[0, 1, 2, 3, 4, 7]]), SIZES, 12, 8)
    assert members["recent"].tolist() == [[False, False, True, True, False, False]]


@pytest.mark.parametrize(
    ("index", "shares", "speaks"),
    [
        ([[2, 3, 0, 1]], {"recent": 0.5, "uniform": 0.5}, False),
        ([[2, 4, 0, 1]], {"recent": 0.5, "uniform": 0.5}, False),  # to within one
        ([[2, 3, 0, 1], [4, 5, 6, 7]], {"recent": 0.5, "uniform": 0.5}, True),
        ([[4, 5, 6, 7]], {"uniform": 1.0}, False),
        ([[4, 5, 6, 7]], {"before_end": 0.5, "uniform": 0.5}, True),  # none of them terminated
    ],
)
def test_fewer_of_a_stratum_than_its_share(index: list[list[int]], shares: dict[str, float], speaks: bool) -> None:
    members = stratum_members(drawn(index), SIZES, 12, 8)
    verdict = strata_not_drawn(members, SIZES, shares)
    assert (verdict is not None) is speaks
    empty = SIZES | {"recent": 0, "before_end": 0}
    assert strata_not_drawn(members, empty, shares) is None
    assert verdict is None or (verdict.cause, verdict.severity) == ("strata_mismatch", ACT)


class ClonesEverybody(DQN):
    """As if the expert had chosen all."""

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        if minibatch.by_expert is not None:
            minibatch = minibatch._replace(by_expert=torch.ones_like(minibatch.by_expert))
        return super().signals(minibatch)


ATOMS = {"num_atoms": 5, "v_min": -10.0, "v_max": 10.0}


@pytest.mark.parametrize("arguments", [{}, ATOMS, {"noisy": True, "dueling": True}, {"bc_coef": 0.0}])
def test_nobody_is_imitated(arguments: dict[str, Any]) -> None:
    """With two actions the cross-entropy of a fresh network is about ln 2 = 0.69, half of which is weighed."""
    spec = ExpertDataModule(ENV_ID, 2_560).spec
    batch = drawn([[0, 1, 2, 3], [4, 5, 6, 7]])
    model, broken = (kind(spec, hidden_sizes=[8], **({"bc_coef": 0.5} | arguments)) for kind in (DQN, ClonesEverybody))
    model.target_transforms.append(lambda target: target)
    assert imitation_of_nobody(model, batch) == 0.0
    assert len(model.target_transforms) == 1
    assert clones_itself(imitation_of_nobody(model, batch)) is None
    if "bc_coef" not in arguments:
        found = imitation_of_nobody(broken, batch)
        assert found is not None
        assert 0.05 < found < 1.0
        assert clones_itself(found) is not None
    assert imitation_of_nobody(model, batch._replace(by_expert=None)) is None


# Runs


class _BySlot(StratifiedReplayBuffer):
    """Recent are the lowest slots."""

    def _draw(self, num_batches: int, batch_size: int) -> Any:
        index = super()._draw(num_batches, batch_size)
        age = (self.inserted - 1 - index) % self.capacity
        return np.where(age < self.sizes()["recent"], age, index)


class RecentBySlot(ExpertDataModule):
    def _make_replay(self) -> ReplayBuffer:
        replay = super()._make_replay()
        replay.__class__ = _BySlot
        return replay


class CareNotScaled(ExpertDataModule):
    def make_collector(self, environments: Environments) -> Any:
        collector = super().make_collector(environments)
        assert self.mixture is not None
        self.mixture.schedule = self.schedule._replace(care_scale=1.0)
        return collector


@pytest.mark.parametrize(
    ("model_class", "data_class", "expected"),
    [
        (DQN, ExpertDataModule, []),
        (ClonesEverybody, ExpertDataModule, ["clones_itself"]),
        (DQN, RecentBySlot, ["strata_mismatch"]),
        (DQN, CareNotScaled, ["share_not_in_effect"]),
    ],
)
def test_each_is_found_in_a_run(
    model_class: type[DQN], data_class: type[ExpertDataModule], expected: list[str], tmp_path: Path
) -> None:
    seed_everything(0)
    data = data_class(
        ENV_ID,
        4_000,
        num_envs=8,
        expert_share=0.4,
        expert_share_decay=1.0,
        expert_share_floor=0.4,
        expert_care_scale=2.0,
        learning_starts=400,
        steps_per_iteration=80,
        updates_per_iteration=1,
        batch_size=16,
        buffer_size=600,
        replay_strata={"recent": 0.5, "before_end": 0.25, "uniform": 0.25},
        eval_episodes=2,
        eval_every=4_000,
        env_kwargs={"max_episode_steps": 60},
    )
    guard = EffectiveSettings()
    trainer = make_trainer(tmp_path, guard, logger=False, enable_checkpointing=False)
    trainer.fit(model_class(data.spec, hidden_sizes=[8], bc_coef=0.5), datamodule=data)
    assert data.frames_with_care > 400
    assert warnings_of(guard) == expected
