"""Which sub-modules of anybody's module are target networks, and of which network."""

import re

from lightning.pytorch import LightningModule
from torch.nn import Module

_TARGET = re.compile(r"(^|[._])(target|tgt|slow|ema)(?=[._]|$)")


def target_networks(pl_module: LightningModule) -> dict[str, Module]:
    """By name, the outermost sub-modules with parameters whose name says target, tgt, slow or ema."""
    named = {
        name: module
        for name, module in pl_module.named_modules()
        if _TARGET.search(name) and next(module.parameters(), None) is not None
    }
    return {name: module for name, module in named.items() if not _has_ancestor(name, named)}


def online_network(pl_module: LightningModule, target: str) -> Module | None:
    """The network that a target network follows: the one with its name less the word, else the first of its shapes."""
    modules = dict(pl_module.named_modules())
    shapes = _shapes(modules[target])
    plain = _TARGET.sub("", target).strip("._")
    candidates = [modules[plain]] if plain in modules else []
    candidates += [module for name, module in modules.items() if not _TARGET.search(name)]
    return next((module for module in candidates if _shapes(module) == shapes), None)


def _shapes(module: Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def _has_ancestor(name: str, named: dict[str, Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in named for length in range(1, len(parts)))
