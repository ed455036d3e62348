"""`fit --from`: the run that a new run continues, its configuration as the base, and what is changed against it."""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from lightning.pytorch import Trainer

from rlmods.manifest import MANIFEST, Manifest, newest_intact, verify
from rlmods.reports.comparison import flatten
from rlmods.reports.kept_checkpoints import best_kept, health_of
from rlmods.reports.run_data import read_mapping
from rlmods.reports.run_summary import SUMMARY, read_summary
from rlmods.reports.schema import check_schema
from rlmods.reports.tables import RunFolderError
from rlmods.resume import RUNS

Continued = Literal["fresh", "full", "weights"]
FROM, WEIGHTS_ONLY = "--from", "--weights_only_from"
# Of one run alone: a child has its own.
_OF_ONE_RUN = ("ckpt_path", "from", "weights_only_from", "force_gates", "weights_only")
# A full training state brings its own random numbers back.
_SEEDS = ("seed_everything", "data.init_args.seed")
_ENV_ID, _ENV_KWARGS = "data.init_args.env_id", "data.init_args.env_kwargs"
_ABSENT = "(absent)"


class Kind(NamedTuple):
    """What parent and child must share; None where the command line does not say."""

    model: str | None
    env_id: str | None
    task: Mapping[str, Any] = {}  # arguments of the environment by dotted name, which `best` alone asks for


class Parent(NamedTuple):
    """The run that goes on, and from where."""

    folder: Path
    checkpoint: Path
    continued: Continued
    config: dict[str, Any]
    refused: dict[Path, str]  # what was passed over → reason


class Change(NamedTuple):
    """A setting that is not the parent's."""

    key: str
    before: Any  # of the grandparent, else the default; "(absent)" where there is none
    parent: Any
    now: Any
    reverted: bool  # an ancestor before the parent, or the default, had it


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], str | None, bool]:
    """The arguments without `--from` and `--weights_only_from`, and what these say.

    Raises:
        ValueError: where one of them lacks its value, or comes without the other.
    """
    rest, values = [], {FROM: None, WEIGHTS_ONLY: None}
    words = iter(arguments)
    for word in words:
        option, equals, value = word.partition("=")
        if option not in values:
            rest.append(word)
            continue
        if values[option] is not None:
            raise ValueError(f"got {option} twice, expected one: leave out all but one of them")
        values[option] = value if equals else next(words, None)  # type: ignore[assignment]
        if values[option] is None:
            raise ValueError(f"got {option} without a value: type {FROM} RUN|best|latest|fresh {WEIGHTS_ONLY} true")
    parent, only = values[FROM], str(values[WEIGHTS_ONLY] or "false").lower()
    if only not in ("true", "false"):
        raise ValueError(f"got {WEIGHTS_ONLY} {only}, expected true or false")
    if only == "true" and parent in (None, "fresh"):
        raise ValueError(f"got {WEIGHTS_ONLY} true without a run to take them from: type {FROM} RUN")
    return rest, parent, only == "true"


def find_parent(word: str, root: Path, kind: Kind, *, weights_only: bool) -> Parent:
    """Resolve a run folder, a checkpoint, `best` or `latest`.

    Args:
        word: as typed.
        root: `trainer.default_root_dir`, below which `best` and `latest` look.
        kind: of the new run, as far as it is known.
        weights_only: take nothing but the weights.

    Raises:
        FileNotFoundError: where there is none.
        DamagedCheckpointError: where a named checkpoint is not what was written.
        ValueError: where it is of another algorithm or environment.
        RunFolderError: where the configuration of a named run cannot be read.
    """
    refused: dict[Path, str] = {}
    if word == "best":
        checkpoint = _best(root, kind, refused)
    elif word == "latest":
        checkpoint = _latest(root, kind, refused)
    else:
        checkpoint = _named(Path(word), refused)
    folder = checkpoint.resolve().parent.parent
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise FileNotFoundError(
            f"got {FROM} {word}, whose run folder {folder} has no config.yaml, expected the folder of a run: type "
            f"--config FILE --ckpt_path {checkpoint}"
        )
    config = read_mapping(config_file)
    _check_kind(folder, _kind_of(config), kind)
    return Parent(folder, checkpoint, "weights" if weights_only else "full", config, refused)


def _named(path: Path, refused: dict[Path, str]) -> Path:
    if path.is_file():
        verify(path)
        return path
    if not path.is_dir():
        raise FileNotFoundError(
            f"got {FROM} {path}, expected a run folder, a checkpoint in it, best, latest or fresh: type "
            f"{FROM} {RUNS}/version_0"
        )
    return _newest_healthy(path, refused)


def _newest_healthy(run: Path, refused: dict[Path, str]) -> Path:
    """The newest intact checkpoint of a run at which no safeguard saw anything grave."""
    search = newest_intact(run / "checkpoints")
    refused |= search.refused
    for path in sorted((run / "checkpoints").glob("*.ckpt"), key=_env_steps, reverse=True):
        if path in search.refused:
            continue
        wrong = health_of(path)
        if not wrong:
            return path
        refused[path] = f"it is unhealthy ({', '.join(wrong)})"
    reasons = "".join(f"; {path.name}: {reason}" for path, reason in refused.items() if path.parent.parent == run)
    raise FileNotFoundError(
        f"got {FROM} {run}, which has no intact and healthy checkpoint{reasons}: type {FROM} best, or {FROM} with the "
        "path of one of its checkpoints, if you want that one all the same"
    )


def _env_steps(checkpoint: Path) -> int:
    manifest = Manifest.read(checkpoint.with_name(checkpoint.name + MANIFEST))
    return -1 if manifest is None or manifest.env_steps is None else manifest.env_steps


def _latest(root: Path, kind: Kind, refused: dict[Path, str]) -> Path:
    for run in _runs(root, kind, refused):
        try:
            return _newest_healthy(run, refused)
        except FileNotFoundError as error:
            refused[run] = str(error)
    raise _nothing("latest", root, kind, refused)


def _best(root: Path, kind: Kind, refused: dict[Path, str]) -> Path:
    """The checkpoint with the highest lower bound of its evaluation, among the best ones of all runs of one task.

    Returns of other environments, or of one with other arguments, are not compared: what the command line does not say
    is as in the newest run that fits it. A run's best is finite, of a checkpoint that is there, intact and healthy, and
    of a metric within its bounds, or it has none.
    """
    ranked: list[tuple[float, Path]] = []
    task: dict[str, Any] | None = None
    for run in _runs(root, kind, refused):
        own = _task_of(flatten(read_mapping(run / "config.yaml")))
        different = _differing(own, kind.task if task is None else task, exact=task is not None)
        if different:
            refused[run] = f"its environment is another one ({different})"
            continue
        task = own
        try:
            found = _best_of(run, refused)
        except RunFolderError as error:
            refused[run] = str(error)
            continue
        ranked += [found] if found is not None else []
    if not ranked:
        raise _nothing("best", root, kind, refused)
    return max(ranked)[1]


def _best_of(run: Path, refused: dict[Path, str]) -> tuple[float, Path] | None:
    """Lower bound and checkpoint of a run's best; None where it has none, with the reason in `refused`."""
    if not (run / SUMMARY).is_file() and not any(run.glob("events.out.*")):
        refused[run] = "it has no summary.json and no curves"
        return None
    summary = read_summary(run)
    if "eval/mean_reward" in summary["quarantined"]:
        refused[run] = "its metric is quarantined"
        return None
    best, damaged = best_kept(run, summary)
    refused |= damaged
    if best is None:
        refused[run] = "no healthy checkpoint has an interval"
        return None
    return best["low"], run / best["checkpoint"]


def _task_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The environment and its arguments, of settings by dotted name, as far as they are named."""
    return {
        name: value
        for name, value in settings.items()
        if value is not None and (name == _ENV_ID or name.startswith(f"{_ENV_KWARGS}."))
    }


def _differing(own: Mapping[str, Any], wanted: Mapping[str, Any], *, exact: bool) -> str:
    """Which settings of the environment differ, in words."""
    names = sorted(own.keys() | wanted.keys()) if exact else sorted(wanted)
    return ", ".join(
        f"{name.removeprefix('data.init_args.')} {own.get(name, _ABSENT)} instead of {wanted.get(name, _ABSENT)}"
        for name in names
        if own.get(name, _ABSENT) != wanted.get(name, _ABSENT)
    )


def _nothing(word: str, root: Path, kind: Kind, refused: Mapping[Path, str]) -> FileNotFoundError:
    reasons = "".join(f"; {path}: {reason}" for path, reason in refused.items())
    wanted = " on ".join(part for part in kind[:2] if part) or "any kind"
    return FileNotFoundError(
        f"got {FROM} {word}, but under {root / RUNS} there is no run of {wanted} with a healthy checkpoint{reasons}: "
        f"type {FROM} fresh to start a new one, {FROM} with the folder of a run, or --trainer.default_root_dir FOLDER"
    )


def _runs(root: Path, kind: Kind, refused: dict[Path, str]) -> list[Path]:
    """The run folders of a kind, the newest first."""
    numbered = [run for run in (root / RUNS).glob("version_*") if run.name.removeprefix("version_").isdigit()]
    numbered.sort(key=lambda run: int(run.name.removeprefix("version_")), reverse=True)
    found = []
    for run in numbered:
        if not (run / "config.yaml").is_file():
            continue
        try:
            own = _kind_of(read_mapping(run / "config.yaml"))
        except RunFolderError as error:
            refused[run] = str(error)
            continue
        if all(wanted in (None, got) for wanted, got in zip(kind[:2], own[:2], strict=True)):
            found.append(run)
    return found


def _kind_of(config: Mapping[str, Any]) -> Kind:
    model, data = config.get("model"), config.get("data")
    path = model.get("class_path") if isinstance(model, Mapping) else model
    arguments = data.get("init_args") if isinstance(data, Mapping) else None
    env_id = arguments.get("env_id") if isinstance(arguments, Mapping) else None
    return Kind(str(path).rpartition(".")[2] if path else None, env_id)


def _check_kind(folder: Path, parent: Kind, child: Kind) -> None:
    for name, got, expected in zip(("algorithm", "environment"), parent[:2], child[:2], strict=True):
        if expected is not None and got != expected:
            raise ValueError(
                f"got {FROM} {folder}, a run with the {name} {got}, expected {expected} as the configuration says: "
                f"leave out the --config that names {expected}, or type {FROM} with a run of it"
            )


def stated_kind_and_root(arguments: Sequence[str]) -> tuple[Kind, Path]:
    """Algorithm, environment with its arguments, and `trainer.default_root_dir`, as configurations and options say."""
    stated: dict[str, Any] = {}
    for option, value in _options(arguments):
        name = option.removeprefix("--")
        if name.startswith("data.env_"):  # as jsonargparse lets one abbreviate it
            name = f"data.init_args.{name.removeprefix('data.')}"
        if option in ("--config", "-c") and Path(value).is_file():
            stated |= flatten(read_mapping(Path(value)))
        elif option in ("--model", "--model.class_path"):
            stated["model.class_path"] = value
        elif option == "--trainer.default_root_dir" or name == _ENV_ID:
            stated[name] = value
        elif name == _ENV_KWARGS or name.startswith(f"{_ENV_KWARGS}."):
            stated |= flatten({name: yaml.safe_load(value)})
    model = stated.get("model.class_path", stated.get("model"))
    kind = Kind(str(model).rpartition(".")[2] if model else None, stated.get(_ENV_ID), _task_of(stated))
    return kind, Path(stated.get("trainer.default_root_dir") or ".").expanduser()


def _options(arguments: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals:
            value = arguments[position + 1] if position + 1 < len(arguments) else ""
        found.append((option, value))
    return found


def base_config(parent: Parent) -> str:
    """The parent's configuration as YAML, for a child in the same root; what belongs to one run alone is left out."""
    base = {name: value for name, value in parent.config.items() if name not in _OF_ONE_RUN}
    trainer = dict(base.get("trainer") or {})
    if parent.folder.parent.name == RUNS:
        trainer["default_root_dir"] = str(parent.folder.parent.parent)
    return yaml.safe_dump(base | {"trainer": trainer}, sort_keys=False)


# What is changed


def config_changes(now: Mapping[str, Any], parent: Parent) -> list[Change]:
    """Every setting that differs from the parent's, with the value of before the parent.

    Args:
        now: the resolved configuration of the child.
        parent: of the child.
    """
    ancestors = ancestor_configs(parent.folder)
    flat, of_parent = settings_of(now), settings_of(parent.config)
    before = [settings_of(config) for config in ancestors] + [default_settings(now)]
    changes = []
    for key in sorted(flat.keys() | of_parent.keys()):
        value, its = flat.get(key, _ABSENT), of_parent.get(key, _ABSENT)
        if value == its:
            continue
        earlier = [settings[key] for settings in before if key in settings]
        changes.append(Change(key, earlier[0] if earlier else _ABSENT, its, value, value in earlier))
    return changes


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted name, without those of one run alone and the root folder."""
    kept = {name: value for name, value in config.items() if name not in _OF_ONE_RUN}
    flat = flatten(kept)
    flat.pop("trainer.default_root_dir", None)
    return flat


def ancestor_configs(folder: Path) -> list[dict[str, Any]]:
    """The configurations of the runs before a run, its parent's first; it ends where a folder is gone."""
    found: list[dict[str, Any]] = []
    seen = {folder.resolve()}
    while (folder / "run.json").is_file():
        before = check_schema(folder / "run.json", "run")["parent_run"]
        if before is None or not (Path(before) / "config.yaml").is_file() or Path(before).resolve() in seen:
            break
        folder = Path(before)
        seen.add(folder.resolve())
        found.append(read_mapping(folder / "config.yaml"))
    return found


def default_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults in the signatures of the model's, the data module's and the trainer's class, by dotted name."""
    defaults: dict[str, Any] = {}
    classes = {"trainer.": Trainer}
    for part in ("model", "data"):
        section = config.get(part)
        if isinstance(section, Mapping) and "class_path" in section:
            module, _, name = str(section["class_path"]).rpartition(".")
            classes[f"{part}.init_args."] = getattr(import_module(module), name)
    for prefix, owner in classes.items():
        for name, parameter in inspect.signature(owner).parameters.items():
            if parameter.default is not inspect.Parameter.empty:
                value = parameter.default
                defaults[prefix + name] = list(value) if isinstance(value, tuple) else value
    return defaults


def changes_table(parent: Parent, changes: Sequence[Change]) -> str:
    """The changes as lines of text, for the console."""
    how = "with its full training state"
    if parent.continued == "weights":
        how = "its weights alone: clocks, optimiser, schedules and random numbers begin anew"
    head = f"continues {parent.checkpoint}, {how}"
    if not changes:
        return f"{head}; no setting is changed"
    rows = [("setting", "before the parent", "parent", "now", "")]
    rows += [
        (c.key, str(c.before), str(c.parent), str(c.now), "reverted" if c.reverted else "changed") for c in changes
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join([head, *lines])


def seeds_without_effect(parent: Parent, changes: Sequence[Change]) -> list[str]:
    """Seeds that were changed although the full training state brings the parent's random numbers back."""
    return [change.key for change in changes if parent.continued == "full" and change.key in _SEEDS]


def origin_on_resume(folder: Path, now: Mapping[str, Any]) -> dict[str, Any] | None:
    """For `run.json` of a child that goes on in its own folder: what is changed by now; None where it is no child.

    Args:
        folder: of the child.
        now: its resolved configuration.
    """
    if not (folder / "run.json").is_file():
        return None
    origin = check_schema(folder / "run.json", "run").get("origin") or {}
    parent, checkpoint = origin.get("parent"), origin.get("checkpoint")
    if parent is None or checkpoint is None or not (Path(parent) / "config.yaml").is_file():
        return None
    config = read_mapping(Path(parent) / "config.yaml")
    begun = Parent(Path(parent), Path(checkpoint), origin["continued"], config, {})
    return origin_of(begun, config_changes(now, begun))


def origin_of(parent: Parent | None, changes: Sequence[Change]) -> dict[str, Any]:
    """For `run.json`."""
    return {
        "continued": "fresh" if parent is None else parent.continued,
        "parent": None if parent is None else str(parent.folder),
        "checkpoint": None if parent is None else str(parent.checkpoint.resolve()),
        "config_changes": [change._asdict() for change in changes],
    }
