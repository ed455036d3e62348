"""Runs the bench and prints its tables as Markdown.

    python -m benchmarks.expert_faults                 # what is missing, a line a run; then the tables
    python -m benchmarks.expert_faults --cases curriculum,rate-replaced # some cases
    python -m benchmarks.expert_faults --table         # the tables of the stored runs
    python -m benchmarks.expert_faults --smoke         # a few short runs, for every change

Seed 0 is for reporting; safeguards are tuned with seeds from 100 up.
"""

import argparse
import json
import sys
from pathlib import Path

from .catalogue import FAULTS, HEALTHY
from .experiment import Record, run
from .report import report
from .smoke import smoke


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/expert_faults"), help="folder")
    parser.add_argument("--seeds", default="0", help="with commas")
    parser.add_argument("--cases", default="", help="ids with commas; all of them where it is not given")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="fail where a fault is not found or a healthy run alarms")
    arguments = parser.parse_args()
    if arguments.smoke:
        return smoke()
    path: Path = arguments.out / "runs.jsonl"
    if not arguments.table:
        run_missing(path, [int(seed) for seed in arguments.seeds.split(",")], arguments.cases)
    print(report(stored(path)))
    return 0


def run_missing(path: Path, seeds: list[int], ids: str) -> None:
    """Add a line for each run that the file does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    have = {(record["id"], record["seed"]) for record in stored(path)}
    wanted = ids.split(",") if ids else [case.id for case in [*FAULTS, *HEALTHY]]
    cases = {case.id: case for case in [*FAULTS, *HEALTHY]}
    for seed in seeds:
        for name in wanted:
            if (name, seed) in have:
                continue
            record = run(cases[name], seed)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            said = [f"{alarm['cause']} ({alarm['severity']}, {alarm['updates']})" for alarm in record["alarms"]]
            print(f"{name} {seed}: {record['crash'] or ', '.join(said) or 'silent'}", file=sys.stderr, flush=True)


def stored(path: Path) -> list[Record]:
    """The runs of a file, of a case and a seed the last; none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    records: list[Record] = [json.loads(line) for line in lines]
    return list({(record["id"], record["seed"]): record for record in records}.values())


if __name__ == "__main__":
    sys.exit(main())
