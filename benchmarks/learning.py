"""How well an agent learns, seed by seed: trains each, scores the final weights, and prints a table.

    python benchmarks/learning.py --config dqn_cartpole --seeds 0-9 --out benchmarks/results/shipped
    python benchmarks/learning.py --config dqn_cartpole --seeds 100-104 --out ... --override model.init_args.tau=0.5
    python benchmarks/learning.py --zoo-settings --seeds 0-9 --out benchmarks/results/zoo
    python benchmarks/learning.py --peer sb3-zoo --seeds 0-9 --out benchmarks/results/sb3

Each seed is a process of its own with one torch thread, and leaves one JSON file. The same command goes on where it
stopped: seeds that have their file are skipped; files of other settings are an error.

The score is the last evaluation over 100 episodes: the final weights, greedy, on fresh environment seeds. Time to solve
is the wall time of training before the first of three evaluations in a row at the threshold; the time that evaluations
take is left out for all contenders alike, that of curves and checkpoints is not. Seeds that never get there are
censored, and count as infinite in the median. All contenders are evaluated by the same code, on the same number of
episodes, after the same environment steps.

Seeds 0 to 9 are for reporting; settings are tuned with seeds from 100 up.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

from scores import read_result, read_results, table

TRAIN = [sys.executable, str(Path(__file__).with_name("contenders.py"))]
ZOO_SETTINGS = [
    "trainer.accelerator=cpu",
    "trainer.log_every_n_steps=4",
    "model=rlmods.algorithms.DQN",
    "model.init_args.hidden_sizes=[256, 256]",
    "model.init_args.learning_rate=2.3e-3",
    "model.init_args.loss=huber",
    "model.init_args.double_q=false",
    "model.init_args.dueling=false",
    "model.init_args.tau=1.0",
    "model.init_args.target_update_interval=128",  # the peer's 10 frames: once between two blocks of updates
    "model.init_args.exploration_initial_eps=1.0",
    "model.init_args.exploration_final_eps=0.04",
    "model.init_args.exploration_fraction=0.16",
    "model.init_args.max_grad_norm=10.0",
    "data=rlmods.data.ReplayDataModule",
    "data.init_args.env_id=CartPole-v1",
    "data.init_args.total_env_steps=50000",
    "data.init_args.num_envs=1",
    "data.init_args.gamma=0.99",
    "data.init_args.n_steps=1",
    "data.init_args.buffer_size=100000",
    "data.init_args.batch_size=64",
    "data.init_args.learning_starts=1000",
    "data.init_args.steps_per_iteration=256",
    "data.init_args.updates_per_iteration=128",
    "data.init_args.prioritized_replay=false",
]


class Task(NamedTuple):
    """One seed to train."""

    job: dict[str, Any]
    seed: int
    folder: Path

    @property
    def out(self) -> Path:
        """The file of the result."""
        return self.folder / f"seed_{self.seed}.json"


class SettingsDifferError(Exception):
    """A folder holds results of other settings."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    contender = parser.add_mutually_exclusive_group(required=True)
    contender.add_argument("--config", help="a file, or the name of a shipped configuration")
    contender.add_argument("--zoo-settings", action="store_true", help="rlmods with the settings of sb3-zoo")
    contender.add_argument("--peer", choices=["sb3-zoo", "sb3-zoo-ppo"])
    parser.add_argument(
        "--override", nargs="*", default=[], metavar="KEY=VALUE", help="dotted keys of the configuration"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    add_protocol(parser)
    arguments = parser.parse_args()
    if arguments.peer and arguments.override:
        parser.error("--override is for rlmods; the peer has the settings of the zoo")
    job = make_job(arguments, config=arguments.config, zoo=arguments.zoo_settings, peer=arguments.peer)
    try:
        run([Task(job, seed, arguments.out) for seed in arguments.seeds], jobs=arguments.jobs)
    except SettingsDifferError as error:
        parser.error(str(error))
    print(table(read_results(arguments.out), arguments.threshold))


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """What every contender shares."""
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-9"), help="0-9, or 100,101,105-107")
    parser.add_argument("--jobs", type=int, choices=[1, 2], default=1, help="runs side by side, one thread each")
    parser.add_argument("--eval-every", type=int, default=1_024, help="environment steps between evaluations")
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--score-episodes", type=int, default=100)
    parser.add_argument("--threshold", type=float, default=475.0)


def make_job(
    protocol: argparse.Namespace, *, config: str | None = None, zoo: bool = False, peer: str | None = None
) -> dict[str, Any]:
    """What is trained, and how it is evaluated."""
    return {
        "contender": peer or "rlmods",
        "config": config,
        "overrides": (ZOO_SETTINGS if zoo else []) + getattr(protocol, "override", []),
        "eval_every": protocol.eval_every,
        "eval_episodes": protocol.eval_episodes,
        "score_episodes": protocol.score_episodes,
        "threshold": protocol.threshold,
    }


def parse_seeds(text: str) -> list[int]:
    """`0-9` or `100,101,105-107`."""
    ranges = (part.partition("-") for part in text.split(","))
    return [seed for first, _, last in ranges for seed in range(int(first), int(last or first) + 1)]


def run(tasks: Sequence[Task], *, jobs: int, train: Sequence[str] = TRAIN) -> None:
    """Train what has no result yet, in the given order.

    Args:
        tasks: of one or several folders.
        jobs: how many side by side.
        train: the command that takes a job and a file to write.

    Raises:
        SettingsDifferError: where a result is there already, of other settings. Nothing was trained then.
        subprocess.CalledProcessError: where a run failed; those that had begun are finished.
    """
    missing = [task for task in tasks if not is_done(task)]
    for task in missing:
        task.folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train_one, task, train) for task in missing]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def is_done(task: Task) -> bool:
    """Whether the result is there."""
    if not task.out.exists():
        return False
    before = read_result(task.out)["settings"]
    if before != task.job:
        keys = sorted(key for key in before | task.job if before.get(key) != task.job.get(key))
        raise SettingsDifferError(
            f"{task.out} was made with other settings ({', '.join(keys)}): choose another --out, or remove the folder"
        )
    return True


def train_one(task: Task, train: Sequence[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = task.out.with_suffix(".log")
    with log.open("w") as output:
        command = [*train, json.dumps(task.job), str(task.out)]
        try:
            subprocess.run(command, stdout=output, stderr=output, env=environment, check=True)
        except subprocess.CalledProcessError:
            print(f"{task.out.stem} failed; what it printed is in {log}", file=sys.stderr)
            raise
    score = cast(dict[str, float], read_result(task.out)["score"])
    print(f"{task.folder.name} {task.out.stem}: {score['mean']:.1f}", flush=True)


if __name__ == "__main__":
    main()
