"""The evaluation that has just ended, as a safeguard takes it in."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from rlmods.callbacks.evaluations import Evaluation
from rlmods.callbacks.safeguard import MissingInputError, clock

_NEEDED = ("eval/mean_reward", "eval/std_reward", "eval/episodes")


class LastEvaluation:
    """Collects the returns of the episodes while an evaluation runs, and reads the rest from what it logged."""

    def __init__(self) -> None:
        self._returns: list[float] = []

    def begin(self) -> None:
        """A new evaluation."""
        self._returns = []

    def take(self, outputs: Any) -> None:
        """Keep the `returns` `[E]` that `validation_step` gave, where it did."""
        returns = outputs.get("returns") if isinstance(outputs, Mapping) else None
        if isinstance(returns, Tensor):
            self._returns += returns.flatten().tolist()

    def read(self, trainer: Trainer, safeguard: Callback) -> Evaluation:
        """The evaluation, the same on all processes: a module may give the episodes of its own one only.

        Raises:
            MissingInputError: where mean, spread or number of episodes were not logged.
        """
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("eval/")}
        missing = [name for name in _NEEDED if name not in metrics]
        if missing:
            raise MissingInputError(
                f"{type(safeguard).__name__} needs {missing}, but validation_step logged only {sorted(metrics)}: log "
                "them there"
            )
        mean, std, episodes = (metrics[name] for name in _NEEDED)
        found: Evaluation = trainer.strategy.broadcast(
            Evaluation(mean, std, int(episodes), tuple(self._returns), clock(trainer))
        )
        return found
