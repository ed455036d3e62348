"""Give the world model the stage for a while when its data surprise it."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.behaviour_schedule import FocusClock, UpdateRatio
from rlmods.callbacks.group_pause import GroupPause
from rlmods.callbacks.model_surprise import MeasuredSurprise
from rlmods.callbacks.safeguard import Mode


class WorldModelFocus(GroupPause):
    """Leaves out most updates of actor and critic for a while after the smoothed surprise has passed a threshold.

    An idea that is not needed (docs/dreamer_ideas.md), and off unless it is added.

    Args:
        threshold: of ln(loss / its moving average), smoothed; 0.02 stops actor and critic for good.
        wm_ac_ratio: in a focus, updates of the world model for each of the groups, at least 1.
        duration: updates of a focus.
        cooldown: updates after one in which none begins.
        losses: names of signals that are summed; None takes those of a world model.
        groups: names of the parameter groups that wait.
        name: of the instance, in curves and events.
        mode: `observe` leaves nothing out; `stop` does no more than `act`.

    Raises:
        ValueError: where an argument is outside its range; at the start, where a group is missing.
        MissingInputError: at the first signals, where a loss is missing.
    """

    def __init__(
        self,
        *,
        threshold: float = 0.1,
        wm_ac_ratio: float = 4.0,
        duration: int = 20,
        cooldown: int = 50,
        losses: Sequence[str] | None = None,
        groups: Sequence[str] = ("actor", "critic"),
        name: str = "world_model_focus",
        mode: Mode = "act",
    ) -> None:
        super().__init__(groups, name=name, mode=mode)
        ranges = {
            "threshold": (threshold > 0.0, "above 0"),
            "wm_ac_ratio": (wm_ac_ratio >= 1.0, "of at least 1"),
            "duration": (duration >= 1, "of at least 1"),
            "cooldown": (cooldown >= 0, "of at least 0"),
        }
        got = locals()
        for argument, (is_inside, expected) in ranges.items():
            if not is_inside:
                raise ValueError(f"WorldModelFocus got {argument} = {got[argument]}, expected a value {expected}")
        self.threshold, self.duration, self.cooldown = threshold, duration, cooldown
        self.wm_ac_ratio = wm_ac_ratio
        self.surprise = MeasuredSurprise(losses)
        self.clocks: dict[int, tuple[FocusClock, UpdateRatio]] = {}  # by the optimiser's number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups, and give each optimiser its clock."""
        super().on_train_start(trainer, pl_module)
        for number, _ in self._paused.values():
            self._clock(number)

    def _clock(self, number: int) -> tuple[FocusClock, UpdateRatio]:
        fresh = FocusClock(threshold=self.threshold, duration=self.duration, cooldown=self.cooldown), UpdateRatio()
        return self.clocks.setdefault(number, fresh)

    def leaves_out(self, number: int) -> bool:
        """In a focus, all but one of so many."""
        focus, ratio = self._clock(number)
        is_focused = focus.is_focused
        focus.count()
        return is_focused and not ratio.passes(self.wm_ac_ratio)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure; begin a focus where it is due."""
        if not self.surprise.take(self, trainer, pl_module, outputs):
            return
        smoothed = self.surprise.of_loss.smoothed
        begun = [focus.update(smoothed) for focus, _ in self.clocks.values()]
        if any(begun) and self.mode != "observe":
            self.act(
                trainer,
                f"the smoothed surprise is {smoothed:.3g}, above {self.threshold:g}: for {self.duration} updates the "
                f"groups {self.groups} take part in one of {self.wm_ac_ratio:g}",
                {"surprise": smoothed, "threshold": self.threshold, "updates": self.duration},
            )
        focused = float(any(focus.is_focused for focus, _ in self.clocks.values()))
        self.draw(trainer, {"surprise": smoothed, "focused": focused})

    def state_dict(self) -> dict[str, Any]:
        """The surprise and the clocks."""
        return {
            **super().state_dict(),
            "surprise": self.surprise.of_loss.state_dict(),
            "clocks": {str(number): [one.state_dict() for one in clock] for number, clock in self.clocks.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.surprise.of_loss.load_state_dict(state_dict["surprise"])
        for number, states in state_dict["clocks"].items():
            focus, ratio = self._clock(int(number))
            focus.load_state_dict(states[0])
            ratio.load_state_dict(states[1])
