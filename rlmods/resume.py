"""Which checkpoint `--ckpt_path` means, and in which folder the run goes on."""

from pathlib import Path
from typing import NamedTuple

from rlmods.manifest import DamagedCheckpointError, Manifest, newest_intact, verify

RUNS = "lightning_logs"


class RunKind(NamedTuple):
    """What two runs must share for one to go on where the other stopped."""

    model: str
    data: str
    env_id: str


class ResumePoint(NamedTuple):
    """Where to go on."""

    checkpoint: Path
    manifest: Manifest | None  # None for a copied checkpoint without one
    version: int | None  # of the run folder in which the checkpoint lies; None where it lies in none
    refused: dict[Path, str]  # damaged checkpoints that were passed over → reason


def find_checkpoint(ckpt_path: str, root: Path, kind: RunKind, *, exact: bool) -> ResumePoint:
    """Resolve `last` or the path of a file.

    Args:
        ckpt_path: `last`: the newest intact checkpoint of the newest run of this kind; else a file.
        root: `trainer.default_root_dir`.
        kind: of the run that is to go on.
        exact: whether training goes on, which needs the run's replay too.

    Raises:
        FileNotFoundError: where there is none.
        DamagedCheckpointError: where the file is not what was written.
        ValueError: where the file is of another algorithm, data module or environment.
    """
    if ckpt_path == "last":
        return _find_last(root, kind, exact=exact)
    path = Path(ckpt_path)
    if not path.is_file():
        raise FileNotFoundError(
            f"got --ckpt_path {path}, expected a checkpoint file: type --ckpt_path last, or its path"
        )
    try:
        manifest = verify(path)
    except DamagedCheckpointError as damage:
        found = newest_intact(path.parent, check_files_in=path.resolve().parent.parent if exact else None).found
        advice = f"type --ckpt_path {found[0]}, the newest intact one" if found else "there is no intact one beside it"
        raise DamagedCheckpointError(path, damage.reason, advice) from None
    if manifest is not None:
        _check_kind(path, manifest, kind)
    return ResumePoint(path, manifest, _version(path, root), {})


def _find_last(root: Path, kind: RunKind, *, exact: bool) -> ResumePoint:
    refused: dict[Path, str] = {}
    for run in _runs_newest_first(root):
        manifests = [Manifest.read(file) for file in (run / "checkpoints").glob("*.manifest.json*")]
        if not any(manifest is not None and _kind(manifest) == kind for manifest in manifests):
            continue
        search = newest_intact(run / "checkpoints", check_files_in=run if exact else None)
        refused |= search.refused
        if search.found is None:
            break
        path, manifest = search.found
        return ResumePoint(path, manifest, _version(path, root), refused)
    reasons = "".join(f"; {path} is damaged: {reason}" for path, reason in refused.items())
    raise FileNotFoundError(
        f"got --ckpt_path last, but under {root / RUNS} there is no intact checkpoint of {kind.model} on {kind.env_id}"
        f"{reasons}: leave --ckpt_path out to start a new run, or type --trainer.default_root_dir FOLDER"
    )


def _runs_newest_first(root: Path) -> list[Path]:
    runs = [folder for folder in (root / RUNS).glob("version_*") if folder.name.removeprefix("version_").isdigit()]
    return sorted(runs, key=lambda folder: int(folder.name.removeprefix("version_")), reverse=True)


def _version(checkpoint: Path, root: Path) -> int | None:
    run = checkpoint.resolve().parent.parent
    return next(
        (int(folder.name.removeprefix("version_")) for folder in _runs_newest_first(root) if folder.resolve() == run),
        None,
    )


def _kind(manifest: Manifest) -> tuple[str | None, str | None, str | None]:
    return manifest.model, manifest.data, manifest.env_id


def _check_kind(path: Path, manifest: Manifest, kind: RunKind) -> None:
    for name, saved, expected in zip(RunKind._fields, _kind(manifest), kind, strict=True):
        if saved is not None and saved != expected:
            raise ValueError(
                f"got {path}, a checkpoint with {name} {saved}, expected {name} {expected}: type --config with the "
                "configuration that the checkpoint was trained with"
            )
