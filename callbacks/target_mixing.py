"""How a target network really follows: the weight with which it mixes, and the updates in between."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.ownership import all_parameters
from rlmods.callbacks.safeguard import makes_update
from rlmods.callbacks.target_networks import online_network, target_networks

_STILL = 1e-6  # a weight below it is rounding


class TargetMixing:
    """Looks at one tensor of a target network around the updates of the network that it follows.

    A target update is φ ← φ + w·(θ − φ), with w = τ, or 1 for a copy. Between two updates of θ nothing else moves φ, so
    that w = ⟨Δφ, θ − φ⟩/‖θ − φ‖². The number of updates between two target updates is counted on every one of them (by
    the version that torch keeps of a tensor), w is measured where `is_sampling` says so.

    Attributes:
        is_sampling: whether the weights of the updates to come are measured.
        updates: of the network that is followed, so far.
        changed_at: of these, at the last target update; 0 before the first.
    """

    def __init__(self) -> None:
        self.is_sampling = False
        self.updates = 0
        self.changed_at = 0
        self._pair: tuple[Tensor, Tensor] | None = None  # φ and θ
        self._optimizer: Optimizer | None = None  # of θ
        self._version = 0
        self._before: Tensor | None = None  # φ after the last step
        self._intervals: list[int] = []
        self._weights: list[tuple[int, Tensor]] = []

    @property
    def has_target(self) -> bool:
        """Whether there is a target network, and an optimiser of the one that it follows."""
        return self._optimizer is not None

    def begin(self, pl_module: LightningModule, optimizers: list[Optimizer]) -> None:
        """Find the first target network whose online network is learned, and its largest tensor."""
        owners = {id(parameter): optimizer for optimizer in optimizers for parameter in all_parameters(optimizer)}
        for name, target in target_networks(pl_module).items():
            online = online_network(pl_module, name)
            pairs = [] if online is None else list(zip(target.parameters(), online.parameters(), strict=True))
            pairs = [pair for pair in pairs if id(pair[1]) in owners and pair[0] is not pair[1]]
            if pairs:
                self._pair = max(pairs, key=lambda pair: pair[0].numel())
                self._optimizer = owners[id(self._pair[1])]
                self._version = self._pair[0]._version
                return

    def before_step(self, optimizer: Optimizer) -> None:
        """What the target network did since the last step is over."""
        if optimizer is self._optimizer:
            self._settle()

    def after_step(self, optimizer: Optimizer) -> None:
        """θ has moved, φ not yet."""
        if optimizer is not self._optimizer or self._pair is None or not makes_update(optimizer):
            return
        self.updates += 1
        if self.is_sampling:
            self._before = self._pair[0].detach().clone()

    def _settle(self) -> None:
        if self._pair is None:
            return
        target, online = self._pair
        if target._version != self._version:
            self._version = target._version
            if self.changed_at:
                self._intervals.append(self.updates - self.changed_at)
            self.changed_at = self.updates
        if self._before is not None:
            with torch.no_grad():
                moved, gap = target - self._before, online - self._before
                self._weights.append((self.updates, (moved * gap).sum() / gap.square().sum()))
            self._before = None

    def take(self) -> tuple[list[int], list[tuple[int, float]]]:
        """At the end of an iteration: what it has measured.

        Returns:
            The updates between target updates, and of each target update that was looked at the number of the update
            before it and its weight.
        """
        self._settle()
        intervals, weights = self._intervals, self._weights
        self._intervals, self._weights = [], []
        if not weights:
            return intervals, []
        numbers = torch.stack([weight for _, weight in weights]).tolist()
        measured = [(update, number) for (update, _), number in zip(weights, numbers, strict=True)]
        return intervals, [(update, weight) for update, weight in measured if abs(weight) > _STILL]

    def end(self) -> None:
        """Let go of the networks."""
        self._pair, self._optimizer, self._before = None, None, None

    def state_dict(self) -> dict[str, Any]:
        """The clocks."""
        return {"updates": self.updates, "changed_at": self.changed_at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.updates, self.changed_at = state["updates"], state["changed_at"]
