"""What the runs of the bench say together, as Markdown."""

from collections.abc import Sequence

from .catalogue import FAULTS, HEALTHY, Case
from .experiment import Alarm, Record, alarms_from


def report(records: Sequence[Record]) -> str:
    """Two tables and the totals."""
    faults = [(case, [each for each in records if each["id"] == case.id]) for case in FAULTS]
    faults = [(case, runs) for case, runs in faults if runs]
    healthy = [(case, [each for each in records if each["id"] == case.id]) for case in HEALTHY]
    healthy = [(case, runs) for case, runs in healthy if runs]
    return "\n\n".join([_faults(faults), _healthy(healthy), _totals(faults, healthy)])


def found_in(case: Case, record: Record) -> Alarm | None:
    """The first alarm from a warning on with a right cause."""
    return next((alarm for alarm in alarms_from(record, "warn") if alarm["cause"] in case.causes), None)


def _faults(rows: Sequence[tuple[Case, list[Record]]]) -> str:
    lines = []
    for case, runs in rows:
        right = [alarm for each in runs if (alarm := found_in(case, each)) is not None]
        named = dict.fromkeys(alarm["cause"] for each in runs for alarm in alarms_from(each, "warn"))
        lines.append(
            (
                f"`{case.id}`: {case.what}",
                f"{len(right)}/{len(runs)}",
                ", ".join(sorted({alarm["safeguard"] for alarm in right})),
                ", ".join(str(alarm["updates"]) for alarm in right),
                ", ".join(named) or "none",
                "" if right else case.unseen,
            )
        )
    header = ("fault", "found", "by", "after updates", "causes in order", "why not")
    return "### Faults of an expert curriculum\n\n" + markdown(header, lines)


def _healthy(rows: Sequence[tuple[Case, list[Record]]]) -> str:
    lines = []
    for case, runs in rows:
        acting = dict.fromkeys(alarm["cause"] for each in runs for alarm in alarms_from(each, "act"))
        warned = dict.fromkeys(alarm["cause"] for each in runs for alarm in alarms_from(each, "warn"))
        rest = ", ".join(cause for cause in warned if cause not in acting)
        lines.append((f"`{case.id}`: {case.what}", str(len(runs)), ", ".join(acting), rest))
    return "### Healthy curricula\n\n" + markdown(("configuration", "runs", "acting alarms", "warnings"), lines)


def _totals(faults: Sequence[tuple[Case, list[Record]]], healthy: Sequence[tuple[Case, list[Record]]]) -> str:
    broken = [(case, each) for case, runs in faults for each in runs]
    sound = [each for _, runs in healthy for each in runs]
    lines = [
        ("runs with a fault: found", f"{sum(found_in(*pair) is not None for pair in broken)}/{len(broken)}"),
        ("healthy runs", str(len(sound))),
        ("healthy runs with an acting alarm", str(sum(bool(alarms_from(each, "act")) for each in sound))),
        ("healthy runs with a warning", str(sum(bool(alarms_from(each, "warn")) for each in sound))),
        ("runs that crashed", str(sum(each["crash"] is not None for each in [*sound, *(r for _, r in broken)]))),
    ]
    return "### Totals of the curricula\n\n" + markdown(("", "got"), lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *lines])
