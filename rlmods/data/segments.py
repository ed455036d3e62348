"""Transitions on disk: append-only files, so that a checkpoint costs in proportion to what is new."""

import hashlib
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rlmods.checkpoint_io import CheckpointWriteError, HashingFile
from rlmods.data.replay import ReplayBuffer
from rlmods.types import Transition


class _Segment(NamedTuple):
    """The transitions number `first` to `last`, exclusive."""

    first: int
    last: int
    name: str
    sha256: str


class ReplaySegments:
    """The transitions of one replay buffer in a folder. A checkpoint names the files, with their hashes."""

    def __init__(self, folder: Path, *, max_bytes: int = 2**30) -> None:
        """Nothing is touched yet.

        Args:
            folder: Created by the first `append`.
            max_bytes: Of one file, about. A segment is copied before it is written: this bounds the copy.
        """
        self.folder = folder
        self._max_bytes = max_bytes
        self._segments: list[_Segment] = []

    def append(self, buffer: ReplayBuffer) -> dict[str, str]:
        """Write what was inserted since the last call or `load`, as one file unless it exceeds `max_bytes`.

        Returns:
            File name to sha256 of all segments that rebuild the buffer as it is now, the oldest first.

        Raises:
            ValueError: The buffer has gone back since the last call: `load` the checkpoint it was set back to.
        """
        written = self._segments[-1].last if self._segments else 0
        if buffer.inserted < written:
            raise ValueError(
                f"the buffer has {buffer.inserted} transitions, {written} were written already: load() the files of "
                "the checkpoint that it was set back to before append()"
            )
        oldest = buffer.inserted - len(buffer)
        # A segment is gone where the only checkpoint that named it was removed.
        self._segments = [
            segment
            if (self.folder / segment.name).exists()
            else self._write(buffer, max(segment.first, oldest), segment.last)
            for segment in self._segments
            if segment.last > oldest
        ]
        step = max(1, self._max_bytes // buffer.row_bytes)
        for first in range(max(written, oldest), buffer.inserted, step):
            self._segments.append(self._write(buffer, first, min(first + step, buffer.inserted)))
        return {segment.name: segment.sha256 for segment in self._segments}

    def load(self, buffer: ReplayBuffer, files: dict[str, str]) -> None:
        """Put the transitions back into a buffer whose own `state_dict` is loaded already.

        Args:
            buffer: Of the same spec and capacity as the one that was saved.
            files: What `append` returned.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is not the one that was saved, or the files do not hold all that the buffer needs.
        """
        self._segments = []
        end = oldest = buffer.inserted - len(buffer)
        for name, sha256 in files.items():
            content = self._read(name, sha256)
            first, last = content["first"], content["last"]
            if first > end:
                break
            buffer.restore_rows(first, Transition(**content["transition"]))
            self._segments.append(_Segment(first, last, name, sha256))
            end = last
        if end != buffer.inserted:
            raise ValueError(
                f"the replay segments hold the transitions {oldest} to {end}, the buffer needs those up to "
                f"{buffer.inserted}: load the buffer's own state_dict of the same checkpoint first"
            )

    def _write(self, buffer: ReplayBuffer, first: int, last: int) -> _Segment:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"first": first, "last": last, "transition": buffer.rows(first, last)._asdict()}
        temporary = self.folder / f"{first}-{last}.tmp"
        try:
            with HashingFile(temporary) as file:
                torch.save(content, file)
                file.finish()
        except OSError as error:
            temporary.unlink(missing_ok=True)
            run = self.folder.parents[1]
            raise CheckpointWriteError(error, self.folder / f"{first}-{last}", run / "checkpoints") from error
        sha256 = file.sha256.hexdigest()
        # The hash in the name keeps a resumed run from overwriting a segment that an older checkpoint names.
        name = f"{first:012d}-{last:012d}-{sha256[:16]}.pt"
        temporary.replace(self.folder / name)
        _fsync_folder(self.folder)
        return _Segment(first, last, name, sha256)

    def _read(self, name: str, sha256: str) -> dict[str, Any]:
        path = self.folder / name
        if not path.exists():
            raise FileNotFoundError(f"replay segment {path} is missing: an exact resume needs the run folder's replay/")
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != sha256:
                raise ValueError(
                    f"replay segment {path} is corrupt: its sha256 is {found}, the checkpoint says {sha256}. "
                    "Copy the file again, or resume from an older checkpoint"
                )
            file.seek(0)
            content: dict[str, Any] = torch.load(file, weights_only=True)
        return content


def _fsync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):  # Windows cannot open a folder
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
