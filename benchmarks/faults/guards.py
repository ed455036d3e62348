"""The safeguards of the guarded arms: those of `configs/safeguards/safe.yaml`."""

import importlib
from typing import Any

import yaml
from lightning.pytorch import Callback

from rlmods.configs import find_config


def guards() -> list[Callback]:
    """New ones."""
    entries = yaml.safe_load(find_config("safeguards/safe").read_text())["trainer"]["callbacks+"]
    return [_make(entry) for entry in entries]


def _make(entry: dict[str, Any]) -> Callback:
    module, _, name = entry["class_path"].rpartition(".")
    callback: Callback = getattr(importlib.import_module(module), name)(**entry.get("init_args", {}))
    return callback
