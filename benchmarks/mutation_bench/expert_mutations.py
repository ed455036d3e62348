"""DQN and the data of an expert with one line broken each."""

from typing import Any

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.data import ExpertDataModule, StratifiedReplayBuffer
from rlmods.data.collector import Collected, Collector
from rlmods.data.mixture import ExpertMixture
from rlmods.data.replay import ReplayBuffer
from rlmods.data.replay_ratio import ReplayRatio
from rlmods.envs.environments import Environments
from rlmods.types import Minibatch, Transition

# The curriculum


class ScheduleOf(ExpertDataModule):
    """Another schedule than the one that is configured."""

    def make_collector(self, environments: Environments) -> Collector:
        """With it."""
        collector = super().make_collector(environments)
        if self.mixture is not None:
            self.change(self.mixture)
        return collector

    def change(self, mixture: ExpertMixture) -> None:
        """Put another in its place."""
        raise NotImplementedError


class ShareNeverDecays(ScheduleOf):
    """The factor of the schedule is not read."""

    def change(self, mixture: ExpertMixture) -> None:
        """1."""
        mixture.schedule = mixture.schedule._replace(decay=1.0)


class FloorNotEnforced(ScheduleOf):
    """The floor is not read."""

    def change(self, mixture: ExpertMixture) -> None:
        """0."""
        mixture.schedule = mixture.schedule._replace(floor=0.0)


class CareNotScaled(ScheduleOf):
    """Where care is needed the expert acts no more often."""

    def change(self, mixture: ExpertMixture) -> None:
        """1."""
        mixture.schedule = mixture.schedule._replace(care_scale=1.0)


class OverrideNotLogged(ScheduleOf):
    """Half way the share is 0.9, and nobody says so."""

    def change(self, mixture: ExpertMixture) -> None:
        """By another function in the place of the schedule's."""
        share, half = mixture.share, self.total_env_steps / 2
        mixture.share = lambda env_steps: 0.9 if env_steps >= half else share(env_steps)  # type: ignore[method-assign]


# What is stored and drawn


class FlagShifted(ExpertDataModule):
    """The flag of who acted is that of the next environment."""

    def _store(self, collected: Collected) -> None:
        super()._store(collected._replace(by_expert=collected.by_expert.roll(1)))


class TerminalsLost(ExpertDataModule):
    """Nothing is stored as terminated."""

    def _store(self, collected: Collected) -> None:
        transition = collected.transition
        discount = transition.discount.where(~transition.terminated, self.gamma**self.n_steps)
        none = torch.zeros_like(transition.terminated)
        super()._store(collected._replace(transition=transition._replace(discount=discount, terminated=none)))


class RewardsTenfold(ExpertDataModule):
    """From the middle of the run on rewards are stored in other units."""

    def _store(self, collected: Collected) -> None:
        scale = 10.0 if self.env_steps >= self.total_env_steps / 2 else 1.0
        transition = collected.transition
        super()._store(collected._replace(transition=transition._replace(reward=scale * transition.reward)))


class _RecentBySlot(StratifiedReplayBuffer):
    """Recent are the highest slots, whatever was written last."""

    def _draw(self, num_batches: int, batch_size: int) -> Any:
        index = super()._draw(num_batches, batch_size)
        age = (self.inserted - 1 - index) % self.capacity
        recent = age < self.sizes()["recent"]
        return np.where(recent, (len(self) - 1 - age) % self.capacity, index)


class RecentBySlot(ExpertDataModule):
    """Recent is a matter of the slot, not of time."""

    def _make_replay(self) -> ReplayBuffer:
        replay = super()._make_replay()
        replay.__class__ = _RecentBySlot
        return replay


class LimiterIgnored(ExpertDataModule):
    """The limit of the replay ratio is not read."""

    def begin_fit(self, trainer: Trainer) -> None:
        """Without it."""
        super().begin_fit(trainer)
        self.drawing = ReplayRatio(None)


# Learning


class HorizonIgnored(DQN):
    """γⁿ for every transition that has not terminated, however short its horizon."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With the discount of a full horizon."""
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        discount = torch.where(transition.discount > 0.0, source.gamma**source.n_steps, 0.0)
        return super().td_target(transition._replace(discount=discount), bootstrap)


class TerminalsBootstrap(DQN):
    """The target goes on beyond the end of an episode."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With a discount everywhere."""
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        discount = transition.discount.where(~transition.terminated, source.gamma**source.n_steps)
        return super().td_target(transition._replace(discount=discount), bootstrap)


class ClonesEverybody(DQN):
    """All actions are imitated, the network's own too."""

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """As if the expert had chosen all."""
        if minibatch.by_expert is not None:
            minibatch = minibatch._replace(by_expert=torch.ones_like(minibatch.by_expert))
        return super().signals(minibatch)


class HardTargetNeverCopied(DQN):
    """The interval of the full copies is configured, and nobody copies."""

    def _update_target(self) -> None:
        pass


class RateReplaced(DQN):
    """A schedule of its own writes the learning rate."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """5e-5, as in the published run."""
        return super().set_learning_rate(optimizer, 5e-5)
