"""TD3, SAC and their data module, each class with one line broken; those of the clip are in `clip_mutations.py`."""

import math

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor

from rlmods.algorithms import SAC, TD3
from rlmods.algorithms.base import Algorithm
from rlmods.data import ReplayDataModule
from rlmods.functional.continuous_policy import noisy_action
from rlmods.functional.td import td_target
from rlmods.networks.continuous import Encodable, encode_once
from rlmods.types import Minibatch, Observation, ReplayBatch, Transition

# The actor of TD3


class ActorThroughState(TD3):
    """Q1 is asked about features of the actor's own encoder, with their gradient, as in the published runs."""

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """Two encoders of one architecture, confused."""
        features = self.actor.encode(observation)
        pre_tanh = self.actor.layers(self.actor.trunk(features))
        with self.critic.frozen():
            q_policy = self.critic.value(features, self.actions.from_cube(pre_tanh.tanh()))[0]
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}


class ActorDescends(TD3):
    """The sign of the actor's loss."""

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """+Q."""
        signals = super().actor_signals(observation)
        return signals | {"actor_loss": -signals["actor_loss"]}


class ActorDetached(TD3):
    """The action loses its graph on the way to the critic."""

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """A loss that depends on nothing of the actor but by 0."""
        signals = super().actor_signals(observation)
        return signals | {"actor_loss": signals["actor_loss"].detach() + 0.0 * signals["pre_tanh"].sum()}


class WildActor(TD3):
    """The actor's learning rate is 0.3."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """The critic's stays."""
        is_actor = optimizer.param_groups[0]["name"] == "actor"
        return super().set_learning_rate(optimizer, 0.3 if is_actor else learning_rate)


class NeverExplores(TD3):
    """The actor's own actions from the first step on, without noise."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Deterministic."""
        return super().act(observation, env_steps=env_steps, deterministic=True)


# The targets of TD3


class FrozenTargets(TD3):
    """The target networks stay what they were at first."""

    def update_targets(self) -> None:
        """Not."""


class OnlineTargets(TD3):
    """The target networks are the online networks."""

    def setup(self, stage: str) -> None:
        """Assigned instead of copied."""
        super().setup(stage)
        self.target_critic, self.target_actor = self.critic, self.actor

    def update_targets(self) -> None:
        """There is nothing to do."""


class CustomTarget(TD3):
    """A target made of a next action and of next values that a subclass changes."""

    @torch.no_grad()
    def td_target(self, transition: Transition) -> Tensor:
        """As the original's."""
        following = encode_once(transition.next_observation, self.target_actor, self.target_critic)
        unit_action = noisy_action(
            self.target_actor(following).tanh(), self.target_policy_noise, self.target_noise_clip
        )
        values = self.target_critic(following, self.next_action(unit_action))
        return td_target(transition.reward, self.discount(transition), self.reduced(values))

    def next_action(self, unit_action: Tensor) -> Tensor:
        """In the environment's units."""
        return self.actions.from_cube(unit_action)

    def reduced(self, values: Tensor) -> Tensor:
        """Clipped double Q."""
        return values.amin(0)

    def discount(self, transition: Transition) -> Tensor:
        """That of the batch."""
        return transition.discount


class UnscaledTargetAction(CustomTarget):
    """The target's action is in the cube, the critic takes it for one in the environment's units."""

    def next_action(self, unit_action: Tensor) -> Tensor:
        """As it is."""
        return unit_action.reshape(-1, *self.actions.shape)


class MaximumOfTwins(CustomTarget):
    """The larger of the twins bootstraps."""

    def reduced(self, values: Tensor) -> Tensor:
        """The largest."""
        return values.amax(0)


class MeanOfTwins(CustomTarget):
    """The mean of the twins bootstraps."""

    def reduced(self, values: Tensor) -> Tensor:
        """The mean."""
        return values.mean(0)


class OwnDiscount(CustomTarget):
    """A γ of its own in the place of the batch's discount: 0.98, also where the episode has terminated."""

    def discount(self, transition: Transition) -> Tensor:
        """A constant."""
        return torch.full_like(transition.discount, 0.98)


class TerminalsBootstrap(CustomTarget):
    """The mask of terminated transitions is missing."""

    def discount(self, transition: Transition) -> Tensor:
        """The largest of the batch for all."""
        return transition.discount.where(~transition.terminated, transition.discount.amax())


class DiscountAboveOne(CustomTarget):
    """γ = 1.01."""

    def discount(self, transition: Transition) -> Tensor:
        """Larger."""
        return transition.discount * 1.03


class EqualTwins(TD3):
    """The second critic begins as a copy of the first, learns from the same batches, and so remains one."""

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Copy."""
        for network in (self.critic, self.target_critic):
            for parameter in network.q_functions.parameters():
                parameter[1] = parameter[0]


class NoStopGradient(CustomTarget):
    """The gradient flows through the target, which the online critic makes."""

    def td_target(self, transition: Transition) -> Tensor:
        """Without `no_grad`."""
        next_value = self.critic(transition.next_observation, self.policy(transition.next_observation)).amin(0)
        return td_target(transition.reward, transition.discount, next_value)


# SAC


class EntropySign(SAC):
    """The entropy is punished: α has the wrong sign, in the target and in the actor's loss."""

    @property
    def entropy_coefficient(self) -> Tensor:
        """-α."""
        return -self.log_ent_coef.detach().exp()


class NoTanhCorrection(SAC):
    """The density of the draw before tanh is taken for that of the action."""

    def draw(self, observation: Encodable) -> tuple[Tensor, Tensor, Tensor]:
        """The actor's mean, an action in the cube, and the wrong log density."""
        mean, log_std = self.distribution(observation)
        noise = torch.randn_like(mean)
        log_density = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        return mean, (mean + log_std.exp() * noise).tanh(), log_density.sum(-1)

    @torch.no_grad()
    def td_target(self, transition: Transition) -> Tensor:
        """As the original's."""
        _, next_action, log_density = self.draw(transition.next_observation)
        next_value = self.target_critic(transition.next_observation, self.actions.from_cube(next_action)).amin(0)
        soft_value = next_value - self.entropy_coefficient * log_density
        return td_target(transition.reward, transition.discount, soft_value)

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """As the original's."""
        mean, unit_action, log_density = self.draw(observation)
        with self.critic.frozen():
            q_values = self.critic(observation, self.actions.from_cube(unit_action))
        actor_loss = (self.entropy_coefficient * log_density - q_values.amin(0)).mean()
        entropy = -log_density.mean()
        return {"actor_loss": actor_loss, "q_policy": q_values[0], "pre_tanh": mean, "entropy": entropy}


class TemperatureForgotten(SAC):
    """The temperature is to be learned, and its optimiser never steps."""

    def optimize(
        self, optimizer: LightningOptimizer, loss: Tensor, max_grad_norm: float | None, *, counts: bool
    ) -> Tensor:
        """The others'."""
        if optimizer.param_groups[0]["name"] == "ent_coef":
            return torch.zeros(())
        return super().optimize(optimizer, loss, max_grad_norm, counts=counts)


class TemperatureSign(SAC):
    """α falls where the entropy is below its target, and rises without end where it is above."""

    def ent_coef_loss(self, entropy: Tensor) -> Tensor:
        """-J(α)."""
        return -super().ent_coef_loss(entropy)


# Updates of both


class RepeatedUpdates(Algorithm):
    """Each mini-batch is learned from eight times."""

    def update(self, optimizers: object, minibatch: Minibatch, *, counts: bool) -> dict[str, Tensor]:
        """Repeat."""
        update = super().update  # type: ignore[misc]
        for _ in range(7):
            update(optimizers, minibatch, counts=False)
        signals: dict[str, Tensor] = update(optimizers, minibatch, counts=counts)
        return signals


# What is stored and drawn


class FaultyData(ReplayDataModule):
    """Breaks the batch of every iteration."""

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        """The real one, broken."""
        batch = super().iterate(trainer)
        return batch._replace(transition=self.broken(batch.transition))

    def broken(self, transition: Transition) -> Transition:
        """As if it had been stored so."""
        raise NotImplementedError


class TruncationTerminates(FaultyData):
    """`done = terminated or truncated` is stored."""

    def broken(self, transition: Transition) -> Transition:
        """Join the two."""
        return transition._replace(
            discount=transition.discount * ~transition.truncated,
            terminated=transition.terminated | transition.truncated,
            truncated=torch.zeros_like(transition.truncated),
        )


class TerminalsLost(FaultyData):
    """No transition is stored as terminated."""

    def broken(self, transition: Transition) -> Transition:
        """All bootstrap."""
        discount = transition.discount.where(~transition.terminated, self.gamma)
        return transition._replace(discount=discount, terminated=torch.zeros_like(transition.terminated))


class StaleSuccessor(FaultyData):
    """The next observation is the observation."""

    def broken(self, transition: Transition) -> Transition:
        """Twice the same."""
        return transition._replace(next_observation=transition.observation)


class ScaledActions(FaultyData):
    """Actions are stored in the cube, the critic takes them for ones in the environment's units."""

    def broken(self, transition: Transition) -> Transition:
        """Pendulum's are in ±2."""
        return transition._replace(action=transition.action / 2.0)


class ReplayLost(ReplayDataModule):
    """From the sixtieth iteration on the replay is a new one, as after a resume that did not save it."""

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        """Drop it once."""
        if self.iterations == 60:
            self.replay = self._make_replay()
        return super().iterate(trainer)


class CollectorDead(ReplayDataModule):
    """From the sixtieth iteration on nothing new is stored."""

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        """Swallow."""
        _, replay, _ = self._fitting()
        if self.iterations == 60:
            extend = replay.extend
            replay.extend = lambda transitions, *expert: extend(_first(transitions, 0), *expert)  # type: ignore[method-assign]
        return super().iterate(trainer)


def _first(transitions: Transition, num: int) -> Transition:
    return Transition(*(field[:num] for field in transitions))  # type: ignore[index]
