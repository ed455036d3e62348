"""A row a minute of what a training does, and the same numbers as curves."""

import math
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.clip_delta import ClipDelta
from rlmods.callbacks.curves import experience_source
from rlmods.callbacks.probe_states import ProbeStates
from rlmods.callbacks.reward_windows import RewardWindows, Row
from rlmods.types import (
    ActionValues,
    ExpertShareControl,
    ExplorationControl,
    MeasuresReplay,
    MixtureSource,
    MixtureTotals,
    ReplayBatch,
    ReplaySource,
)

# Signals that are shown as their mean since the last row.
_SIGNALS = ("exploration_rate", "loss", "learning_rate", "target_age_soft", "target_age_hard", "expert_agreement",
            "bc_loss")  # fmt: skip


class MetricsTable(Callback):
    """Prints a row every minute on the standard output, with the names of the columns every 30 rows.

    What an override holds is followed by OVR. Of the parts of a reward that the environment reports each has a column.
    Rewards are those of a frame, so that neither the length of episodes nor who acts more often moves them: `all` of
    every frame, `net` of those on which the network acted, each over the last 100,000, 1 and 5 million frames, with the
    slope in the largest window (weighted least squares, a million frames). The reward that a network collects in an
    episode rises as an expert leaves it more frames, whatever it has learned. Q is that of a fixed set of states.

    Curves, once in `trainer.log_every_n_steps`: `rollout/reward_per_frame_<frames>`, `rollout/reward_slope`, the same
    with `network_` in front, `stability/q_probe_…` (percentiles), `stability/clip_delta_mean`, `…_min` and `…_max` over
    the updates since the last point, which is 1 where nothing is clipped.

    Rewards and replay are those of this process. Without an expert (a data module that is no `MixtureSource`) there are
    no windows.

    Args:
        every_seconds: between two rows.
        windows: frames, ascending.
        num_probe_states: states of the fixed set, taken from the first mini-batches.

    Raises:
        ValueError: where an argument is outside its range, or there are more probe states than transitions in the
            replay when learning begins.
        TypeError: where the module has no `action_values`.
    """

    def __init__(
        self,
        *,
        every_seconds: float = 60.0,
        windows: Sequence[int] = (100_000, 1_000_000, 5_000_000),
        num_probe_states: int = 256,
    ) -> None:
        if every_seconds < 0.0:
            raise ValueError(f"MetricsTable got every_seconds = {every_seconds}, expected 0 or more")
        if num_probe_states < 1:
            raise ValueError(f"MetricsTable got num_probe_states = {num_probe_states}, expected 1 or more")
        self.every_seconds = every_seconds
        self.rewards = {name: RewardWindows(windows) for name in ("", "network_")}
        self.probe = ProbeStates(num_probe_states)
        self._clip_delta = ClipDelta()
        self._clipped: list[Tensor] = []  # since the last point
        self._drawn = self._updates = 0  # transitions and updates since the last row
        self._interval: dict[str, list[Tensor]] = {}  # by signal, since the last row
        self._totals = MixtureTotals(0, 0, 0.0, 0.0)  # at the last point
        self._row_began = _Moment(0, 0.0, MixtureTotals(0, 0, 0.0, 0.0))
        self._rows = 0
        self._titles = ""  # as they were printed last

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be shown."""
        if stage != "fit":
            return
        if not isinstance(pl_module, ActionValues):
            raise TypeError(
                f"MetricsTable got {type(pl_module).__name__}, expected a module with action_values(observation), such "
                "as DQN: leave the callback out"
            )
        source = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, MeasuresReplay) and source.first_replay_size < self.probe.num_states:
            raise ValueError(
                f"MetricsTable got num_probe_states = {self.probe.num_states}, but the replay holds "
                f"{source.first_replay_size} transitions when learning begins: type a smaller num_probe_states, or "
                "give --data.init_args.learning_starts and --data.init_args.buffer_size a larger number"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self._clip_delta.begin(trainer)
        self.probe.to(pl_module.device)
        self._clipped = [taken.to(pl_module.device) for taken in self._clipped]  # of before a resume
        self._row_began = self._now(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        self._clip_delta.end()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._clip_delta.end()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in an iteration; log and print where it is time."""
        if isinstance(batch, ReplayBatch):
            self.probe.collect(batch)
            self._drawn += batch.index.numel()
        if isinstance(outputs, Mapping):
            self._clipped.append(self._clip_delta.take(outputs))
            self._take(outputs)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every < 1 or (batch_idx + 1) % every:
            return
        curves = self._measure(trainer, pl_module)
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=experience_source(trainer).env_steps)
        if trainer.is_global_zero and time.perf_counter() - self._row_began.seconds >= self.every_seconds:
            self._print(trainer, curves)

    def _take(self, outputs: Mapping[str, Tensor]) -> None:
        norms = [signal.numel() for name, signal in outputs.items() if name.startswith("grad_norm")]
        self._updates += max(norms, default=0)  # one of each update
        for name, signal in outputs.items():
            family = name.partition("/")[0]
            if family in _SIGNALS or family == "grad_norm":
                self._interval.setdefault(family, []).append(signal.detach().float().mean())

    def _measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        """Curves, known numbers only."""
        source = trainer.datamodule  # type: ignore[attr-defined]
        curves: dict[str, float] = {}
        if isinstance(source, MixtureSource):
            curves |= self._windows(experience_source(trainer).env_steps, source.mixture_totals())
        if isinstance(pl_module, ActionValues):
            curves |= {f"stability/q_probe_{name}": q for name, q in self.probe.percentiles(pl_module).items()}
        clipped = torch.cat(self._clipped) if self._clipped else torch.zeros(0)
        self._clipped.clear()
        if clipped.numel():
            of_interval = {"mean": clipped.mean(), "min": clipped.amin(), "max": clipped.amax()}
            curves |= {f"stability/clip_delta_{name}": float(value) for name, value in of_interval.items()}
        return {tag: value for tag, value in curves.items() if not math.isnan(value)}

    def _windows(self, env_steps: int, totals: MixtureTotals) -> dict[str, float]:
        new = [now - before for now, before in zip(totals, self._totals, strict=True)]
        self._totals = totals
        by_network, by_expert, network_reward, expert_reward = new
        self.rewards[""].append(Row(env_steps, by_network + by_expert, network_reward + expert_reward))
        self.rewards["network_"].append(Row(env_steps, by_network, network_reward))
        curves = {}
        for name, windows in self.rewards.items():
            for size in windows.sizes:
                curves[f"rollout/{name}reward_per_frame_{short(size)}"] = windows.mean(size)
            curves[f"rollout/{name}reward_slope"] = windows.slope(windows.sizes[-1])
        return curves

    def _now(self, trainer: Trainer) -> "_Moment":
        source = trainer.datamodule  # type: ignore[attr-defined]
        totals = source.mixture_totals() if isinstance(source, MixtureSource) else self._totals
        return _Moment(experience_source(trainer).env_steps, time.perf_counter(), totals)

    def _print(self, trainer: Trainer, curves: Mapping[str, float]) -> None:
        source, began, now = trainer.datamodule, self._row_began, self._now(trainer)  # type: ignore[attr-defined]
        seconds, statistics = now.seconds - began.seconds, source.rollout_statistics()
        shown: dict[str, float] = {name: float(torch.stack(values).mean()) for name, values in self._interval.items()}
        shown |= curves | statistics
        shown |= {"frames": now.env_steps, "fps": (now.env_steps - began.env_steps) / seconds}
        shown |= {"updates_per_s": self._updates / seconds, "samples_per_s": self._drawn / seconds}
        frames = [now.totals[actor] - began.totals[actor] for actor in (0, 1)]
        if sum(frames):
            shown["expert_share"] = frames[1] / sum(frames)
        if isinstance(source, ReplaySource):
            shown["replay_size"] = source.replay_size
        if isinstance(source, MeasuresReplay) and source.replay_ratio is not None:
            shown["replay_ratio"] = source.replay_ratio
        if (evaluation := trainer.callback_metrics.get("eval/mean_reward")) is not None:
            shown["evaluation"] = float(evaluation)
        columns = self._columns(statistics)
        titles = title_line(columns)
        lines = [titles] if self._rows % 30 == 0 or titles != self._titles else []
        row = value_line(columns, shown, _overridden(source, trainer.lightning_module))
        sys.stdout.write("\n".join([*lines, row]) + "\n")
        sys.stdout.flush()
        self._rows, self._titles = self._rows + 1, titles
        self._row_began = now
        self._drawn = self._updates = 0
        self._interval.clear()

    def _columns(self, statistics: Mapping[str, float]) -> "list[Column]":
        rewards = []
        for name, group in (("", "all"), ("network_", "net")):
            sizes = [short(size) for size in self.rewards[name].sizes]
            rewards += [Column(f"{group} {size}", f"rollout/{name}reward_per_frame_{size}", ".4f") for size in sizes]
            rewards.append(Column(f"{group} slope", f"rollout/{name}reward_slope", "+.4f"))
        parts = [tag for tag in statistics if tag.endswith("_mean") and not tag.startswith("rollout/ep_")]
        named = [Column(tag.removeprefix("rollout/").removesuffix("_mean"), tag, ".3g") for tag in parts]
        return [*_BEGIN, *named, *rewards, *_END]

    def state_dict(self) -> dict[str, Any]:
        """Windows, probe states, what is counted so far."""
        return {
            "rewards": {name: windows.state_dict() for name, windows in self.rewards.items()},
            "probe": self.probe.state_dict(),
            "totals": list(self._totals),
            "clipped": [float(delta) for taken in self._clipped for delta in taken],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, windows in self.rewards.items():
            windows.load_state_dict(state_dict["rewards"][name])
        self.probe.load_state_dict(state_dict["probe"])
        self._totals = MixtureTotals(*state_dict["totals"])
        self._clipped = [torch.tensor(state_dict["clipped"])]


class _Moment(NamedTuple):
    env_steps: int
    seconds: float
    totals: MixtureTotals


class Column(NamedTuple):
    """One column of the table."""

    title: str
    key: str
    form: str  # of the number, as `format` takes it


_BEGIN = [
    Column("frames", "frames", ",.0f"),
    Column("fps", "fps", ",.0f"),
    Column("ε", "exploration_rate", ".3f"),
    Column("expert", "expert_share", ".3f"),
    Column("return", "rollout/ep_rew_mean", ".3g"),
    Column("length", "rollout/ep_len_mean", ".0f"),
]
_END = [
    Column("eval", "evaluation", ".4g"),
    Column("loss", "loss", ".3g"),
    Column("lr", "learning_rate", ".2g"),
    Column("updates/s", "updates_per_s", ",.0f"),
    Column("samples/s", "samples_per_s", ",.0f"),
    Column("grad", "grad_norm", ".3g"),
    Column("clipΔ", "stability/clip_delta_mean", ".3f"),
    Column("clipΔ max", "stability/clip_delta_max", ".3f"),
    Column("q p01", "stability/q_probe_p01", ".3g"),
    Column("q p50", "stability/q_probe_p50", ".3g"),
    Column("q p99", "stability/q_probe_p99", ".3g"),
    Column("replay", "replay_size", ",.0f"),
    Column("ratio", "replay_ratio", ".3g"),
    Column("soft age", "target_age_soft", ".0f"),
    Column("hard age", "target_age_hard", ".0f"),
    Column("agree", "expert_agreement", ".3f"),
    Column("bc", "bc_loss", ".3g"),
]
_WIDTH = 9


def title_line(columns: Sequence[Column]) -> str:
    """The names of the columns."""
    return " ".join(f"{column.title:>{_WIDTH}}" for column in columns)


def value_line(columns: Sequence[Column], shown: Mapping[str, float], overridden: Collection[str] = ()) -> str:
    """A row; what is not known is a dash, what is overridden, by key, has a mark."""
    values = (format(shown[column.key], column.form) if column.key in shown else "–" for column in columns)
    marks = (" OVR" if column.key in overridden else "" for column in columns)
    return " ".join(f"{value + mark:>{_WIDTH}}" for value, mark in zip(values, marks, strict=True))


def _overridden(source: object, module: object) -> list[str]:
    found = []
    if isinstance(module, ExplorationControl) and module.exploration_override is not None:
        found.append("exploration_rate")
    if isinstance(source, ExpertShareControl) and source.expert_share_override is not None:
        found.append("expert_share")
    return found


def short(frames: int) -> str:
    """100,000 as 100k, 5,000,000 as 5M; other numbers as they are."""
    for unit, letter in ((1_000_000, "M"), (1_000, "k")):
        if frames % unit == 0:
            return f"{frames // unit}{letter}"
    return str(frames)
