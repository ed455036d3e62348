"""What `GradientClipVerifier` remembers while it measures: an update's numbers on the device, an optimiser's clocks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.clip_measurement import ClipMeasurement
from rlmods.functional.gradients import gradient_norms
from rlmods.functional.norms import global_norm

# Single numbers at the end of a sample's vector.
NUM_MARKS = 4
# A change of a gradient's norm by less, relative, is none: rounding of coarse numbers, or too little to do harm.
_SAME = 1e-2


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
    dangling: Tensor | None
    parameters: list[Tensor]
    gradients: list[Tensor]  # what the step used, until the next backward pass of its own has begun
    at_end: Tensor | None = None
    at_next: Tensor | None = None

    def look(self, *, is_alone: bool) -> bool:
        """A backward pass begins: the gradients once more; whether it was for the last time.

        Where they are no longer those of the parameters, or there is no other optimiser, it is a pass of its own.
        """
        norm = global_norm(self.gradients)
        if not is_alone and self.parameters[0].grad is self.gradients[0]:
            self.at_end = norm if self.at_end is None else self.at_end
            return False
        self.at_next = norm
        self.let_go()
        return True

    def let_go(self) -> None:
        """Keep the numbers, and free the gradients."""
        self.parameters, self.gradients = [], []

    def vector(self) -> Tensor:
        """`[4m + NUM_MARKS]`, −1 for what was not seen."""
        absent = self.after.new_full((), -1.0)
        before = torch.full_like(self.after, -1.0) if self.before is None else self.before
        marks = [absent if mark is None else mark.float() for mark in self._marks()]
        return torch.cat([before.flatten(), self.after.flatten(), torch.stack(marks)])

    def _marks(self) -> list[Tensor | None]:
        return [self.at_end, self.at_next, self.leftover, self.dangling]

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
            at_end=numbers[-4],
            at_next=numbers[-3],
            leftover=numbers[-2],
            dangling=numbers[-1],
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
    found: dict[str, Tensor] = field(default_factory=dict)  # norm when the newest backward pass began
    foreign: dict[str, Tensor] = field(default_factory=dict)  # norm that another optimiser's loss left, 0 for none
    dangling: dict[str, Tensor] = field(default_factory=dict)  # of that, what a later backward pass added to
    requested: tuple[float, bool] | None = None  # limit of the last clip_gradients, and whether it is by value
    names: dict[int, str] = field(default_factory=dict)

    def parameters(self, group: str) -> list[Tensor]:
        """Those that are clipped together."""
        groups = self.optimizer.param_groups
        return [parameter for position in self.groups[group] for parameter in groups[position]["params"]]

    @torch.no_grad()
    def measure_leftover(self) -> None:
        """A backward pass begins: what is there already."""
        for group in self.groups:
            gradients = present_gradients(self.parameters(group))
            norm = global_norm(gradients) if gradients else torch.zeros((), device=self.parameters(group)[0].device)
            self.found[group] = norm
            # Gradients that are zeroed later, before a backward pass of their own, do no harm: the smallest counts.
            for past in (self.leftover, self.foreign):
                if group in past:
                    past[group] = torch.minimum(past[group], norm)
            self.leftover.setdefault(group, norm)
            if group in self.foreign:
                self.dangling[group] = self.foreign[group]

    @torch.no_grad()
    def measure_before(self) -> None:
        """A backward pass has ended, or the step begins: the gradients before the clip."""
        for group in self.groups:
            gradients = present_gradients(self.parameters(group))
            self.before.pop(group, None)
            if gradients:
                self.before[group] = gradient_norms(gradients)

    @torch.no_grad()
    def other_steps(self) -> None:
        """Another optimiser steps: the newest backward pass was for its loss, or for those of both."""
        for group, before in self.before.items():
            found = self.found.get(group)
            if found is not None:
                norm = torch.linalg.vector_norm(before[0])
                left = torch.where((norm - found).abs() > _SAME * norm, norm, 0.0)
                self.foreign[group] = torch.maximum(self.foreign.get(group, left), left)

    def forget(self) -> None:
        """Its own step is over."""
        for marks in (self.before, self.leftover, self.found, self.foreign, self.dangling):
            marks.clear()


def present_gradients(parameters: list[Tensor]) -> list[Tensor]:
    """Those that there are."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]
