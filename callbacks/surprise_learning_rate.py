"""Let actor and critic learn more slowly while the world model is surprised."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from rlmods.callbacks.group_pause import find_groups
from rlmods.callbacks.model_surprise import MeasuredSurprise
from rlmods.callbacks.safeguard import Mode, StepSafeguard


class SurpriseLearningRate(StepSafeguard):
    """Multiplies the learning rate of groups by 1 / (1 + strength · smoothed surprise) for each step, and puts it back.

    An idea that is not needed (docs/dreamer_ideas.md), and off unless it is added. Schedules and logged learning rates
    are those without it; `stability/<name>/factor` says what it does to them.

    Args:
        strength: of the surprise, at least 0.
        losses: names of signals that are summed; None takes those of a world model.
        groups: names of the parameter groups.
        name: of the instance, in curves and events.
        mode: `observe` changes no learning rate; `stop` does no more than `act`.

    Attributes:
        factor: of the next step.

    Raises:
        ValueError: where an argument is outside its range; at the start, where a group is missing.
        MissingInputError: at the first signals, where a loss is missing.
    """

    def __init__(
        self,
        *,
        strength: float = 10.0,
        losses: Sequence[str] | None = None,
        groups: Sequence[str] = ("actor", "critic"),
        name: str = "surprise_learning_rate",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if strength < 0.0:
            raise ValueError(f"SurpriseLearningRate got strength = {strength}, expected at least 0, for example 10")
        if not groups or isinstance(groups, str):
            raise ValueError(f"SurpriseLearningRate got groups = {groups!r}, expected names, for example ['actor']")
        self.strength = strength
        self.groups = list(groups)
        self.surprise = MeasuredSurprise(losses)
        self._unscaled: dict[Optimizer, list[float]] = {}

    @property
    def factor(self) -> float:
        """At most 1."""
        return self.surprise.of_loss.learning_rate_factor(self.strength)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups."""
        find_groups(trainer, type(self).__name__, self.groups)
        super().on_train_start(trainer, pl_module)

    def before_step(self, optimizer: Optimizer) -> None:
        """Scale."""
        self._unscaled[optimizer] = [group["lr"] for group in optimizer.param_groups]
        if self.mode == "observe":
            return
        for group in optimizer.param_groups:
            if group.get("name") in self.groups:
                group["lr"] = group["lr"] * self.factor

    def after_step(self, optimizer: Optimizer) -> None:
        """Put the learning rates back."""
        for group, learning_rate in zip(optimizer.param_groups, self._unscaled.pop(optimizer, []), strict=False):
            group["lr"] = learning_rate

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure and draw."""
        if self.surprise.take(self, trainer, pl_module, outputs):
            self.draw(trainer, {"surprise": self.surprise.of_loss.smoothed, "factor": self.factor})

    def state_dict(self) -> dict[str, Any]:
        """The surprise."""
        return {**super().state_dict(), "surprise": self.surprise.of_loss.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.surprise.of_loss.load_state_dict(state_dict["surprise"])
