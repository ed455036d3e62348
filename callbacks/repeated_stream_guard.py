"""Whether the training data are new."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Verdict
from rlmods.callbacks.repeated_stream import RepeatedStreamDetector, fingerprint, repeated_start, repeated_stream
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window
from rlmods.types import ExperienceSource, Rollout

_SAMPLE = 1024  # numbers of a batch that are looked at
_STARTS, _START = 64, 16  # environments whose first observation is looked at, and numbers of each
_DATA = ("reward", "observation")


class RepeatedStreamGuard(Safeguard):
    """Watches that no iteration gets data that this run has seen before, bit for bit (`repeated_stream`).

    So it is after a resume that seeds a generator instead of restoring it, or in a run whose environments are seeded
    anew in each iteration. It needs no signals: of each batch it keeps at most 1,024 numbers, evenly spaced, of its
    fields `reward` and `observation`, of all its tensors where it has neither, and brings them to the host once a
    window: a quarter of a millisecond an iteration. What was seen is in the checkpoint, as of the process that writes
    it.

    A policy that has moved since makes other data of the same random numbers. Of a `Rollout` the first observations are
    therefore compared as well (`repeated_start`, a warning): they are those of before where the environments were
    seeded, whatever the policy does then. One environment, or some that begin alike by design, say nothing here.

    A repetition is `needed` iterations in a row with one lag. Data with fewer than 16 different numbers say nothing.
    Where the data module is no `ExperienceSource`, lags of whole epochs are excused: a data set comes again by design.
    Rollouts of a deterministic policy in a deterministic environment do repeat: leave this callback out there.

    Args:
        needed: iterations in a row that repeat.
        capacity: iterations that are remembered; 16 bytes each.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first batch without any tensor.
    """

    def __init__(
        self,
        *,
        needed: int = 3,
        capacity: int = 100_000,
        every_n_iterations: int = 8,
        name: str = "repeated_stream",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"RepeatedStreamGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = RepeatedStreamDetector(needed=needed, capacity=capacity)
        self.starts = RepeatedStreamDetector(needed=needed, capacity=capacity)
        self._samples: list[Tensor] = []  # of the iterations of this window, on the device
        self._prints: list[int | None] = []  # of the same, those that a checkpoint has brought to the host
        self._start_samples: list[Tensor] = []  # the same of the first observations
        self._start_prints: list[int | None] = []
        self._readings = Readings()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a sample, before an update can change the batch."""
        with torch.no_grad():
            self._samples.append(_sample(batch))
            self._start_samples.append(_start(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, compare with everything before."""
        if not is_window(self.every_n_iterations, batch_idx):
            return
        self._fetch()
        prints, self._prints = self._prints, []
        start_prints, self._start_prints = self._start_prints, []
        epoch = _epoch(trainer)
        rows = [_row(self.detector.update(prints, epoch)), _row(self.starts.update(start_prints, epoch))]
        arrived = self._readings.exchange(
            trainer, torch.tensor(rows, dtype=torch.float32, device=pl_module.device).flatten()
        )
        if arrived is not None:
            length, first, lag = (int(number) for number in max(row[:3] for row in arrived[0]))
            start_length, start_first, start_lag = (int(number) for number in max(row[3:] for row in arrived[0]))
            verdicts = [repeated_stream(first, lag, length)] if length else []
            # Where all data are those of before, so are the first.
            verdicts += [repeated_start(start_first, start_lag, start_length)] if start_length and not length else []
            self.report(trainer, verdicts)
            self.draw(trainer, {"length": float(length), "start_length": float(start_length)})

    def _fetch(self) -> None:
        self._prints += [fingerprint(sample) for sample in _to_host(self._samples)]
        self._start_prints += [_start_print(sample) for sample in _to_host(self._start_samples)]
        self._samples, self._start_samples = [], []

    def rearm(self) -> None:
        """A repetition must begin anew; what was seen stays."""
        super().rearm()
        self.detector.reset()
        self.starts.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        self._fetch()
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "prints": list(self._prints),
            "starts": self.starts.state_dict(),
            "start_prints": list(self._start_prints),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._prints = list(state_dict["prints"])
        self.starts.load_state_dict(state_dict["starts"])
        self._start_prints = list(state_dict["start_prints"])


def _epoch(trainer: Trainer) -> int | None:
    """Iterations after which the data come again by design."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    batches = trainer.num_training_batches
    return None if isinstance(source, ExperienceSource) or math.isinf(batches) else int(batches)


def _row(found: list[Verdict]) -> list[int]:
    """Length, first iteration and lag; zeros for no repetition."""
    evidence = found[0].evidence if found else {"length": 0, "first_iteration": 0, "lag": 0}
    return [evidence["length"], evidence["first_iteration"], evidence["lag"]]


def _to_host(samples: list[Tensor]) -> list[Tensor]:
    """All in one copy."""
    if not samples:
        return []
    flat = torch.cat([sample.flatten() for sample in samples]).cpu()
    parts: tuple[Tensor, ...] = flat.split([sample.numel() for sample in samples])  # type: ignore[no-untyped-call]
    return [part.reshape(sample.shape) for part, sample in zip(parts, samples, strict=True)]


def _start_print(rows: Tensor) -> int | None:
    """Of first observations `[n, k]`; None where two are equal: a task that begins alike by design."""
    is_random = len(rows) > 1 and len({tuple(row) for row in rows.tolist()}) == len(rows)
    return fingerprint(rows.flatten()) if is_random else None


def _start(batch: Any) -> Tensor:
    """Some numbers of the first observations of a rollout `[n, k]`, copied; `[0, 0]` for other batches."""
    if not isinstance(batch, Rollout):
        return torch.zeros(0, 0)
    firsts = [tensor[0, :_STARTS].flatten(1).float() for _, tensor in _tensors(batch.observation, "observation")]
    return torch.cat([first[:, :: -(-first.shape[1] // _START) or 1] for first in firsts], dim=1)


def _sample(batch: Any) -> Tensor:
    """At most `_SAMPLE` numbers of a batch `[n]`, copied."""
    tensors = list(_tensors(batch, ""))
    if not tensors:
        raise ValueError(
            f"RepeatedStreamGuard got a batch of type {type(batch).__name__} without tensors, expected a tensor, a "
            "NamedTuple, a dict or a list with some: put the data there, or leave this callback out"
        )
    data = [tensor for name, tensor in tensors if name in _DATA] or [tensor for _, tensor in tensors]
    share = max(_SAMPLE // len(data), 1)
    parts = [tensor.detach().flatten()[:: -(-tensor.numel() // share) or 1].float() for tensor in data]
    return torch.cat(parts)


def _tensors(batch: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor, with the innermost name among `_DATA` that it stands under."""
    if isinstance(batch, Tensor):
        yield name, batch
        return
    fields: Mapping[Any, Any] = {}
    if isinstance(batch, Mapping):
        fields = batch
    elif isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        fields = batch._asdict()
    elif isinstance(batch, (list, tuple)):
        fields = dict(enumerate(batch))
    for key, value in fields.items():
        yield from _tensors(value, str(key) if key in _DATA else name)
