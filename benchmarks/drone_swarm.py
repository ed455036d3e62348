"""Speed of the drone swarm, and what a pilot and chance get in its tasks.

`python benchmarks/drone_swarm.py` prints agent-steps per second of the environment alone, in one thread, with random
actions that were drawn before: the median over the repeats, the best in brackets. Ends of episodes and new ones are
part of it. `--rates` plays the first episode of each of 2,048 drones instead, per task, with a pilot who knows the
state (`rlmods.envs.drone_pilot`), with uniformly random actions, and with none.
"""

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from replay import versions

from rlmods.envs.drone_observations import Layout
from rlmods.envs.drone_pilot import fly
from rlmods.envs.drone_swarm import DroneSwarm, Level
from rlmods.envs.drone_tasks import Task
from rlmods.functional.proportions import rate_metrics

LEVELS: tuple[Level, ...] = (0, 1)
LAYOUTS: tuple[Layout, ...] = ("full", "lite")
TIME_LIMITS: dict[Task, int] = {"waypoint": 200, "hover": 200, "pick_and_place": 300}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=200_000, help="agent-steps of a repeat")
    parser.add_argument("--drones", type=int, nargs="*", default=[256, 2048, 8192])
    parser.add_argument("--rates", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(versions())
    if arguments.rates:
        rates()
        return
    for level in LEVELS:
        for observation in LAYOUTS:
            for drones in arguments.drones:
                env = DroneSwarm(drones, level=level, observation=observation)
                speeds = measure(env, arguments.repeats, arguments.steps)
                figures = f"{median(speeds):.2f} ({max(speeds):.2f})"
                print(f"level {level}, {observation}, {drones:5d} drones: {figures} million a second", flush=True)


def measure(env: DroneSwarm, repeats: int, steps: int) -> list[float]:
    """Million agent-steps a second of each repeat."""
    generator = np.random.default_rng(0)
    actions = [generator.uniform(-1, 1, env.action_space.shape).astype(np.float32) for _ in range(8)]
    env.reset(seed=0)
    vector_steps = max(10, steps // env.num_envs)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        for step in range(vector_steps):
            env.step(actions[step % len(actions)])
        seconds.append(perf_counter() - start)
    return [vector_steps * env.num_envs / each / 1e6 for each in seconds]


def rates() -> None:
    for level in LEVELS:
        for task, limit in TIME_LIMITS.items():
            for policy in ("pilot", "chance", "none"):
                env = DroneSwarm(2048, limit, level=level, task=task)
                print(f"level {level}, {task}, {policy}: {first_episodes(env, policy)}", flush=True)


def choose(env: DroneSwarm, policy: str, generator: np.random.Generator) -> npt.NDArray[Any]:
    if policy == "pilot":
        return fly(env)
    size = (env.num_envs, env.dynamics.action_size)
    return generator.uniform(-1, 1, size) if policy == "chance" else np.zeros(size)


def first_episodes(env: DroneSwarm, policy: str) -> str:
    """Return, length and the rates of events with their intervals, over the first episode of each drone."""
    env.reset(seed=1)
    generator = np.random.default_rng(0)
    playing = np.ones(env.num_envs, np.bool_)
    returns, lengths = np.zeros(env.num_envs), np.zeros(env.num_envs)
    events: dict[str, npt.NDArray[Any]] = {}
    while playing.any():
        _, reward, terminated, truncated, infos = env.step(choose(env, policy, generator))
        returns += playing * reward
        lengths += playing
        ended = playing & (terminated | truncated)
        for name in ("is_success", "collision", "out_of_bounds") if ended.any() else ():
            happened = events.setdefault(name, np.full(env.num_envs, np.nan))
            happened[ended] = infos["final_info"][name][ended]
        playing &= ~ended
    shares = {name: list(rate_metrics(name, torch.from_numpy(happened)).values()) for name, happened in events.items()}
    said = [f"{name} {rate:.3f} [{low:.3f}, {high:.3f}]" for name, (rate, low, high) in shares.items()]
    return ", ".join([f"return {returns.mean():.2f} ± {returns.std():.2f}", f"length {lengths.mean():.0f}", *said])


if __name__ == "__main__":
    main()
