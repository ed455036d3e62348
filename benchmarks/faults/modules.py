"""Broken algorithms and data modules: each class overrides one method of the real one, and is intact before its onset.

Copies of lines of the original are on purpose: a fault is the original with one line broken.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.data import ReplayDataModule
from rlmods.data.replay import ReplayBuffer
from rlmods.functional.norms import clip_by_global_norm_, global_norm
from rlmods.functional.td import td_target
from rlmods.types import EpisodeBatch, Minibatch, ReplayBatch, Transition

from .clock import CLOCK


class Faulty:
    """What broken classes share.

    Attributes:
        onset: part of the budget before which nothing is broken.
        magnitude: how much, where that can be said in a number.
    """

    onset = 0.0
    magnitude = 0.0

    @property
    def is_broken(self) -> bool:
        """Whether the onset has come."""
        return CLOCK.progress >= self.onset


class FaultyDQN(Faulty, DQN):
    """Knows the data module's γ and n."""

    @property
    def horizon_discount(self) -> float:
        """γⁿ."""
        source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return float(source.gamma**source.n_steps)

    def gradients(self) -> list[Tensor]:
        """Those that there are, in the order of the layers."""
        return [parameter.grad for parameter in self.q_network.parameters() if parameter.grad is not None]

    def backward_and_step(self, optimizer: LightningOptimizer, loss: Tensor, *, counts: bool) -> Tensor:
        """An update without `zero_grad`, clipped by `clip`."""
        self.manual_backward(loss)
        self.grad_norm = grad_norm = self.clip()
        self._step(optimizer, counts=counts)
        return grad_norm

    def clip(self) -> Tensor:
        """Clip the gradients; returns the norm before."""
        return clip_by_global_norm_(self.gradients(), self.max_grad_norm or float("inf"))


# Clip


class ClipBeforeBackward(FaultyDQN):
    """The gradients of the last update are clipped, then those of this one are made."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Clip, zero_grad, backward, step."""
        if not self.is_broken:
            return super().optimize(optimizer, loss, max_grad_norm, counts=counts)
        with torch.no_grad():
            self.clip()
        return super().optimize(optimizer, loss, None, counts=counts)


class ClipAfterStep(FaultyDQN):
    """The gradients are clipped when they have been used."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Zero_grad, backward, step, clip."""
        if not self.is_broken:
            return super().optimize(optimizer, loss, max_grad_norm, counts=counts)
        grad_norm = super().optimize(optimizer, loss, None, counts=counts)
        with torch.no_grad():
            self.clip()
        return grad_norm


class NoClip(FaultyDQN):
    """`max_grad_norm` is configured, and nobody uses it."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Zero_grad, backward, step."""
        return super().optimize(optimizer, loss, None if self.is_broken else max_grad_norm, counts=counts)


class CustomClip(FaultyDQN):
    """An own clip takes the place of the real one."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """As the original, with `clip`."""
        if not self.is_broken:
            return super().optimize(optimizer, loss, max_grad_norm, counts=counts)
        for parameter in self.q_network.parameters():
            parameter.grad = None
        return self.backward_and_step(optimizer, loss, counts=counts)


class HeadOutsideClip(CustomClip):
    """The last layer's gradients are not clipped."""

    def clip(self) -> Tensor:
        """All but the head."""
        head = {id(parameter.grad) for parameter in self.q_network[-1].parameters()}
        inside = [gradient for gradient in self.gradients() if id(gradient) not in head]
        return clip_by_global_norm_(inside, self.max_grad_norm or float("inf"))


class ClipPerTensor(CustomClip):
    """Each tensor has the whole limit for itself."""

    def clip(self) -> Tensor:
        """One by one."""
        grad_norm = global_norm(self.gradients())
        for gradient in self.gradients():
            clip_by_global_norm_([gradient], self.max_grad_norm or float("inf"))
        return grad_norm


class AccumulatedGradients(FaultyDQN):
    """`zero_grad` was forgotten."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """Backward, clip, step."""
        if not self.is_broken:
            return super().optimize(optimizer, loss, max_grad_norm, counts=counts)
        return self.backward_and_step(optimizer, loss, counts=counts)


class SumOfNorms(FaultyDQN):
    """Nothing is broken but a metric of the user: the sum of the norms of the tensors, which may exceed the limit."""

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """Log it."""
        signals = super().training_step(batch, batch_idx)
        norms = [gradient.norm() for gradient in self.gradients()]
        if norms and self.is_broken:
            self.log("train/clipped_grad_norm", torch.stack(norms).sum(), batch_size=1)
        return signals


# Targets


class TerminalsIgnoredInTarget(FaultyDQN):
    """The target bootstraps through the end of an episode."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With γⁿ where the episode terminated."""
        if self.is_broken:
            discount = transition.discount.where(~transition.terminated, self.horizon_discount)
            transition = transition._replace(discount=discount)
        return super().td_target(transition, bootstrap)


class TruncationEndsInTarget(FaultyDQN):
    """The target takes a time limit for the end of the world."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With 0 where the episode was truncated."""
        if self.is_broken:
            transition = transition._replace(discount=transition.discount * ~transition.truncated)
        return super().td_target(transition, bootstrap)


class ScaledDiscount(FaultyDQN):
    """The discount times `magnitude`: γ ≥ 1, or another γ than the one that is configured."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With another discount."""
        if self.is_broken:
            transition = transition._replace(discount=transition.discount * self.magnitude)
        return super().td_target(transition, bootstrap)


class OneStepDiscount(FaultyDQN):
    """γ where it must be γⁿ."""

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """With the discount of one step."""
        if self.is_broken:
            source: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            transition = transition._replace(discount=source.gamma * (transition.discount > 0.0))
        return super().td_target(transition, bootstrap)


class NoStopGradient(FaultyDQN):
    """The target comes from the online network, and the gradient flows through it."""

    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """Without `no_grad`."""
        if not self.is_broken:
            return super().td_target(transition, bootstrap)
        bootstrap_value = self.q_network(transition.next_observation).amax(-1)
        return td_target(transition.reward, transition.discount, bootstrap_value)


class OnlineTarget(FaultyDQN):
    """The target network is the online network."""

    def setup(self, stage: str) -> None:
        """Assign instead of copy."""
        super().setup(stage)
        self.target_network = self.q_network


# Loss and parameters


class PinnedLoss(FaultyDQN):
    """A term of the loss is kept at or above `magnitude`: below it nothing is learned."""

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """Clamp."""
        signals = super().signals(minibatch)
        return signals | {"loss": signals["loss"].clamp(min=self.magnitude)} if self.is_broken else signals


class DetachedTrunk(FaultyDQN):
    """The head's input is detached: no gradient for the layers before it."""

    def setup(self, stage: str) -> None:
        """Detach in front of the head."""
        super().setup(stage)
        self.q_network[-1].register_forward_pre_hook(
            lambda _, inputs: (inputs[0].detach(),) if self.is_broken else None
        )


class FrozenHead(FaultyDQN):
    """The last layer is not trained any more."""

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """Freeze."""
        if self.is_broken:
            self.q_network[-1].requires_grad_(False)
        return super().training_step(batch, batch_idx)


class ScaledLearningRate(FaultyDQN):
    """The learning rate times `magnitude`, for good."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """Scale."""
        return super().set_learning_rate(optimizer, learning_rate * (self.magnitude if self.is_broken else 1.0))


class LearningRateSpike(FaultyDQN):
    """The learning rate times `magnitude` for 20 iterations."""

    iterations = 0

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """Scale."""
        self.iterations += self.is_broken
        spikes = 0 < self.iterations <= 20
        return super().set_learning_rate(optimizer, learning_rate * (self.magnitude if spikes else 1.0))


class RepeatedUpdates(FaultyDQN):
    """Each mini-batch is learned from `magnitude` times."""

    def update(
        self, optimizer: LightningOptimizer, minibatches: Sequence[Minibatch], *, counts: bool
    ) -> list[dict[str, Tensor]]:
        """Repeat."""
        for _ in range(round(self.magnitude) - 1 if self.is_broken else 0):
            super().update(optimizer, minibatches, counts=False)
        return super().update(optimizer, minibatches, counts=counts)


# Acting and measuring


class AlwaysExplores(FaultyDQN):
    """ε stays 1."""

    def exploration_rate(self, env_steps: int) -> float:
        """1."""
        return 1.0 if self.is_broken else super().exploration_rate(env_steps)


class SuccessCount(FaultyDQN):
    """`success_rate` is the number of episodes that succeeded."""

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Count."""
        metrics = super().evaluation_metrics(episodes)
        succeeded = (episodes.lengths >= self.magnitude).double()
        return metrics | {"success_rate": succeeded.sum() if self.is_broken else succeeded.mean()}


# What is stored


class FaultyData(Faulty, ReplayDataModule):
    """A data module that stores something else than what happened."""

    def _make_replay(self) -> ReplayBuffer:
        replay = super()._make_replay()
        extend = replay.extend
        replay.extend = lambda transitions, *expert: extend(  # type: ignore[method-assign]
            self.stored(transitions) if self.is_broken else transitions, *expert
        )
        return replay

    def stored(self, transitions: Transition) -> Transition:
        """What is stored in the place of `transitions`."""
        raise NotImplementedError


class TerminalsLost(FaultyData):
    """No transition is marked as terminated, and all bootstrap."""

    def stored(self, transitions: Transition) -> Transition:
        """Forget the ends."""
        discount = transitions.discount.where(~transitions.terminated, self.gamma**self.n_steps)
        return transitions._replace(discount=discount, terminated=torch.zeros_like(transitions.terminated))


class TruncationStoredAsTermination(FaultyData):
    """`done = terminated or truncated`."""

    def stored(self, transitions: Transition) -> Transition:
        """Join the two."""
        return transitions._replace(
            discount=transitions.discount * ~transitions.truncated,
            terminated=transitions.terminated | transitions.truncated,
            truncated=torch.zeros_like(transitions.truncated),
        )


class NothingStored(FaultyData):
    """The collector has died."""

    def stored(self, transitions: Transition) -> Transition:
        """Nothing."""
        return Transition(*(field[:0] for field in transitions))  # type: ignore[index]


class StaleSuccessor(FaultyData):
    """The next observation is the observation."""

    def stored(self, transitions: Transition) -> Transition:
        """Store it twice."""
        return transitions._replace(next_observation=transitions.observation)


class ShuffledActions(FaultyData):
    """The actions are those of other environments."""

    def stored(self, transitions: Transition) -> Transition:
        """Shift by one."""
        return transitions._replace(action=transitions.action.roll(1))
