"""A progress bar that counts environment steps."""

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from rlmods.callbacks.curves import experience_source


class EnvStepsProgressBar(ProgressBar):
    """Environment steps of the total, steps per second, last return, last evaluation, time left.

    Where the output is no terminal it prints a line at each evaluation instead of a bar.

    Args:
        refresh_seconds: time between two redraws.
    """

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = 0.0
        self._start = (0.0, 0)
        self._is_training = False

    def disable(self) -> None:
        """Draw nothing (Lightning calls it on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        source = experience_source(trainer)
        self._start = (time.perf_counter(), source.env_steps)
        self._is_training = True
        if not (self._enabled and self._console.is_terminal):
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} env steps"),
            TextColumn("{task.fields[rate]:,.0f}/s"),
            TextColumn("return {task.fields[last_return]}"),
            TextColumn("eval {task.fields[last_eval]}"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
        )
        self._task = self._progress.add_task(
            type(pl_module).__name__,
            total=source.total_env_steps,
            completed=source.env_steps,
            rate=0.0,
            last_return="–",
            last_eval="–",
        )
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw, if it is time."""
        now = time.perf_counter()
        if self._progress is not None and now - self._drawn >= self.refresh_seconds:
            self._drawn = now
            self._draw(trainer, self._progress)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the evaluation."""
        if self._progress is not None:
            self._draw(trainer, self._progress)
        elif self._enabled and self._is_training and not trainer.sanity_checking:
            self._console.print(self._line(trainer), highlight=False, soft_wrap=True)

    def _draw(self, trainer: Trainer, progress: Progress) -> None:
        progress.update(
            self._task,
            completed=experience_source(trainer).env_steps,
            rate=self._rate(trainer),
            last_return=_last_return(trainer),
            last_eval=_last_evaluation(trainer),
        )
        progress.refresh()

    def _line(self, trainer: Trainer) -> str:
        source = experience_source(trainer)
        rate = self._rate(trainer)
        seconds_left = max(0.0, (source.total_env_steps - source.env_steps) / max(rate, 1e-9))
        return (
            f"{source.env_steps:,}/{source.total_env_steps:,} env steps, {rate:,.0f}/s, "
            f"return {_last_return(trainer)}, eval {_last_evaluation(trainer)}, {seconds_left:,.0f} s left"
        )

    def _rate(self, trainer: Trainer) -> float:
        started, env_steps = self._start
        return (experience_source(trainer).env_steps - env_steps) / (time.perf_counter() - started)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._close()

    def _close(self) -> None:
        self._is_training = False
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _last_return(trainer: Trainer) -> str:
    statistics = experience_source(trainer).rollout_statistics()
    return f"{statistics['rollout/ep_rew_mean']:.1f}" if statistics else "–"


def _last_evaluation(trainer: Trainer) -> str:
    mean, std = (trainer.callback_metrics.get(f"eval/{name}") for name in ("mean_reward", "std_reward"))
    return "–" if mean is None or std is None else f"{float(mean):.1f} ± {float(std):.1f}"
