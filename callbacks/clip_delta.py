"""How much of each gradient the clip left."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rlmods.functional.norms import global_norm


class ClipDelta:
    """ClipΔ = L2 norm that the step used / L2 norm before the clip, of every update; 1 is not clipped.

    The norm after the clip is measured at the step. The one before is the signal `grad_norm`, or `grad_norm/<name>` of
    an optimiser whose first parameter group has a name.
    """

    def __init__(self) -> None:
        self._after: dict[str, list[Tensor]] = {}
        self._handles: list[RemovableHandle] = []

    def begin(self, trainer: Trainer) -> None:
        """Measure from now on."""
        for number, optimizer in enumerate(trainer.optimizers):
            name = str(optimizer.param_groups[0].get("name", number))

            def measure(stepped: Optimizer, *_: Any, name: str = name) -> None:
                gradients = [p.grad for group in stepped.param_groups for p in group["params"] if p.grad is not None]
                if gradients:
                    self._after.setdefault(name, []).append(global_norm(gradients))

            self._handles.append(optimizer.register_step_pre_hook(measure))

    def end(self) -> None:
        """Measure no more."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def take(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """ClipΔ of the iteration's updates, `[n]`; empty where no norm was returned, or not one of each update."""
        ratios = []
        for name, norms in self._after.items():
            before = outputs.get(f"grad_norm/{name}", outputs.get("grad_norm"))
            if before is not None and before.numel() == len(norms):
                after, of_update = torch.stack(norms), before.detach().flatten().to(norms[0])
                ratios.append(torch.where(of_update == 0.0, 1.0, after / of_update))  # of nothing, nothing is clipped
        self._after.clear()
        return torch.cat(ratios) if ratios else torch.zeros(0)
