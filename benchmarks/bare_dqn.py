"""DQN as a good engineer writes it by hand when nothing but speed is asked for: what the frame rates are compared with.

No logging, no checkpoints, no evaluation, no seeds to restore. The replay is a few preallocated arrays; a block of
updates draws its indices at once; Adam is fused.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import Turn


class SpeedSettings(NamedTuple):
    """What all contenders of one speed measurement share."""

    name: str
    num_envs: int
    frames: int
    frames_per_block: int
    updates_per_block: int
    batch_size: int
    hidden_sizes: tuple[int, int]
    learning_rate: float
    target_update_interval: int  # gradient updates
    buffer_size: int = 100_000
    learning_starts: int = 1_000
    gamma: float = 0.99
    final_eps: float = 0.04
    exploration_fraction: float = 0.16
    max_grad_norm: float = 10.0

    def epsilon(self, frame: int) -> float:
        """From 1 in a straight line."""
        share = min(1.0, frame / (self.exploration_fraction * self.frames))
        return 1.0 + share * (self.final_eps - 1.0)


class Ring:
    """The replay."""

    def __init__(self, capacity: int, num_inputs: int) -> None:
        self.capacity = capacity
        self.inserted = 0
        self.arrays: tuple[npt.NDArray[Any], ...] = (
            np.zeros((capacity, num_inputs), np.float32),  # observation
            np.zeros(capacity, np.int64),  # action
            np.zeros(capacity, np.float32),  # reward
            np.zeros(capacity, np.float32),  # discount, 0 after a termination
            np.zeros((capacity, num_inputs), np.float32),  # next observation
        )
        self.tensors = tuple(torch.from_numpy(array) for array in self.arrays)

    def add(self, *fields: Any) -> None:
        """One row an environment."""
        num = len(fields[1])
        slots = np.arange(self.inserted, self.inserted + num) % self.capacity
        for array, values in zip(self.arrays, fields, strict=True):
            array[slots] = values
        self.inserted += num

    def sample(self, num_batches: int, batch_size: int) -> list[tuple[Tensor, ...]]:
        """K mini-batches, drawn at once."""
        index = torch.randint(min(self.inserted, self.capacity), (num_batches * batch_size,))
        drawn = (
            tensor.index_select(0, index).view(num_batches, batch_size, *tensor.shape[1:]) for tensor in self.tensors
        )
        return list(zip(*(field.unbind() for field in drawn), strict=True))


class BareDQN:
    """The state of the loop."""

    def __init__(self, settings: SpeedSettings, seed: int) -> None:
        torch.manual_seed(seed)
        torch.set_flush_denormal(True)  # as rlmods does; a setting of the thread
        mode = "sync" if settings.num_envs == 1 else "vector_entry_point"
        self.settings = settings
        self.envs = gym.make_vec("CartPole-v1", settings.num_envs, vectorization_mode=mode)
        self.observation, _ = self.envs.reset(seed=seed)
        self.valid = np.ones(settings.num_envs, np.bool_)  # False where the next frame only resets
        self.random = np.random.default_rng(seed)
        self.ring = Ring(settings.buffer_size, 4)
        self.q_network, self.target_network = _network(settings.hidden_sizes), _network(settings.hidden_sizes)
        self.parameters: list[Tensor] = list(self.q_network.parameters())
        self.target_parameters: list[Tensor] = list(self.target_network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, settings.learning_rate, fused=True)
        self.frames = 0
        self.updates = 0
        self.copy_to_target()

    def collect(self, until: int) -> None:
        """Step the environments until that many frames are made; frames that only reset are not counted."""
        while self.frames < until:
            observation, valid = self.observation.copy(), self.valid
            with torch.inference_mode():
                action = self.q_network(torch.from_numpy(observation)).argmax(-1).numpy()
            explore = self.random.random(len(action)) < self.settings.epsilon(self.frames)
            action = np.where(explore, self.random.integers(2, size=len(action)), action)
            self.observation, reward, terminated, truncated, _ = self.envs.step(action)
            rows = (observation, action, reward, self.settings.gamma * ~terminated, self.observation)
            self.valid = ~(terminated | truncated)
            self.ring.add(*(rows if np.count_nonzero(valid) == len(valid) else (field[valid] for field in rows)))
            self.frames += int(np.count_nonzero(valid))

    def learn(self) -> None:
        """One block of updates."""
        settings = self.settings
        for minibatch in self.ring.sample(settings.updates_per_block, settings.batch_size):
            observation, action, reward, discount, next_observation = minibatch
            with torch.no_grad():
                target = reward + discount * self.target_network(next_observation).amax(-1)
            q_value = self.q_network(observation).gather(1, action.unsqueeze(1)).squeeze(1)
            loss = F.smooth_l1_loss(q_value, target)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(self.parameters, settings.max_grad_norm)
            self.optimizer.step()
            self.updates += 1
            if self.updates % settings.target_update_interval == 0:
                self.copy_to_target()

    @torch.no_grad()
    def copy_to_target(self) -> None:
        """All weights at once."""
        torch._foreach_copy_(self.target_parameters, self.parameters)


def train_bare(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    dqn = BareDQN(settings, seed)
    for until in range(settings.frames_per_block, settings.frames + 1, settings.frames_per_block):
        dqn.collect(until)
        learns = dqn.frames >= settings.learning_starts
        if learns:
            dqn.learn()
        turn.end_block(dqn.frames, learned=learns)
    dqn.envs.close()


def _network(hidden_sizes: tuple[int, int]) -> nn.Sequential:
    first, second = hidden_sizes
    return nn.Sequential(nn.Linear(4, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2))
