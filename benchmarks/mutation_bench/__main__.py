"""Runs a bench and prints its tables as Markdown.

    python -m benchmarks.mutation_bench ppo                 # what is missing, a line a run; then the tables
    python -m benchmarks.mutation_bench ppo --cases cartpole,pendulum
    python -m benchmarks.mutation_bench ppo --table         # the tables of the stored runs
    python -m benchmarks.mutation_bench ppo --smoke         # a few short runs, for every change

td3 (with SAC), ppo, expert (DQN with an expert's curriculum), dreamer (DreamerV3). Safeguards are tuned with seeds from
100 up.
"""

import argparse
import json
import sys
from pathlib import Path

from . import dreamer_catalogue, expert_catalogue, ppo_catalogue, td3_catalogue
from .case import Bench
from .experiment import Record, run
from .report import report
from .smoke import smoke

BENCHES = {
    "td3": td3_catalogue.BENCH,
    "ppo": ppo_catalogue.BENCH,
    "expert": expert_catalogue.BENCH,
    "dreamer": dreamer_catalogue.BENCH,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", choices=BENCHES)
    parser.add_argument("--out", type=Path, help="folder; benchmarks/results/<bench>_faults where it is not given")
    parser.add_argument("--seeds", help="with commas; those that are reported where they are not given")
    parser.add_argument("--cases", default="", help="ids with commas; all of them where it is not given")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--smoke", action="store_true", help="fail where a fault is not found or a healthy run alarms")
    arguments = parser.parse_args()
    bench = BENCHES[arguments.bench]
    if arguments.smoke:
        return smoke(bench)
    folder: Path = arguments.out or Path(f"benchmarks/results/{arguments.bench}_faults")
    path = folder / "runs.jsonl"
    if not arguments.table:
        seeds = [int(seed) for seed in arguments.seeds.split(",")] if arguments.seeds else list(bench.seeds)
        run_missing(bench, path, seeds, arguments.cases)
    print(report(bench, stored(path)))
    return 0


def run_missing(bench: Bench, path: Path, seeds: list[int], ids: str) -> None:
    """Add a line for each run that the file does not have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    have = {(record["id"], record["seed"]) for record in stored(path)}
    wanted = ids.split(",") if ids else list(bench.cases)
    for seed in seeds:
        for name in wanted:
            if (name, seed) in have:
                continue
            record = run(bench, bench.cases[name], seed)
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
