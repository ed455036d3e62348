"""The loss against the evaluation, and jumps of the training's returns."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Verdict, verdict_fields, verdict_of
from rlmods.callbacks.divergence_detector import LossReturnDetector, ReturnChangeDetector
from rlmods.callbacks.evaluation_safeguard import EvaluationSafeguard
from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.safeguard import Mode, clock, is_window
from rlmods.types import TrainingEnvironments

_LOSSES = ("loss", "critic_loss", "value_loss")


class LossReturnGuard(EvaluationSafeguard):
    """Says where a falling loss is no good news, and when the returns of the training jumped.

    - `loss_falls_with_return`, a warning: three evaluations in a row lie below the best level that was held, by more
      than half of what was learned, their Student intervals and every earlier fall, and the loss is less than half of
      what it was then. A loss is relative to a bootstrap that moves with the network. Needs a signal `loss`,
      `critic_loss` or `value_loss`, and evaluations.
    - `reward_changed`: the returns of the training episodes have left their own trend with a jump; for information, or
      a warning where they fell by half of what was gained and stay there. Needs a data module with `episode_returns()`
      (`rlmods.types.TrainingEnvironments`).

    Args:
        share: of what was learned that an evaluation must lose, in (0, 1].
        confidence: of the intervals of the evaluations.
        episodes: of a block of returns.
        every_n_iterations: between two looks at the returns.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
    """

    def __init__(
        self,
        *,
        share: float = 0.5,
        confidence: float = 0.99,
        episodes: int = 20,
        every_n_iterations: int = 8,
        name: str = "loss_return",
        mode: Mode = "act",
    ) -> None:
        super().__init__(monitor="eval/mean_reward", name=name, mode=mode)
        if episodes < 1:
            raise ValueError(f"LossReturnGuard got episodes = {episodes}, expected 1 or more in a block")
        self.episodes = episodes
        self.every_n_iterations = every_n_iterations
        self.losses = LossReturnDetector(share=share, confidence=confidence)
        self.returns = ReturnChangeDetector()
        self._loss = torch.zeros(2, dtype=torch.float64)  # sum and number since the last evaluation
        self._seen: list[float] = []  # returns at the last look
        self._block: list[float] = []  # of a block that is being filled
        self._verdicts: dict[str, list[Verdict]] = {"losses": [], "returns": []}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up the loss; look at the returns now and then."""
        loss = (
            next((outputs[name] for name in _LOSSES if name in outputs), None) if isinstance(outputs, Mapping) else None
        )
        if isinstance(loss, Tensor) and loss.numel():
            mean = loss.detach().double().mean()
            self._loss = self._loss.to(mean.device) + torch.stack([mean, torch.ones_like(mean)])
        if is_window(self.every_n_iterations, batch_idx):
            self._look(trainer)

    def _look(self, trainer: Trainer) -> None:
        source = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(source, TrainingEnvironments):
            return
        # Those of the first process, so that all decide alike.
        now: list[float] = trainer.strategy.broadcast(source.episode_returns())
        self._block += new_ones(self._seen, now)
        self._seen = now
        verdicts = self._verdicts["returns"]
        while len(self._block) >= self.episodes:
            block, self._block = self._block[: self.episodes], self._block[self.episodes :]
            verdicts = self.returns.update(sum(block) / len(block), clock(trainer))
        self._say(trainer, "returns", verdicts)

    def _say(self, trainer: Trainer, about: str, verdicts: list[Verdict]) -> None:
        self._verdicts[about] = verdicts
        self.report(trainer, [verdict for found in self._verdicts.values() for verdict in found])
        self.draw(trainer, {"evaluations_in_a_row": float(self.losses.in_a_row)})

    def on_evaluation(self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation) -> None:
        """Hold the evaluation against the loss since the last one."""
        total, number = trainer.strategy.all_gather(self._loss.to(pl_module.device)).reshape(-1, 2).sum(0).tolist()
        self._loss = torch.zeros_like(self._loss)
        loss = total / number if number else math.nan
        self._say(trainer, "losses", self.losses.update(evaluation, loss))

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.losses.reset()
        self.returns.reset()
        self._verdicts = {"losses": [], "returns": []}

    def state_dict(self) -> dict[str, Any]:
        """The detectors, and what has come since the last evaluation and the last block."""
        return {
            **super().state_dict(),
            "losses": self.losses.state_dict(),
            "returns": self.returns.state_dict(),
            "loss": self._loss.tolist(),
            "seen": list(self._seen),
            "block": list(self._block),
            "verdicts": [verdict_fields(verdict) for verdict in self._verdicts["losses"]],  # those of returns are known
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.losses.load_state_dict(state_dict["losses"])
        self.returns.load_state_dict(state_dict["returns"])
        self._loss = torch.tensor(state_dict["loss"], dtype=torch.float64)
        self._seen, self._block = list(state_dict["seen"]), list(state_dict["block"])
        losses = [verdict_of(fields) for fields in state_dict["verdicts"]]
        self._verdicts = {"losses": losses, "returns": self.returns.verdicts()}


def new_ones(before: list[float], now: list[float]) -> list[float]:
    """What a list of the last so many values has got since; of equal values none is new.

    Args:
        before: the list at an earlier time.
        now: the list, from which the oldest may have gone and to which others were added.
    """
    for gone in range(len(before)):
        kept = before[gone:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now
