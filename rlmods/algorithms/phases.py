"""Where the time of an update goes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch
from torch import Tensor
from torch.profiler import record_function


class Phases:
    """Wall time by phase; each also stands under its name in a trace of torch's profiler.

    On a GPU a phase ends when its work is ordered, not when it is done.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Count the time of the block for a phase. Of one within another the outer one does not count."""
        inside = sum(self._seconds.values())
        began = perf_counter()
        with record_function(name):
            yield
        inside = sum(self._seconds.values()) - inside
        self._seconds[name] = self._seconds.get(name, 0.0) + perf_counter() - began - inside

    def take(self) -> dict[str, Tensor]:
        """The seconds since the last time as signals `seconds/<phase>`, scalars."""
        taken = {f"seconds/{name}": torch.tensor(seconds) for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return taken
