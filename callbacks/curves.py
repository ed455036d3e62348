"""The curves of a training run, on the axis of environment steps."""

import time
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rlmods.signals import curves
from rlmods.types import ExperienceSource


class Curves(Callback):
    """Logs, once every `trainer.log_every_n_steps` iterations, what happened since the last time.

    `train/…` and `stability/…` are the signals that `training_step` returned: means over the interval, but the latest
    value of counters and schedules and the maximum of `q_max`;
    `rollout/…` are means over the last 100 training episodes; `time/fps` are environment steps per second of training,
    evaluation excluded, `time/eval_fps` those of an evaluation. Validation metrics get the same axis by logging a
    `step`.

    Raises:
        TypeError: where the data module is no `ExperienceSource`.
    """

    def __init__(self) -> None:
        self._interval: dict[str, dict[str, list[Tensor]]] = {}  # by signal, by tag
        self._training_seconds = 0.0
        self._started = 0.0
        self._evaluation_started = 0.0
        self._env_steps = 0
        self._updates = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._env_steps = experience_source(trainer).env_steps
        counted = self._interval.get("update_steps", {}).get("train/n_updates", [])
        if counted:  # by the run that goes on here; its seconds are not known
            self._updates = float(counted[-1])
        self._training_seconds = 0.0
        self._started = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock: evaluation is not training."""
        now = time.perf_counter()
        self._training_seconds += now - self._started
        self._evaluation_started = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the clock go on."""
        self._started = time.perf_counter()
        played = [trainer.callback_metrics.get(f"eval/{name}") for name in ("mean_ep_length", "episodes")]
        if played[0] is None or played[1] is None:
            return
        speed = float(played[0]) * float(played[1]) / (self._started - self._evaluation_started)
        for logger in trainer.loggers:
            logger.log_metrics({"time/eval_fps": speed}, step=experience_source(trainer).env_steps)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in an iteration's signals; log at the end of an interval."""
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

    def _log(self, trainer: Trainer) -> None:
        source = experience_source(trainer)
        metrics = {
            tag: float(curves(name)[tag].of_interval(_stack(values)))
            for name, tags in self._interval.items()
            for tag, values in tags.items()
        }
        metrics |= source.rollout_statistics()
        metrics |= self._speed(source.env_steps, metrics.get("train/n_updates", self._updates))
        self._interval.clear()
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=source.env_steps)

    def _speed(self, env_steps: int, updates: float) -> dict[str, float]:
        now = time.perf_counter()
        seconds = self._training_seconds + now - self._started
        speed = {
            "time/fps": (env_steps - self._env_steps) / seconds,
            "time/updates_per_s": (updates - self._updates) / seconds,
            "time/total_timesteps": float(env_steps),
        }
        self._env_steps, self._updates = env_steps, updates
        self._training_seconds, self._started = 0.0, now
        return speed

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write out the curves before the checkpoint: what it remembers must not be missing from them."""
        for logger in trainer.loggers:
            logger.save()

    def state_dict(self) -> dict[str, Any]:
        """The interval that is still open."""
        interval = {
            name: {tag: _stack(values) for tag, values in tags.items()} for name, tags in self._interval.items()
        }
        return {"interval": interval, "updates": self._updates}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the interval."""
        self._interval = {
            name: {tag: list(values.unbind()) for tag, values in tags.items()}
            for name, tags in state_dict["interval"].items()
        }
        self._updates = state_dict["updates"]


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
