"""Configured against applied: a table at the first update and at the end, alarms where a setting is not in effect."""

import logging
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_only

from rlmods.callbacks.applied_settings import (
    Applied,
    Frames,
    high_replay_ratio,
    never_in_effect,
    ratio_not_in_effect,
    rows_as_text,
    share_not_in_effect,
)
from rlmods.callbacks.detectors import Verdict
from rlmods.callbacks.events import append_event
from rlmods.callbacks.safeguard import Mode, Safeguard, clock, effective_learning_rates
from rlmods.types import ExperienceSource, ExpertShareControl, MeasuresReplay, MixtureSource, ReplaySource

log = logging.getLogger(__name__)

_ROWS = 16  # of the mixture in a window
_WINDOW = 0.1  # of the budget
_SCHEDULE = (
    "expert_share",
    "expert_share_decay",
    "expert_share_decay_steps",
    "expert_share_floor",
    "expert_care_scale",
)
_BEYOND = ("value_out_of_bounds", "target_out_of_bounds")


class EffectiveSettings(Safeguard):
    """Holds what was configured against what was applied, over the whole run.

    The hyper-parameters of module and data are what is configured. Applied are: the learning rate of the signal
    `learning_rate`, else of the optimiser, less what a rollback scaled; ε (signal `exploration_rate`); the replay ratio
    as it is counted; the expert's share as it is counted. The table goes to `events.jsonl` (kind `settings`) at the
    first update and at the end of the run, and to the console at the end.

    - `setting_not_in_effect`, a warning at the end: at no time of the run the learning rate came near the one that is
      configured, or the replay ratio is another one.
    - `share_not_in_effect`, a warning: in a tenth of the budget without an override the expert acted on another share
      of the frames than its schedule says, by more than six standard deviations of its coins.
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
        self._row_ended = 0  # environment steps

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in what was applied."""
        if isinstance(outputs, Mapping) and outputs:
            is_first = not self.rows
            self._take(trainer, pl_module, outputs)
            if is_first:
                self._write(trainer, "settings at the first update, configured and applied")
        source: Any = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(source, ExperienceSource):
            return
        if clock(trainer) - self._row_ended >= _WINDOW / _ROWS * source.total_env_steps:
            self._count(trainer, source)
            self._say(trainer)

    def _take(self, trainer: Trainer, pl_module: LightningModule, outputs: Mapping[str, Any]) -> None:
        scale = float(getattr(pl_module, "learning_rate_scale", 1.0)) or 1.0
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
            applied = value / scale if setting == "learning_rate" else value
            row = self.rows.get(setting, Applied(setting, float(configured), *[applied] * 4))
            self.rows[setting] = row.with_value(applied)

    def _count(self, trainer: Trainer, source: Any) -> None:
        """The shares since the last row, and the replay ratio."""
        begin, self._row_ended = self._row_ended, clock(trainer)
        if isinstance(source, MixtureSource):
            totals = source.mixture_totals()
            now = [float(totals.frames_by_network), float(totals.frames_by_expert)]
            by_network, by_expert = (new - old for new, old in zip(now, self._counted, strict=True))
            self._counted = now
            is_overridden = isinstance(source, ExpertShareControl) and source.expert_share_override is not None
            stretch = Frames(begin, self._row_ended, by_network, by_expert)
            self.frames = [] if is_overridden else [*self.frames, stretch]
            self._check_share(source)
        if isinstance(source, MeasuresReplay) and isinstance(source, ReplaySource) and source.replay_ratio is not None:
            ratio = float(source.replay_ratio)
            row = self.rows.get("replay_ratio", Applied("replay_ratio", source.uses_per_transition, *[ratio] * 4))
            self.rows["replay_ratio"] = row.with_value(ratio)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            beyond = any(cause in c.active for c in callbacks if isinstance(c, Safeguard) for cause in _BEYOND)
            self._set("ratio", high_replay_ratio(ratio, beyond))

    def _check_share(self, source: Any) -> None:
        settings = getattr(source, "hparams", {})
        if len(self.frames) < _ROWS or not all(name in settings for name in _SCHEDULE):
            return
        self._set("share", share_not_in_effect(self.frames, settings))
        self.frames = []

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
        if "replay_ratio" in self.rows:
            row = self.rows["replay_ratio"]
            limit = getattr(source, "max_replay_ratio", None)
            self._set("replay_ratio", ratio_not_in_effect(row.last, row.configured, limit))
        self._say(trainer)
        self._write(trainer, "settings at the end, configured and applied")
        _show(rows_as_text(list(self.rows.values())))

    def _write(self, trainer: Trainer, message: str) -> None:
        append_event(trainer, "settings", message, {"rows": [row._asdict() for row in self.rows.values()]})

    def state_dict(self) -> dict[str, Any]:
        """The table and the window."""
        return {
            **super().state_dict(),
            "rows": [list(row) for row in self.rows.values()],
            "frames": [list(stretch) for stretch in self.frames],
            "counted": list(self._counted),
            "row_ended": self._row_ended,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.rows = {row[0]: Applied(*row) for row in state_dict["rows"]}
        self.frames = [Frames(*stretch) for stretch in state_dict["frames"]]
        self._counted, self._row_ended = list(state_dict["counted"]), state_dict["row_ended"]


@rank_zero_only
def _show(table: str) -> None:
    log.info("configured and applied:\n%s", table)
