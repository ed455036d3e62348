"""Speed of the replay buffers, next to the bare memory access and to other packages where they are installed.

`python benchmarks/replay.py` prints microseconds per mini-batch: the median over the repeats, the minimum in brackets.
Every candidate draws its own random indices; those of one row take turns of 20 calls, on one torch thread. "bare" is
one `index_select` for each field. Other packages store the same fields, but Stable-Baselines3, which has five of its
own. "32 at once" draws a stack of 32 mini-batches in one call.
"""

import argparse
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.types import EnvSpec, Transition

CALLS_PER_TURN = 20

Candidates = dict[str, Callable[[], object]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=100)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(versions())
    cartpole = make_spec([4], "float32")
    for size in (10_000, 100_000, 1_000_000):
        transitions = make_transitions(cartpole, size)
        row = f"256 of {size:,}"
        measure(f"uniform sample, {row}", uniform(cartpole, transitions, 256), repeats)
        measure(f"uniform sample, 32 at once, {row}", stacks(cartpole, transitions, 32, 256), repeats, per_call=32)
        measure(f"prioritised sample + update, {row}", prioritised(cartpole, transitions, 1, 256), repeats)
        at_once = prioritised(cartpole, transitions, 32, 256)
        measure(f"prioritised sample + update, 32 at once, {row}", at_once, repeats, per_call=32)
    pixels = make_spec([4, 84, 84], "uint8")
    measure("uniform sample, 32 of 2,000 4x84x84", uniform(pixels, make_transitions(pixels, 2_000), 32), repeats)


def measure(title: str, candidates: Candidates, repeats: int, *, per_call: int = 1) -> None:
    """Call the candidates in turn and print one row."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, call in candidates.items():
            start = perf_counter()
            for _ in range(CALLS_PER_TURN):
                call()
            times[name].append((perf_counter() - start) / (CALLS_PER_TURN * per_call) * 1e6)
    figures = (f"{name} {median(each):.1f} ({min(each):.1f})" for name, each in times.items())
    print(f"{title:55s}", ", ".join(figures), flush=True)


def uniform(spec: EnvSpec, transitions: Transition, batch_size: int) -> Candidates:
    candidates = stacks(spec, transitions, 1, batch_size)
    if installed("stable_baselines3"):
        candidates["Stable-Baselines3"] = stable_baselines3_uniform(spec, transitions, batch_size)
    if installed("torchrl"):
        candidates["torchrl"] = torchrl_uniform(transitions, batch_size)
    return candidates


def stacks(spec: EnvSpec, transitions: Transition, num_batches: int, batch_size: int) -> Candidates:
    size = len(transitions.reward)
    replay = ReplayBuffer(spec, size, seed=0)
    replay.extend(transitions)
    fields = tensors(transitions)

    def bare() -> list[torch.Tensor]:
        index = torch.randint(size, (num_batches * batch_size,))
        return [field.index_select(0, index) for field in fields]

    return {"rlmods": lambda: replay.sample(num_batches, batch_size, 0.5), "bare": bare}


def prioritised(spec: EnvSpec, transitions: Transition, num_batches: int, batch_size: int) -> Candidates:
    candidates: Candidates = {"rlmods": rlmods_prioritised(spec, transitions, num_batches, batch_size)}
    if installed("cpprb"):
        candidates["cpprb"] = cpprb_prioritised(spec, transitions, num_batches * batch_size)
    return candidates


def rlmods_prioritised(
    spec: EnvSpec, transitions: Transition, num_batches: int, batch_size: int
) -> Callable[[], object]:
    size = len(transitions.reward)
    replay = PrioritizedReplayBuffer(spec, size, seed=0)
    replay.extend(transitions)
    replay.feedback(torch.arange(size), torch.rand(size))
    td_error = torch.rand(num_batches, batch_size)

    def sample_and_update() -> None:
        sample = replay.sample(num_batches, batch_size, 0.5)
        replay.feedback(sample.index, td_error)

    return sample_and_update


def cpprb_prioritised(spec: EnvSpec, transitions: Transition, batch_size: int) -> Callable[[], object]:
    import cpprb

    size = len(transitions.reward)
    shape, dtype = spec["observation"]["shape"], spec["observation"]["dtype"]
    fields: dict[str, dict[str, Any]] = {name: {} for name in Transition._fields}
    fields["observation"] = fields["next_observation"] = {"shape": shape, "dtype": dtype}
    fields["action"] = {"dtype": np.int64}
    fields["terminated"] = fields["truncated"] = {"dtype": np.bool_}
    replay = cpprb.PrioritizedReplayBuffer(size, fields)
    replay.add(**{name: tensor.numpy() for name, tensor in zip(fields, tensors(transitions), strict=True)})
    replay.update_priorities(np.arange(size), np.random.default_rng(0).random(size))
    priorities = np.random.default_rng(1).random(batch_size)

    def sample_and_update() -> None:
        replay.update_priorities(replay.sample(batch_size, beta=0.7)["indexes"], priorities)

    return sample_and_update


def stable_baselines3_uniform(spec: EnvSpec, transitions: Transition, batch_size: int) -> Callable[[], object]:
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer as PeerReplayBuffer

    size = len(transitions.reward)
    observation, action, reward, _, next_observation, *_ = (tensor.numpy() for tensor in tensors(transitions))
    low, high = (0, 255) if observation.dtype == np.uint8 else (-np.inf, np.inf)
    space = spaces.Box(low, high, observation.shape[1:], observation.dtype.type)
    replay = PeerReplayBuffer(size, space, spaces.Discrete(spec["action"]["n"]), device="cpu")
    replay.observations[:, 0], replay.next_observations[:, 0] = observation, next_observation
    replay.actions[:, 0, 0], replay.rewards[:, 0] = action, reward
    replay.full = True
    return lambda: replay.sample(batch_size)


def torchrl_uniform(transitions: Transition, batch_size: int) -> Callable[[], object]:
    from tensordict import TensorDict
    from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer

    size = len(transitions.reward)
    replay = TensorDictReplayBuffer(storage=LazyTensorStorage(size), batch_size=batch_size)
    replay.extend(TensorDict(transitions._asdict(), batch_size=[size]))
    return lambda: replay.sample()


def make_spec(shape: list[int], dtype: str) -> EnvSpec:
    return {
        "env_id": "benchmark",
        "observation": {"shape": shape, "dtype": dtype},
        "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
    }


def make_transitions(spec: EnvSpec, size: int) -> Transition:
    """Random transitions; the repeats of a page that was never written would share one page of memory."""
    empty = ReplayBuffer(spec, 1, seed=0).rows(0, 0)
    made = [torch.randint(2, (size, *field.shape[1:]), dtype=torch.uint8).to(field.dtype) for field in tensors(empty)]
    # As in one long episode: a frame that is never shown again would be stored for one transition alone.
    return Transition(*made)._replace(next_observation=made[0].roll(-1, 0))


def tensors(transitions: Transition) -> list[torch.Tensor]:
    """The fields; none of the specs here has a dict of observations."""
    return [field for field in transitions if isinstance(field, torch.Tensor)]


def installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def versions() -> str:
    found = [f"{platform.processor() or platform.machine()}, Python {platform.python_version()}"]
    packages = ("torch", "numpy", "stable-baselines3", "cpprb", "torchrl")
    found += [f"{name} {importlib.metadata.version(name)}" for name in packages if installed(name.replace("-", "_"))]
    return ", ".join(found)


if __name__ == "__main__":
    main()
