"""Runs the bench and prints its tables as Markdown.

    python -m benchmarks.linear_td_faults            # all runs, two to four minutes of one core, then the tables
    python -m benchmarks.linear_td_faults --table    # the tables of the stored runs

Seeds 0 and 1 are for reporting; safeguards are tuned with seeds from 100 up.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from .catalogue import FAULTS, HEALTHY, Case
from .experiment import Alarm, Record, alarms_from, run

SEEDS = (0, 1)


class FaultRow(NamedTuple):
    """What the runs of a fault say together."""

    case: Case
    records: list[Record]
    firsts: list[Alarm]  # of each run that said anything: the first alarm of severity WARN or above
    delays: list[int]  # iterations from the onset to the first alarm with a right cause
    false_acting: int  # runs with an alarm of severity ACT or above before the onset

    @property
    def found(self) -> int:
        """Runs in which a right cause was named."""
        return len(self.delays)

    @property
    def right_first(self) -> int:
        """Runs whose first alarm names a right cause."""
        return sum(alarm["cause"] in self.case.causes for alarm in self.firsts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/linear_td_faults"), help="folder")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    path: Path = arguments.out / "runs.json"
    if not arguments.table:
        records = [run(case, seed) for case in [*FAULTS, *HEALTHY] for seed in SEEDS]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(records, indent=1) + "\n")
    print(report(json.loads(path.read_text())))


def report(records: Sequence[Record]) -> str:
    """Both tables, and the totals."""
    rows = [fault_row(case, [record for record in records if record["id"] == case.id]) for case in FAULTS]
    rows = [row for row in rows if row.records]
    ids = {case.id for case in HEALTHY}
    return "\n\n".join(
        [faults_table(rows), healthy_table(records), totals(rows, [each for each in records if each["id"] in ids])]
    )


def fault_row(case: Case, records: Sequence[Record]) -> FaultRow:
    firsts, delays = [], []
    for record in records:
        alarms = alarms_from(record, "warn")
        firsts += alarms[:1]
        right = [alarm for alarm in alarms if alarm["cause"] in case.causes]
        delays += [right[0]["iteration"] - record["onset"]] if right else []
    early = [
        any(a["iteration"] <= record["onset"] and a["severity"] in ("act", "fatal") for a in record["alarms"])
        for record in records
    ]
    return FaultRow(case, list(records), firsts, delays, sum(early))


def faults_table(rows: Sequence[FaultRow]) -> str:
    lines = []
    for row in rows:
        acting = sum(any(a["cause"] in row.case.causes for a in alarms_from(each, "act")) for each in row.records)
        named = dict.fromkeys(alarm["cause"] for each in row.records for alarm in alarms_from(each, "warn"))
        lines.append(
            (
                f"`{row.case.id}`: {row.case.what}",
                f"{row.found}/{len(row.records)}",
                f"{acting}/{len(row.records)}",
                f"{median(row.delays):.0f}" if row.delays else "",
                f"{row.right_first}/{len(row.firsts)}" if row.firsts else "",
                ", ".join(named) or ("none: " + row.case.unseen if row.case.unseen else "none"),
            )
        )
    header = ("fault", "found", "found, acting", "after iterations", "right cause first", "causes in order")
    return "### Faults\n\n" + markdown(header, lines)


def healthy_table(records: Sequence[Record]) -> str:
    lines = []
    for case in HEALTHY:
        runs = [record for record in records if record["id"] == case.id]
        acting, all_alarms = (
            sorted({alarm["cause"] for record in runs for alarm in alarms_from(record, severity)})
            for severity in ("act", "warn")
        )
        warned = [cause for cause in all_alarms if cause not in acting]
        lines.append((f"`{case.id}`: {case.what}", str(len(runs)), ", ".join(acting), ", ".join(warned)))
    return "### Healthy runs\n\n" + markdown(("configuration", "runs", "acting alarms", "warnings"), lines)


def totals(rows: Sequence[FaultRow], healthy: Sequence[Record]) -> str:
    visible = [row for row in rows if not row.case.unseen]
    runs = sum(len(row.records) for row in visible)
    said = [row for row in rows if row.firsts]
    lines = [
        ("faults that a safeguard should see: runs found", f"{sum(row.found for row in visible)}/{runs}"),
        ("faults that none can see", str(len(rows) - len(visible))),
        ("right cause first", f"{sum(r.right_first for r in said)}/{sum(len(r.firsts) for r in said)}"),
        ("runs with an acting alarm before the onset", str(sum(row.false_acting for row in rows))),
        ("healthy runs", str(len(healthy))),
        ("healthy runs with an acting alarm", str(sum(bool(alarms_from(each, "act")) for each in healthy))),
        ("healthy runs with a warning", str(sum(bool(alarms_from(each, "warn")) for each in healthy))),
        ("healthy runs that crashed", str(sum(each["crash"] is not None for each in healthy))),
    ]
    return "### Totals\n\n" + markdown(("", "got"), lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])


if __name__ == "__main__":
    main()
