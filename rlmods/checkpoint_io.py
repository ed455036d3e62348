"""Checkpoints that are whole or not there at all, for anybody's `ModelCheckpoint`.

A save writes `.<name>.<pid>.rlmods.tmp` and the manifest `<name>.manifest.json.pending`, renames the first over the
checkpoint and then the second over `<name>.manifest.json`. Whenever it is killed, the file that carries the
checkpoint's name matches one of the two manifests.
"""

import hashlib
import io
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rlmods.manifest import (
    MANIFEST,
    PENDING,
    DamagedCheckpointError,
    Manifest,
    beside,
    newest_intact,
    referenced_files,
    verify,
)

_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d{1,9})\.rlmods\.tmp")


class CheckpointWriteError(OSError):
    """A checkpoint, or the replay that belongs to it, could not be written; what was saved before is untouched.

    Args:
        error: What the system said.
        path: What was written.
        checkpoints: The folder of the checkpoints.
    """

    def __init__(self, error: OSError, path: Path, checkpoints: Path) -> None:
        super().__init__(_explain(error, path, checkpoints))


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint files, in a local folder, written atomically, hashed, and verified before they load."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Save such that a kill or a power failure at any moment leaves the old checkpoint or the new one.

        Args:
            checkpoint: What to save. the `manifest` of a data module goes into the manifest.
            path: A local file.
            storage_options: Not supported.

        Raises:
            CheckpointWriteError: The disk refused.
        """
        if storage_options is not None:
            raise TypeError(f"A local file takes no storage options; got {storage_options!r}. Leave them out.")
        path = _local(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(path.parent)
            _finish_killed_save(path)
            released = _named_files(path)
            _save(checkpoint, path)
            _remove_unreferenced(released, path.parent)
        except OSError as error:
            raise CheckpointWriteError(error, path, path.parent) from error

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint after verifying it, and never run code out of it.

        Args:
            path: A local file.
            map_location: As for `torch.load`.
            weights_only: True, which is also what None means.

        Raises:
            DamagedCheckpointError: It is not what was written; the sentence names the newest intact neighbour.
            ValueError: `weights_only=False`.
        """
        if weights_only is False:
            raise ValueError(
                f"Refused to load {path} with weights_only=False, which runs whatever code the file holds."
                " Expected True: leave the option out. Tensors, numbers, strings, tuples, lists and dicts load."
            )
        path = _local(path)
        try:
            verify(path)
        except DamagedCheckpointError as damage:
            raise DamagedCheckpointError(path, damage.reason, _alternative(path.parent)) from None
        return super().load_checkpoint(path, map_location=map_location, weights_only=True)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, its manifest, and the replay segments that no other checkpoint of the run names.

        The manifest goes after the checkpoint: a kill in between leaves no checkpoint that looks like a copy.
        """
        path = _local(path)
        released = _named_files(path)
        super().remove_checkpoint(path)
        for suffix in (PENDING, MANIFEST):
            beside(path, suffix).unlink(missing_ok=True)
        _remove_unreferenced(released, path.parent)


class HashingFile(io.BufferedWriter):
    """A file that hashes what it is given and keeps its first error to itself until `finish`.

    `torch.save` reports an error in the middle of a write as "unexpected pos", without the cause.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path, "w"))
        self.sha256 = hashlib.sha256()
        self.size = 0  # bytes
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write and hash, or only hash after an error."""
        size = memoryview(data).nbytes
        try:
            if self._error is None:
                super().write(data)
        except OSError as error:
            self._error = error
        self.sha256.update(data)
        self.size += size
        return size

    def finish(self) -> None:
        """Wait for the disk; raise what went wrong."""
        if self._error is not None:
            raise self._error
        self.flush()
        os.fsync(self.fileno())


def _save(checkpoint: dict[str, Any], path: Path) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.rlmods.tmp")
    pending = beside(path, PENDING)
    try:
        with HashingFile(temporary) as file:
            torch.save(checkpoint, file)
            file.finish()
        Manifest.describe(checkpoint, file.sha256.hexdigest(), file.size).write(pending)
        _fsync_folder(path.parent)
        os.replace(temporary, path)
    finally:
        # Asked of the disk, for Ctrl-C may come between a rename and the next line.
        if temporary.exists():
            pending.unlink(missing_ok=True)
            temporary.unlink()
    _fsync_folder(path.parent)
    os.replace(pending, beside(path, MANIFEST))
    _fsync_folder(path.parent)


def _named_files(path: Path) -> set[str]:
    """The files that a checkpoint's manifests name, relative to the run folder."""
    manifests = (Manifest.read(beside(path, suffix)) for suffix in (MANIFEST, PENDING))
    return {name for manifest in manifests if manifest for name in manifest.files}


def _remove_unreferenced(released: set[str], checkpoints: Path) -> None:
    """Remove those of the released files that no manifest in any folder of the run names any more."""
    if not released:
        return
    run = checkpoints.parent
    folders = [folder for folder in run.iterdir() if folder.is_dir()]
    for name in released.difference(*map(referenced_files, folders)):
        file = (run / name).resolve()
        if file.is_relative_to(run.resolve()):
            file.unlink(missing_ok=True)


def _finish_killed_save(path: Path) -> None:
    """Give the next save a free name for its pending manifest."""
    pending = beside(path, PENDING)
    manifest = Manifest.read(pending)
    if manifest and path.exists() and not manifest.difference(path):
        os.replace(pending, beside(path, MANIFEST))
    else:
        pending.unlink(missing_ok=True)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of dead processes, and manifests without a checkpoint."""
    # Listed before the temporary files, so that a save that another process finishes meanwhile is seen as one or other.
    manifests = list(folder.glob(f"*.ckpt{MANIFEST}*"))
    being_saved = set()
    for file in folder.glob(".*.rlmods.tmp"):
        match = _TEMPORARY.fullmatch(file.name)
        if match and _is_other_process(int(match["pid"])):
            being_saved.add(match["name"])
        elif match:
            file.unlink(missing_ok=True)
    for manifest in manifests:
        name = manifest.name.rpartition(MANIFEST)[0]
        if name not in being_saved and not (folder / name).exists():
            manifest.unlink(missing_ok=True)


def _is_other_process(pid: int) -> bool:
    """Whether a live process has this id. Ours does not count: in a container the successor often has the same."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


def _explain(error: OSError, path: Path, checkpoints: Path) -> str:
    disk = next(folder for folder in path.parents if folder.exists())
    found = newest_intact(checkpoints).found
    previous = f"The previous one, {found[0]}, is intact" if found else f"There is no previous one in {checkpoints}"
    return (
        f"Could not write the checkpoint {path}: {error.strerror or error}. Its disk has"
        f" {shutil.disk_usage(disk).free} bytes free. {previous}. Free some space (or make the folder writable, or"
        " raise the quota), then go on with --ckpt_path last"
    )


def _alternative(folder: Path) -> str:
    found = newest_intact(folder).found
    return f"The newest intact one: --ckpt_path {found[0]}" if found else f"There is no intact one in {folder}."


def _local(path: str | os.PathLike[str]) -> Path:
    if "://" in str(path):
        raise ValueError(
            f"Checkpoints live in a local folder, where a rename is atomic; got {path}. Type"
            " --trainer.default_root_dir <local folder> and copy the files afterwards (or before)."
        )
    return Path(path).absolute()


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
