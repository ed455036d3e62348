"""Prints the tables of the fault bench as Markdown.

python -m benchmarks.faults.report benchmarks/results/faults
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from .catalogue import FAULTS, Fault
from .configurations import CONFIGURATIONS
from .measures import (
    Detection,
    Interval,
    area,
    at_least,
    before_onset,
    collapse,
    detection,
    final_return,
    recovery,
    tenth_percentile,
    wilson,
)
from .records import SEVERITIES, Arm, Record, read_records

HARMFUL_IN = 0.8  # of the seeds
Runs = dict[tuple[Arm, str], dict[int, Record]]


class FaultRow(NamedTuple):
    """What the seeds of a fault say together."""

    fault: Fault
    seeds: int  # unguarded
    final: float | None  # mean over the seeds, unguarded
    healthy_final: float | None
    low: float | None  # healthy tenth percentile
    harmed: int
    guarded: list[Record]
    detections: list[Detection | None]  # at WARN, or INFO where that is enough
    acting: list[Detection | None]
    leads: list[int]  # environment steps
    recoveries: list[float]
    crashed: int  # unguarded
    false_acting: int  # runs with an acting alarm before the onset
    false_any: int  # runs with an alarm at WARN or above before the onset

    @property
    def is_harmful(self) -> bool:
        """Whether it does harm in enough seeds."""
        return self.seeds > 0 and self.harmed >= HARMFUL_IN * self.seeds

    @property
    def right_first(self) -> int:
        """Detected runs in which the first cause is a right one."""
        return sum(found is not None and found.first_cause in self.fault.causes for found in self.detections)

    @property
    def right_among_three(self) -> int:
        """Detected runs in which a right cause is among the first three."""
        return sum(found is not None and bool(self.fault.causes & set(found.causes[:3])) for found in self.detections)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmarks/results/faults"))
    print(report(list(read_records(parser.parse_args().folder))))


def report(records: Sequence[Record]) -> str:
    """All tables."""
    runs: Runs = defaultdict(dict)
    for record in records:
        runs[record["arm"], record["name"]][record["seed"]] = record
    rows = [
        fault_row(fault, runs)
        for fault in FAULTS.values()
        if runs["faulty", fault.id] or runs["faulty-guarded", fault.id]
    ]
    parts = [faults_table(rows), causes_table(rows), healthy_table(runs), totals(rows, runs)]
    return "\n\n".join(part for part in parts if part)


def fault_row(fault: Fault, runs: Runs) -> FaultRow:
    random_score = CONFIGURATIONS[fault.base].random_score
    unguarded, guarded = runs["faulty", fault.id], runs["faulty-guarded", fault.id]
    healthy = runs["healthy", fault.base]
    healthy_finals = [final_return(record, random_score) for record in healthy.values()]
    finals = [final_return(record, random_score) for record in unguarded.values()]
    crashed = [record["crash"] is not None for record in unguarded.values()]
    low = tenth_percentile(healthy_finals) if healthy_finals else None
    severity = "info" if fault.information_is_enough else "warn"
    detections = {seed: detection(record, fault, severity) for seed, record in guarded.items()}
    recoveries, leads = [], []
    for seed, record in unguarded.items():
        collapsed = collapse(record, list(healthy.values()), random_score) if healthy else None
        found = detections.get(seed)
        if collapsed is not None and found is not None:
            leads.append(collapsed - found.env_steps)
        if seed in guarded and seed in healthy:
            areas = [area(run[seed], fault.onset, random_score) for run in (guarded, unguarded, healthy)]
            saved = recovery(*areas)
            recoveries += [] if saved is None else [saved]
    return FaultRow(
        fault=fault,
        seeds=len(unguarded),
        final=fmean(finals) if finals else None,
        healthy_final=fmean(healthy_finals) if healthy_finals else None,
        low=low,
        harmed=0 if low is None else sum(final < low or crash for final, crash in zip(finals, crashed, strict=True)),
        guarded=list(guarded.values()),
        detections=list(detections.values()),
        acting=[detection(record, fault, "act") for record in guarded.values()],
        leads=leads,
        recoveries=recoveries,
        crashed=sum(crashed),
        false_acting=sum(bool(before_onset(record, fault, "act")) for record in guarded.values()),
        false_any=sum(bool(before_onset(record, fault, "warn")) for record in guarded.values()),
    )


def faults_table(rows: Sequence[FaultRow]) -> str:
    header = (
        "fault", "kind", "from", "return without (healthy)", "harmful", "found", "found, acting",
        "after updates", "after steps", "before the collapse", "right cause first", "recovered",
    )  # fmt: skip
    lines = []
    for row in rows:
        found = [each for each in row.detections if each is not None]
        lines.append(
            (
                f"`{row.fault.id}`: {row.fault.what}",
                row.fault.kind,
                f"{row.fault.onset:.0%}",
                f"{number(row.final)} ({number(row.healthy_final)})"
                + (f", {row.crashed} crashed" if row.crashed else ""),
                f"{'**yes**' if row.is_harmful else 'no'}, {row.harmed}/{row.seeds}",
                share(len(found), len(row.guarded)),
                share(sum(each is not None for each in row.acting), len(row.guarded)),
                middle([each.delay_updates for each in found]),
                middle([each.delay_env_steps for each in found]),
                middle(row.leads),
                share(row.right_first, len(found)),
                middle(row.recoveries, "{:.2f}"),
            )
        )
    return "### Faults\n\n" + markdown(header, lines) if lines else ""


def causes_table(rows: Sequence[FaultRow]) -> str:
    """What was named first, where it was not what was expected, and what was not found."""
    lines = []
    for row in rows:
        named = sorted({each.first_cause for each in row.detections if each is not None})
        missed = sum(each is None for each in row.detections)
        if missed or row.right_first < len(row.detections):
            among_three = share(row.right_among_three, len(row.detections) - missed)
            expected = ", ".join(sorted(row.fault.causes))
            lines.append((f"`{row.fault.id}`", ", ".join(named) or "nothing", str(missed), among_three, expected))
    header = ("fault", "named first", "not found", "right among the first three", "expected one of")
    return "### Not found, or found as something else\n\n" + markdown(header, lines) if lines else ""


def healthy_table(runs: Runs) -> str:
    lines = []
    for configuration in CONFIGURATIONS.values():
        name, random_score = configuration.name, configuration.random_score
        plain, guarded = runs["healthy", name], runs["healthy-guarded", name]
        if not plain and not guarded:
            continue
        by_severity = [
            sum(alarm["severity"] == severity for record in guarded.values() for alarm in record["alarms"])
            for severity in SEVERITIES
        ]
        both = sorted(plain.keys() & guarded.keys())
        kept = [returns_kept(guarded[seed], plain[seed], random_score) for seed in both]
        causes = sorted({alarm["cause"] for record in guarded.values() for alarm in at_least(record["alarms"], "warn")})
        finals = [final_return(record, random_score) for record in plain.values()]
        lines.append(
            (
                f"`{name}`: {configuration.trap}",
                f"{len(plain)} + {len(guarded)}",
                number(fmean(finals)) if finals else "",
                " / ".join(map(str, by_severity)),
                ", ".join(causes) or "none",
                middle(kept, "{:.1%}"),
            )
        )
    header = (
        "configuration", "runs without + with", "return without", "alarms: info / warn / act / fatal",
        "causes from warn on", "area with / without",
    )  # fmt: skip
    return "### Healthy runs\n\n" + markdown(header, lines) if lines else ""


def returns_kept(guarded: Record, plain: Record, random_score: float) -> float:
    """How much of the area above the random score is left; 1 where there was none to lose."""
    areas = [area(record, 0.0, random_score) - random_score for record in (guarded, plain)]
    scale = abs(random_score) + abs(areas[1])
    # Where an untrained agent is as good, the ratio of two small numbers would say nothing.
    return areas[0] / areas[1] if areas[1] > 0.01 * scale else 1.0


def totals(rows: Sequence[FaultRow], runs: Runs) -> str:
    exact = [row for row in rows if row.fault.kind in ("identity", "bound")]
    harmful = [row for row in rows if row.is_harmful]
    harmless = [row for row in rows if row.seeds and not row.is_harmful]
    no_identity = [row for row in harmless if row.fault.kind != "identity"]
    pairs = [
        (guarded, runs["healthy", name].get(seed), CONFIGURATIONS[name].random_score)
        for name in CONFIGURATIONS
        for seed, guarded in runs["healthy-guarded", name].items()
    ]
    healthy = [guarded for guarded, _, _ in pairs]
    kept = [returns_kept(guarded, plain, score) for guarded, plain, score in pairs if plain is not None]
    updates = sum(record["updates"] for record in healthy)
    late = [row for row in rows if row.fault.onset > 0.0]
    leads = [lead for row in rows for lead in row.leads]
    lines = [
        ("identities and bounds that were found, runs", "95 %", str(over(exact, _is_found))),
        ("harmful faults that were found, runs", "80 %", str(over(harmful, _is_found))),
        ("right cause first, of the runs that were found", "80 %", str(right_first(rows))),
        ("right cause first, of those, harmful faults only", "", str(right_first(harmful))),
        (
            "found before the collapse, of the runs that collapse",
            "",
            str(wilson(sum(x > 0 for x in leads), len(leads))),
        ),
        ("healthy runs with an acting alarm", "0", str(wilson(_alarmed(healthy, "act"), len(healthy)))),
        ("healthy runs with a warning", "", str(wilson(_alarmed(healthy, "warn"), len(healthy)))),
        ("acting alarms in 100,000 healthy updates", "", rate(healthy, "act", updates)),
        ("warnings in 100,000 healthy updates", "", rate(healthy, "warn", updates)),
        ("runs with an acting alarm before the onset", "0", str(_early(late, lambda row: row.false_acting))),
        ("runs with a warning before the onset", "", str(_early(late, lambda row: row.false_any))),
        ("harmless faults with an acting alarm, all kinds", "", str(over(harmless, _is_acted_upon))),
        ("harmless faults with an acting alarm, identities left out", "0", str(over(no_identity, _is_acted_upon))),
        ("area with / without, healthy runs: median", "98 %", f"{median(kept):.1%}" if kept else "none"),
        ("the same: least and largest", "", f"{min(kept):.1%}, {max(kept):.1%}" if kept else "none"),
        ("the same: runs below 98 %", "", str(wilson(sum(share < 0.98 for share in kept), len(kept)))),
        ("healthy runs that ended early or crashed", "0", str(wilson(sum(map(_ended, healthy)), len(healthy)))),
    ]
    return "### Totals\n\n" + markdown(("", "wanted", "got, with Wilson's 95 % interval"), lines)


def over(rows: Sequence[FaultRow], holds: Callable[[FaultRow], int]) -> Interval:
    return wilson(sum(map(holds, rows)), sum(len(row.guarded) for row in rows))


def right_first(rows: Sequence[FaultRow]) -> Interval:
    return wilson(sum(row.right_first for row in rows), sum(map(_is_found, rows)))


def _is_found(row: FaultRow) -> int:
    return sum(found is not None for found in row.detections)


def _is_acted_upon(row: FaultRow) -> int:
    return sum(found is not None for found in row.acting)


def _early(rows: Sequence[FaultRow], count: Callable[[FaultRow], int]) -> Interval:
    return wilson(sum(map(count, rows)), sum(len(row.guarded) for row in rows))


def _alarmed(records: Sequence[Record], severity: str) -> int:
    return sum(bool(at_least(record["alarms"], severity)) for record in records)


def _ended(record: Record) -> bool:
    return record["crash"] is not None or record["env_steps"] < record["budget"]


def rate(records: Sequence[Record], severity: str, updates: int) -> str:
    alarms = sum(alarm["severity"] == severity for record in records for alarm in record["alarms"])
    return f"{alarms / updates * 1e5:.2f} ({alarms} in {updates:,})" if updates else "none"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def share(hits: int, of: int) -> str:
    return f"{hits}/{of}" if of else ""


def middle(values: Sequence[float], form: str = "{:,.0f}") -> str:
    return form.format(median(values)) if values else ""


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
