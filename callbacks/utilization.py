"""How much of the machine a training uses: its CPU, its memory and, where there is one, its GPU."""

import os
import time
from contextlib import suppress

import psutil
import torch

_CHILDREN_EVERY = 5.0  # seconds; to find them all processes of the machine are looked at
_GIB = 2**30


def cpu_percent_of_machine(cpu_seconds: float, wall_seconds: float, num_cores: int) -> float:
    """CPU time as a share of what all cores of the machine could give, in percent.

    One busy thread on a machine of 8 cores is 12.5 %, not 100 %.

    Args:
        cpu_seconds: of all processes together.
        wall_seconds: in which they were spent, above 0.
        num_cores: of the machine.

    Returns:
        0 to 100.
    """
    return min(100.0, 100.0 * cpu_seconds / (wall_seconds * num_cores))


class Utilization:
    """Measures this process and its children, worker processes included.

    Attributes:
        num_cores: of the machine.
    """

    def __init__(self) -> None:
        self.num_cores = os.cpu_count() or 1
        self._process = psutil.Process()
        self._processes: list[psutil.Process] = [self._process]
        self._found = 0.0
        self._measured = time.perf_counter()
        self._cpu = self._cpu_seconds()

    def begin(self) -> None:
        """Let the next measurement count from now on."""
        self._find_children(time.perf_counter())
        self._measured, self._cpu = time.perf_counter(), self._cpu_seconds()

    def measure(self, device: torch.device) -> dict[str, float]:
        """What was used since the last time, by tag.

        `system/cpu_percent_of_machine`; `system/memory_gib`, resident, in which pages that processes share count in
        each; on a CUDA device `system/gpu_memory_gib`, the most that torch has reserved on it, and
        `system/gpu_percent`, of the time in which a kernel ran, where the driver's library is installed.

        Args:
            device: of the training.
        """
        now = time.perf_counter()
        if now - self._found >= _CHILDREN_EVERY:
            self._find_children(now)
        cpu, before = self._cpu_seconds(), self._cpu
        # A process that has begun since then has spent all of its time since then; one that has ended is not known.
        spent = sum(seconds - before.get(pid, 0.0) for pid, seconds in cpu.items())
        usage = {
            "system/cpu_percent_of_machine": cpu_percent_of_machine(
                spent, max(now - self._measured, 1e-9), self.num_cores
            ),
            "system/memory_gib": sum(map(_memory, self._processes)) / _GIB,
        }
        self._measured, self._cpu = now, cpu
        return usage | _gpu(device)

    def _find_children(self, now: float) -> None:
        self._processes = [self._process, *self._process.children(recursive=True)]
        self._found = now

    def _cpu_seconds(self) -> dict[int, float]:
        return {process.pid: seconds for process in self._processes if (seconds := _cpu(process)) is not None}


def _cpu(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.Error:  # it has ended
        return None
    return float(times.user + times.system)


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


def _gpu(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    usage = {"system/gpu_memory_gib": torch.cuda.max_memory_reserved(device) / _GIB}
    with suppress(ImportError, RuntimeError):  # without the library, or where the driver does not tell
        usage["system/gpu_percent"] = float(torch.cuda.utilization(device))
    return usage


def describe_usage(usage: dict[str, float], num_cores: int) -> str:
    """Such as "cpu 51 % of 2 cores, memory 0.6 GiB"."""
    described = [
        f"cpu {usage['system/cpu_percent_of_machine']:.0f} % of {num_cores} cores",
        f"memory {usage['system/memory_gib']:.1f} GiB",
    ]
    if "system/gpu_percent" in usage:
        described.append(f"gpu {usage['system/gpu_percent']:.0f} %")
    if "system/gpu_memory_gib" in usage:
        described.append(f"gpu memory {usage['system/gpu_memory_gib']:.1f} GiB")
    return ", ".join(described)
