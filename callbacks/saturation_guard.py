"""Actors whose tanh stands at its ends, and that cannot leave them."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.safeguard import Mode, Readings, StepSafeguard, is_window
from rlmods.callbacks.saturation_detector import SaturationDetector, SaturationWindow
from rlmods.functional.norms import global_norm


class SaturationGuard(StepSafeguard):
    """Watches the share of actions at the ends of their range, and whether the actor's gradient is still there.

    Needs the signal `pre_tanh` `[K_a, B, A]`, the actor's output before tanh, in the iterations that move the actor,
    and a parameter group with the actor's name. Once a window it takes the norm of the actor's gradient from the
    optimiser itself, as the step uses it.

    - `actor_is_dead`, a warning: above 95 % of the actions lie beyond 0.99 of their range, and the gradient is 0 or a
      millionth of its own largest, in five windows, while other groups still learn. That the actor stands still is
      certain, that it should not is not: where the best policy is one of extremes it ends the same way. So it is no
      matter for a rollback; the returns decide.
    - `saturated_actions`, for information: so many in one dimension, but the actor can leave them.

    Args:
        policy_group: `group["name"]` of the actor's parameters.
        vanished: share of its own largest norm, below which the actor's gradient counts as gone.
        windows: in a row, until it is told.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the start of training, where no optimiser has a group of
            that name.
    """

    def __init__(
        self,
        *,
        policy_group: str = "actor",
        vanished: float = 1e-6,
        windows: int = 5,
        every_n_iterations: int = 8,
        name: str = "saturation",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        for argument, value in (("windows", windows), ("every_n_iterations", every_n_iterations)):
            if value < 1:
                raise ValueError(f"SaturationGuard got {argument} = {value}, expected at least 1")
        self.policy_group = policy_group
        self.every_n_iterations = every_n_iterations
        self.detector = SaturationDetector(vanished=vanished, windows=windows)
        self._pre_tanh: Tensor | None = None  # of the window's last update of the actor
        self._shares: Tensor | None = None  # the same, of a window that a checkpoint cut
        self._actor_gradient: Tensor | None = None  # of the window's first update of the actor
        self._critic_gradient: Tensor | None = None
        self._has_moved = False  # that the actor moved
        self._has_pre_tanh = False
        self._readings = Readings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the actor's group."""
        super().on_train_start(trainer, pl_module)
        names = [group.get("name") for optimizer in trainer.optimizers for group in optimizer.param_groups]
        if self.policy_group not in names:
            raise ValueError(
                f"SaturationGuard got policy_group = {self.policy_group!r}, but the optimisers have groups {names}: "
                "name the actor's in configure_optimizers, {'params': ..., 'name': 'actor'}, or leave this callback out"
            )

    def before_step(self, optimizer: Optimizer) -> None:
        """Once a window, the norms of the actor's gradient and of the others'."""
        if self._actor_gradient is not None and self._critic_gradient is not None:
            return
        groups = optimizer.param_groups
        actor = [group for group in groups if group.get("name") == self.policy_group]
        others = [group for group in groups if group.get("name") != self.policy_group]
        if self._actor_gradient is None:
            self._actor_gradient = _norm(actor)
        if self._critic_gradient is None:
            self._critic_gradient = _norm(others)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the last outputs of the actor; at the end of a window, measure."""
        if isinstance(outputs, Mapping) and "pre_tanh" in outputs:
            self._has_pre_tanh, self._pre_tanh, self._shares = True, outputs["pre_tanh"], None
        self._has_moved |= self._actor_gradient is not None
        if not is_window(self.every_n_iterations, batch_idx):
            return
        statistics = self._measure(pl_module.device)
        self._pre_tanh = self._shares = self._actor_gradient = self._critic_gradient = None
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _measure(self, device: torch.device) -> Tensor:
        nothing = torch.full((), math.nan, device=device)
        gradients = [
            nothing if norm is None else norm.to(nothing) for norm in (self._actor_gradient, self._critic_gradient)
        ]
        shares = self._at_ends()
        return torch.cat([torch.stack(gradients), nothing.reshape(1) if shares is None else shares.to(nothing)])

    def _at_ends(self) -> Tensor | None:
        """Share of the actions at their ends, `[A]`."""
        if self._pre_tanh is None:
            return self._shares
        with torch.no_grad():
            return (self._pre_tanh.float().tanh().abs() > 0.99).float().flatten(0, -2).mean(0)

    def _decide(self, trainer: Trainer, window: SaturationWindow) -> None:
        if math.isnan(window.actor_gradient):
            return  # a warm-up, or an actor that was not moved
        self.report(trainer, self.detector.update(window))
        curves = {"actor_gradient": window.actor_gradient}
        if window.shares:
            curves["saturated"] = max(window.shares)
        self.draw(trainer, curves)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the module never gave the signal."""
        super().on_train_end(trainer, pl_module)
        if self._has_moved and not self._has_pre_tanh:
            message = (
                f"nothing was measured: training_step of {type(pl_module).__name__} never returned pre_tanh, expected "
                "the actor's output before tanh, detached, [K, B, A], in the iterations that move the actor; return "
                "it, or leave this callback out"
            )
            self.report(trainer, [Verdict("no_signals", Severity.WARN, message, {})])

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        shares = self._at_ends()
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "shares": None if shares is None else shares.tolist(),
            "gradients": [
                None if norm is None else float(norm) for norm in (self._actor_gradient, self._critic_gradient)
            ],
            "has_moved": self._has_moved,
            "has_pre_tanh": self._has_pre_tanh,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._shares = None if state_dict["shares"] is None else torch.tensor(state_dict["shares"])
        self._actor_gradient, self._critic_gradient = (
            None if norm is None else torch.tensor(norm) for norm in state_dict["gradients"]
        )
        self._has_moved, self._has_pre_tanh = state_dict["has_moved"], state_dict["has_pre_tanh"]


def _norm(groups: Iterable[Mapping[str, Any]]) -> Tensor | None:
    """L2 norm of the gradients of these groups together; None where there are none."""
    gradients = [p.grad.detach() for group in groups for p in group["params"] if p.grad is not None]
    return global_norm(gradients).float() if gradients else None


def _of_all_processes(rows: list[list[float]]) -> SaturationWindow:
    """Means of the shares; the largest gradients, because an actor that one process moves is not dead."""
    actor, critic, *shares = (list(column) for column in zip(*rows, strict=True))
    means = [sum(column) / len(column) for column in shares]
    return SaturationWindow([mean for mean in means if not math.isnan(mean)], max(actor), max(critic))
