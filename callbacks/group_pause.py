"""Leave out updates of named parameter groups, for a reason that a subclass has."""

from collections.abc import Sequence

from lightning.pytorch import LightningModule, Trainer
from torch.nn import Parameter
from torch.optim import Optimizer

from rlmods.callbacks.safeguard import Mode, StepSafeguard


def find_groups(trainer: Trainer, callback: str, names: Sequence[str]) -> dict[Optimizer, list[Parameter]]:
    """The parameters of groups with these names, by their optimiser.

    Raises:
        ValueError: where one is missing.
    """
    groups = [(optimizer, group) for optimizer in trainer.optimizers for group in optimizer.param_groups]
    found = {group.get("name") for _, group in groups}
    missing = [name for name in names if name not in found]
    if missing:
        raise ValueError(
            f"{callback} needs the parameter groups {missing}, but the optimisers have "
            f"{sorted(name for name in found if name) or 'none with a name'}: name them in configure_optimizers, "
            "[{'params': ..., 'name': 'actor'}], or pass groups=[...] that exist"
        )
    parameters: dict[Optimizer, list[Parameter]] = {}
    for optimizer, group in groups:
        if group.get("name") in names:
            parameters.setdefault(optimizer, []).extend(group["params"])
    return parameters


class GroupPause(StepSafeguard):
    """Sets the gradients of parameter groups to None before a step where `leaves_out` says so.

    Weights and moments of a paused parameter stay bit-identical. Steps without any gradient of the groups are no
    updates of theirs, and are not asked about. Target networks and schedules go on.

    Args:
        groups: `group["name"]` of those that are paused.
        name: of the instance, in curves and events.
        mode: `observe` leaves nothing out; `stop` does no more than `act`.

    Raises:
        ValueError: where no group is named; at the start, where no optimiser has one of that name.
    """

    def __init__(self, groups: Sequence[str], *, name: str, mode: Mode) -> None:
        super().__init__(name=name, mode=mode)
        if not groups or isinstance(groups, str):
            raise ValueError(f"{type(self).__name__} got groups = {groups!r}, expected names, for example ['actor']")
        self.groups = list(groups)
        self._paused: dict[Optimizer, tuple[int, list[Parameter]]] = {}

    def leaves_out(self, number: int) -> bool:
        """Whether the next update of the groups in the optimiser of this number is left out; asked once for each."""
        raise NotImplementedError

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups."""
        found = find_groups(trainer, type(self).__name__, self.groups)
        self._paused = {
            optimizer: (number, found[optimizer])
            for number, optimizer in enumerate(trainer.optimizers)
            if optimizer in found
        }
        super().on_train_start(trainer, pl_module)

    def before_step(self, optimizer: Optimizer) -> None:
        """Leave out this update."""
        if optimizer not in self._paused:
            return
        number, parameters = self._paused[optimizer]
        if all(parameter.grad is None for parameter in parameters):
            return
        if self.leaves_out(number) and self.mode != "observe":
            for parameter in parameters:
                parameter.grad = None
