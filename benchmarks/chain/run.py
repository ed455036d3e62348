"""Makes the runs of the bench, asks for their next step, and prints the table of hits.

    python -m benchmarks.chain.run FOLDER
    python -m benchmarks.chain.run FOLDER --only warm_drift

A run that is there already is not made again: its parents are shared.
"""

import argparse
import contextlib
import io
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from rlmods.cli import run as run_cli
from rlmods.reports.decision import Decision, decide
from rlmods.reports.facts import read_facts
from rlmods.resume import RUNS

from . import point_mass as point_mass  # registers the environment
from .cases import CASES, CONFIGS, Case


class Terminate(Callback):
    """Asks its own process to end, as a scheduler would.

    Args:
        iteration: after which.
    """

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Send SIGTERM once."""
        if batch_idx + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def make(case: Case, folder: Path) -> Path:
    """The run folder of a case, made where it is not there."""
    run = folder / case.name / RUNS / "version_0"
    if (run / "summary.json").is_file():
        return run
    root = ["--trainer.default_root_dir", str(folder / case.name)]
    if case.parent:
        (parent,) = [other for other in CASES if other.name == case.parent]
        begin = ["--from", str(make(parent, folder))]
        begin += ["--weights_only_from", "true"] if case.weights_only else []
    else:
        config = folder / f"{case.task}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(CONFIGS[case.task])
        begin = ["--config", str(config)]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            run_cli(["fit", *begin, *root, *case.options])
        except SystemExit as end:  # a signal
            if not (run / "run.json").is_file():
                raise RuntimeError(f"{case.name}: {said.getvalue()[-500:]}") from end
        except (ValueError, RuntimeError) as error:  # what numbers that are none end in
            print(f"{case.name} ended in {type(error).__name__}")
    return run


def is_right(case: Case, decision: Decision) -> bool:
    """Whether a decision is what the label says."""
    finding, proposal = decision.finding, decision.proposal
    if case.direction == "probe":
        return proposal is None and finding is not None and bool(finding.probe)
    if proposal is None:
        return False
    if case.direction == "continue":
        return proposal.start == "last" and not proposal.knob
    if case.direction == "keep":
        return finding is not None and finding.rule == "keep"
    is_there = case.start == "any" or decision.checkpoint is not None
    return (
        proposal.knob.endswith(f".{case.knob}") and _goes(case.direction, proposal.effective, proposal.to) and is_there
    )


def _goes(direction: str, before: Any, after: Any) -> bool:
    before, after = (float("inf") if value is None else value for value in (before, after))
    return bool(after < before if direction == "down" else after > before)


def judge(case: Case, folder: Path) -> dict[str, Any]:
    """What was said of a case, and whether it is right."""
    decision = decide(read_facts(make(case, folder)))
    proposal = decision.proposal
    return {
        "case": case.name,
        "label": f"{case.knob} {case.direction}".strip(),
        "rule": None if decision.finding is None else decision.finding.rule,
        "knob": None if proposal is None else proposal.knob,
        "effective": None if proposal is None else proposal.effective,
        "to": None if proposal is None else proposal.to,
        "from": None if decision.checkpoint is None else Path(str(decision.base.run)).parents[1].name,
        "observed": [finding.rule for finding in decision.observed],
        "evidence": [] if decision.finding is None else list(decision.finding.evidence),
        "right": is_right(case, decision),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Make what is missing, judge all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the runs are made")
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    parser.add_argument("--make", action="store_true", help="make the runs, and do not ask for their next step")
    options = parser.parse_args(arguments)
    cases = [case for case in CASES if not options.only or case.name in options.only]
    for case in cases:
        make(case, options.folder.resolve())
    if options.make:
        return
    rows = [judge(case, options.folder.resolve()) for case in cases]
    (options.folder / "hits.json").write_text(json.dumps(rows, indent=1, default=str) + "\n")
    print("| run | label | said | observed besides | right |\n| --- | --- | --- | --- | --- |")
    for row in rows:
        change = f"{row['rule']}: {row['knob']} {row['effective']} -> {row['to']}" if row["knob"] else row["rule"]
        besides, right = ", ".join(row["observed"]), "yes" if row["right"] else "NO"
        print(f"| {row['case']} | {row['label']} | {change} | {besides} | {right} |")
    print(f"\n{sum(row['right'] for row in rows)} of {len(rows)} right")


if __name__ == "__main__":
    main()
