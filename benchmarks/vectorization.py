"""Frames per second of collecting rollouts: one process, gymnasium's processes, and workers with shared memory.

`python benchmarks/vectorization.py` collects rollouts with the networks of PPO, the contenders taking turns of a
rollout each on one torch thread, and prints for each the median over the repeats, the lowest and the highest, in frames
per second, and the share of the time in which the policy and the environments were waited for. Nothing is learned and
nothing evaluated. Evaluation, learning and Lightning come on top in a training: `time/fps` tells.

    cartpole  8 environments, in numpy at once where they are in one process: nothing to gain
    slow      8 environments, each step of which takes a millisecond of CPU
    swarm     2,048 drones in swarms of 8, all in one numpy step

"auto" is one process, "async" gymnasium's AsyncVectorEnv (a process each, shared memory), "W workers" ours, "+ double"
with the policy on one half while the other half steps.
"""

import argparse
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch

from rlmods.algorithms import PPO
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.data.rollout_parts import AnyEnvironments
from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.worker_envs import WorkerEnvironments

CPU = torch.device("cpu")


class Task(NamedTuple):
    """What is stepped."""

    env_id: str
    num_envs: int
    n_steps: int
    env_kwargs: dict[str, Any]
    asynchronous: bool  # whether a process each is possible


TASKS = {
    "cartpole": Task("CartPole-v1", 8, 256, {}, True),
    "slow": Task("slow_environment:Slow-v0", 8, 32, {"milliseconds": 1.0}, True),
    "swarm": Task("rlmods/DroneSwarm-v0", 2_048, 16, {"num_agents": 8}, False),
}


class Contender(NamedTuple):
    """One way to step, and what it has done."""

    collector: RolloutCollector
    rates: list[float]
    waits: list[tuple[float, float]]  # shares of policy and environments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--num_workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    for name in options.tasks:
        measure(name, TASKS[name], options.num_workers, options.repeats)


def measure(name: str, task: Task, num_workers: int, repeats: int) -> None:
    """Print a table."""
    print(f"\n{name}: {task.num_envs} x {task.n_steps} frames a rollout, load average {os.getloadavg()[0]:.1f}")
    torch.manual_seed(0)
    policy = PPO(env_spec(task.env_id, task.env_kwargs, num_envs=task.num_envs))
    with contenders(task, num_workers) as made:
        for repeat in range(repeats + 1):
            for contender in made.values():
                take_turn(contender, policy, task, counts=repeat > 0)
        for title, (_, rates, waits) in made.items():
            shares = " / ".join(f"{100 * median(column):3.0f} %" for column in zip(*waits, strict=True))
            print(f"  {title:22} {median(rates):10,.0f}  ({min(rates):,.0f} to {max(rates):,.0f})  {shares}")


def take_turn(contender: Contender, policy: PPO, task: Task, *, counts: bool) -> None:
    """Collect one rollout; the first warms up."""
    before, began = contender.collector.env_steps, perf_counter()
    contender.collector.collect(policy, task.n_steps, num_processes=1, device=CPU)
    seconds = perf_counter() - began
    if counts:
        contender.rates.append((contender.collector.env_steps - before) / seconds)
        spent = contender.collector.seconds
        contender.waits.append((spent.policy / seconds, spent.environments / seconds))


@contextmanager
def contenders(task: Task, num_workers: int) -> Iterator[dict[str, Contender]]:
    """All of them, with their processes, which are ended afterwards."""
    made: dict[str, AnyEnvironments] = {"auto": one_process(task, "auto")}
    try:
        if task.asynchronous:
            made["async"] = one_process(task, "async")
        for workers in dict.fromkeys((1, num_workers)):
            made[f"{workers} workers"] = shared_out(task, workers, double_buffering=False)
            made[f"{workers} workers + double"] = shared_out(task, workers, double_buffering=True)
        yield {
            title: Contender(RolloutCollector(environments, gamma=0.99, seed=0), [], [])
            for title, environments in made.items()
        }
    finally:
        for environments in made.values():
            with suppress(BrokenPipeError):
                environments.close()


def one_process(task: Task, vectorization: Any) -> AnyEnvironments:
    """Environments that this process steps."""
    return make_envs(task.env_id, task.num_envs, env_kwargs=task.env_kwargs, vectorization=vectorization)


def shared_out(task: Task, num_workers: int, *, double_buffering: bool) -> AnyEnvironments:
    """Environments in workers."""
    make = partial(make_envs, task.env_id, env_kwargs=task.env_kwargs, reward_dtype=np.float32, borrow=True)
    spec = env_spec(task.env_id, task.env_kwargs, num_envs=task.num_envs)
    return WorkerEnvironments(make, spec, task.num_envs, num_workers, double_buffering=double_buffering)


if __name__ == "__main__":
    main()
