"""Callbacks that several `--config` add, merged by class and name: a preset holds for those that are there already."""

import inspect
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

_ADDED = "callbacks+"


def merged_callbacks(arguments: Sequence[str]) -> list[str]:
    """The arguments, with each `--config` replaced whose `callbacks+` names callbacks of those before it.

    Such a callback gets the arguments that are named, and keeps its others; the rest is added at the end. Where nothing
    is named twice, a `--config` stays as it was typed.

    Args:
        arguments: of the command line; a configuration is a file, or its text.
    """
    merged = list(arguments)
    running: list[Any] = []
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option.startswith("--trainer.callbacks"):
            break  # what it adds is not known here
        if option not in ("--config", "-c") or not (equals or position + 1 < len(arguments)):
            continue
        config = _read(value if equals else arguments[position + 1])
        trainer = config.get("trainer")
        if not isinstance(trainer, Mapping):
            continue
        if "callbacks" in trainer:
            running = _items(trainer["callbacks"])
        added = _items(trainer.get(_ADDED))
        is_twice = {_key(item) for item in running} & {_key(item) for item in added}
        running = _merged(running, added)
        if is_twice:
            rest = {name: part for name, part in trainer.items() if name != _ADDED}
            text = yaml.safe_dump({**config, "trainer": {**rest, "callbacks": running}}, sort_keys=False)
            merged[position if equals else position + 1] = f"{option}={text}" if equals else text
    return merged


def _read(value: str) -> Mapping[str, Any]:
    """A configuration; empty where it cannot be read, which the parser says."""
    try:
        content = yaml.safe_load(Path(value).read_text() if "\n" not in value and Path(value).is_file() else value)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, Mapping) else {}


def _items(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    return list(callbacks) if isinstance(callbacks, list) else [callbacks]


def _key(item: Any) -> tuple[str, str]:
    """Class and name; of what has no name, the default of its class."""
    path = str(item.get("class_path", "") if isinstance(item, Mapping) else item)
    name = _arguments(item).get("name")
    return path.rpartition(".")[2], str(name if name is not None else _default_name(path))


def _default_name(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        parameter = inspect.signature(getattr(import_module(module), name)).parameters.get("name")
    except (ImportError, AttributeError, ValueError, TypeError):  # the parser says so
        return None
    return None if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default


def _arguments(item: Any) -> dict[str, Any]:
    arguments = item.get("init_args") if isinstance(item, Mapping) else None
    return dict(arguments) if isinstance(arguments, Mapping) else {}


def _merged(running: Sequence[Any], added: Sequence[Any]) -> list[Any]:
    merged = list(running)
    places = {_key(item): place for place, item in enumerate(merged)}
    for item in added:
        key = _key(item)
        if key not in places or not isinstance(merged[places[key]], Mapping):
            merged.append(item)
            continue
        before = merged[places[key]]
        merged[places[key]] = {**before, "init_args": _arguments(before) | _arguments(item)}
    return merged
