"""Several updates of the world model for each one of actor and critic."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.behaviour_schedule import UpdateRatio
from rlmods.callbacks.group_pause import GroupPause
from rlmods.callbacks.safeguard import Mode
from rlmods.functional.schedules import scheduled
from rlmods.types import ExperienceSource


class WorldModelRatio(GroupPause):
    """Lets actor and critic take part in one of so many updates; the world model learns in all of them.

    An idea that is not needed (docs/dreamer_ideas.md), and off unless it is added. It counts updates, whatever the
    length of their sequences. An update that is left out has computed its dreams all the same: no time is saved.

    Args:
        wm_ac_ratio: updates of the world model for each of the groups, at least 1.
        final_ratio: the same at the end of the budget, along half a cosine; None keeps it.
        groups: names of the parameter groups that wait.
        name: of the instance, in curves and events.
        mode: `observe` leaves nothing out; `stop` does no more than `act`.

    Raises:
        ValueError: where an argument is outside its range; at the start, where a group is missing, or nobody knows the
            budget that a schedule needs.
    """

    def __init__(
        self,
        wm_ac_ratio: float,
        *,
        final_ratio: float | None = None,
        groups: Sequence[str] = ("actor", "critic"),
        name: str = "world_model_ratio",
        mode: Mode = "act",
    ) -> None:
        super().__init__(groups, name=name, mode=mode)
        for argument, value in (("wm_ac_ratio", wm_ac_ratio), ("final_ratio", final_ratio)):
            if value is not None and not value >= 1.0:
                raise ValueError(f"WorldModelRatio got {argument} = {value}, expected at least 1, for example 4")
        self.wm_ac_ratio = wm_ac_ratio
        self.final_ratio = final_ratio
        self.ratio = wm_ac_ratio  # of this iteration
        self.clocks: dict[int, UpdateRatio] = {}  # by the optimiser's number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups, and the budget where there is a schedule."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        if self.final_ratio is not None and not isinstance(source, ExperienceSource):
            raise ValueError(
                f"WorldModelRatio got final_ratio = {self.final_ratio}, but {type(source).__name__} does not say "
                "env_steps and total_env_steps: leave final_ratio out"
            )
        super().on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The ratio of this iteration."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        if self.final_ratio is not None and isinstance(source, ExperienceSource):
            progress = min(source.env_steps / max(source.total_env_steps, 1), 1.0)
            self.ratio = scheduled(progress, start=self.wm_ac_ratio, end=self.final_ratio, schedule="cosine")

    def leaves_out(self, number: int) -> bool:
        """All but one of so many."""
        return not self.clocks.setdefault(number, UpdateRatio()).passes(self.ratio)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the ratio and the updates that passed."""
        curves = {"ratio": self.ratio}
        for number, clock in self.clocks.items():
            curves |= {f"updates_{number}": float(clock.updates), f"passed_{number}": float(clock.passed)}
        self.draw(trainer, curves)

    def state_dict(self) -> dict[str, Any]:
        """What is owed."""
        return {
            **super().state_dict(),
            "clocks": {str(number): clock.state_dict() for number, clock in self.clocks.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        for number, clock in state_dict["clocks"].items():
            self.clocks.setdefault(int(number), UpdateRatio()).load_state_dict(clock)
