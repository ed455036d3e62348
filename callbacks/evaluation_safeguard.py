"""A safeguard that takes in each evaluation of a training."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.safeguard import MissingInputError, Mode, Safeguard, clock

_RATE = "eval/success_rate"


class EvaluationSafeguard(Safeguard):
    """Calls `on_evaluation` after each evaluation of a `fit`, with the same numbers on all processes.

    Args:
        monitor: `eval/mean_reward` or `eval/success_rate`, which is the evaluation's mean.
        name: tells the instances of one class apart.
        mode: how far it may go.

    Raises:
        MissingInputError: at an evaluation that did not log what is watched, its spread or the number of episodes.
    """

    def __init__(self, *, monitor: str, name: str, mode: Mode) -> None:
        super().__init__(name=name, mode=mode)
        self.monitor = monitor
        self._returns: list[float] = []

    def on_evaluation(self, trainer: Trainer, pl_module: LightningModule, evaluation: Evaluation) -> None:
        """Take in an evaluation."""
        raise NotImplementedError

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A new evaluation."""
        self._returns = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the `returns` `[E]` of the episodes that `validation_step` gave, where it did."""
        returns = outputs.get("returns") if isinstance(outputs, Mapping) else None
        if isinstance(returns, Tensor):
            self._returns += returns.flatten().tolist()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read what was logged, and pass it on."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        # A module may return the episodes of its own process only: all take what the first one saw.
        evaluation: Evaluation = trainer.strategy.broadcast(self._evaluation(trainer))
        self.on_evaluation(trainer, pl_module, evaluation)

    def _evaluation(self, trainer: Trainer) -> Evaluation:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        missing = [name for name in (self.monitor, "eval/episodes", "eval/std_reward") if name not in metrics]
        if missing:
            raise MissingInputError(
                f"{type(self).__name__} needs {missing}, but validation_step logged only {sorted(metrics)}: log them "
                "there"
            )
        mean = metrics[self.monitor]
        is_rate = self.monitor == _RATE
        return Evaluation(
            mean=mean,
            std=math.sqrt(max(mean * (1.0 - mean), 0.0)) if is_rate else metrics["eval/std_reward"],
            episodes=int(metrics["eval/episodes"]),
            returns=() if is_rate else tuple(self._returns),
            env_steps=clock(trainer),
        )
