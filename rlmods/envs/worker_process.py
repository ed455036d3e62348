"""What a worker process does: it owns a share of the environments and steps them when it is told to."""

import pickle
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from rlmods.envs.environments import Environments
from rlmods.envs.shared_arrays import SharedArrays, StepArrays
from rlmods.types import ArrayObservation, StepResult

# An answer is nothing where a step ended no episode, else a pickled pair of one of these words and a value.
DONE, FAILED = "done", "failed"


class Share(NamedTuple):
    """What a worker is started with."""

    make: Callable[[int], Environments]  # n environments
    shared: SharedArrays
    groups: list[slice]  # the rows of this worker, by group


class Ended(NamedTuple):
    """What a step says beyond the shared arrays where episodes ended; n is the number of rows of the group."""

    events: dict[str, npt.NDArray[np.float32]]  # [n] each
    reported_rates: dict[str, npt.NDArray[np.float32]]  # [n] each
    sums: dict[str, npt.NDArray[np.float32]]  # [n] each
    rows: npt.NDArray[np.intp]  # of the ended episodes
    final: ArrayObservation | None  # their last observations; None where the present ones are that


def serve(connection: Connection, share: Share) -> None:
    """Answer requests until the other end is closed, by will or by death. The target of a worker process.

    Args:
        connection: a message of one byte asks for a step of that group; all others are a pickled name of a method of
            `Worker` with its arguments.
        share: of this worker.
    """
    # Ctrl-C and SIGTERM reach all processes of a terminal or a job: it is the main one that ends the run, and until
    # then it may want the state of the environments.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    try:
        try:
            worker = Worker(share)
            _answer(connection, DONE, None)
            while True:
                message = connection.recv_bytes()
                if len(message) == 1:
                    connection.send_bytes(worker.step(message[0]))
                else:
                    name, arguments = pickle.loads(message)
                    _answer(connection, DONE, getattr(worker, name)(*arguments))
        except (EOFError, ConnectionError):
            return
        except BaseException:
            _answer(connection, FAILED, traceback.format_exc())
    except (EOFError, ConnectionError):
        return  # nobody is left to be told


def _answer(connection: Connection, kind: str, value: Any) -> None:
    connection.send_bytes(pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL))


class Worker:
    """The environments of one worker process, in as many groups as are stepped apart.

    Args:
        share: of this worker.
    """

    def __init__(self, share: Share) -> None:
        self.groups = [share.make(rows.stop - rows.start) for rows in share.groups]
        self.rows = share.groups
        self.arrays = [StepArrays(share.shared, rows) for rows in share.groups]

    def step(self, group: int) -> bytes:
        """Step a group with the shared actions; the answer is empty where no episode ended."""
        arrays = self.arrays[group]
        result = self.groups[group].step(arrays.action)
        arrays.set_observation(result.observation)
        arrays.reward[:] = result.reward
        arrays.terminated[:] = result.terminated
        arrays.truncated[:] = result.truncated
        arrays.valid[:] = result.valid
        ended = result.terminated | result.truncated
        if not np.count_nonzero(ended):
            return b""
        return pickle.dumps((DONE, _ended(result, np.flatnonzero(ended))), pickle.HIGHEST_PROTOCOL)

    def reset(self, seed: int) -> None:
        """Begin new episodes in all groups; the seed is that of the environments of all workers."""
        for environments, arrays, rows in zip(self.groups, self.arrays, self.rows, strict=True):
            arrays.set_observation(environments.reset_share(seed, rows.start))

    def reset_each(self, seeds: list[int]) -> None:
        """The same, with a seed of each environment of all workers."""
        for environments, arrays, rows in zip(self.groups, self.arrays, self.rows, strict=True):
            arrays.set_observation(environments.reset(seeds[rows]))

    def autoreset_mode(self) -> str:
        """How the environments reset."""
        return str(self.groups[0].autoreset_mode.value)

    def set_progress(self, progress: float) -> None:
        """Say how far the training is."""
        for environments in self.groups:
            environments.set_progress(progress)

    def state(self) -> list[dict[str, Any] | None]:
        """The state of each group; None where it cannot be saved."""
        return [environments.state_dict() for environments in self.groups]

    def load_state(self, states: list[dict[str, Any]]) -> None:
        """Go on from the states of the groups."""
        for environments, state in zip(self.groups, states, strict=True):
            environments.load_state_dict(state)


def _ended(result: StepResult, rows: npt.NDArray[np.intp]) -> Ended:
    final: ArrayObservation | None = None
    if result.next_observation is not result.observation:
        successor = result.next_observation
        final = (
            {key: array[rows] for key, array in successor.items()} if isinstance(successor, dict) else successor[rows]
        )
    return Ended(result.events, result.reported_rates, result.sums, rows, final)
