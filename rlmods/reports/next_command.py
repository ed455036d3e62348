"""`python -m rlmods next`: reads a run and those that it comes from, and writes the configuration of the next one."""

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from rlmods.manifest import newest_intact
from rlmods.reports.decision import Decision, decide
from rlmods.reports.facts import RunFacts, read_facts
from rlmods.reports.proposal import Finding
from rlmods.reports.regression import changed_settings
from rlmods.reports.run_data import read_mapping
from rlmods.reports.summary import number
from rlmods.reports.tables import RunFolderError

NEXT_CONFIG = "next_config.yaml"
_DESCRIPTION = """\
Reads a run folder and those of its ancestors, and says one thing to do next: a change with its reason, its evidence,
the signature of success and the rule by which to stop, in next_config.yaml of the folder; or which evidence is missing.
Leaves with 2 where a folder cannot be read.
"""
# Of one run alone, as `fit --from` leaves out as well.
_OF_ONE_RUN = ("ckpt_path", "from", "weights_only_from", "force_gates", "weights_only")


def main(arguments: Sequence[str]) -> int:
    """Run the command; the code to leave with."""
    parser = argparse.ArgumentParser("python -m rlmods next", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder: lightning_logs/version_N")
    options = parser.parse_args(arguments)
    try:
        facts = read_facts(options.run)
        decision = decide(facts)
        text = next_config(options.run, decision)
        _write(options.run / NEXT_CONFIG, text)
    except RunFolderError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: could not write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print("\n".join([*_readings(facts), "", *_in_words(decision), "", _command(options.run, decision)]))
    return 0


def next_config(folder: Path, decision: Decision) -> str | None:
    """The text of `next_config.yaml`: the settings that differ from the base, or all where there is no base.

    None where there is nothing to change.
    """
    if decision.proposal is None or (decision.proposal.start == "last" and not decision.settings):
        return None
    header = [*_in_words(decision), _command(folder, decision)]
    settings = _nested(decision.settings)
    if decision.proposal.start == "fresh":
        config = read_mapping(folder / "config.yaml")
        settings = _merged({name: value for name, value in config.items() if name not in _OF_ONE_RUN}, settings)
    lines = [f"# {line}".rstrip() for text in header for line in text.splitlines()]
    return "\n".join(lines) + "\n" + yaml.safe_dump(settings, sort_keys=False)


def _readings(facts: RunFacts) -> list[str]:
    """What was read, each return with its standard error, each end of a curve with the learning rate of then."""
    lines = [f"{facts.run}: {facts.continued}, {facts.env_steps} environment steps"]
    for name, score in (("began with", facts.start), ("last", facts.last), ("best healthy", facts.best)):
        if score is not None:
            error, steps = number(score.standard_error), score.env_steps
            lines.append(f"  {name}: {score.mean:.4g}, standard error {error}, {score.episodes} episodes, step {steps}")
    lines.append(f"  training episodes: {number(facts.training)}, untrained policy: {number(facts.untrained())}")
    if facts.learning_rate_peak is not None:
        lines.append(
            f"  KL {number(facts.kl)}, clip fraction {number(facts.clip_fraction)} while the learning rate was above a "
            f"tenth of its peak {facts.learning_rate_peak:.3g}; KL {number(facts.kl_last)} at the end, at a rate of "
            f"{number(facts.learning_rate_last)}"
        )
    for run in facts.lineage():
        lines += [f"  passed over {path}: {reason}" for path, reason in run.unusable.items()]
    if facts.parent is not None:
        changed = changed_settings(facts.settings, facts.parent.settings)
        lines += [f"  {d.knob}: {d.before} in the parent, {d.now} now" for d in changed]
    return lines


def _in_words(decision: Decision) -> list[str]:
    finding, proposal = decision.finding, decision.proposal
    lines = [line for other in decision.observed for line in _finding("observed", other)]
    lines += [f"explained: {rule} by {cause}" for rule, cause in decision.explained.items() if rule != "keep"]
    if finding is None:
        return [*lines, "insufficient evidence: no rule has anything to say of this run"]
    lines += _finding("reason" if proposal is not None else "insufficient evidence", finding)
    if proposal is None:
        return lines
    if proposal.knob:
        lines.append(f"hypothesis: {proposal.knob} from {proposal.effective} to {proposal.to}")
    wanted = finding.proposal
    if wanted is not None and wanted.start != proposal.start:
        lines.append("no checkpoint of the chain can be begun from: the next run begins afresh")
    lines += [f"expected: {proposal.expected}", f"stop: {proposal.stop}"]
    if proposal.start == "last" and not decision.settings:
        lines.append("before you type it: make sure that no process trains in that folder any more")
    return lines


def _finding(title: str, finding: Finding) -> list[str]:
    return [f"{title} ({finding.rule}): {finding.reason}", *(f"  evidence: {line}" for line in finding.evidence)]


def _command(folder: Path, decision: Decision) -> str:
    """The command line that does it."""
    finding, proposal = decision.finding, decision.proposal
    root, newest = _root(folder), newest_intact(folder / "checkpoints").found
    checkpoint = "CHECKPOINT" if newest is None else shlex.quote(str(newest[0]))
    if proposal is None:
        probe = "python -m rlmods report {run}" if finding is None else finding.probe
        parent = decision.base.parent
        of_parent = "CHECKPOINT" if parent is None or parent.best is None else shlex.quote(str(parent.best.checkpoint))
        said = probe.format(run=shlex.quote(str(folder)), checkpoint=checkpoint, parent_checkpoint=of_parent)
        return f"run this probe: {said}" if " report " in said else f"run this probe: {said} {root}"
    if proposal.start == "last" and not decision.settings:
        # In the run's own folder.
        return (
            f"python -m rlmods fit --config {shlex.quote(str(folder / 'config.yaml'))} --ckpt_path {checkpoint} {root}"
        )
    config = shlex.quote(str(folder / NEXT_CONFIG))
    if decision.checkpoint is None:
        start = "fresh" if proposal.start != "last" else shlex.quote(str(folder))
    else:
        start = shlex.quote(str(decision.checkpoint.checkpoint))
    only = " --weights_only_from true" if decision.weights_only else ""
    return f"python -m rlmods fit --config {config} --from {start}{only} {root}"


def _root(folder: Path) -> str:
    return f"--trainer.default_root_dir {shlex.quote(str(folder.resolve().parent.parent))}"


def _nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        part = nested
        for section in sections:
            part = part.setdefault(section, {})
        part[last] = value
    return nested


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for name, value in changes.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(value, Mapping) and isinstance(before, Mapping) else value
    return merged


def _write(path: Path, text: str | None) -> None:
    """Whole or not at all; one of before, which would be followed by mistake, goes where there is none now."""
    if text is None:
        path.unlink(missing_ok=True)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
