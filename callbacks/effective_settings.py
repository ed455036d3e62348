"""Configured against applied: a table at the first update and at the end, alarms where a setting is not in effect."""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.applied_settings import (
    Applied,
    Frames,
    high_replay_ratio,
    mixing_not_in_effect,
    never_in_effect,
    ratio_not_in_effect,
    rows_as_text,
    share_not_in_effect,
)
from rlmods.callbacks.detectors import Verdict, verdict_fields, verdict_of
from rlmods.callbacks.events import append_event
from rlmods.callbacks.ownership import all_parameters
from rlmods.callbacks.replay_draws import clones_itself, imitation_of_nobody, strata_not_drawn, stratum_members
from rlmods.callbacks.safeguard import Mode, Safeguard, StepSafeguard, clock, effective_learning_rates
from rlmods.callbacks.target_mixing import TargetMixing
from rlmods.functional.norms import global_norm
from rlmods.types import (
    CountsCare,
    DrawsStrata,
    ExperienceSource,
    ExpertShareControl,
    MeasuresReplay,
    MixtureSource,
    ReplayBatch,
    ReplaySource,
)

_ROWS = 16  # of the mixture in a window
_WINDOW = 0.1  # of the budget
_SCHEDULE = (
    "expert_share",
    "expert_share_decay",
    "expert_share_decay_steps",
    "expert_share_floor",
    "expert_care_scale",
)
_COPY = 0.999  # a weight of a target update above it is one
_BEYOND = ("value_out_of_bounds", "target_out_of_bounds")


class EffectiveSettings(StepSafeguard):
    """Holds what was configured against what was applied, over the whole run.

    The hyper-parameters of module and data are what is configured. Applied are: the learning rate of the signal
    `learning_rate`, else of the optimiser, less what a rollback scaled; ε (signal `exploration_rate`); the replay ratio
    and the expert's share as they are counted; `tau` as the weight with which the first target network's parameters
    really mix, and the updates between two target updates and two full copies; `max_grad_norm` as the norm of the
    gradients that the step gets. Weights and norms are measured in some iterations, the rest in all. The table goes to
    `events.jsonl` (kind `settings`) at the first update and at the end of the run, and to the console at the end.

    - `setting_not_in_effect`, a warning at the end: at no time of the run the learning rate came near the one that is
      configured, the target network mixed with the `tau` that is, or the replay ratio is another one.
    - `share_not_in_effect`, a warning: in a tenth of the budget without an override the expert acted on another share
      of the frames than its schedule says, by more than six standard deviations of its coins.
    - `strata_mismatch`, an identity: a mini-batch holds fewer transitions of the strata `recent` or `before_end` than
      `replay_strata` says.
    - `clones_itself`, an identity: where no action is flagged as the expert's the loss is not that without imitation.
    - `high_replay_ratio`, for information above 100; a warning where `ValueBoundGuard` finds values beyond their bound.

    Args:
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.
    """

    def __init__(self, *, name: str = "effective_settings", mode: Mode = "act") -> None:
        super().__init__(name=name, mode=mode)
        self.rows: dict[str, Applied] = {}
        self.frames: list[Frames] = []  # of a window without an override
        self._verdicts: dict[str, Verdict] = {}
        self._counted = [0.0, 0.0]  # frames by network and expert at the last row
        self._cared = 0  # frames that needed care, at the last row
        self._row_ended = 0  # environment steps
        self._has_begun = False  # an update was seen
        self._mixing = TargetMixing()
        self._is_due = True  # to measure in the next iteration
        self._is_sampling = False
        self._copied_at = 0  # update of the last full copy besides
        self._norms: list[Tensor] = []  # after the clip, of this iteration
        self._module: LightningModule | None = None
        self._scale = 1.0  # of the learning rate, in the last step
        self._is_overridden = False  # the expert's share, at any time since the last row

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the steps, and find the target network."""
        super().on_train_start(trainer, pl_module)
        self._mixing.begin(pl_module, trainer.optimizers)
        self._module = pl_module

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure where a row is due, or a full copy."""
        self._is_sampling = self._is_due or _copy_is_due(pl_module, batch)
        self._mixing.is_sampling = self._is_sampling

    def before_step(self, optimizer: Optimizer) -> None:
        """The gradients are clipped, in manual optimisation."""
        # Here, because a rollback and a control file change it between two iterations.
        self._scale = float(getattr(self._module, "learning_rate_scale", 1.0)) or 1.0
        self._mixing.before_step(optimizer)
        if self._is_sampling and not self._is_automatic:
            gradients = [parameter.grad for parameter in all_parameters(optimizer) if parameter.grad is not None]
            if gradients:
                self._norms.append(global_norm(gradients))

    def after_step(self, optimizer: Optimizer) -> None:
        """The weights have moved, the target network not yet."""
        self._mixing.after_step(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what was applied."""
        if isinstance(outputs, Mapping) and outputs:
            is_first, self._has_begun = not self._has_begun, True
            self._take(trainer, pl_module, outputs)
            self._take_steps(pl_module)
            if is_first:
                self._write(trainer, "settings at the first update, configured and applied")
        source: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(source, ExperienceSource):
            return
        is_overridden = isinstance(source, ExpertShareControl) and source.expert_share_override is not None
        self._is_overridden = self._is_overridden or is_overridden
        if clock(trainer) - self._row_ended >= _WINDOW / _ROWS * source.total_env_steps:
            self._count(trainer, source)
            self._is_overridden = is_overridden
            self._check_draws(pl_module, source, batch)
            self._say(trainer)

    def _take(self, trainer: Trainer, pl_module: LightningModule, outputs: Mapping[str, Any]) -> None:
        rates = list(effective_learning_rates(trainer).values())
        signals = {"learning_rate": "learning_rate", "exploration_initial_eps": "exploration_rate"}
        for setting, signal in signals.items():
            configured = pl_module.hparams.get(setting)
            if not isinstance(configured, int | float):
                continue
            found = outputs.get(signal)
            # A number of the host, as the algorithms give it; a user's own may come from the device.
            value = float(found) if found is not None else rates[0] if setting == "learning_rate" and rates else None
            if value is None:
                continue
            self._add(setting, configured, value / self._scale if setting == "learning_rate" else value)

    def _take_steps(self, pl_module: LightningModule) -> None:
        """What the steps of this iteration used, and how the target network followed."""
        settings = pl_module.hparams
        intervals, weights = self._mixing.take()
        for interval in intervals:
            self._add("target_update_interval", settings.get("target_update_interval"), interval)
        copies_besides = settings.get("target_hard_update_interval") is not None and settings.get("tau", 1.0) < _COPY
        for update, weight in weights:
            if copies_besides and weight > _COPY:
                name = "target_hard_update_interval"
                if self._copied_at:
                    self._add(name, settings[name], update - self._copied_at)
                self._copied_at = update
            else:
                self._add("tau", settings.get("tau"), weight)
        if self._norms:
            self._add("max_grad_norm", settings.get("max_grad_norm"), float(torch.stack(self._norms).amax()))
        if weights or (self._norms and not self._mixing.has_target):
            self._is_due = False
        self._norms.clear()

    def _add(self, setting: str, configured: Any, applied: float) -> None:
        """One more value of a setting that is configured as a number."""
        if isinstance(configured, int | float):
            row = self.rows.get(setting, Applied(setting, float(configured), *[applied] * 4))
            self.rows[setting] = row.with_value(applied)

    def _count(self, trainer: Trainer, source: Any) -> None:
        """The shares since the last row, and the replay ratio."""
        begin, self._row_ended = self._row_ended, clock(trainer)
        self._is_due = True
        if isinstance(source, MixtureSource):
            totals = source.mixture_totals()
            now = [float(totals.frames_by_network), float(totals.frames_by_expert)]
            by_network, by_expert = (new - old for new, old in zip(now, self._counted, strict=True))
            self._counted = now
            cared = None
            if isinstance(source, CountsCare):
                cared, self._cared = source.frames_with_care - self._cared, source.frames_with_care
            stretch = Frames(begin, self._row_ended, by_network, by_expert, cared)
            if by_network + by_expert:
                share = by_expert / (by_network + by_expert)
                self._add("expert_share", getattr(source, "hparams", {}).get("expert_share"), share)
            self.frames = [] if self._is_overridden else [*self.frames, stretch]
            self._check_share(source)
        if isinstance(source, MeasuresReplay) and isinstance(source, ReplaySource) and source.replay_ratio is not None:
            ratio = float(source.replay_ratio)
            self._add("replay_ratio", source.uses_per_transition, ratio)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            beyond = any(cause in c.active for c in callbacks if isinstance(c, Safeguard) for cause in _BEYOND)
            self._set("ratio", high_replay_ratio(ratio, beyond))

    def _check_share(self, source: Any) -> None:
        settings = getattr(source, "hparams", {})
        if len(self.frames) < _ROWS or not all(name in settings for name in _SCHEDULE):
            return
        self._set("share", share_not_in_effect(self.frames, settings))
        self.frames = []

    def _check_draws(self, pl_module: LightningModule, source: Any, batch: Any) -> None:
        """What this iteration learned from. An identity that was broken once stays on record."""
        if not isinstance(batch, ReplayBatch) or batch.num_updates == 0:
            return
        broken = {"imitation": clones_itself(imitation_of_nobody(pl_module, batch))}
        sizes = source.strata_sizes() if isinstance(source, DrawsStrata) else None
        shares = getattr(source, "hparams", {}).get("replay_strata")
        if sizes is not None and shares is not None:
            members = stratum_members(batch, sizes, source.transitions_added, source.hparams["buffer_size"])
            broken["strata"] = strata_not_drawn(members, sizes, shares)
        self._verdicts |= {about: verdict for about, verdict in broken.items() if verdict is not None}

    def _set(self, about: str, verdict: Verdict | None) -> None:
        if verdict is None:
            self._verdicts.pop(about, None)
        else:
            self._verdicts[about] = verdict

    def _say(self, trainer: Trainer) -> None:
        # Counts are of each process: all take those of the first.
        self._verdicts = trainer.strategy.broadcast(self._verdicts)
        self.report(trainer, self._verdicts.values())
        ratio = self.rows.get("replay_ratio")
        self.draw(trainer, {} if ratio is None else {"replay_ratio": ratio.last})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The table, and what was never in effect."""
        source: Any = trainer.datamodule  # type: ignore[attr-defined]
        if "learning_rate" in self.rows:
            self._set("learning_rate", never_in_effect(self.rows["learning_rate"]))
        if "tau" in self.rows:
            self._set("tau", mixing_not_in_effect(self.rows["tau"]))
        if "replay_ratio" in self.rows:
            row = self.rows["replay_ratio"]
            limit = getattr(source, "max_replay_ratio", None)
            self._set("replay_ratio", ratio_not_in_effect(row.last, row.configured, limit))
        self._say(trainer)
        self._write(trainer, "settings at the end, configured and applied")
        rank_zero_info(f"configured and applied:\n{rows_as_text(list(self.rows.values()))}")
        self._mixing.end()
        self._module = None
        super().on_train_end(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of hooks and networks."""
        self._mixing.end()
        self._module = None
        super().on_exception(trainer, pl_module, exception)

    def _write(self, trainer: Trainer, message: str) -> None:
        append_event(trainer, "settings", message, {"rows": [row._asdict() for row in self.rows.values()]})

    def state_dict(self) -> dict[str, Any]:
        """The table and the window."""
        return {
            **super().state_dict(),
            "rows": [list(row) for row in self.rows.values()],
            "frames": [list(stretch) for stretch in self.frames],
            "counted": list(self._counted),
            "cared": self._cared,
            "row_ended": self._row_ended,
            "is_overridden": self._is_overridden,
            "mixing": self._mixing.state_dict(),
            "is_due": self._is_due,
            "has_begun": self._has_begun,
            "copied_at": self._copied_at,
            "verdicts": {about: verdict_fields(verdict) for about, verdict in self._verdicts.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.rows = {row[0]: Applied(*row) for row in state_dict["rows"]}
        self.frames = [Frames(*stretch) for stretch in state_dict["frames"]]
        self._mixing.load_state_dict(state_dict["mixing"])
        self._is_due, self._has_begun = state_dict["is_due"], state_dict["has_begun"]
        self._copied_at, self._cared = state_dict["copied_at"], state_dict["cared"]
        self._verdicts = {about: verdict_of(fields) for about, fields in state_dict["verdicts"].items()}
        self._counted, self._row_ended = list(state_dict["counted"]), state_dict["row_ended"]
        self._is_overridden = state_dict["is_overridden"]


def _copy_is_due(pl_module: LightningModule, batch: Any) -> bool:
    """Whether a full copy besides the soft updates falls into this iteration, as configured."""
    interval = pl_module.hparams.get("target_hard_update_interval")
    update_steps = getattr(pl_module, "update_steps", None)
    if not isinstance(batch, ReplayBatch) or not isinstance(interval, int) or not isinstance(update_steps, int):
        return False
    updates: int = -(-batch.num_updates // pl_module.hparams.get("accumulate_grad_batches", 1))
    return (update_steps + updates) // interval > update_steps // interval
