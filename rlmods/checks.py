"""What is refused before anything is written, each with a sentence: got, expected, what to type."""

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule
from lightning_utilities.core.rank_zero import rank_zero_only, rank_zero_warn

from rlmods.callbacks.stage_gate_detector import refusal
from rlmods.callbacks.stage_gates import StageGates
from rlmods.resume import RUNS
from rlmods.types import Observation


def refuse_unsupported(trainer: Any) -> None:
    """Refuse options of the Trainer, given as a namespace, that manual optimisation cannot honour."""
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            f"got trainer.gradient_clip_val = {trainer.gradient_clip_val}, expected the model's own option, because "
            f"the model makes its updates itself: type --model.init_args.max_grad_norm {trainer.gradient_clip_val}, or "
            f"--model.init_args.max_grad_norm.critic {trainer.gradient_clip_val} for an actor and critic"
        )
    if str(trainer.precision) not in ("None", "32", "32-true", "bf16", "bf16-mixed"):
        raise ValueError(
            f"got trainer.precision = {trainer.precision}, expected 32-true or bf16-mixed: raw optimiser steps would "
            "pass by the loss scaler of 16-bit training, and replay is single precision; type --trainer.precision "
            "bf16-mixed"
        )


@rank_zero_only
def check_writable(root: Path) -> None:
    """Whether runs can be written below a folder; nothing is left behind."""
    existing = next(folder for folder in (root / RUNS, *(root / RUNS).absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"got trainer.default_root_dir = {root}, which cannot be written ({error.strerror}): type "
            "--trainer.default_root_dir FOLDER"
        ) from error


def read_observations(file: Path) -> Observation:
    """Observations `[B, *shape]` from a .npy file, or a dict of them from an .npz file."""
    try:
        loaded = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"got --observations {file}, expected a .npy or .npz file of arrays [B, ...]: {error}"
        ) from error
    if isinstance(loaded, np.ndarray):
        return torch.from_numpy(loaded)
    return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def fit_to_spec(observations: Observation, spec: Any) -> Observation:
    """Observations in the dtype that the environment gives; a ValueError where they have another shape."""
    if isinstance(observations, dict):
        expected = sorted(spec) if "shape" not in spec else "one array, a .npy file"
        if sorted(observations) != expected:
            raise ValueError(f"got --observations with the arrays {sorted(observations)}, expected {expected}")
        return {name: fit_to_spec(array, spec[name]) for name, array in observations.items()}  # type: ignore[misc]
    if "shape" not in spec:
        raise ValueError(f"got --observations with one array, expected an .npz file with {sorted(spec)}")
    if list(observations.shape[1:]) != spec["shape"]:
        expected = ", ".join(["B", *map(str, spec["shape"])])
        raise ValueError(f"got --observations of shape {list(observations.shape)}, expected [{expected}]")
    return observations.to(getattr(torch, spec["dtype"]))


def check_weights(saved: dict[str, torch.Tensor], model: LightningModule) -> None:
    """Whether the weights of a checkpoint have the names and shapes of a model's."""
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: list(tensor.shape) for name, tensor in saved.items()}
    for name in expected | got:
        if got.get(name) != expected.get(name):
            raise ValueError(
                f"got a checkpoint whose {name} is {got.get(name, 'missing')}, expected {expected.get(name, 'none')}: "
                "type --config with the config.yaml of the run that wrote it"
            )


def refuse_failed_gates(checkpoint: Mapping[str, Any], callbacks: Iterable[Callback], *, force: bool) -> None:
    """Refuse to go on from a checkpoint of a run that failed a stage gate, also where no `StageGates` watches any more.

    Args:
        checkpoint: as it was loaded.
        callbacks: of the trainer; its `StageGates` are told what is forced, and put it on record.
        force: go on all the same.

    Raises:
        ValueError: where a gate failed, and neither `force` nor that of a `StageGates` is set.
    """
    gates = [callback for callback in callbacks if isinstance(callback, StageGates)]
    for callback in gates:
        callback.force |= force
    reason = refusal(checkpoint.get("stages", {}))
    if reason is None:
        return
    if not force and not any(callback.force for callback in gates):
        raise ValueError(reason)
    rank_zero_warn(f"forced: {reason}")
