"""Speed and memory of a replay that stores each frame once, next to one that stores whole stacks.

`python benchmarks/frame_replay.py` prints microseconds per mini-batch: the median over the repeats, the minimum in
brackets. "whole stacks" is numpy's fancy indexing of two uint8 arrays, observation and next observation, and of nothing
else; ours draws the other fields too. The two take turns of 20 calls. Episodes have 200 steps of random frames. Then
the time to insert a transition, and the memory of a million of them.
"""

import argparse
from functools import partial
from time import perf_counter

import numpy as np
import torch
from replay import Candidates, measure, versions

from rlmods.data.replay import ReplayBuffer
from rlmods.types import EnvSpec, Transition

STACK, SIDE, EPISODE, NUM_FLOATS = 4, 84, 200, 53
SPEC: EnvSpec = {
    "env_id": "benchmark",
    "observation": {
        "image": {"shape": [STACK, SIDE, SIDE], "dtype": "uint8", "frame_stack": STACK},
        "vector": {"shape": [NUM_FLOATS], "dtype": "float32"},
    },
    "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--episodes", type=int, default=40, help=f"of {EPISODE} transitions each, in the buffer")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(versions())
    size = arguments.episodes * EPISODE
    replay = ReplayBuffer(SPEC, size, seed=0)
    observation, next_observation = (np.zeros((size, STACK, SIDE, SIDE), np.uint8) for _ in range(2))
    seconds = 0.0
    for first in range(0, size, EPISODE):
        transitions, stacks = make_episode(seed=first)
        observation[first : first + EPISODE], next_observation[first : first + EPISODE] = stacks[:-1], stacks[1:]
        start = perf_counter()
        replay.extend(transitions)
        seconds += perf_counter() - start
    rng = np.random.default_rng(0)

    def whole_stacks(batch_size: int) -> tuple[object, object]:
        index = rng.integers(size, size=batch_size)
        return observation[index], next_observation[index]

    for batch_size in (64, 256):
        candidates: Candidates = {
            "rlmods": partial(replay.sample, 1, batch_size, 0.5),
            "whole stacks": partial(whole_stacks, batch_size),
        }
        measure(f"sample, {batch_size} of {size:,} {STACK}x{SIDE}x{SIDE}", candidates, arguments.repeats)
    print(f"insert: {seconds / size * 1e6:.1f} microseconds per transition")
    print(ReplayBuffer.describe(SPEC, 1_000_000))


def make_episode(seed: int) -> tuple[Transition, np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """The transitions of one episode, and its stacks, one more than transitions."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(256, size=(EPISODE + 1, SIDE, SIDE), dtype=np.uint8)
    padded = np.concatenate([frames[:1]] * (STACK - 1) + [frames])
    stacks = np.stack([padded[i : i + EPISODE + 1] for i in range(STACK)], axis=1)
    pixels, vectors = torch.from_numpy(stacks), torch.zeros(EPISODE + 1, NUM_FLOATS)
    zeros = torch.zeros(EPISODE)
    one = {"image": pixels[:-1], "vector": vectors[:-1]}
    other = {"image": pixels[1:], "vector": vectors[1:]}
    return Transition(one, torch.zeros(EPISODE, 2), zeros, zeros, other, zeros.bool(), zeros.bool()), stacks


if __name__ == "__main__":
    main()
