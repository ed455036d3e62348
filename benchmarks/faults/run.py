"""Runs the fault bench: each fault and each healthy configuration, with and without the safeguards.

    python -m benchmarks.faults.run --seeds 0-2 --jobs 2 --out benchmarks/results/faults
    python -m benchmarks.faults.run --seeds 100,101 --faults X07-terminals-in-target,X24-averaged-twice --out ...
    python -m benchmarks.faults.run --smoke

Each run is a `Trainer.fit` with one torch thread, and leaves one JSON file. The same command goes on where it stopped;
files of other settings are an error. The healthy runs of a configuration are shared by all faults that are laid over
it. `python -m benchmarks.faults.report FOLDER` makes the tables.

Seeds 0 to 9 are for reporting; safeguards are tuned with seeds from 100 up.
"""

import argparse
import multiprocessing
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

from .catalogue import FAULTS
from .configurations import CONFIGURATIONS
from .experiment import Task, run
from .records import ARMS, Arm, Record, path_of, read_record, write_record
from .smoke import smoke


class SettingsDifferError(Exception):
    """A folder holds runs of other settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-2"), help="0-2, or 100,101,105-107")
    parser.add_argument(
        "--faults", default="all", help="all, or ids with commas; with ids only their bases run healthy"
    )
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--jobs", type=int, choices=[1, 2], default=1, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/faults"), help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="a few short runs, an exit status, no files")
    arguments = parser.parse_args()
    if arguments.smoke:
        sys.exit(smoke())
    chosen = list(FAULTS) if arguments.faults == "all" else arguments.faults.split(",")
    unknown = sorted(set(chosen) - set(FAULTS))
    if unknown:
        parser.error(f"got --faults {','.join(unknown)}, expected of: {', '.join(FAULTS)}")
    tasks = list(plan(chosen, arguments.arms, arguments.seeds))
    try:
        run_missing(tasks, arguments.out, jobs=arguments.jobs)
    except SettingsDifferError as error:
        parser.error(str(error))


def parse_seeds(text: str) -> list[int]:
    """`0-9` or `100,101,105-107`."""
    ranges = (part.partition("-") for part in text.split(","))
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


def plan(faults: Sequence[str], arms: Iterable[Arm], seeds: Iterable[int]) -> Iterator[Task]:
    """The runs, seed by seed, so that a part of them is a table already."""
    bases = {FAULTS[fault].base for fault in faults}
    configurations = list(CONFIGURATIONS) if len(faults) == len(FAULTS) else sorted(bases)
    for seed in seeds:
        for arm in arms:
            names = configurations if arm.startswith("healthy") else faults
            yield from (Task(arm, name, seed) for name in names)


def run_missing(tasks: Iterable[Task], folder: Path, *, jobs: int) -> None:
    """Run what has no record yet.

    Raises:
        SettingsDifferError: where a record is there already, of other settings. Nothing was run then.
    """
    missing = [task for task in tasks if not is_done(task, folder)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context) as pool:
        futures = {pool.submit(run, task): task for task in missing}
        for number, future in enumerate(as_completed(futures), start=1):
            task, record = futures[future], future.result()
            write_record(path_of(folder, task.arm, task.name, task.seed), record)
            print(f"{number}/{len(missing)} {line(record)}", flush=True)


def is_done(task: Task, folder: Path) -> bool:
    """Whether the record is there."""
    path = path_of(folder, task.arm, task.name, task.seed)
    if not path.exists():
        return False
    before = read_record(path)["settings"]
    if before != task.settings():
        raise SettingsDifferError(f"{path} was made with other settings: choose another --out, or remove the folder")
    return True


def line(record: Record) -> str:
    """A run in a line."""
    last = [point["mean"] for point in record["evaluations"][-3:]]
    score = f"{sum(last) / len(last):.1f}" if last else "none"
    alarms = ", ".join(f"{alarm['cause']} ({alarm['severity']}) @{alarm['env_steps']}" for alarm in record["alarms"])
    crash = "" if record["crash"] is None else f"; crashed: {record['crash']['type']}"
    return (
        f"{record['arm']} {record['name']} seed {record['seed']}: {score} in {record['wall_seconds']:.0f} s"
        f"{crash}; {alarms or 'no alarm'}"
    )


if __name__ == "__main__":
    main()
