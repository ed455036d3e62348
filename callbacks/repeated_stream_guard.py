"""Whether the training data are new."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.repeated_stream import RepeatedStreamDetector, fingerprint, repeated_stream
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window
from rlmods.types import ExperienceSource

_SAMPLE = 1024  # numbers of a batch that are looked at
_DATA = ("reward", "observation")


class RepeatedStreamGuard(Safeguard):
    """Watches that no iteration gets data that this run has seen before, bit for bit (`repeated_stream`).

    So it is after a resume that seeds a generator instead of restoring it, or in a run whose environments are seeded
    anew in each iteration. It needs no signals: of each batch it keeps at most 1,024 numbers, evenly spaced, of its
    fields `reward` and `observation`, of all its tensors where it has neither, and brings them to the host once a
    window: a quarter of a millisecond an iteration. What was seen is in the checkpoint, as of the process that writes
    it.

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
        self._samples: list[Tensor] = []  # of the iterations of this window, on the device
        self._prints: list[int | None] = []  # of the same, those that a checkpoint has brought to the host
        self._readings = Readings()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep a sample, before an update can change the batch."""
        with torch.no_grad():
            self._samples.append(_sample(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, compare with everything before."""
        if not is_window(self.every_n_iterations, batch_idx):
            return
        self._fetch()
        prints, self._prints = self._prints, []
        found = [verdict.evidence for verdict in self.detector.update(prints, _epoch(trainer))]
        row = [found[0]["length"], found[0]["first_iteration"], found[0]["lag"]] if found else [0, 0, 0]
        arrived = self._readings.exchange(trainer, torch.tensor(row, dtype=torch.float32, device=pl_module.device))
        if arrived is not None:
            length, first, lag = (int(number) for number in max(arrived[0]))
            self.report(trainer, [repeated_stream(first, lag, length)] if length else [])
            self.draw(trainer, {"length": float(length)})

    def _fetch(self) -> None:
        if self._samples:
            sizes = [sample.numel() for sample in self._samples]
            samples: tuple[Tensor, ...] = torch.cat(self._samples).cpu().split(sizes)  # type: ignore[no-untyped-call]
            self._prints += [fingerprint(sample) for sample in samples]
            self._samples = []

    def rearm(self) -> None:
        """A repetition must begin anew; what was seen stays."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        self._fetch()
        return {**super().state_dict(), "detector": self.detector.state_dict(), "prints": list(self._prints)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._prints = list(state_dict["prints"])


def _epoch(trainer: Trainer) -> int | None:
    """Iterations after which the data come again by design."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    batches = trainer.num_training_batches
    return None if isinstance(source, ExperienceSource) or math.isinf(batches) else int(batches)


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
