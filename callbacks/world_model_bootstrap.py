"""Teach the world model alone at first, on what random actions bring."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rlmods.callbacks.behaviour_schedule import UpdateRatio
from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.group_pause import GroupPause
from rlmods.callbacks.safeguard import Mode


class WorldModelBootstrap(GroupPause):
    """Leaves out the first updates of actor and critic, and lets the policy act at random meanwhile.

    An idea that is not needed (docs/dreamer_ideas.md), and off unless it is added. At random means that the outputs of
    the actor are 0: discrete actions are equally probable, continuous ones a wide normal around the middle. Evaluations
    are of the actor as it is.

    Args:
        num_updates: of the world model alone, at least 1.
        policy: name of the submodule whose outputs are 0 until then.
        groups: names of the parameter groups that wait.
        name: of the instance, in curves and events.
        mode: `observe` changes nothing; `stop` does no more than `act`.

    Raises:
        ValueError: where an argument is outside its range; at the start, where a group or the submodule is missing.
    """

    def __init__(
        self,
        num_updates: int,
        *,
        policy: str = "actor",
        groups: Sequence[str] = ("actor", "critic"),
        name: str = "world_model_bootstrap",
        mode: Mode = "act",
    ) -> None:
        super().__init__(groups, name=name, mode=mode)
        if num_updates < 1:
            raise ValueError(f"WorldModelBootstrap got num_updates = {num_updates}, expected at least 1")
        self.num_updates = num_updates
        self.policy = policy
        self.clocks: dict[int, UpdateRatio] = {}  # by the optimiser's number
        self._handle: RemovableHandle | None = None

    @property
    def is_over(self) -> bool:
        """Whether all groups learn."""
        return bool(self.clocks) and all(clock.updates >= self.num_updates for clock in self.clocks.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups and the policy."""
        super().on_train_start(trainer, pl_module)
        submodules = dict(pl_module.named_modules())
        if self.policy not in submodules:
            self._remove_hooks()
            raise ValueError(
                f"WorldModelBootstrap got policy = {self.policy!r}, which {type(pl_module).__name__} does not have: "
                f"pass one of {[name for name, _ in pl_module.named_children()]}"
            )
        if self.mode != "observe" and not self.is_over:
            self._handle = submodules[self.policy].register_forward_hook(self._silence)

    def _silence(self, policy: nn.Module, _: Any, outputs: Tensor) -> Tensor | None:
        # Not fresh zeros: with several processes every parameter must be a part of the loss.
        return outputs * 0.0 if policy.training else None

    def leaves_out(self, number: int) -> bool:
        """The first of them."""
        clock = self.clocks.setdefault(number, UpdateRatio())
        if clock.updates < self.num_updates:
            clock.leave_out()
            return True
        return False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Let the actor act when its time has come."""
        if self._handle is not None and self.is_over:
            self._handle.remove()
            self._handle = None
            self.act(
                trainer,
                f"the world model has had {self.num_updates} updates alone: from now on the groups {self.groups} learn "
                "and the policy acts",
                {"updates": self.num_updates},
            )
        self.draw(trainer, {"alone": float(self._handle is not None)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where its end never came."""
        if self._handle is not None:
            updates = max((clock.updates for clock in self.clocks.values()), default=0)
            message = (
                f"the training is over after {updates} updates, and the groups {self.groups} have never learned: "
                f"{self.num_updates} of the world model alone were asked for; pass a smaller num_updates, or more steps"
            )
            evidence = {"updates": updates, "num_updates": self.num_updates}
            self.report(trainer, [Verdict("bootstrap_never_ended", Severity.WARN, message, evidence)])
        super().on_train_end(trainer, pl_module)

    def _remove_hooks(self) -> None:
        super()._remove_hooks()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {
            **super().state_dict(),
            "clocks": {str(number): clock.state_dict() for number, clock in self.clocks.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        for number, clock in state_dict["clocks"].items():
            self.clocks.setdefault(int(number), UpdateRatio()).load_state_dict(clock)
