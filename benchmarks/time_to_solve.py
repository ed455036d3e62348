"""Time to solve CartPole-v1: rlmods as shipped, with the zoo's settings, and Stable-Baselines3 with the zoo's settings.

`python benchmarks/time_to_solve.py --seeds 0-9 --out benchmarks/results` trains what is missing, the contenders in turn
within each seed, into three folders, and prints their tables and the ratios of the median times; with `--algorithm ppo`
the two of PPO, of which the shipped configuration has the zoo's settings. With `--print-only` it trains nothing.
Whatever is said in `learning.py` of the score, of the clock and of censored seeds holds here.
"""

import argparse
import math
from pathlib import Path
from typing import Any

from learning import SettingsDifferError, Task, add_protocol, make_job, run
from scores import read_results, seconds, summarise, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the three folders")
    parser.add_argument("--algorithm", choices=["dqn", "ppo"], default="dqn")
    parser.add_argument("--print-only", action="store_true")
    add_protocol(parser)
    arguments = parser.parse_args()
    jobs = contenders(arguments)
    tasks = [Task(job, seed, arguments.out / name) for seed in arguments.seeds for name, job in jobs.items()]
    try:
        if not arguments.print_only:
            run(tasks, jobs=arguments.jobs)
    except SettingsDifferError as error:
        parser.error(str(error))
    print(comparison([arguments.out / name for name in jobs], arguments.threshold))


def contenders(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is trained, by its folder; the peer comes last."""
    if arguments.algorithm == "ppo":
        return {
            "ppo-cartpole": make_job(arguments, config="ppo_cartpole"),
            "ppo-cartpole-sb3-zoo": make_job(arguments, peer="sb3-zoo-ppo"),
        }
    return {
        "cartpole-shipped": make_job(arguments, config="dqn_cartpole"),
        "cartpole-zoo": make_job(arguments, zoo=True),
        "cartpole-sb3-zoo": make_job(arguments, peer="sb3-zoo"),
    }


def comparison(folders: list[Path], threshold: float) -> str:
    """The tables, and how much longer the peer, the last, takes."""
    results = {folder.name: found for folder in folders if (found := read_results(folder))}
    parts = [f"{name}\n{table(found, threshold)}" for name, found in results.items()]
    times = {name: summarise(found, threshold).median_time_to_solve for name, found in results.items()}
    peer_name = folders[-1].name
    peer = times.pop(peer_name, math.inf)
    for name, time in times.items():
        known = math.isfinite(peer) and math.isfinite(time)
        ratio = f"{peer / time:.1f} times" if known else "no ratio: a median is unknown"
        parts.append(f"{name}: median {seconds(time)} s, {peer_name}: {seconds(peer)} s, {ratio}")
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
