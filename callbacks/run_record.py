"""What a run folder says of its origin, and what the user is told when the run ends."""

import json
import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from rlmods.callbacks.events import append_event, mark_events_beyond, run_folder
from rlmods.types import ExperienceSource

_SUMMARY = "summary.json"


class RunRecord(Callback):
    """Writes `run.json` when training starts, events for start, resume and end, and says at the end where the run is.

    A run that goes on in its own folder loses its `summary.json`, which says how it ended before.

    Args:
        seed: that the run was started with, if it is known; of `false`, for none, None is kept.
        origin: the run that this one continues, how, and what is set differently; plain JSON.
        spec: of the environment; plain JSON.
    """

    def __init__(
        self, seed: int | None = None, origin: Mapping[str, Any] | None = None, spec: Mapping[str, Any] | None = None
    ) -> None:
        self.seed = None if isinstance(seed, bool) else seed
        self.origin = origin
        self.spec = spec

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write down where the run comes from."""
        folder = run_folder(trainer)
        if folder is None:
            return
        resumed_from = None if trainer.ckpt_path is None else str(Path(str(trainer.ckpt_path)).resolve())
        if trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            if resumed_from is not None:
                mark_events_beyond(folder, _env_steps(trainer))
            (folder / _SUMMARY).unlink(missing_ok=True)
            self._write(folder / "run.json", resumed_from, trainer)
        if resumed_from is None:
            append_event(trainer, "start", "training starts", {"seed": self.seed})
        else:
            append_event(trainer, "resume", f"training goes on from {resumed_from}", {"checkpoint": resumed_from})

    def _write(self, path: Path, resumed_from: str | None, trainer: Trainer) -> None:
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": sys.argv,
            "seed": self.seed,
            "resumed_from": resumed_from,
            "env_steps": _env_steps(trainer),
            "code_revision": _code_revision(),
            "versions": _versions(),
            "machine": _machine(trainer),
        }
        new: dict[str, Any] = {"parent_run": (self.origin or {}).get("parent"), "starts": []}
        record = json.loads(path.read_text()) if path.exists() else new | self._described()
        own_folder = resumed_from is not None and Path(resumed_from).parent.parent == path.parent.resolve()
        if resumed_from is not None and not own_folder:
            record["parent_run"] = str(Path(resumed_from).parent.parent)
        if self.origin is not None and self.origin.get("parent") == (record.get("origin") or {}).get("parent"):
            record["origin"] = dict(self.origin)
        kept = {name: record[name] for name in ("parent_run", "origin", "spec") if name in record}
        path.write_text(json.dumps({**kept, **start, "starts": [*record["starts"], start]}, indent=2) + "\n")

    def _described(self) -> dict[str, Any]:
        described = {"origin": self.origin, "spec": self.spec}
        return {name: dict(value) for name, value in described.items() if value is not None}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the end."""
        append_event(trainer, "stop", "training ends", {})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the run is."""
        folder = run_folder(trainer)
        if folder is None:
            return
        rank_zero_info(f"The run is in {folder}; to look at it: tensorboard --logdir {folder.parent}")


def _env_steps(trainer: Trainer) -> int:
    source = trainer.datamodule  # type: ignore[attr-defined]
    return source.env_steps if isinstance(source, ExperienceSource) else 0


def _code_revision() -> str | None:
    """The git revision of the installed sources, with a plus sign where they were changed; None without git."""
    folder = Path(__file__).resolve().parent
    try:
        describe = ["git", "-C", str(folder), "describe", "--always", "--dirty=+", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _versions() -> dict[str, str]:
    names = ("rlmods", "torch", "lightning", "torchmetrics", "tensorboard", "gymnasium", "numpy")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def _machine(trainer: Trainer) -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "device": str(trainer.strategy.root_device),
        "processes": trainer.world_size,
        "torch_threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
