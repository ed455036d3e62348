"""What the runs of the bench say together, as Markdown."""

from collections.abc import Sequence
from statistics import fmean, median
from typing import NamedTuple

from .case import Bench, Case
from .experiment import Alarm, Record, alarms_from


class FaultRow(NamedTuple):
    """What the runs of a fault say together."""

    case: Case
    records: list[Record]
    firsts: list[Alarm]  # of each run that said anything: the first alarm of severity WARN or above
    right: list[Alarm]  # of each run that said so: the first alarm with a right cause
    delays: list[int]  # updates from the onset to those
    false_acting: int  # runs with an alarm of severity ACT or above before the onset


def report(bench: Bench, records: Sequence[Record]) -> str:
    """Three tables."""
    rows = [fault_row(case, [record for record in records if record["id"] == case.id]) for case in bench.faults]
    rows = [row for row in rows if row.records]
    ids = {case.id for case in bench.healthy}
    healthy = [each for each in records if each["id"] in ids]
    return "\n\n".join([faults_table(bench, rows), healthy_table(bench, healthy), totals(bench, rows, healthy)])


def fault_row(case: Case, records: Sequence[Record]) -> FaultRow:
    firsts, right, delays, early = [], [], [], 0
    for record in records:
        alarms = alarms_from(record, "warn")
        firsts += alarms[:1]
        found = [alarm for alarm in alarms if alarm["cause"] in case.causes][:1]
        right += found
        delays += [alarm["updates"] - record["onset_updates"] for alarm in found]
        early += any(a["iteration"] < record["onset"] and a["severity"] in ("act", "fatal") for a in record["alarms"])
    return FaultRow(case, list(records), firsts, right, delays, early)


def faults_table(bench: Bench, rows: Sequence[FaultRow]) -> str:
    lines = []
    for row in rows:
        acting = sum(any(a["cause"] in row.case.causes for a in alarms_from(each, "act")) for each in row.records)
        right_first = sum(alarm["cause"] in row.case.causes for alarm in row.firsts)
        named = dict.fromkeys(alarm["cause"] for each in row.records for alarm in alarms_from(each, "warn"))
        lines.append(
            (
                f"`{row.case.id}`: {row.case.what}",
                f"{len(row.right)}/{len(row.records)}",
                f"{acting}/{len(row.records)}",
                ", ".join(sorted({alarm["safeguard"] for alarm in row.right})),
                f"{median(row.delays):.0f}" if row.delays else "",
                f"{right_first}/{len(row.firsts)}" if row.firsts else "",
                ", ".join(named) or "none",
                "" if row.right else row.case.unseen,
            )
        )
    header = ("fault", "found", "acting", "by", "after updates", "right cause first", "causes in order", "why not")
    return f"### Faults of {bench.name}\n\n" + markdown(header, lines)


def healthy_table(bench: Bench, records: Sequence[Record]) -> str:
    lines = []
    for case in bench.healthy:
        runs = [record for record in records if record["id"] == case.id]
        if not runs:
            continue
        acting, all_alarms = (
            sorted({alarm["cause"] for record in runs for alarm in alarms_from(record, severity)})
            for severity in ("act", "warn")
        )
        warned = [cause for cause in all_alarms if cause not in acting]
        returns = [record["mean_reward"] for record in runs if record["mean_reward"] is not None]
        mean_reward = f"{fmean(returns):.4g}" if returns else ""
        lines.append((f"`{case.id}`: {case.what}", str(len(runs)), mean_reward, ", ".join(acting), ", ".join(warned)))
    header = ("configuration", "runs", "last return", "acting alarms", "warnings")
    return f"### Healthy runs of {bench.name}\n\n" + markdown(header, lines)


def totals(bench: Bench, rows: Sequence[FaultRow], healthy: Sequence[Record]) -> str:
    said = [row for row in rows if row.firsts]
    right_first = sum(alarm["cause"] in row.case.causes for row in said for alarm in row.firsts)
    runs = [*healthy, *(record for row in rows for record in row.records)]
    lines = [
        ("runs with a fault: found", f"{sum(len(r.right) for r in rows)}/{sum(len(r.records) for r in rows)}"),
        ("faults found in no run", f"{sum(not row.right for row in rows)} of {len(rows)}"),
        ("right cause first", f"{right_first}/{sum(len(row.firsts) for row in said)}"),
        ("runs with an acting alarm before the onset", str(sum(row.false_acting for row in rows))),
        ("healthy runs", str(len(healthy))),
        ("healthy updates", f"{sum(each['updates'] for each in healthy):,}"),
        ("healthy runs with an acting alarm", str(sum(bool(alarms_from(each, "act")) for each in healthy))),
        ("healthy runs with a warning", str(sum(bool(alarms_from(each, "warn")) for each in healthy))),
        ("runs that crashed", str(sum(each["crash"] is not None for each in runs))),
    ]
    return f"### Totals of {bench.name}\n\n" + markdown(("", "got"), lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])
