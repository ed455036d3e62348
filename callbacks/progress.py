"""A progress bar that counts environment steps."""

import time
from collections.abc import Iterable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rlmods.callbacks.actor_curves import replay_ratio
from rlmods.callbacks.curves import experience_source
from rlmods.callbacks.throughput import Totals, TrainingClock, describe_rates, describe_shares
from rlmods.callbacks.utilization import Utilization, describe_usage

_PANEL_SECONDS = 1.0  # between two measurements of the machine


class EnvStepsProgressBar(ProgressBar):
    """Environment steps of the total, steps per second of everything, last return, last evaluation, time left.

    Below stands a panel of utilisation: the rates of training, of evaluation and end to end, how much of the machine is
    used, how the training's time is divided, and how often the replay is drawn for each new transition. Where the
    output is no terminal it prints a line of all that at each evaluation instead of a bar.

    Args:
        refresh_seconds: time between two redraws.
    """

    def __init__(self, refresh_seconds: float = 0.25) -> None:
        super().__init__()
        self.refresh_seconds = refresh_seconds
        self._enabled = True
        self._console = Console(stderr=True)
        self._progress: _Bar | None = None
        self._task = TaskID(0)
        self._drawn = self._measured = 0.0
        self._clock = TrainingClock()
        self._shown = Totals()  # in the panel so far
        self._utilization = Utilization()
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
        self._clock.train_start(source)
        self._shown = Totals()
        self._utilization.begin()
        self._is_training = True
        if not (self._enabled and self._console.is_terminal):
            return
        self._progress = _Bar(
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Collecting has ended, learning begins."""
        self._clock.train_batch_start(experience_source(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Redraw, if it is time."""
        self._clock.train_batch_end()
        now = time.perf_counter()
        if self._progress is not None and now - self._drawn >= self.refresh_seconds:
            self._drawn = now
            self._draw(trainer, self._progress)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluation is not training."""
        self._clock.validation_start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the evaluation."""
        self._clock.validation_end(trainer)
        if self._progress is not None:
            self._draw(trainer, self._progress)
        elif self._enabled and self._is_training and not trainer.sanity_checking:
            self._console.print(self._line(trainer), highlight=False, soft_wrap=True)

    def _draw(self, trainer: Trainer, progress: "_Bar") -> None:
        if self._drawn - self._measured >= _PANEL_SECONDS:
            self._measured = self._drawn
            progress.panel = self._panel(trainer)
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
            f"return {_last_return(trainer)}, eval {_last_evaluation(trainer)}, {seconds_left:,.0f} s left; "
            f"{self._panel(trainer)}"
        )

    def _rate(self, trainer: Trainer) -> float:
        return self._clock.totals(experience_source(trainer)).rates().get("end_to_end", 0.0)

    def _panel(self, trainer: Trainer) -> str:
        totals = self._clock.totals(experience_source(trainer))
        usage = self._utilization.measure(trainer.strategy.root_device)
        recent, self._shown = totals.since(self._shown), totals
        parts = (
            describe_rates(totals),
            describe_usage(usage, self._utilization.num_cores),
            describe_shares(recent),
            _replay_ratio(trainer),
        )
        return "; ".join(part for part in parts if part)

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


class _Bar(Progress):
    """A bar with a line below."""

    panel = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, then the line."""
        yield from super().get_renderables()
        yield Text(self.panel, style="dim")


def _replay_ratio(trainer: Trainer) -> str:
    ratio = replay_ratio(experience_source(trainer))
    return "" if ratio is None else f"replay ratio {ratio:.3g}"


def _last_return(trainer: Trainer) -> str:
    statistics = experience_source(trainer).rollout_statistics()
    return f"{statistics['rollout/ep_rew_mean']:.1f}" if statistics else "–"


def _last_evaluation(trainer: Trainer) -> str:
    mean, std = (trainer.callback_metrics.get(f"eval/{name}") for name in ("mean_reward", "std_reward"))
    return "–" if mean is None or std is None else f"{float(mean):.1f} ± {float(std):.1f}"
