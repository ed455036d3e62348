"""Environments in worker processes: shared memory for what every step moves, pipes to wake and for the ends."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from rlmods.envs.environments import Environments
from rlmods.envs.events import EVENTS
from rlmods.envs.shared_arrays import StepArrays, share_arrays, step_layout
from rlmods.envs.worker_pool import WorkerPool, worker_context
from rlmods.envs.worker_process import Ended, Share
from rlmods.types import ArrayObservation, EnvSpec, StepResult


class WorkerGroup:
    """Some of the environments, of which each worker has a share, that are stepped together.

    Args:
        pool: of the workers.
        number: of the group.
        arrays: of its environments.
        shares: the rows of each worker, within the group.
    """

    def __init__(self, pool: WorkerPool, number: int, arrays: StepArrays, shares: list[slice]) -> None:
        self.num_envs = len(arrays.reward)
        self.is_stepping = False
        self._pool = pool
        self._request = bytes([number])
        self._arrays = arrays
        self._shares = shares
        nothing = np.full(self.num_envs, np.nan, np.float32)
        self._no_events = dict.fromkeys(EVENTS, nothing)

    def start(self, action: npt.NDArray[Any]) -> None:
        """Let the workers step with actions `[n]` or `[n, A]`, and come back at once.

        Raises:
            WorkerError: where a worker has died.
        """
        self._arrays.action[...] = action.reshape(self._arrays.action.shape)
        self.is_stepping = True
        for worker in range(len(self._shares)):
            self._pool.send(worker, self._request)

    def finish(self) -> StepResult:
        """Wait for the step. No array is overwritten by a later one.

        Raises:
            WorkerError: where a worker has raised or died.
        """
        answers: list[Ended | None] = [self._pool.receive(worker) for worker in range(len(self._shares))]
        self.is_stepping = False
        arrays = self._arrays
        observation = arrays.observation()
        result = StepResult(
            observation=observation,
            reward=arrays.reward.copy(),
            terminated=arrays.terminated.copy(),
            truncated=arrays.truncated.copy(),
            next_observation=observation,
            valid=arrays.valid.copy(),
            events=self._no_events,
            reported_rates={},
        )
        if any(answer is not None for answer in answers):
            return self._with_ends(result, answers)
        return result

    def _with_ends(self, result: StepResult, answers: list[Ended | None]) -> StepResult:
        events = {name: rows.copy() for name, rows in self._no_events.items()}
        rates: dict[str, npt.NDArray[np.float32]] = {}
        sums: dict[str, npt.NDArray[np.float32]] = {}
        successor = result.observation
        for share, ended in zip(self._shares, answers, strict=True):
            if ended is None:
                continue
            for name, rows in ended.events.items():
                events[name][share] = rows
            for reported, joined in ((ended.reported_rates, rates), (ended.sums, sums)):
                for name, rows in reported.items():
                    joined.setdefault(name, np.full(self.num_envs, np.nan, np.float32))[share] = rows
            if ended.final is not None:
                if successor is result.observation:
                    successor = self._arrays.observation()
                _put(successor, share.start + ended.rows, ended.final)
        return result._replace(next_observation=successor, events=events, reported_rates=rates, sums=sums)


class WorkerEnvironments:
    """N environments in worker processes, with the interface of `Environments`, and `parts` that step apart.

    A worker has N / W environments, made like those of one process: in the native vector implementation where that is
    faster, else one after the other. One after the other, they are bit for bit those of "sync", however many workers
    there are. A native implementation draws the random numbers of its environments together, so that there the numbers
    of workers and groups are part of the seed.

    With double buffering the environments are two groups, and each worker has a half of its share in each: all of them
    step the one while the policy decides for the other.

    Args:
        make: n environments, in the worker; must be picklable.
        spec: of one environment.
        num_envs: N, a multiple of the workers times the groups.
        num_workers: W.
        double_buffering: two groups.
        reward_dtype: as that of `make`.

    Attributes:
        parts: the groups, in the order of their rows.

    Raises:
        WorkerError: where the environments cannot be made.
    """

    def __init__(
        self,
        make: Callable[[int], Environments],
        spec: EnvSpec,
        num_envs: int,
        num_workers: int,
        *,
        double_buffering: bool = False,
        reward_dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self.spec = spec
        self.num_envs = num_envs
        self.num_workers = num_workers
        num_groups = 2 if double_buffering else 1
        of_group = num_envs // num_groups
        of_share = of_group // num_workers
        shares = [slice(first, first + of_share) for first in range(0, of_group, of_share)]
        context = worker_context()
        shared = share_arrays(context, step_layout(spec, num_envs, np.dtype(reward_dtype).name))
        self._pool = WorkerPool(
            context,
            [
                Share(
                    make,
                    shared,
                    [slice(first + rows.start, first + rows.stop) for first in range(0, num_envs, of_group)],
                )
                for rows in shares
            ],
            [f"{of_share * num_groups} environments of {spec['env_id']}"] * num_workers,
        )
        self._arrays = StepArrays(shared, slice(0, num_envs))
        self.parts = [
            WorkerGroup(self._pool, number, StepArrays(shared, slice(first, first + of_group)), shares)
            for number, first in enumerate(range(0, num_envs, of_group))
        ]
        self.autoreset_mode: str = self._call("autoreset_mode")[0]

    @property
    def pids(self) -> list[int]:
        """The ids of the worker processes."""
        return self._pool.pids

    def reset(self, seed: int | list[int]) -> ArrayObservation:
        """Begin new episodes; seed and result are those of `Environments.reset`."""
        self._settle()
        if isinstance(seed, list):
            self._call("reset_each", seed)
        else:
            self._call("reset", seed)
        return self._arrays.observation()

    def set_progress(self, progress: float) -> None:
        """Say how far the training is, 0 to 1, to environments that have a curriculum."""
        self._call("set_progress", progress)

    def defer_rewards(self) -> None:
        """Rewards come with their steps."""

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    @property
    def can_save(self) -> bool:
        """Whether `state_dict` gives a state."""
        return self.state_dict() is not None

    def state_dict(self) -> dict[str, Any] | None:
        """The state of the environments of all workers; None where one cannot be saved, or the workers have ended."""
        if not self._pool.is_open:
            return None
        self._settle()
        workers: list[list[Any]] = self._call("state")
        if any(state is None for states in workers for state in states):
            return None
        return {"env_id": self.spec["env_id"], "workers": workers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a state of as many workers and groups.

        Raises:
            ValueError: where there were others.
        """
        workers = state.get("workers", [])
        saved = (len(workers), len(workers[0]) if workers else 0)
        if saved != (self.num_workers, len(self.parts)):
            raise ValueError(
                f"expected the number of workers and groups of the saved run, {saved}, got "
                f"{(self.num_workers, len(self.parts))}"
            )
        self._settle()
        self._pool.call("load_state", [(states,) for states in workers])

    def _call(self, name: str, *arguments: Any) -> list[Any]:
        return self._pool.call(name, [arguments] * self.num_workers)

    def _settle(self) -> None:
        """Let the steps end that an exception has left alone."""
        for part in self.parts:
            if part.is_stepping:
                part.finish()


def _put(observation: ArrayObservation, rows: npt.NDArray[np.intp], values: ArrayObservation) -> None:
    if isinstance(observation, dict):
        for key, array in observation.items():
            array[rows] = values[key]
    else:
        observation[rows] = values
