"""A stranger's actor and critic on features of their encoders, wired rightly or as in a published run that diverged."""

from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, Optimizer

from rlmods.types import Minibatch, ReplayBatch, Transition

Wiring = Literal["separate", "shared", "through_state"]
OBSERVATIONS, FEATURES, ACTIONS = 12, 32, 2


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


class ActorCritic(LightningModule):
    """DDPG, in manual optimisation, with an encoder for each of actor and critic, or one that the critic trains.

    `through_state`: the actor's loss asks the critic about features of the actor's encoder, with their gradient.
    """

    def __init__(self, wiring: Wiring = "separate", *, learning_rate: float = 1e-3) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.wiring = wiring
        self.learning_rate = learning_rate
        self.critic_encoder = mlp(OBSERVATIONS, FEATURES)
        self.critic = mlp(FEATURES + ACTIONS, 1)
        self.target_critic = mlp(FEATURES + ACTIONS, 1).requires_grad_(False)
        self.target_critic.load_state_dict(self.critic.state_dict())
        if wiring != "shared":
            self.actor_encoder = mlp(OBSERVATIONS, FEATURES)
        self.head = mlp(FEATURES, ACTIONS)

    def pre_tanh(self, observation: Any) -> Tensor:
        features = self.critic_encoder(observation).detach() if self.wiring == "shared" else self.features(observation)
        outputs: Tensor = self.head(features)
        return outputs

    def features(self, observation: Any) -> Tensor:
        features: Tensor = self.actor_encoder(observation)
        return features

    def value(self, features: Tensor, action: Tensor) -> Tensor:
        value: Tensor = self.critic(torch.cat([features, action], -1)).squeeze(-1)
        return value

    def critic_signals(self, transition: Transition) -> dict[str, Tensor]:
        features = self.critic_encoder(transition.observation)
        q_value = self.value(features, transition.action)
        with torch.no_grad():
            following: Any = transition.next_observation
            inputs = torch.cat([self.critic_encoder(following), self.pre_tanh(following).tanh()], -1)
            target = transition.reward + transition.discount * self.target_critic(inputs).squeeze(-1)
        return {"critic_loss": F.mse_loss(q_value, target), "q_value": q_value, "td_target": target}

    def actor_signals(self, transition: Transition) -> dict[str, Tensor]:
        pre_tanh = self.pre_tanh(transition.observation)
        if self.wiring == "through_state":
            features = self.features(transition.observation)
        else:
            features = self.critic_encoder(transition.observation).detach()
        q_policy = self.value(features, pre_tanh.tanh())
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}

    def losses(self, batch: Minibatch) -> dict[str, Tensor]:
        signals = self.critic_signals(batch.transition) | self.actor_signals(batch.transition)
        return {name: signals[name] for name in ("critic_loss", "actor_loss")}

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        updates = [self.update(minibatch.transition) for minibatch in batch.minibatches()]
        return {name: torch.stack([update[name].detach() for update in updates]) for name in updates[0]}

    def update(self, transition: Transition) -> dict[str, Tensor]:
        critic, actor = self.trainer.optimizers  # raw, which is faster
        signals = self.critic_signals(transition)
        self.step(critic, signals["critic_loss"], 10.0)
        signals |= self.actor_signals(transition)
        self.step(actor, signals["actor_loss"], 1.0)
        with torch.no_grad():
            for target, online in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
                target.lerp_(online, 0.005)
        return signals

    def step(self, optimizer: Any, loss: Tensor, max_norm: float) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        clip_grad_norm_(optimizer.param_groups[0]["params"], max_norm)
        optimizer.step()

    def configure_optimizers(self) -> list[Optimizer]:
        critic = [*self.critic_encoder.parameters(), *self.critic.parameters()]
        actor = [*self.head.parameters(), *(self.actor_encoder.parameters() if self.wiring != "shared" else [])]
        groups = {"critic": critic, "actor": actor}
        return [
            Adam([{"params": params, "name": name}], lr=self.learning_rate, fused=True)
            for name, params in groups.items()
        ]


def replay_batches(count: int, *, updates: int = 1, size: int = 32, seed: int = 0) -> list[ReplayBatch]:
    """Draws from one fixed replay of 1,500 transitions: the best action depends on the observation."""
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(1_500, OBSERVATIONS, generator=generator)
    action = 2.0 * torch.rand(1_500, ACTIONS, generator=generator) - 1.0
    reward = 1.0 - (action - observation[:, :ACTIONS].tanh()).square().sum(-1)
    terminated = torch.rand(1_500, generator=generator) < 0.05
    following = observation.roll(1, 0)
    batches = []
    for number in range(count):
        index = torch.randint(1_500, (updates, size), generator=generator)
        transition = Transition(
            observation[index],
            action[index],
            reward[index],
            0.9 * (~terminated[index]).float(),
            following[index],
            terminated[index],
            torch.zeros_like(terminated[index]),
        )
        batches.append(ReplayBatch(transition, index, torch.ones(updates, size), number, number / count))
    return batches
