"""The command line's parser, and what is done with the arguments before it sees them."""

from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from rlmods.callback_merge import merged_callbacks
from rlmods.chain import FROM, Parent, base_config, find_parent, split_arguments, stated_kind_and_root
from rlmods.cli_errors import fail
from rlmods.configs import find_config


class ConciseParser(LightningArgumentParser):
    """A parser whose errors are a sentence, without the eighty lines of usage before it.

    Attributes:
        command: of the command line.
    """

    command = "fit"

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave."""
        fail(
            f"{message}\nThe options are explained by: python -m rlmods {self.command} --help; those of a class by: "
            f"python -m rlmods {self.command} --model.help CLASS, or --data.help CLASS"
        )


def with_config_files(arguments: list[str]) -> list[str]:
    """Names of shipped configurations replaced by their files."""
    resolved = list(arguments)
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            resolved[position] = f"{option}={find_config(value)}"
        elif position + 1 < len(arguments):
            resolved[position + 1] = str(find_config(arguments[position + 1]))
    return resolved


def with_parent(arguments: list[str]) -> tuple[list[str], Parent | None]:
    """The arguments with the parent's configuration as the first one, and the parent; None without `--from`.

    Callbacks that are named twice are merged.
    """
    rest, word, weights_only = split_arguments(arguments)
    if word in (None, "fresh"):
        return merged_callbacks(rest), None
    if "fit" not in rest:
        raise ValueError(f"got {FROM} without fit, expected it there alone: type --ckpt_path CHECKPOINT")
    kind, root = stated_kind_and_root(rest)
    parent = find_parent(str(word), root, kind, weights_only=weights_only)
    position = rest.index("fit") + 1
    return merged_callbacks([*rest[:position], "--config", base_config(parent), *rest[position:]]), parent
