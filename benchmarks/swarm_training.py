"""Agent-steps per second of PPO on the drone swarm, environment included: drones, threads, workers, level, memory.

`python benchmarks/swarm_training.py` trains each row from the command line, as a user would, in a process of its own
and in turn, with one epoch and 64×64 networks, and prints the median over the repeats, the lowest and the highest, of
the training without evaluation (`time.training_fps` of `summary.json`).

`--solve` trains the shipped configuration with seeds 0 to 4 instead, and prints for each the first evaluation of 200
episodes with a success rate of at least 0.9 whose interval begins above 0.85, the last one, and the wall time of the
whole run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from replay import versions


class Row(NamedTuple):
    """A training."""

    name: str
    threads: int
    model: dict[str, Any]
    data: dict[str, Any]
    frames: int = 3_000_000


MANY = {"num_envs": 4096}
MANY_BATCH = {"batch_size": 32_768}
WORKER = {"vectorization": "workers", "num_workers": 1, "double_buffering": True}
LSTM = MANY_BATCH | {"lstm_hidden_size": 64, "bptt_horizon": 16}
ROWS = [
    Row("1,024 drones, as shipped", 1, {}, {}),
    Row("4,096 drones", 1, MANY_BATCH, MANY),
    Row("4,096 drones", 2, MANY_BATCH, MANY),
    Row("4,096 drones, 1 worker + double", 2, MANY_BATCH, MANY | WORKER),
    Row("4,096 drones, level 1", 2, MANY_BATCH, MANY | {"env_kwargs.level": 1}),
    Row("4,096 drones, LSTM of 64", 2, LSTM, MANY, 1_000_000),
    Row("4,096 drones, level 1, LSTM of 64", 2, LSTM, MANY | {"env_kwargs.level": 1}, 1_000_000),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--solve", action="store_true")
    arguments = parser.parse_args()
    if arguments.solve:
        solve()
        return
    rates: list[list[float]] = [[] for _ in ROWS]
    for seed in range(100, 100 + arguments.repeats):
        for row, of_row in zip(ROWS, rates, strict=True):
            of_row.append(float(train(row, seed)["time"]["training_fps"]))
    print(f"{versions()}, load average {os.getloadavg()[0]:.1f}")
    for row, of_row in zip(ROWS, rates, strict=True):
        spread = f"{median(of_row):9,.0f}  ({min(of_row):,.0f} to {max(of_row):,.0f})"
        print(f"{row.name:36s} {row.threads} threads  {spread}", flush=True)


def solve() -> None:
    """A line for each seed."""
    for seed in range(5):
        summary = train(ROWS[0], seed, eval_every=100_000)
        evaluations = summary["evaluation"]["all"]
        rates = ((one, one["success_rate"]) for one in evaluations)
        solved = next((one for one, rate in rates if rate["rate"] >= 0.9 and rate["low"] > 0.85), None)
        first = "never solved" if solved is None else f"solved {describe(solved)}"
        seconds = summary["time"]["wall_seconds"]
        print(f"seed {seed}: {first}; at the end {describe(evaluations[-1])}; {seconds:.0f} s in all", flush=True)


def describe(evaluation: dict[str, Any]) -> str:
    """Its success rate with Wilson's 95 % interval, and when."""
    rate = evaluation["success_rate"]
    return f"{rate['rate']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] at {evaluation['env_steps']:,} steps"


def train(row: Row, seed: int, *, eval_every: int | None = None) -> dict[str, Any]:
    """The summary of a run; without a rhythm it is evaluated at its end alone."""
    settings = {f"model.init_args.{name}": value for name, value in row.model.items()}
    settings |= {f"data.init_args.{name}": value for name, value in row.data.items()}
    with tempfile.TemporaryDirectory() as folder:
        settings |= {
            "data.init_args.total_env_steps": row.frames,
            "data.init_args.eval_every": eval_every or 10 * row.frames,
            "trainer.default_root_dir": folder,
            "trainer.enable_progress_bar": "false",
            "torch_threads": row.threads,
            "seed_everything": seed,
        }
        command = [sys.executable, "-m", "rlmods", "fit", "--config", "ppo_drone_swarm"]
        for name, value in settings.items():
            command += [f"--{name}", str(value)]
        subprocess.run(command, check=True, capture_output=True)
        (file,) = Path(folder).glob("lightning_logs/*/summary.json")
        summary: dict[str, Any] = json.loads(file.read_text())
        return summary


if __name__ == "__main__":
    main()
