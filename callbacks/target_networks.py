"""Which sub-modules of anybody's module are target networks, and of which network."""

import re

from lightning.pytorch import LightningModule
from torch.nn import Module

_TARGET = re.compile(r"(^|[._])(target|targ|tgt|slow|ema)(?=[._\d]|$)")
_NO_VALUES = re.compile("actor|policy|encoder|trunk|backbone")


def target_networks(pl_module: LightningModule) -> dict[str, Module]:
    """By name, the outermost sub-modules with parameters whose name says target, tgt, slow or ema."""
    named = {
        name: module
        for name, module in _named_modules(pl_module).items()
        if _TARGET.search(name) and next(module.parameters(), None) is not None
    }
    return {name: module for name, module in named.items() if not _has_ancestor(name, named)}


def target_value_networks(pl_module: LightningModule) -> dict[str, Module]:
    """Those of them that return values: no actors, no encoders."""
    return {name: net for name, net in target_networks(pl_module).items() if not _NO_VALUES.search(name)}


def online_network(pl_module: LightningModule, target: str) -> Module | None:
    """The network that a target network follows: the one with its name less the word, else the first of its shapes."""
    modules = _named_modules(pl_module)
    shapes = _shapes(modules[target])
    plain = _TARGET.sub(r"\1", target).replace("._", ".").replace("__", "_").strip("._")
    candidates = [modules[plain]] if plain in modules else []
    candidates += [module for name, module in modules.items() if not _TARGET.search(name)]
    return next((module for module in candidates if _shapes(module) == shapes), None)


def _named_modules(pl_module: LightningModule) -> dict[str, Module]:
    # By default torch leaves out a module's second name, which a target has that is its own online network.
    return dict(pl_module.named_modules(remove_duplicate=False))


def _shapes(module: Module) -> list[tuple[int, ...]]:
    return [tuple(parameter.shape) for parameter in module.parameters()]


def _has_ancestor(name: str, named: dict[str, Module]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in named for length in range(1, len(parts)))
