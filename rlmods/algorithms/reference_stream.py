"""The random numbers of the published linear off-policy runs, in the order in which those drew them."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

_LARGEST_SEED = 2**31 - 1


class ReferenceStream:
    """Two numpy generators of one seed: the first for the initial parameters, the second for the rollouts.

    A rollout draws, trajectory after trajectory, a seed of the environment, and then for each step the noise of the
    action and of the K actions of the bootstrap. Every draw has a fixed size, so all of a rollout is drawn at once.

    Args:
        seed: of both.
    """

    def __init__(self, seed: int) -> None:
        initial, rollouts = np.random.SeedSequence(seed).spawn(2)
        self._initial = np.random.default_rng(initial)
        self._rollouts = np.random.default_rng(rollouts)
        self._noise = torch.zeros(0, 0, 1, 2, dtype=torch.float64)  # [T, N, 1 + K, 2] of the rollout under way
        self._step = 0

    def initial_normal(self, *shape: int) -> Tensor:
        """Standard normal numbers for the initial parameters, float64."""
        return torch.from_numpy(self._initial.standard_normal(shape))

    def begin_rollout(self, num_envs: int, num_steps: int, num_bootstrap_samples: int) -> list[int]:
        """Draw what a rollout needs; returns the seeds of its N environments."""
        seeds, noise = [], []
        for _ in range(num_envs):
            seeds.append(int(self._rollouts.integers(0, _LARGEST_SEED)))
            noise.append(self._rollouts.standard_normal((num_steps, 1 + num_bootstrap_samples, 2)))
        self._noise = torch.from_numpy(np.stack(noise, axis=1))
        self._step = 0
        return seeds

    def next_action_noise(self) -> Tensor:
        """`[N, 2]`, of the next step."""
        noise = self._noise[self._step, :, 0]
        self._step += 1
        return noise

    def bootstrap_noise(self, shape: torch.Size) -> Tensor:
        """`[T·N, K, 2]`, of the whole rollout `[T, N]`."""
        if self._noise.shape[:2] != shape:
            raise ValueError(
                f"got a rollout {tuple(shape)}, expected the one drawn last, {tuple(self._noise.shape[:2])}"
            )
        return self._noise[:, :, 1:].flatten(0, 1)

    def state_dict(self) -> dict[str, Any]:
        """Where the second generator is. Between two iterations there is nothing else."""
        state: Any = self._rollouts.bit_generator.state
        inner = {name: str(number) for name, number in state["state"].items()}  # 128 bits
        return {"state": inner, "has_uint32": int(state["has_uint32"]), "uinteger": int(state["uinteger"])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._rollouts.bit_generator.state = {
            "bit_generator": "PCG64",
            "state": {name: int(number) for name, number in state_dict["state"].items()},
            "has_uint32": state_dict["has_uint32"],
            "uinteger": state_dict["uinteger"],
        }
