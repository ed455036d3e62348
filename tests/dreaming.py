"""Batches of sequences by hand, and a module that says of them what a test wants."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from guarding import fit_stranger
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.types import SequenceBatch

GAMMA = 0.9
Signals = Mapping[str, Tensor]


def sequences(
    reward: Tensor,
    *,
    is_first: Tensor | None = None,
    is_last: Tensor | None = None,
    is_terminal: Tensor | None = None,
    gamma: float = GAMMA,
) -> SequenceBatch:
    """Of rewards `[K, T, B]`; flags are False where they are not given."""
    nothing = torch.zeros(reward.shape, dtype=torch.bool)
    is_terminal = nothing if is_terminal is None else is_terminal
    return SequenceBatch(
        observation=torch.zeros(*reward.shape, 2),
        action=torch.zeros(reward.shape, dtype=torch.int64),
        reward=reward,
        is_first=nothing if is_first is None else is_first,
        is_last=is_terminal if is_last is None else is_last,
        is_terminal=is_terminal,
        discount=gamma * (~is_terminal).float(),
        state=torch.zeros(reward.shape[0], reward.shape[2], 3),
        index=torch.zeros(reward.shape, dtype=torch.int64),
        env_steps=0,
        progress=0.0,
    )


class Sayer(LightningModule):
    """Returns the signals that a test makes of each batch, and steps an optimiser with two named groups."""

    def __init__(self, say: Callable[[SequenceBatch, int], Signals]) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.world_model, self.actor = (torch.nn.Linear(1, 1) for _ in range(2))
        self.say = say

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.actor(self.world_model(torch.ones(1, 1))).sum())
        optimizer.step()
        return dict(self.say(batch, batch_idx))

    def configure_optimizers(self) -> Optimizer:
        groups = {"world_model": self.world_model, "actor": self.actor}
        return SGD([{"params": list(part.parameters()), "name": name} for name, part in groups.items()], lr=0.01)


def fit_sayer(
    folder: Path, say: Callable[[SequenceBatch, int], Signals], batches: list[SequenceBatch], *callbacks: Callback
) -> Trainer:
    """An iteration for each batch."""
    return fit_stranger(folder, Sayer(say), batches, *callbacks)
