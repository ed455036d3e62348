"""What a checkpoint was when it was written, and whether it still is: beside `<name>` lies `<name>.manifest.json`.

A save that was killed may leave the new file with the old manifest; the new one is then called
`<name>.manifest.json.pending`. A file is intact if it matches one of the two.
"""

import hashlib
import json
import os
import time
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

MANIFEST = ".manifest.json"
PENDING = MANIFEST + ".pending"
_FORMAT = 1


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is not what was written.

    Args:
        path: The checkpoint.
        reason: What is wrong with it.
        advice: What to do instead.
    """

    def __init__(self, path: Path, reason: str, advice: str = "") -> None:
        super().__init__(f"{path} is damaged: {reason}. {advice}".rstrip())
        self.path = path
        self.reason = reason


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint was when it was written. `model`, `data`, `env_id` and `env_steps` are rlmods' own."""

    sha256: str
    bytes: int
    files: dict[str, str]  # what an exact resume needs besides: path relative to the run folder -> sha256
    written: str  # ISO 8601, UTC
    written_ns: int  # since the epoch
    global_step: int | None
    env_steps: int | None
    model: str | None
    data: str | None
    env_id: str | None
    version: int = _FORMAT

    @classmethod
    def describe(cls, checkpoint: dict[str, Any], sha256: str, size: int) -> "Manifest":
        """The manifest of a checkpoint whose file has this hash and this size in bytes."""
        own = _own_section(checkpoint)
        progress: dict[str, Any] = {key: own.get(key) for key in ("env_steps", "model", "data", "env_id")}
        now = time.time_ns()
        return cls(
            sha256=sha256,
            bytes=size,
            files=dict(own.get("files", {})),
            written=datetime.fromtimestamp(now / 1e9, UTC).isoformat(),
            written_ns=now,
            global_step=checkpoint.get("global_step"),
            **progress,
        )

    @classmethod
    def read(cls, file: Path) -> "Manifest | None":
        """The manifest in a file; None where there is none, or none that can be trusted."""
        try:
            fields = json.loads(file.read_text(encoding="utf-8"))
            check = fields.pop("check")
            return cls(**fields) if check == _check(fields) and fields["version"] == _FORMAT else None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, file: Path) -> None:
        """Write to a file and wait for the disk."""
        fields = asdict(self)
        with file.open("w", encoding="utf-8") as stream:
            json.dump({**fields, "check": _check(fields)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())

    def difference(self, path: Path) -> str | None:
        """What distinguishes a file from the described one; None if it is the same."""
        size = path.stat().st_size
        if size < self.bytes:
            return f"truncated: {size} of {self.bytes} bytes"
        if size > self.bytes:
            return f"changed: {size} bytes instead of {self.bytes}"
        return None if _sha256(path) == self.sha256 else "changed: its sha256 differs from its manifest's"


class Search(NamedTuple):
    """What `newest_intact` found, and what it refused on the way."""

    found: tuple[Path, Manifest] | None
    refused: dict[Path, str]  # checkpoint -> reason, newest first


def verify(path: Path) -> Manifest | None:
    """Compare a checkpoint with its manifest, or with its own CRCs where it has none (a copied file).

    Args:
        path: The checkpoint; a link stands for its target.

    Returns:
        The manifest that describes the file, None where there is no manifest.

    Raises:
        DamagedCheckpointError: It is not what was written.
        FileNotFoundError: There is no such file.
    """
    path = path.resolve(strict=True)
    committed, pending = claims = _claims(path)
    if pending and not pending.difference(path):
        return pending
    if committed:
        reason = committed.difference(path)
    elif beside(path, MANIFEST).exists():
        reason = (
            f"its manifest {path.name}{MANIFEST} is unreadable (changed, or of a newer rlmods); without that file only"
            " the checkpoint's own CRCs would be checked"
        )
    else:
        reason = _wrong_crc(path)
    if not reason:
        return committed
    if _claims(path) != claims:  # a running training has saved it anew meanwhile
        return verify(path)
    raise DamagedCheckpointError(path, reason)


def newest_intact(folder: Path, *, check_files_in: Path | None = None) -> Search:
    """The checkpoint of a folder that was written last among those that are intact and have a manifest.

    Args:
        folder: Where the `*.ckpt` lie.
        check_files_in: The run folder, to also refuse checkpoints of which a replay file is missing or changed.
    """
    ages = {path: _written_ns(path) for path in folder.glob("*.ckpt") if path.is_file()}
    found: tuple[Path, Manifest] | None = None
    refused: dict[Path, str] = {}
    for path in sorted(ages, key=ages.__getitem__, reverse=True):
        # A killed save leaves an older checkpoint than its pending manifest says, so the first hit may not be newest.
        if found and found[1].written_ns >= ages[path]:
            break
        try:
            manifest = verify(path)
        except DamagedCheckpointError as damage:
            refused[path] = damage.reason
            continue
        reason = "it has no manifest" if manifest is None else _wrong_file(manifest, check_files_in)
        if reason:
            refused[path] = reason
        elif manifest and (found is None or manifest.written_ns > found[1].written_ns):
            found = path, manifest
    return Search(found, refused)


def referenced_files(folder: Path) -> set[str]:
    """The files that the checkpoints of a folder still need, relative to the run folder; unfinished saves count."""
    manifests = (Manifest.read(file) for file in folder.glob(f"*{MANIFEST}*"))
    return {name for manifest in manifests if manifest for name in manifest.files}


def beside(path: Path, suffix: str) -> Path:
    """The file that has the name of a checkpoint and a suffix more."""
    return path.with_name(path.name + suffix)


def _claims(path: Path) -> tuple[Manifest | None, Manifest | None]:
    return Manifest.read(beside(path, MANIFEST)), Manifest.read(beside(path, PENDING))


def _written_ns(path: Path) -> int:
    """When a checkpoint was written at the latest; by the file system's clock where no manifest says so."""
    claims = _claims(path.resolve())
    return max((claim.written_ns for claim in claims if claim), default=path.stat().st_mtime_ns)


def _wrong_crc(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except Exception as error:  # a changed header may raise nearly anything
        return f"truncated or changed: {error}"
    return f"changed: the CRC of its entry {entry} differs" if entry else None


def _wrong_file(manifest: Manifest, run_folder: Path | None) -> str | None:
    if run_folder is None:
        return None
    for name, sha256 in manifest.files.items():
        file = run_folder / name
        if not file.is_file():
            return f"its file {name} is missing in {run_folder}"
        if _sha256(file) != sha256:
            return f"its file {name} is changed: its sha256 differs"
    return None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check(fields: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def _own_section(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a data module of ours put into its state for the manifest; Lightning files it under the module's name."""
    states = (state for state in checkpoint.values() if isinstance(state, dict))
    sections: Iterator[Any] = (state.get("manifest") for state in states)
    return next((section for section in sections if _is_own(section)), {})


def _is_own(section: Any) -> bool:
    """Whether this is ours; another package's state may have a `manifest` too."""
    return (
        isinstance(section, dict)
        and section.keys() == {"env_steps", "model", "data", "env_id", "files"}
        and isinstance(section["files"], dict)
    )
