"""Arguments that a constructor takes and nobody ever reads, found in the source."""

import ast
import inspect
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any


def unread_arguments(kind: type[Any]) -> list[str]:
    """Names of the constructor's arguments that no code reads, in the order of the signature.

    An argument is read where the constructor does more with it than to store it under its own name, or where somebody
    in the package of the class, or in rlmods, reads an attribute or a key of that name. So a name that others use as
    well is believed to be read; those that are returned are not.

    Args:
        kind: of whose own constructor; one that is inherited, or has no source, has no unread arguments.
    """
    constructor = kind.__dict__.get("__init__")
    if constructor is None:
        return []
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(constructor)))
    except (OSError, TypeError, SyntaxError):
        return []
    function = tree.body[0]
    if not isinstance(function, ast.FunctionDef):  # it is made by a decorator
        return []
    arguments = [argument.arg for argument in (*function.args.args[1:], *function.args.kwonlyargs)]
    used = _used_in(function)
    suspects = [name for name in arguments if name not in used]
    if not suspects:
        return []
    files = _package_files({kind.__module__.partition(".")[0], "rlmods"})
    return [name for name in suspects if not any(name in _names_read(file) for file in files)]


def _used_in(function: ast.FunctionDef) -> set[str]:
    """Names that the body loads, but for `self.name = name`."""
    stored = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if all(isinstance(target, ast.Attribute) and target.attr == node.value.id for target in targets):
                stored.add(id(node.value))
    body = [inner for statement in function.body for inner in ast.walk(statement)]
    return {
        node.id
        for node in body
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in stored
    }


def _package_files(packages: set[str]) -> list[Path]:
    files = (
        getattr(module, "__file__", None)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages
    )
    return [Path(file) for file in files if file is not None and file.endswith(".py")]


@cache
def _names_read(file: Path) -> frozenset[str]:
    """Attributes that are loaded and keys that are looked up, `x.name`, `x["name"]`, `x.get("name")`."""
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    attributes = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
    keys = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return frozenset(attributes | keys)
