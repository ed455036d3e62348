"""Experience on disk: append-only files, so that a checkpoint costs in proportion to what is new."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from rlmods.checkpoint_io import CheckpointWriteError, HashingFile


class _Segment(NamedTuple):
    """The items number `first` to `last`, exclusive, of one part."""

    first: int
    last: int
    name: str
    sha256: str


class SegmentPart(NamedTuple):
    """What is numbered and grows: the transitions of a buffer, or the frames of one key."""

    items: str  # what they are called
    suffix: str  # of its files' names
    oldest: int  # the first item that is needed
    inserted: int
    item_bytes: int
    read: Callable[[int, int], dict[str, Any]]
    restore: Callable[[int, dict[str, Any]], None]


class Segmented(Protocol):
    """A buffer whose content is written in segments."""

    def segment_parts(self) -> Iterator[SegmentPart]:
        """Its parts; one that follows from another comes after it."""
        ...


class ReplaySegments:
    """The content of one replay buffer in a folder. A checkpoint names the files, with their hashes."""

    def __init__(self, folder: Path, *, max_bytes: int = 2**30) -> None:
        """Nothing is touched yet.

        Args:
            folder: Created by the first `append`.
            max_bytes: Of one file, about. A segment is copied before it is written: this bounds the copy.
        """
        self.folder = folder
        self._max_bytes = max_bytes
        self._segments: dict[str, list[_Segment]] = {}

    def append(self, buffer: Segmented) -> dict[str, str]:
        """Write what was inserted since the last call or `load`: a file of each part, or more beyond `max_bytes`.

        Returns:
            File name to sha256 of all segments that rebuild the buffer as it is now, the oldest of a part first.

        Raises:
            ValueError: The buffer has gone back since the last call: `load` the checkpoint it was set back to.
        """
        return {segment.name: segment.sha256 for part in buffer.segment_parts() for segment in self._append(part)}

    def load(self, buffer: Segmented, files: dict[str, str]) -> None:
        """Put the content back into a buffer whose own `state_dict` is loaded already.

        Args:
            buffer: Of the same spec and capacity as the one that was saved.
            files: What `append` returned.

        Raises:
            FileNotFoundError: A file is missing.
            ValueError: A file is not the one that was saved, or the files do not hold all that the buffer needs.
        """
        for part in buffer.segment_parts():
            named = {name: sha256 for name, sha256 in files.items() if name.partition(".")[2] == part.suffix}
            self._load(part, named)

    def resume(self, buffer: Segmented, files: dict[str, str], folder: Path) -> None:
        """As `load`, from a folder that may be another one: then the next `append` writes everything again here.

        Args:
            buffer: As in `load`.
            files: Paths, of which the names count.
            folder: Where they lie.
        """
        source = self if folder.resolve() == self.folder.resolve() else ReplaySegments(folder)
        source.load(buffer, {Path(name).name: sha256 for name, sha256 in files.items()})

    def _append(self, part: SegmentPart) -> list[_Segment]:
        segments = self._segments.get(part.suffix, [])
        written = segments[-1].last if segments else 0
        if part.inserted < written:
            raise ValueError(
                f"the buffer has {part.inserted} {part.items}, {written} were written already: load() the files of "
                "the checkpoint that it was set back to before append()"
            )
        # A segment is gone where the only checkpoint that named it was removed.
        segments = [
            segment
            if (self.folder / segment.name).exists()
            else self._write(part, max(segment.first, part.oldest), segment.last)
            for segment in segments
            if segment.last > part.oldest
        ]
        step = max(1, self._max_bytes // part.item_bytes)
        for first in range(max(written, part.oldest), part.inserted, step):
            segments.append(self._write(part, first, min(first + step, part.inserted)))
        self._segments[part.suffix] = segments
        return segments

    def _load(self, part: SegmentPart, files: dict[str, str]) -> None:
        self._segments[part.suffix] = []
        end = part.oldest
        for name, sha256 in files.items():
            content = self._read(name, sha256)
            first, last = content["first"], content["last"]
            if first > end:
                break
            part.restore(first, content)
            self._segments[part.suffix].append(_Segment(first, last, name, sha256))
            end = last
        if end != part.inserted:
            raise ValueError(
                f"the replay segments hold the {part.items} {part.oldest} to {end}, the buffer needs those up to "
                f"{part.inserted}: load the buffer's own state_dict of the same checkpoint first"
            )

    def _write(self, part: SegmentPart, first: int, last: int) -> _Segment:
        self.folder.mkdir(parents=True, exist_ok=True)
        content = {"first": first, "last": last, **part.read(first, last)}
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
        name = f"{first:012d}-{last:012d}-{sha256[:16]}.{part.suffix}"
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
