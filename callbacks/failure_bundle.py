"""A folder from which a failed update can be repeated: the batch, the state before it, the randomness, the command.

Every file loads with `weights_only`: classes are written as their import path, and nothing in a file is ever run.
"""

import importlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.events import run_folder
from rlmods.callbacks.safeguard import clock
from rlmods.types import ReplayBatch, Transition

FOLDER = "failures"
BATCH, STATE, RNG, FAILURE, CONFIG = "batch.pt", "state.ckpt", "rng.pt", "failure.json", "config.yaml"


def named_leaves(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested NamedTuples, dicts, tuples and lists, each by the expression that gets it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_leaves(item, f"{name}[{key!r}]")
    elif _is_named_tuple(value):
        for field, item in zip(value._fields, value, strict=True):
            yield from named_leaves(item, f"{name}.{field}")
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            yield from named_leaves(item, f"{name}[{position}]")


def minibatch_of(batch: Any, update: int, accumulated: int = 1) -> Any:
    """What an update learned from: a `ReplayBatch` of as many mini-batches as it accumulated (fewer at the end).

    Any other batch, or one that has no such update, as it is.
    """
    if not isinstance(batch, ReplayBatch) or update * accumulated >= batch.num_updates:
        return batch
    rows = slice(update * accumulated, (update + 1) * accumulated)
    fields: Any = (
        {key: column[rows] for key, column in field.items()} if isinstance(field, dict) else field[rows]
        for field in batch.transition
    )
    return batch._replace(
        transition=Transition(*fields),
        index=batch.index[rows],
        importance_weight=batch.importance_weight[rows],
        by_expert=None if batch.by_expert is None else batch.by_expert[rows],
    )


def capture_state(trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
    """Copies of the weights, optimisers, hyper-parameters and the module's own counters, as a checkpoint has them.

    Hyper-parameters that `pack` cannot take are named in `left_out`.
    """
    hyper_parameters, left_out = {}, []
    for name, value in pl_module.hparams.items():
        try:
            hyper_parameters[name] = pack(value)
        except TypeError:
            left_out.append(name)
    state: dict[str, Any] = {
        "class_path": f"{type(pl_module).__module__}.{type(pl_module).__qualname__}",
        LightningModule.CHECKPOINT_HYPER_PARAMS_KEY: hyper_parameters,
        "left_out": left_out,
        "state_dict": pl_module.state_dict(),
        "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "precision": str(trainer.precision),
    }
    pl_module.on_save_checkpoint(state)
    return {name: pack(value) for name, value in state.items()}


def pack(value: Any) -> Any:
    """A copy on the CPU that loads with `weights_only`: `unpack` makes it what it was.

    Raises:
        TypeError: for what is neither a tensor, a number, a string nor a container of those.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (int, float)):  # numpy's float64 and an IntEnum are such, and would not load
        return int(value) if isinstance(value, int) else float(value)
    if isinstance(value, Mapping):
        return {key: pack(item) for key, item in value.items()}
    if _is_named_tuple(value):
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        return {_NAMED_TUPLE: path, "fields": [pack(item) for item in value]}
    if isinstance(value, list):
        return [pack(item) for item in value]
    if isinstance(value, tuple):
        return tuple(pack(item) for item in value)
    raise TypeError(f"got a {type(value).__name__}, expected tensors, numbers, strings and containers of those")


_NAMED_TUPLE = "<NamedTuple>"


def unpack(value: Any) -> Any:
    """What `pack` was given; NamedTuples are imported.

    Raises:
        ImportError: where the class of a NamedTuple cannot be imported.
        TypeError: where what is named is no NamedTuple.
    """
    if isinstance(value, dict) and _NAMED_TUPLE in value:
        named_tuple = import_class(value[_NAMED_TUPLE])
        if not (issubclass(named_tuple, tuple) and hasattr(named_tuple, "_fields")):
            raise TypeError(f"got {value[_NAMED_TUPLE]}, expected the import path of a NamedTuple")
        return named_tuple(*(unpack(item) for item in value["fields"]))
    if isinstance(value, dict):
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(unpack(item) for item in value)
    return value


def import_class(path: str) -> type:
    """The class with this import path.

    Raises:
        ImportError: where there is none.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (AttributeError, ValueError) as error:
        raise ImportError(f"there is no class {path}") from error
    if not isinstance(found, type):
        raise ImportError(f"{path} is no class")
    return found


class Written(NamedTuple):
    """A bundle that lies on the disk."""

    folder: Path
    command: str  # that replays it


def write_bundle(
    trainer: Trainer, *, failure: Mapping[str, Any], batch: Any, state: dict[str, Any], rng: dict[str, Any]
) -> Written | None:
    """Write a bundle to `failures/<cause>-<clock>` of the run folder, whole or not at all.

    Every process must call it; the first one writes.

    Args:
        trainer: of the run.
        failure: the alarm, with its `cause`; JSON.
        batch: packed.
        state: from `capture_state`.
        rng: from `get_rng_state`.

    Returns:
        Where it is; None in a run that leaves nothing.

    Raises:
        OSError: where the disk refuses; nothing is left then.
    """
    run = run_folder(trainer)
    if run is None:
        return None
    folder = (run / FOLDER / f"{failure['cause']}-{clock(trainer)}").absolute()
    command = f"python -m rlmods replay {shlex.quote(str(folder))}"
    if not trainer.is_global_zero or folder.exists():  # a resumed run comes by a second time
        return Written(folder, command)
    record = {**failure, "env_steps_or_global_step": clock(trainer), "command": command}
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        for name, content in ((BATCH, batch), (STATE, state), (RNG, rng)):
            # Not straight into the file: torch turns what the disk says into a RuntimeError without the cause.
            buffer = io.BytesIO()
            torch.save(content, buffer)
            (temporary / name).write_bytes(buffer.getbuffer())
        (temporary / FAILURE).write_text(json.dumps(record, indent=2) + "\n")
        if (run / CONFIG).exists():
            shutil.copyfile(run / CONFIG, temporary / CONFIG)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Written(folder, command)


def _is_named_tuple(value: Any) -> TypeGuard[Any]:
    return isinstance(value, tuple) and hasattr(value, "_fields")
