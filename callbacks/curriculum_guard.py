"""An expert's share against the curves that it confounds, and its switches against the evaluation."""

import math
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from rlmods.callbacks.curriculum_detector import ROWS, CurriculumRow, ShareDetector, SwitchDetector
from rlmods.callbacks.detectors import Verdict
from rlmods.callbacks.evaluation_safeguard import EvaluationSafeguard
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.safeguard import MissingInputError, Mode, Readings, clock
from rlmods.types import ExperienceSource, ExpertShareControl, MixtureSource, MixtureTotals

# Of the budget, where they are not given.
_WINDOW = 0.05
_WATCH = 0.2


@runtime_checkable
class HasExpertFloor(Protocol):
    """A data module whose schedule of an expert's share comes to an end."""

    @property
    def expert_floor_reached(self) -> float:
        """The environment step from which on the share is the floor; infinite where it never is."""
        ...


class CurriculumGuard(EvaluationSafeguard):
    """Watches a curriculum in which an expert acts on a share of the frames.

    Needs a data module that is a `rlmods.types.MixtureSource`.

    - `share_confounds_slope`, for information: more than half of a change of the reward of a frame, from one window to
      the next, is there because somebody else acted, and not because anybody acted better (an identity splits it).
    - `share_hides_fall`, a warning: the reward of a frame rises while that of the network's own frames falls.
    - `fell_after_switch`, a warning: an override was set or released, the floor was reached or the share has moved
      quickly, and two evaluations in a row then lie below what was held before, by more than a fifth of what was
      learned, their Student intervals, and every fall that the run had seen.

    Args:
        window_frames: environment steps of a window; None takes a twentieth of the budget.
        watch_frames: environment steps after a switch in which the evaluation is watched; None takes a fifth of it.
        share: of what was learned that an evaluation must lose, in (0, 1].
        confidence: of the intervals of the evaluations.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
        MissingInputError: where the data module does not say who acted.
    """

    def __init__(
        self,
        *,
        window_frames: int | None = None,
        watch_frames: int | None = None,
        share: float = 0.2,
        confidence: float = 0.99,
        name: str = "curriculum",
        mode: Mode = "act",
    ) -> None:
        super().__init__(monitor="eval/mean_reward", name=name, mode=mode)
        for argument, value in (("window_frames", window_frames), ("watch_frames", watch_frames)):
            if value is not None and value < 1:
                raise ValueError(f"CurriculumGuard got {argument} = {value}, expected 1 or more, or null")
        self.window_frames = window_frames
        self.watch_frames = watch_frames
        self.shares = ShareDetector()
        self.switches = SwitchDetector(window=math.inf, watch=math.inf, share=share, confidence=confidence)
        self._totals = MixtureTotals(0, 0, 0.0, 0.0)  # at the last row
        self._row_ended = 0  # environment steps
        self._readings = Readings()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take windows from the budget."""
        super().setup(trainer, pl_module, stage)
        if stage != TrainerFn.FITTING:
            return
        source = trainer.datamodule  # type: ignore[attr-defined]
        if not (isinstance(source, MixtureSource) and isinstance(source, ExperienceSource)):
            raise MissingInputError(
                f"CurriculumGuard got the data module {type(source).__name__}, expected one that says who acted "
                "(rlmods.types.MixtureSource), such as ExpertDataModule: leave the callback out"
            )
        budget = source.total_env_steps
        self.switches.window = max(1.0, _WINDOW * budget) if self.window_frames is None else float(self.window_frames)
        self.switches.watch = _WATCH * budget if self.watch_frames is None else float(self.watch_frames)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A row, eight of which are a window."""
        env_steps = clock(trainer)
        if env_steps - self._row_ended < self.switches.window / ROWS:
            return
        self._row_ended = env_steps
        source = trainer.datamodule  # type: ignore[attr-defined]
        totals: MixtureTotals = source.mixture_totals()
        new = [now - before for now, before in zip(totals, self._totals, strict=True)]
        self._totals = totals
        override = source.expert_share_override if isinstance(source, ExpertShareControl) else None
        at_floor = isinstance(source, HasExpertFloor) and env_steps >= source.expert_floor_reached
        arrived = self._readings.exchange(
            trainer, torch.tensor(new, device=pl_module.device), (env_steps, override, at_floor)
        )
        if arrived is not None:
            self._decide(trainer, *arrived)

    def _decide(self, trainer: Trainer, rows: list[list[float]], context: tuple[int, float | None, bool]) -> None:
        by_network, by_expert, network_reward, expert_reward = (sum(column) for column in zip(*rows, strict=True))
        row = MixtureTotals(round(by_network), round(by_expert), network_reward, expert_reward)
        frames = by_network + by_expert
        env_steps, override, at_floor = context
        share = by_expert / frames if frames else 0.0
        verdicts = self.shares.update(row)
        verdicts = [*verdicts, *self.switches.update(CurriculumRow(env_steps, share, frames, override, at_floor))]
        self._say(trainer, verdicts, {"expert_share": share})

    def _say(self, trainer: Trainer, verdicts: list[Verdict], curves: dict[str, float]) -> None:
        self.report(trainer, verdicts)
        if self.shares.last is not None:
            curves |= {f"change_by_{name}": value for name, value in self.shares.last._asdict().items()}
        self.draw(trainer, curves)

    def on_evaluation(self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation) -> None:
        """Hold the evaluation against what it was before a switch."""
        self._say(trainer, [*self.shares.verdicts, *self.switches.evaluate(evaluation)], {})

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.shares.reset()
        self.switches.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detectors, and where the last row ended."""
        return {
            **super().state_dict(),
            "shares": self.shares.state_dict(),
            "switches": self.switches.state_dict(),
            "totals": list(self._totals),
            "row_ended": self._row_ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.shares.load_state_dict(state_dict["shares"])
        self.switches.load_state_dict(state_dict["switches"])
        self._totals = MixtureTotals(*state_dict["totals"])
        self._row_ended = state_dict["row_ended"]
