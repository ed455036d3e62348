"""PPO with one line broken: ratios, memory, updates and entropy; advantages are in `advantage_mutations.py`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn

from rlmods.algorithms import PPO
from rlmods.algorithms.segments import Segments
from rlmods.networks.action_heads import GaussianHead
from rlmods.types import Decision, Observation, Rollout

# Ratios


class RatioOfExecuted(PPO):
    """The new log-probability is that of the action that was executed, the old one that of the draw before it."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """Squashed or clipped."""
        return super().loss_signals(minibatch._replace(sample=executed(self, minibatch.sample)), clip_range)


class BothOfExecuted(PPO):
    """Both log-probabilities are those of the action that was executed: the draw is not stored."""

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """Clipped before it is stored."""
        features, state = self.networks.step(observation, state)
        outputs = self.networks.actor(features)
        sample = executed(self, self.head.draw(outputs, deterministic=deterministic))
        return Decision(self.head.action(sample), sample, self.head.log_prob(outputs, sample), state)


def executed(model: PPO, sample: Tensor) -> Tensor:
    return gaussian(model).unit_action(sample)


def gaussian(model: PPO) -> GaussianHead:
    if not isinstance(model.head, GaussianHead):
        raise TypeError("got discrete actions, expected continuous ones")
    return model.head


class LogProbOfAnother(PPO):
    """The log-probabilities of the collection are those of the step after."""

    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        """Shifted by one."""
        decisions = self._decisions(rollout)
        shifted = decisions._replace(log_prob=decisions.log_prob.roll(-1, 0))
        return super().segments(rollout._replace(decisions=shifted))


class LogProbOfMode(PPO):
    """The old log-probability is that of the mode, the action is a draw."""

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """Of the most likely action."""
        features, _ = self.networks.step(observation, state)
        outputs = self.networks.actor(features)
        mode = self.head.draw(outputs, deterministic=True)
        decision = super().decide(observation, state, deterministic=deterministic)
        return decision._replace(log_prob=self.head.log_prob(outputs, mode))


# Memory


class MemoryNotReset(PPO):
    """In training the memory goes on from one episode into the next."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """As if no episode began."""
        return super().loss_signals(minibatch._replace(begins=torch.zeros_like(minibatch.begins)), clip_range)


class MemoryForgotten(PPO):
    """Segments begin with a memory of zeros, whatever it was when they were played."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """As if a segment were an episode."""
        return super().loss_signals(minibatch._replace(state=torch.zeros_like(minibatch.state)), clip_range)


class MemoryAlwaysReset(PPO):
    """There is no memory at all: it is reset before each step, in acting and in training alike."""

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """With a new state."""
        return super().decide(observation, torch.zeros_like(state), deterministic=deterministic)

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """As if each step began an episode."""
        return super().loss_signals(minibatch._replace(begins=torch.ones_like(minibatch.begins)), clip_range)


# Updates


class SignFlipped(PPO):
    """The surrogate is minimised."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """With −Â."""
        return super().loss_signals(minibatch._replace(advantage=-minibatch.advantage), clip_range)


class AdvantageOfAnother(PPO):
    """Advantages are of other samples of the mini-batch."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """Shifted by one."""
        return super().loss_signals(minibatch._replace(advantage=minibatch.advantage.roll(1, 1)), clip_range)


class WrongAxis(PPO):
    """Advantages are standardised over the steps of a segment instead of the mini-batch; a segment has one."""

    def _normalized(self, minibatch: Segments) -> Segments:
        advantage = minibatch.advantage
        centred = advantage - advantage.mean(0, keepdim=True)
        scale = centred.square().mean(0, keepdim=True).sqrt() + 1e-8
        return minibatch._replace(advantage=centred / scale)


class HalfOfMinibatches(PPO):
    """The second half of each epoch is never learned from."""

    def minibatches(self, segments: Segments, number: int, progress: float) -> Iterator[Segments]:
        """The first half of them."""
        for count, minibatch in enumerate(super().minibatches(segments, number, progress)):
            if count < number // 2:
                yield minibatch


class ActorDetached(PPO):
    """The policy's loss loses its graph on the way to the actor."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """Only the critic learns."""
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"loss": self.vf_coef * signals["value_loss"] + 0.0 * signals["policy_loss"]}


class CriticDetached(PPO):
    """The value's loss is left out of the sum."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """Only the actor learns."""
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"loss": signals["policy_loss"]}


class ActorReplaced(PPO):
    """The actor is built anew, the optimiser keeps the old one."""

    def on_train_start(self) -> None:
        """After the optimisers."""
        layers = [
            nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in self.networks.actor
        ]
        self.networks.actor = nn.Sequential(*layers)


class NoLearning(PPO):
    """The learning rate is written as 0."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """Lost."""
        return super().set_learning_rate(optimizer, 0.0)


class ShortSchedule(PPO):
    """The schedule counts a third of the budget for the whole, and ends there."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """A line through 0 at a third."""
        spent = 1.0 - learning_rate / self.learning_rate
        return super().set_learning_rate(optimizer, self.learning_rate * max(0.0, 1.0 - 3.0 * spent))


class LearningRateJumps(PPO):
    """After 16 rollouts the learning rate is fifty times what it was."""

    rollouts = 0

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """Called once a rollout."""
        self.rollouts += 1
        return super().set_learning_rate(optimizer, learning_rate * (50.0 if self.rollouts > 16 else 1.0))


class ForgetsZeroGrad(PPO):
    """Gradients accumulate over all updates."""

    def optimize_all(
        self, optimizers: Sequence[LightningOptimizer], loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """As the original's, without the first step."""
        self.manual_backward(loss)
        grad_norm = nn.utils.clip_grad_norm_(self.parameters(), max_grad_norm or torch.inf)
        for number, each in enumerate(optimizers):
            self._step(each, counts=counts and number == 0)
        return grad_norm.detach()


# Entropy


class EntropyPunished(PPO):
    """The bonus has the wrong sign."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """+0.5 H."""
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"loss": signals["loss"] + 0.5 * signals["entropy"]}


class EntropyInBits(PPO):
    """Entropy is made with the logarithm to base 2."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """1.44 times as much."""
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"entropy": signals["entropy"] / torch.tensor(2.0).log()}


class EntropyWithoutSlope(PPO):
    """The entropy of tanh u is taken for that of u."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """Without the slope."""
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"entropy": gaussian(self).gaussian_entropy(minibatch.sample.flatten(0, 1)).mean()}


class SigmaPump(PPO):
    """Something adds to log σ after each rollout."""

    def training_step(self, batch: Rollout, batch_idx: int) -> dict[str, Tensor]:
        """0.2 in each."""
        signals = super().training_step(batch, batch_idx)
        with torch.no_grad():
            gaussian(self).log_std.add_(0.2)
        return signals


SEED_RUN: Mapping[str, Any] = {
    "action_distribution": "unbounded",
    "log_std_init": 0.0,
    "optimizer": "muon",
    "muon_parameters": "all_matrices",
    "learning_rate": 3e-3,
    "ent_coef": 0.12,
}
