"""What all probes share: when they fire, apart from the training's randomness, and where their numbers go.

A probe looks at a frozen moment of a training with experience of its own. It never alarms and never acts.
"""

import math
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from rlmods.callbacks.events import run_folder
from rlmods.callbacks.safeguard import MissingInputError, clock
from rlmods.types import OffPolicyLinear, RolloutSource

Plateau = Literal["off", "relative", "absolute"]


class Probe(Callback):
    """Measures, every few iterations and where the loss stands still, after the update of that iteration.

    A firing gives a row of numbers: in `probes/<name>_probe.csv` of the run folder, in the loggers as
    `stability/<name>/…`, and in `latest`. The training is bit for bit the one without the probe. Of several processes
    the first one measures. Where a parameter is no longer finite, a row is empty.

    A subclass defines `measure`, and calls `require_memory` in `setup` if it needs much of it.

    Args:
        name: of the file and the curves.
        every_n_iterations: iterations between two firings.
        plateau: also fires where the last 5 values of the signal `td_loss`, else `loss`, differ by at most a share of
            their mean ("relative"), or by the rule of the published runs ("absolute"), which losses below 1 meet
            whatever they do (`PlateauTrigger`). "off" does not.
        plateau_tolerance: of that rule.
        seed: of the probe's own randomness; None takes the one that torch was given.

    Attributes:
        latest: iteration and row of the last firing; None before the first.

    Raises:
        ValueError: where an argument is outside its range.
    """

    stream: ClassVar[int] = 0  # j of `seed_of`, the same for all probes of a class
    curve_columns: ClassVar[Mapping[str, str]] = {}  # of learning_curves.csv → of a row

    def __init__(
        self, *, name: str, every_n_iterations: int, plateau: Plateau, plateau_tolerance: float, seed: int | None
    ) -> None:
        if not name or "/" in name:
            raise ValueError(f"{type(self).__name__} got name = {name!r}, expected a word without a slash")
        self.require_at_least_one("every_n_iterations", every_n_iterations)
        if plateau not in ("off", "relative", "absolute"):
            raise ValueError(
                f"{type(self).__name__} got plateau = {plateau!r}, expected 'off', 'relative' or 'absolute'"
            )
        self.name = name
        self.every_n_iterations = every_n_iterations
        self.trigger = None if plateau == "off" else PlateauTrigger(plateau, plateau_tolerance)
        self.seed = seed
        self.latest: tuple[int, dict[str, float]] | None = None
        self._folder: Path | None = None
        self._table: IterationTable | None = None

    def require_at_least_one(self, argument: str, value: int) -> None:
        """Refuse an argument that counts something and is below 1."""
        if value < 1:
            raise ValueError(f"{type(self).__name__} got {argument} = {value}, expected at least 1")

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int
    ) -> dict[str, float]:
        """The row of a firing, without gradients and with torch's generator isolated; the same columns each time."""
        raise NotImplementedError

    def curve_values(self, iteration: int) -> dict[str, float]:
        """What an iteration's row of `learning_curves.csv` takes from this probe; NaN where it did not fire."""
        row = self.latest[1] if self.latest is not None and self.latest[0] == iteration else {}
        return {column: row.get(key, math.nan) for column, key in self.curve_columns.items()}

    def seed_of(self, iteration: int) -> int:
        """s(n, j) = (seed + 10007 (n + 1) + 97 j) mod (2³¹ − 1)."""
        if self.seed is None:
            raise RuntimeError("there is no seed yet: it is taken when trainer.fit begins")
        return (self.seed + 10007 * (iteration + 1) + 97 * self.stream) % (2**31 - 1)

    @property
    def state_key(self) -> str:
        """Several instances of a class live side by side under different names."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second probe of the same name; take the seed.

        Raises:
            ValueError: where there is one.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(other, Probe) and other.name == self.name for other in callbacks) > 1:
            raise ValueError(
                f"got several probes with the name {self.name!r}, expected one: they would write the same file; give "
                f"the others names of their own, {type(self).__name__}(name=...)"
            )
        if stage == "fit" and self.seed is None:
            self.seed = torch.initial_seed()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run folder, which all processes must do."""
        self._folder, self._table = run_folder(trainer), None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Fire where it is due."""
        if not trainer.is_global_zero:
            return
        if self._folder is not None and self._table is None:
            # A resume goes on here: whatever the file says of this iteration and later ones never happened.
            self._table = IterationTable(self._folder / "probes" / f"{self.name}_probe.csv", batch_idx)
        if outputs is None or (isinstance(outputs, Mapping) and not outputs):
            return  # a warm-up: nothing was learned, and what the module would learn with may not be known yet
        is_due = (batch_idx + 1) % self.every_n_iterations == 0
        if self.trigger is not None:
            self.trigger.record(self._loss(outputs))
            is_due = is_due or self.trigger.fires(batch_idx)
        if is_due:
            self._fire(trainer, pl_module, outputs, batch, batch_idx)

    def _loss(self, outputs: Any) -> float:
        for name in ("td_loss", "loss"):
            if isinstance(outputs, Mapping) and name in outputs:
                return float(outputs[name].mean())
        found = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
        raise MissingInputError(
            f"{type(self).__name__} needs the signal td_loss or loss to see a plateau, but training_step returned "
            f"{found}: return one of them, or type plateau='off'"
        )

    def _fire(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int) -> None:
        row: dict[str, float] = {}
        if all(bool(parameter.isfinite().all()) for parameter in pl_module.parameters()):
            with isolate_rng(), torch.no_grad():
                row = self.measure(trainer, pl_module, outputs, batch, iteration)
        self.latest = (iteration, row)
        if self._table is not None:
            self._table.append({"iter": iteration, **row})
        curves = {f"stability/{self.name}/{key}": float(value) for key, value in row.items()}
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=clock(trainer))

    def state_dict(self) -> dict[str, Any]:
        """The seed, the trigger's history and the last row; a subclass adds its own."""
        return {
            "seed": self.seed,
            "trigger": None if self.trigger is None else self.trigger.state_dict(),
            "latest": None if self.latest is None else list(self.latest),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.seed = state_dict["seed"]
        if self.trigger is not None and state_dict["trigger"] is not None:
            self.trigger.load_state_dict(state_dict["trigger"])
        if state_dict["latest"] is not None:
            iteration, row = state_dict["latest"]
            self.latest = (iteration, row)


class PlateauTrigger:
    """Fires where the last `window` losses lie within max − min ≤ tolerance · scale.

    The scale is |mean| ("relative") or max(1, |mean|) ("absolute"): losses far below 1 are always within the latter,
    which then comes down to a firing every `cooldown` iterations.

    Args:
        rule: "relative" or "absolute".
        tolerance: positive. TD losses of 3,200 samples scatter by some per cent from one iteration to the next.

    Raises:
        ValueError: for another tolerance.
    """

    window = 5
    cooldown = 5  # iterations since it fired last
    min_iteration = 5

    def __init__(self, rule: Literal["relative", "absolute"], tolerance: float) -> None:
        if not tolerance > 0.0:
            raise ValueError(f"got plateau_tolerance = {tolerance}, expected a number above 0, such as 0.05")
        self.rule = rule
        self.tolerance = tolerance
        self.losses: deque[float] = deque(maxlen=self.window)
        self.fired: int | None = None

    def record(self, loss: float) -> None:
        """Take in an iteration's loss."""
        self.losses.append(loss)

    def fires(self, iteration: int) -> bool:
        """Whether it does after this iteration; if so, the cooldown begins."""
        if iteration < self.min_iteration or len(self.losses) < self.window:
            return False
        if self.fired is not None and iteration - self.fired < self.cooldown:
            return False
        mean = abs(sum(self.losses) / self.window)
        scale = mean if self.rule == "relative" else max(1.0, mean)
        if not max(self.losses) - min(self.losses) <= self.tolerance * scale:
            return False
        self.fired = iteration
        return True

    def state_dict(self) -> dict[str, Any]:
        """The losses and when it fired last."""
        return {"losses": list(self.losses), "fired": self.fired}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on."""
        self.losses = deque(state["losses"], maxlen=self.window)
        self.fired = state["fired"]


class IterationTable:
    """A CSV file with a row an iteration, `iter` in front, on the disk row by row.

    Numbers are written by `repr`: they read back bit for bit. A column that comes later is NaN in the rows before.

    Args:
        path: of the file, which need not exist.
        first: the iteration that comes next. Rows from there on are cut, and so is a last line that a crash left half
            written.
    """

    def __init__(self, path: Path, first: int) -> None:
        self.path = path
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        cells = [line.removesuffix("\n").split(",") for line in lines if line.endswith("\n")]
        rows = [row for row in cells[1:] if int(row[0]) < first]
        self.columns = cells[0] if rows else []
        if len(rows) + 1 < len(lines) or not rows:
            self._rewrite(rows)

    def append(self, row: Mapping[str, float]) -> None:
        """Add a row; columns that are not in it are NaN."""
        new = [name for name in row if name not in self.columns]
        if new:
            before = self.path.read_text().splitlines()[1:] if self.columns else []
            self.columns = self.columns + new
            self._rewrite([line.split(",") + ["nan"] * len(new) for line in before])
        with self.path.open("a") as file:
            file.write(",".join(repr(row.get(name, math.nan)) for name in self.columns) + "\n")

    def _rewrite(self, rows: list[list[str]]) -> None:
        if not self.columns:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(",".join(row) + "\n" for row in [self.columns, *rows]))
        os.replace(temporary, self.path)


def linear_module(probe: Probe, pl_module: LightningModule) -> OffPolicyLinear:
    """The module, as the linear critic that it is.

    Raises:
        TypeError: where it is none.
    """
    if not isinstance(pl_module, OffPolicyLinear):
        raise TypeError(
            f"{type(probe).__name__} got the module {type(pl_module).__name__}, expected a linear critic with Gaussian "
            "policies (rlmods.types.OffPolicyLinear), such as rlmods.algorithms.LinearTD: leave this callback out"
        )
    return pl_module


def rollout_source(probe: Probe, trainer: Trainer) -> RolloutSource:
    """The data module, as the one who plays environments of the probe's own.

    Raises:
        TypeError: where it cannot.
    """
    source = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(source, RolloutSource):
        raise TypeError(
            f"{type(probe).__name__} got the data module {type(source).__name__}, expected one with probe_rollout(): "
            "pass rlmods.data.RolloutDataModule"
        )
    return source


def check_bootstrap_samples(probe: Probe, module: OffPolicyLinear, num_bootstrap_samples: int | None) -> None:
    """Refuse a number of actions that no mean can be taken of.

    Raises:
        ValueError: for a negative one; for None where the module has no exact expectation.
    """
    if num_bootstrap_samples is None and not module.has_exact_bootstrap:
        raise ValueError(
            f"{type(probe).__name__} got num_bootstrap_samples = None, but the expectation of the bootstrap feature is "
            "exact only where the environment executes actions as they are: type num_bootstrap_samples=8"
        )
    if num_bootstrap_samples is not None and num_bootstrap_samples < 0:
        raise ValueError(
            f"{type(probe).__name__} got num_bootstrap_samples = {num_bootstrap_samples}, expected at least 0, or None "
            "for the exact expectation"
        )


class Chains(NamedTuple):
    """The trajectories of a probe's batch."""

    num_chains: int
    num_steps: int

    @classmethod
    def of(cls, probe: Probe, argument: str, num_samples: int, num_chains: int) -> "Chains":
        """As many as asked for.

        Raises:
            ValueError: where the samples cannot be shared among them.
        """
        if num_chains < 1 or num_samples < 1 or num_samples % num_chains:
            raise ValueError(
                f"{type(probe).__name__} got {argument} = {num_samples} and num_chains = {num_chains}, expected a "
                f"multiple of the chains: type for example {argument}=4096, num_chains=32"
            )
        return cls(num_chains, num_samples // num_chains)

    @classmethod
    def like_training(cls, num_samples: int, source: RolloutSource) -> "Chains":
        """As long as the rollouts of the training: the same states where each of those begins with a reset."""
        num_steps = min(source.n_steps, num_samples)
        return cls(num_samples // num_steps, num_steps)

    @property
    def num_samples(self) -> int:
        """Of all of them."""
        return self.num_chains * self.num_steps


def require_memory(probe: Probe, trainer: Trainer, needed: int, argument: str, value: int) -> None:
    """Refuse what would not fit into memory, before any of it is allocated.

    Args:
        probe: that needs it.
        trainer: whose device it would be on.
        needed: bytes, at the peak.
        argument: to be made smaller.
        value: of the argument.

    Raises:
        ValueError: saying how much it would take.
    """
    available = _memory(trainer.strategy.root_device)
    if needed > available:
        fits = 2 ** max(0, (value * available // needed).bit_length() - 2)
        raise ValueError(
            f"{type(probe).__name__} got {argument} = {value}, which would take {needed / 2**30:,.1f} GiB, expected at "
            f"most the {available / 2**30:,.1f} GiB of this machine: type {argument}={fits}"
        )


def _memory(device: torch.device) -> int:
    """Bytes that are free on an accelerator, else those that the machine or the container has."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for file in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        path = Path("/sys/fs/cgroup") / file
        limit = path.read_text().strip() if path.exists() else ""
        limits += [int(limit)] if limit.isdigit() else []
    return min(limits)
