"""TD3 as a good engineer writes it by hand when nothing but speed is asked for: what the frame rates are compared with.

No logging, no checkpoints, no evaluation, no seeds to restore. The replay is a few preallocated arrays; a block of
updates draws its indices at once; Adam is fused. And the matrix products of the same updates with nothing around them,
which no program can beat in this precision.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Turn


class SpeedSettings(NamedTuple):
    """What all contenders of one speed measurement share: the constants of the authors' repository."""

    env_id: str
    frames: int
    frames_per_block: int
    batch_size: int = 256
    hidden_sizes: tuple[int, int] = (256, 256)
    learning_rate: float = 3e-4
    buffer_size: int = 100_000
    learning_starts: int = 1_000
    gamma: float = 0.99
    tau: float = 0.005
    policy_delay: int = 2
    noise: float = 0.1
    target_noise: float = 0.2
    noise_clip: float = 0.5


class Ring:
    """The replay."""

    def __init__(self, capacity: int, num_inputs: int, num_actions: int) -> None:
        self.capacity = capacity
        self.inserted = 0
        shapes = ((num_inputs,), (num_actions,), (), (), (num_inputs,))  # observation, action, reward, discount, next
        self.arrays = tuple(np.zeros((capacity, *shape), np.float32) for shape in shapes)
        self.tensors = tuple(torch.from_numpy(array) for array in self.arrays)

    def add(self, *fields: Any) -> None:
        """One row."""
        for array, value in zip(self.arrays, fields, strict=True):
            array[self.inserted % self.capacity] = value
        self.inserted += 1

    def sample(self, num_batches: int, batch_size: int) -> list[tuple[Tensor, ...]]:
        """K mini-batches, drawn at once."""
        index = torch.randint(min(self.inserted, self.capacity), (num_batches * batch_size,))
        drawn = (
            tensor.index_select(0, index).view(num_batches, batch_size, *tensor.shape[1:]) for tensor in self.tensors
        )
        return list(zip(*(field.unbind() for field in drawn), strict=True))


class BareTD3:
    """The state of the loop."""

    def __init__(self, settings: SpeedSettings, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)  # as rlmods does; a setting of the thread
        self.settings = settings
        self.env = gym.make(settings.env_id)
        self.env.action_space.seed(seed)
        self.observation, _ = self.env.reset(seed=seed)
        num_inputs, num_actions = self.env.observation_space.shape[0], self.env.action_space.shape[0]  # type: ignore[index]
        self.max_action = float(self.env.action_space.high[0])  # type: ignore[attr-defined]
        self.ring = Ring(settings.buffer_size, num_inputs, num_actions)
        self.actor, self.target_actor = (self._network(num_inputs, num_actions) for _ in range(2))
        self.critics, self.target_critics = (
            [self._network(num_inputs + num_actions, 1) for _ in range(2)] for _ in range(2)
        )
        self.critic_parameters: list[Tensor] = [
            parameter for critic in self.critics for parameter in critic.parameters()
        ]
        self.online = [*self.actor.parameters(), *self.critic_parameters]
        self.targets: list[Tensor] = [
            parameter for net in (self.target_actor, *self.target_critics) for parameter in net.parameters()
        ]
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), settings.learning_rate, fused=True)
        self.critic_optimizer = torch.optim.Adam(self.critic_parameters, settings.learning_rate, fused=True)
        self.frames = self.updates = 0
        with torch.no_grad():
            torch._foreach_copy_(self.targets, self.online)

    def _network(self, num_inputs: int, num_outputs: int) -> nn.Sequential:
        first, second = self.settings.hidden_sizes
        return nn.Sequential(
            nn.Linear(num_inputs, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, num_outputs)
        )

    def collect(self, until: int) -> None:
        """Step the environment until that many frames are made."""
        while self.frames < until:
            if self.frames < self.settings.learning_starts:
                action = self.env.action_space.sample()
            else:
                with torch.inference_mode():
                    mean = self.actor(torch.as_tensor(self.observation, dtype=torch.float32)).tanh()
                    noisy = (mean + self.settings.noise * torch.randn_like(mean)).clamp_(-1.0, 1.0)
                action = (self.max_action * noisy).numpy()
            following, reward, terminated, truncated, _ = self.env.step(action)
            self.ring.add(self.observation, action, reward, self.settings.gamma * (not terminated), following)
            self.observation = self.env.reset()[0] if terminated or truncated else following
            self.frames += 1

    def learn(self, num_updates: int) -> None:
        """One block of updates."""
        settings, limit = self.settings, self.max_action
        for observation, action, reward, discount, following in self.ring.sample(num_updates, settings.batch_size):
            with torch.no_grad():
                noise = (settings.target_noise * torch.randn_like(action)).clamp_(
                    -settings.noise_clip, settings.noise_clip
                )
                target_action = limit * (self.target_actor(following).tanh() + noise).clamp_(-1.0, 1.0)
                inputs = torch.cat([following, target_action], 1)
                first, second = (critic(inputs).squeeze(1) for critic in self.target_critics)
                target = reward + discount * torch.minimum(first, second)
            inputs = torch.cat([observation, action], 1)
            loss = sum(F.mse_loss(critic(inputs).squeeze(1), target) for critic in self.critics)
            self.critic_optimizer.zero_grad()
            loss.backward()  # type: ignore[union-attr]
            self.critic_optimizer.step()
            self.updates += 1
            if self.updates % settings.policy_delay == 0:
                self.improve(observation)

    def improve(self, observation: Tensor) -> None:
        """The actor's update, and that of the targets."""
        for parameter in self.critic_parameters:
            parameter.requires_grad_(False)
        action = self.max_action * self.actor(observation).tanh()
        loss = -self.critics[0](torch.cat([observation, action], 1)).mean()
        self.actor_optimizer.zero_grad()
        loss.backward()
        self.actor_optimizer.step()
        for parameter in self.critic_parameters:
            parameter.requires_grad_(True)
        with torch.no_grad():
            torch._foreach_lerp_(self.targets, self.online, self.settings.tau)


def train_bare(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    td3 = BareTD3(settings, seed)
    block = settings.frames_per_block
    for until in range(block, settings.frames + 1, block):
        td3.collect(until)
        learns = td3.frames >= settings.learning_starts
        if learns:
            td3.learn(block)
        turn.end_block(td3.frames, learned=learns)
    td3.env.close()


def multiply(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """The matrix products of as many updates, forward and backward, and nothing else."""
    env = gym.make(settings.env_id)
    num_inputs, num_actions = env.observation_space.shape[0], env.action_space.shape[0]  # type: ignore[index]
    env.close()
    first, second = settings.hidden_sizes
    actor = [(num_inputs, first), (first, second), (second, num_actions)]
    critic = [(num_inputs + num_actions, first), (first, second), (second, 1)]
    forward, by_weight, by_input = 0, 1, 2
    # Twice the twins' values at the next state and at this one, with the gradients of the latter, after the target
    # actor; every second time the actor's values and both kinds of gradients, through the first critic's inputs.
    every = [(forward, actor), *[(forward, critic)] * 4, *[(by_weight, critic)] * 2, *[(by_input, critic[1:])] * 2]
    delayed = [(forward, actor), (forward, critic), (by_input, critic), (by_weight, actor), (by_input, actor[1:])]
    torch.manual_seed(seed)
    batch = settings.batch_size
    shapes = {layer for _, layers in [*every, *delayed] for layer in layers}
    inputs = {shape: torch.randn(batch, shape[0]) for shape in shapes}
    outputs = {shape: torch.randn(batch, shape[1]) for shape in shapes}
    weights = {shape: torch.randn(*shape) for shape in shapes}
    updates = 0
    for frames in range(settings.frames_per_block, settings.frames + 1, settings.frames_per_block):
        for _ in range(settings.frames_per_block):
            updates += 1
            for kind, layers in [*every, *(delayed if updates % settings.policy_delay == 0 else [])]:
                for layer in layers:
                    if kind == forward:
                        torch.mm(inputs[layer], weights[layer], out=outputs[layer])
                    elif kind == by_weight:
                        torch.mm(inputs[layer].T, outputs[layer], out=weights[layer])
                    else:
                        torch.mm(outputs[layer], weights[layer].T, out=inputs[layer])
        for tensor in (*inputs.values(), *outputs.values(), *weights.values()):
            tensor.normal_()  # else they grow beyond what is finite
        turn.end_block(frames, learned=True)
