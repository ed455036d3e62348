"""What the processes of one run tell each other. Collective: every process must call them, in the same order."""

from typing import Any

import torch
import torch.distributed
from lightning.pytorch import Trainer


def sum_over_processes(number: int, trainer: Trainer) -> int:
    """The sum of a whole number over all processes."""
    if trainer.world_size == 1:
        return number
    total = torch.tensor(number, dtype=torch.int64, device=trainer.strategy.root_device)
    torch.distributed.all_reduce(total)
    return int(total)


def gather_objects(value: Any, trainer: Trainer) -> list[Any]:
    """The value of every process, in the order of the ranks."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
