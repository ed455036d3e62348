"""PPO as a good engineer writes it by hand when nothing but speed is asked for: what the frame rates are compared with.

No logging, no checkpoints, no evaluation, no seeds to restore, no signals but the loss. Preallocated rollouts, fused
Adam, the mini-batch is the rollout where the two are of one size, and denormal numbers are flushed, as in rlmods.
"""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from turns import Turn


class SpeedSettings(NamedTuple):
    """What all contenders of one speed measurement share: the RL Zoo's constants for CartPole-v1."""

    env_id: str = "CartPole-v1"
    frames: int = 25_600
    num_envs: int = 8
    n_steps: int = 32
    n_epochs: int = 20
    batch_size: int = 256
    hidden_sizes: tuple[int, int] = (64, 64)
    learning_rate: float = 1e-3
    gamma: float = 0.98
    gae_lambda: float = 0.8
    clip_range: float = 0.2
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5

    @property
    def rollout(self) -> int:
        """Frames of an iteration."""
        return self.num_envs * self.n_steps


class BarePPO:
    """Environments, networks, one rollout."""

    def __init__(self, settings: SpeedSettings, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)
        self.settings = settings
        self.env = gym.make_vec(settings.env_id, settings.num_envs, vectorization_mode="vector_entry_point")
        self.observation, _ = self.env.reset(seed=seed)
        num_inputs, num_actions = self.observation.shape[1], int(self.env.single_action_space.n)  # type: ignore[attr-defined]
        self.actor, self.critic = self.network(num_inputs, num_actions), self.network(num_inputs, 1)
        self.parameters = [*self.actor.parameters(), *self.critic.parameters()]
        self.adam = torch.optim.Adam(self.parameters, lr=settings.learning_rate, eps=1e-5, fused=True)
        shape = (settings.n_steps, settings.num_envs)
        self.observations = torch.zeros(*shape, num_inputs)
        self.actions = torch.zeros(shape, dtype=torch.int64)
        self.log_probs, self.rewards = torch.zeros(shape), torch.zeros(shape)
        self.ended, self.continues, self.valid = (torch.zeros(shape, dtype=torch.bool) for _ in range(3))
        self.was_ended = np.zeros(settings.num_envs, dtype=np.bool_)

    def network(self, num_inputs: int, num_outputs: int) -> nn.Sequential:
        """Two tanh layers."""
        first, second = self.settings.hidden_sizes
        return nn.Sequential(
            nn.Linear(num_inputs, first), nn.Tanh(), nn.Linear(first, second), nn.Tanh(), nn.Linear(second, num_outputs)
        )

    @torch.inference_mode()
    def collect(self) -> None:
        """One rollout; the environment resets in the step after an end."""
        for t in range(self.settings.n_steps):
            observation = torch.from_numpy(self.observation)
            self.observations[t] = observation
            log_prob = self.actor(observation).log_softmax(-1)
            action = (log_prob.exp() / torch.empty_like(log_prob).exponential_()).argmax(-1)
            self.actions[t] = action
            self.log_probs[t] = log_prob.gather(-1, action.unsqueeze(-1)).squeeze(-1)
            self.observation, reward, terminated, truncated, _ = self.env.step(action.numpy())
            self.rewards[t] = torch.from_numpy(reward)
            ended = terminated | truncated
            self.ended[t] = torch.from_numpy(ended)
            self.continues[t] = torch.from_numpy(~terminated)
            self.valid[t] = torch.from_numpy(~self.was_ended)
            self.was_ended = ended

    @torch.no_grad()
    def advantages(self) -> tuple[Tensor, Tensor]:
        """GAE and the value's targets; at an end the next row is the last observation."""
        settings = self.settings
        values = self.critic(self.observations.flatten(0, 1)).view_as(self.rewards)
        last = self.critic(torch.from_numpy(self.observation)).T
        next_values = torch.cat([values[1:], last])
        td_error = self.rewards + settings.gamma * self.continues * next_values - values
        trace = settings.gamma * settings.gae_lambda * (~self.ended).float()
        advantage = td_error
        for t in range(settings.n_steps - 2, -1, -1):
            advantage[t].addcmul_(trace[t], advantage[t + 1])
        return advantage, advantage + values

    def learn(self, progress: float) -> None:
        """All epochs."""
        settings = self.settings
        remaining = 1.0 - progress
        for group in self.adam.param_groups:
            group["lr"] = settings.learning_rate * remaining
        advantage, target = (column[self.valid] for column in self.advantages())
        columns = (self.observations, self.actions, self.log_probs)
        observation, action, old_log_prob = (column[self.valid] for column in columns)
        number = settings.rollout // settings.batch_size
        size = len(action) // number
        for _ in range(settings.n_epochs):
            if number == 1:
                self.update(observation, action, old_log_prob, advantage, target, settings.clip_range * remaining)
                continue
            for drawn in torch.split(torch.randperm(len(action))[: number * size], size):
                self.update(
                    observation[drawn],
                    action[drawn],
                    old_log_prob[drawn],
                    advantage[drawn],
                    target[drawn],
                    settings.clip_range * remaining,
                )

    def update(
        self, observation: Tensor, action: Tensor, old_log_prob: Tensor, advantage: Tensor, target: Tensor, clip: float
    ) -> None:
        """One step."""
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        log_prob = self.actor(observation).log_softmax(-1).gather(-1, action.unsqueeze(-1)).squeeze(-1)
        ratio = (log_prob - old_log_prob).exp()
        policy_loss = -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()
        value_loss = (self.critic(observation).squeeze(-1) - target).square().mean()
        for parameter in self.parameters:
            parameter.grad = None
        (policy_loss + self.settings.vf_coef * value_loss).backward()
        nn.utils.clip_grad_norm_(self.parameters, self.settings.max_grad_norm)
        self.adam.step()


def train_bare(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """A run of the given number of frames, an iteration a turn."""
    ppo = BarePPO(settings, seed)
    for frames in range(settings.rollout, settings.frames + 1, settings.rollout):
        ppo.collect()
        ppo.learn((frames - settings.rollout) / settings.frames)
        turn.end_block(frames, learned=True)
    ppo.env.close()
