"""Which of the checkpoints that a summary names can be begun from: they are there, intact and healthy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rlmods.manifest import DamagedCheckpointError, verify

_SEVERE = ("act", "fatal")


class Kept(NamedTuple):
    """The best evaluation whose checkpoint can be begun from, and what was passed over on the way."""

    evaluation: dict[str, Any] | None  # with `checkpoint`, relative to the run folder
    refused: dict[Path, str]  # checkpoint → reason


def best_kept(folder: Path, summary: Mapping[str, Any]) -> Kept:
    """The evaluation with the highest lower bound whose checkpoint is there, intact and healthy.

    Args:
        folder: of the run.
        summary: of the run, as its schema says.
    """
    refused: dict[Path, str] = {}
    for evaluation in _ranked(summary):
        path = folder / evaluation["checkpoint"]
        reason = _unusable(path)
        if reason is None:
            return Kept(evaluation, refused)
        refused[path] = reason
    return Kept(None, refused)


def health_of(checkpoint: Path) -> list[str]:
    """What the safeguards had found wrong, with severity act or fatal, when a checkpoint was written."""
    import torch  # late: only here is it needed

    try:
        health = torch.load(checkpoint, map_location="meta", weights_only=True, mmap=True).get("health", {})
    except Exception as error:  # a damaged file may raise nearly anything
        return [f"cannot be read: {type(error).__name__}"]
    return [cause for causes in health.values() for cause, severity in causes.items() if severity in _SEVERE]


def _ranked(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The best evaluation first, then those of the other healthy checkpoints by their lower bound."""
    found = summary["evaluation"]
    best = found["best"]
    if best is None or best["low"] is None:
        return []
    healthy = [c for c in reversed(summary["checkpoints"]) if not c["unhealthy"] and c["file"] != best["checkpoint"]]
    scored = {e["env_steps"]: e for e in found["all"] if e is not None and e["low"] is not None}
    others = [scored[c["env_steps"]] | {"checkpoint": c["file"]} for c in healthy if c["env_steps"] in scored]
    return [best, *sorted(others, key=lambda evaluation: -evaluation["low"])]


def _unusable(checkpoint: Path) -> str | None:
    if not checkpoint.is_file():
        return "it is gone"
    try:
        verify(checkpoint)
    except DamagedCheckpointError as damage:
        return f"it is damaged: {damage.reason}"
    wrong = health_of(checkpoint)
    return f"it is unhealthy ({', '.join(wrong)})" if wrong else None
