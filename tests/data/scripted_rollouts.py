"""Rollouts of environments whose episodes have given lengths, and the rows that they must become."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlmods.types import Decisions, EnvSpec, Rollout

SPEC: EnvSpec = {
    "env_id": "scripted",
    "observation": {"shape": [2], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 1000, "shape": [], "low": [], "high": []},
}
STATE_SIZE = 3


class Row(NamedTuple):
    """What one row must hold."""

    observation: float  # both numbers of it
    action: int
    reward: float
    is_first: bool
    is_last: bool
    is_terminal: bool
    state: float  # all numbers of it


class ScriptedEnvironment:
    """One environment. Its observations, actions, rewards and states are numbers that never come again."""

    def __init__(self, number: int, lengths: Sequence[int], *, next_step: bool) -> None:
        self.lengths = cycle(lengths)
        self.next_step = next_step
        self.rows: list[Row] = []
        self.clock = 1000 * number
        self.resets_next = False
        self.begin()

    def begin(self) -> None:
        self.left = next(self.lengths)
        self.terminates = self.left % 2 == 1  # even ones meet a time limit
        self.reward: float | None = None
        self.observation = self.tick()

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def step(self) -> list[Any]:
        """Fields of a rollout, then the state."""
        observation, action, state = self.observation, self.tick(), self.tick()
        if self.resets_next:
            self.resets_next = False
            self.begin()
            return [observation, action, 0, self.observation, False, False, False, state]
        reward = self.tick()
        self.rows.append(Row(observation, action, self.reward or 0, self.reward is None, False, False, state))
        self.left -= 1
        successor, self.reward = self.tick(), reward
        self.observation = successor
        if self.left:
            return [observation, action, reward, successor, False, False, True, state]
        terminates = self.terminates
        self.rows.append(Row(successor, 0, reward, False, True, terminates, 0))
        self.resets_next = self.next_step
        if not self.next_step:
            self.begin()
        return [observation, action, reward, successor, terminates, not terminates, True, state]


def collect(environments: Sequence[ScriptedEnvironment], num_steps: int) -> Rollout:
    """T steps of all of them."""
    steps = [[environment.step() for environment in environments] for _ in range(num_steps)]
    columns = [torch.tensor([[one[i] for one in step] for step in steps]) for i in range(8)]
    observation, action, reward, successor, terminated, truncated, valid, state = columns
    next_state = state.float()[..., None].expand(*state.shape, STATE_SIZE)
    nothing = torch.zeros(action.shape)
    return Rollout(
        observation=_twice(observation),
        action=action,
        reward=reward.double(),
        discount=nothing,
        next_observation=_twice(successor),
        terminated=terminated,
        truncated=truncated,
        valid=valid,
        env_steps=0,
        progress=0.0,
        decisions=Decisions(action, nothing, torch.zeros_like(next_state), next_state),
    )


def _twice(numbers: Tensor) -> Tensor:
    return numbers.float()[..., None].expand(*numbers.shape, 2)
