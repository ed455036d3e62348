"""What `GradientClipVerifier` remembers while it measures: an update's numbers on the device, an optimiser's clocks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.clip_defects import ClipMeasurement


@dataclass
class ClipSample:
    """A measured update of one group; the numbers stay on the device."""

    group: str
    update: int
    tensors: list[str]
    is_present: list[bool]  # whether there was a gradient
    limit: float | None
    is_by_value: bool
    is_certain: bool
    tolerance: float
    before: Tensor | None  # [2, m] of the m gradients that there were: L2 norms, largest magnitudes
    after: Tensor  # [2, m]
    leftover: Tensor | None
    gradients: list[Tensor]  # what the step used, until the next backward pass has begun
    number_in_iteration: int
    at_end: Tensor | None = None
    at_next: Tensor | None = None

    def vector(self) -> Tensor:
        """`[4m + 3]`, −1 for what was not seen."""
        absent = self.after.new_full((), -1.0)
        before = torch.full_like(self.after, -1.0) if self.before is None else self.before
        marks = [absent if mark is None else mark.float() for mark in (self.at_end, self.at_next, self.leftover)]
        return torch.cat([before.flatten(), self.after.flatten(), torch.stack(marks)])

    def measurement(self, numbers: list[float]) -> ClipMeasurement:
        """With the numbers of its vector, on the host."""
        m = sum(self.is_present)
        rows = [self._spread(numbers[k * m : (k + 1) * m]) for k in range(4)]
        return ClipMeasurement(
            group=self.group,
            update=self.update,
            tensors=tuple(self.tensors),
            before=None if self.before is None else rows[0],
            before_max=None if self.before is None else rows[1],
            after=rows[2],
            after_max=rows[3],
            limit=self.limit,
            is_by_value=self.is_by_value,
            is_certain=self.is_certain,
            tolerance=self.tolerance,
            at_end=numbers[-3],
            at_next=numbers[-2],
            leftover=numbers[-1],
        )

    def _spread(self, norms: list[float]) -> tuple[float, ...]:
        """−1 in the places of the tensors without gradient."""
        remaining = iter(norms)
        return tuple(next(remaining) if is_present else -1.0 for is_present in self.is_present)


@dataclass
class WatchedOptimizer:
    """What is known of one optimiser."""

    optimizer: Optimizer
    groups: dict[str, list[int]]  # parameter groups that are clipped together, by name
    updates: int = 0
    in_iteration: int = 0  # updates
    in_last: int = 0  # updates of the last iteration that had any
    is_due: bool = True  # the next update is measured
    before: dict[str, Tensor] = field(default_factory=dict)  # by group, [2, m]
    leftover: dict[str, Tensor] = field(default_factory=dict)
    requested: tuple[float, bool] | None = None  # limit of the last clip_gradients, and whether it is by value
    names: dict[int, str] = field(default_factory=dict)

    def parameters(self, group: str) -> list[Tensor]:
        """Those that are clipped together."""
        groups = self.optimizer.param_groups
        return [parameter for position in self.groups[group] for parameter in groups[position]["params"]]
