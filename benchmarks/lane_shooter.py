"""Speed of the lane shooter, and what its expert and chance get.

`python benchmarks/lane_shooter.py` prints environment steps per second of the environment alone, in one thread, with
random actions that were drawn before: the median over the repeats, the best in brackets. Ends of games and new ones are
part of it. `--scores` plays the first game of each of 2,048 environments instead, with the expert at several
probabilities of a mistake and with uniformly random actions; the numbers after ± are standard errors.
"""

import argparse
from statistics import median
from time import perf_counter

import numpy as np
import torch
from replay import versions

from rlmods.envs.lane_shooter import LaneShooter

MISTAKES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=400_000, help="environment steps of a repeat")
    parser.add_argument("--games", type=int, nargs="*", default=[64, 512, 4096, 16384])
    parser.add_argument("--scores", action="store_true")
    parser.add_argument("--lives", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=2048, help="of each row of the scores")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(versions())
    if arguments.scores:
        print(f"chance: {first_episodes(arguments.episodes, arguments.lives, None)}", flush=True)
        for mistakes in MISTAKES:
            said = first_episodes(arguments.episodes, arguments.lives, mistakes)
            print(f"expert with {mistakes:.0%} mistakes: {said}", flush=True)
        return
    for games in arguments.games:
        speeds = measure(LaneShooter(games), arguments.repeats, arguments.steps)
        print(f"{games:5d} games: {median(speeds):.2f} ({max(speeds):.2f}) million a second", flush=True)


def measure(env: LaneShooter, repeats: int, steps: int) -> list[float]:
    """Million environment steps a second of each repeat, after the first games have ended."""
    generator = np.random.default_rng(0)
    actions = [generator.integers(0, 20, env.num_envs) for _ in range(8)]
    env.reset(seed=0)
    for step in range(200):
        env.step(actions[step % len(actions)])
    vector_steps = max(10, steps // env.num_envs)
    seconds = []
    for _ in range(repeats):
        start = perf_counter()
        for step in range(vector_steps):
            env.step(actions[step % len(actions)])
        seconds.append(perf_counter() - start)
    return [vector_steps * env.num_envs / each / 1e6 for each in seconds]


def first_episodes(episodes: int, lives: int, mistakes: float | None) -> str:
    """Return, points, level and length of the first episode of each game; by chance where there are no mistakes."""
    env = LaneShooter(episodes, lives=lives, expert_mistakes=mistakes or 0.0)
    env.reset(seed=1)
    generator = np.random.default_rng(0)
    playing = np.ones(episodes, np.bool_)
    names = ("return", "points", "level", "length")
    totals = {name: np.zeros(episodes) for name in names}
    while playing.any():
        action = generator.integers(0, 20, episodes) if mistakes is None else env.expert_action()
        totals["level"][playing] = env.board.level[playing]
        _, reward, terminated, truncated, infos = env.step(action)
        totals["return"] += playing * reward
        totals["length"] += playing
        ended = playing & (terminated | truncated)
        if ended.any():
            totals["points"][ended] = infos["final_info"]["episode_sums"]["points"][ended] / env.points_scale
        playing &= ~ended
    spread = episodes**0.5
    return ", ".join(f"{name} {total.mean():.2f} ± {total.std() / spread:.2f}" for name, total in totals.items())


if __name__ == "__main__":
    main()
