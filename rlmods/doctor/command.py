"""`python -m rlmods doctor`: builds what `fit` would train with, says the arithmetic of it, and writes nothing."""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import yaml

from rlmods.beginning import Beginning
from rlmods.chain import Parent
from rlmods.cli import RLModsCLI
from rlmods.cli_errors import errors_as_sentences, fail, silence_noise
from rlmods.cli_parser import with_config_files, with_parent
from rlmods.doctor.effective import defaults_of, effective_settings, without_reader
from rlmods.doctor.examination import examine
from rlmods.doctor.line import Line, Status, overall
from rlmods.doctor.settings import Setting, given_in_vain, table, unread
from rlmods.doctor.subject import Subject, attach
from rlmods.doctor.unread import unread_arguments
from rlmods.reports.comparison import flatten

_HELP = """\
usage: python -m rlmods doctor CONFIG [CONFIG ...] [--json] [options of fit]

Says the arithmetic of a configuration before it runs: how many updates it makes, how fast targets follow, how often a
transition is drawn, which values are possible, where schedules end, what it costs; then what was configured against
what is in effect. Nothing is written. A CONFIG is a file, or the name of one that comes with the package.

  --json  one object: status, lines, settings

Leaves with 1 where a line says FAIL, with 2 where fit would refuse the command.
"""


class Diagnosis(NamedTuple):
    """What the doctor found.

    Attributes:
        lines: of all rules.
        settings: configured against effective.
    """

    lines: list[Line]
    settings: list[Setting]

    @property
    def status(self) -> Status:
        """The gravest line's."""
        return overall(self.lines)

    def text(self) -> str:
        """For a terminal."""
        return "\n".join([*(line.text for line in self.lines), "", *table(self.settings), "", self.status])

    def json(self) -> dict[str, Any]:
        """The same as data."""
        settings = [setting._asdict() | {"differs": setting.differs} for setting in self.settings]
        return {"status": self.status, "lines": [line._asdict() for line in self.lines], "settings": settings}


class DoctorCLI(RLModsCLI):
    """`fit` up to where it would begin.

    Attributes:
        diagnosis: what was found.
    """

    def __init__(self, arguments: list[str], beginning: Beginning, parent: Parent | None) -> None:
        self.diagnosis = Diagnosis([], [])
        super().__init__(arguments, beginning, parent)

    def fit(self, **kwargs: Any) -> None:
        """Look, instead of training."""
        point = self.resume_point
        goes_on = self.parent is None or self.parent.continued == "full"
        start = point.manifest.env_steps if goes_on and point is not None and point.manifest is not None else 0
        subject, refusal = attach(self.model, self.datamodule, self.trainer, start or 0)
        text = self._parser("fit").dump(self.config["fit"], skip_none=False, skip_validation=True)
        configured = flatten(yaml.safe_load(text))
        lines = [Line("FAIL", "refused", refusal)] if refusal else []
        lines += examine(subject)
        in_vain = given_in_vain(configured, defaults_of(subject), without_reader(subject))
        in_vain |= {name: reason for name, reason in never_read(subject).items() if name in configured}
        lines.append(unread(configured, in_vain))
        self.diagnosis = Diagnosis(lines, effective_settings(subject, configured, in_vain))

    def after_fit(self) -> None:
        """Nothing has ended."""


def never_read(subject: Subject) -> dict[str, str]:
    """Arguments of somebody else's classes that no code reads, whatever their value; of ours there are none."""
    callbacks: list[Any] = subject.trainer.callbacks  # type: ignore[attr-defined]
    owners = [("model", subject.model), ("data", subject.data)]
    owners += [(f"trainer.callbacks.{type(callback).__name__}", callback) for callback in callbacks]
    return {
        f"{prefix}.init_args.{name}": f"no code of {kind.__name__} reads it"
        for prefix, owner in owners
        for kind in type(owner).__mro__
        if kind.__module__.partition(".")[0] not in ("rlmods", "lightning", "torch", "builtins")
        for name in unread_arguments(kind)
    }


def diagnose(arguments: list[str]) -> Diagnosis:
    """What the doctor says of a command of `fit`.

    Args:
        arguments: configurations first, then options of `fit`.

    Raises:
        SystemExit: 2 where `fit` would refuse it.
    """
    beginning = Beginning()
    silence_noise()
    with errors_as_sentences(beginning):
        resolved, parent = with_parent(with_config_files(_fit_arguments(arguments)))
        cli = DoctorCLI(resolved, beginning, parent)
    return cli.diagnosis


@contextmanager
def _without_hardware() -> Iterator[None]:
    """Without what the trainer says of its hardware, which belongs to a run."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "lightning_utilities")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the code to leave with."""
    if "-h" in arguments or "--help" in arguments:
        print(_HELP, end="")
        return 0
    rest = [argument for argument in arguments if argument != "--json"]
    if not rest:
        fail("got doctor without a configuration, expected one: type python -m rlmods doctor dqn_cartpole")
    with _without_hardware():
        diagnosis = diagnose(rest)
    with suppress(BrokenPipeError):
        print(json.dumps(diagnosis.json(), indent=1) if len(rest) < len(arguments) else diagnosis.text())
    return 1 if diagnosis.status == "FAIL" else 0


def _fit_arguments(arguments: Sequence[str]) -> list[str]:
    """Configurations named first, each with its option."""
    position = next((i for i, argument in enumerate(arguments) if argument.startswith("-")), len(arguments))
    named = [word for name in arguments[:position] for word in ("--config", name)]
    return ["fit", *named, *arguments[position:]]
