"""The curves of a training run, on the axis of environment steps."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from rlmods.callbacks.actor_curves import ActorCurves, replay_ratio
from rlmods.callbacks.throughput import Totals, TrainingClock, describe_rates
from rlmods.callbacks.utilization import Utilization
from rlmods.signals import curves
from rlmods.types import ExperienceSource


class Curves(Callback):
    """Logs, once every `trainer.log_every_n_steps` iterations, what happened since the last time.

    `train/…` and `stability/…` are the signals that `training_step` returned: means over the interval, but the latest
    value of counters and schedules and the maximum of `q_max`;
    `rollout/…` are means over the last 100 training episodes; `time/fps` are environment steps per second of training,
    evaluation excluded, `time/share_…` where that time went, and `time/replay_ratio` how many transitions were drawn
    for each new one since learning began; with an expert `rollout/expert_share` is the share of the interval's frames
    on which it acted, and `rollout/…_reward_per_frame` their mean rewards apart. `system/…` is how much of the machine
    was used. After an evaluation, `time/eval_fps` are its frames per second, and `time/fps_end_to_end` those of the
    training per second of everything since the start or the resume. Validation metrics get the same axis by logging a
    `step`. The three rates of the whole run are said at its end.

    Raises:
        TypeError: where the data module is no `ExperienceSource`.
    """

    def __init__(self) -> None:
        self._interval: dict[str, dict[str, list[Tensor]]] = {}  # by signal, by tag
        self._clock = TrainingClock()
        self._utilization = Utilization()
        self._logged = self._evaluated = Totals()  # at the last point
        self._updates = 0.0
        self._actors = ActorCurves()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        counted = self._interval.get("update_steps", {}).get("train/n_updates", [])
        if counted:  # by the run that goes on here; its seconds are not known
            self._updates = float(counted[-1])
        self._logged = self._evaluated = Totals()
        self._utilization.begin()
        self._clock.train_start(experience_source(trainer))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: evaluation is not training."""
        self._clock.validation_start()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._clock.validation_end(trainer)
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        source = experience_source(trainer)
        totals = self._clock.totals(source)
        of_evaluation = totals.since(self._evaluated).rates()
        metrics = {"time/eval_fps": of_evaluation["eval"]} if "eval" in of_evaluation else {}
        metrics["time/fps_end_to_end"] = totals.rates()["end_to_end"]
        self._evaluated = totals
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=source.env_steps)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Collecting has ended, learning begins."""
        self._clock.train_batch_start(experience_source(trainer))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in an iteration's signals; log at the end of an interval."""
        self._clock.train_batch_end()
        if isinstance(outputs, Mapping):
            for name, signal in outputs.items():
                for tag, curve in curves(name).items():
                    self._interval.setdefault(name, {}).setdefault(tag, []).append(curve.of_iteration(signal))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every > 0 and (batch_idx + 1) % every == 0:
            self._log(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the interval that is still open."""
        if self._interval:
            self._log(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say how fast it was."""
        rates = describe_rates(self._clock.totals(experience_source(trainer)))
        rank_zero_info(f"environment steps per second: {rates}")

    def _log(self, trainer: Trainer) -> None:
        source = experience_source(trainer)
        metrics = {
            tag: float(curves(name)[tag].of_interval(_stack(values)))
            for name, tags in self._interval.items()
            for tag, values in tags.items()
        }
        metrics |= source.rollout_statistics() | self._actors.measure(source)
        metrics |= self._speed(source, metrics.get("train/n_updates", self._updates))
        metrics |= self._utilization.measure(trainer.strategy.root_device)
        self._interval.clear()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=source.env_steps)

    def _speed(self, source: ExperienceSource, updates: float) -> dict[str, float]:
        totals = self._clock.totals(source)
        interval = totals.since(self._logged)
        speed = {
            "time/fps": interval.frames / interval.training,
            "time/updates_per_s": (updates - self._updates) / interval.training,
            "time/total_timesteps": float(source.env_steps),
        }
        self._logged, self._updates = totals, updates
        ratio = replay_ratio(source)
        if ratio is not None:
            speed["time/replay_ratio"] = ratio
        return speed | {f"time/share_{name}": share for name, share in interval.shares().items()}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write out the curves before the checkpoint: what it remembers must not be missing from them."""
        for logger in trainer.loggers:
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        """The interval that is still open."""
        interval = {
            name: {tag: _stack(values) for tag, values in tags.items()} for name, tags in self._interval.items()
        }
        return {"interval": interval, "updates": self._updates, "actors": self._actors.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the interval."""
        self._interval = {
            name: {tag: list(values.unbind()) for tag, values in tags.items()}
            for name, tags in state_dict["interval"].items()
        }
        self._updates = state_dict["updates"]
        if "actors" in state_dict:  # not in older ones, which had no expert
            self._actors.load_state_dict(state_dict["actors"])


def _stack(values: list[Tensor]) -> Tensor:
    # Those of before a resume come from the checkpoint, on the CPU.
    return torch.stack([value.to(values[-1].device) for value in values])


def experience_source(trainer: Trainer) -> ExperienceSource:
    """The data module, by the clock and the statistics that it keeps.

    Raises:
        TypeError: where it keeps none.
    """
    source = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(source, ExperienceSource):
        raise TypeError(
            f"got the data module {type(source).__name__}, expected one with env_steps, total_env_steps and "
            "rollout_statistics(): pass rlmods.data.ReplayDataModule, or give yours these three"
        )
    return source
