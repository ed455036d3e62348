"""How much memory there is, and how people read a number of bytes."""

from pathlib import Path


def size_text(num_bytes: int) -> str:
    """Bytes as people read them."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def available_memory() -> int | None:
    """Bytes that the system, and the container that this may be, can still give; None where neither says."""
    known = [_of_system(Path("/proc/meminfo")), _of_container(Path("/sys/fs/cgroup"))]
    return min((num_bytes for num_bytes in known if num_bytes is not None), default=None)


def _of_system(meminfo: Path) -> int | None:
    if not meminfo.exists():
        return None
    lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024  # in kB, all of them


def _of_container(cgroup: Path) -> int | None:
    """Of version 2; None without a limit. What files occupy and nobody has used lately is given back on demand."""
    if not (cgroup / "memory.max").exists():
        return None
    limit = (cgroup / "memory.max").read_text().strip()
    if limit == "max":
        return None
    used = int((cgroup / "memory.current").read_text())
    statistics = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    return max(0, int(limit) - used + int(statistics["inactive_file"]))
