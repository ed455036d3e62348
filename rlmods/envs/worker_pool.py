"""Worker processes, the way to speak to them, and what becomes of them when something goes wrong."""

import multiprocessing
import pickle
import signal
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from time import monotonic
from typing import Any

from rlmods.envs.worker_process import DONE, Share, serve

_GRACE = 3.0  # seconds that a worker has to finish a step when all are ended


class WorkerError(RuntimeError):
    """An environment of a worker process raised, or the process died."""


def worker_context() -> Any:
    """How worker processes begin.

    Not by fork: a child that is forked while threads of torch or a GPU are in use may wait forever for a lock that
    nobody of it holds. A server that has imported what the workers need forks them where nothing runs yet; where there
    is none, as on Windows, each begins from nothing (spawn).
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlmods.envs.make", "rlmods.envs.worker_process"])
    return context


class WorkerPool:
    """W worker processes, one connection to each.

    Whatever goes wrong, here or in a worker, ends all of them; so does the end of this process, also a violent one.

    Args:
        context: of the processes.
        shares: of each worker.
        names: what each owns, for the errors.

    Attributes:
        is_open: whether the workers live.

    Raises:
        WorkerError: where a worker cannot make its environments.
    """

    def __init__(self, context: Any, shares: Sequence[Share], names: Sequence[str]) -> None:
        self.names = names
        self._has_begun = False
        self._connections: list[Connection] = []
        self._processes: list[BaseProcess] = []
        # Also where nobody closes it: an exception, the end of the interpreter.
        self._end = Finalize(self, _end, (self._connections, self._processes), exitpriority=100)
        for number, share in enumerate(shares):
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, share), name=f"rlmods-worker-{number}")
            process.start()
            theirs.close()  # so that the death of the worker is the end of the connection
            self._connections.append(ours)
            self._processes.append(process)
        for worker in range(len(shares)):
            self.receive(worker)
        self._has_begun = True

    @property
    def is_open(self) -> bool:
        """Whether the workers live."""
        return bool(self._end.still_active())

    @property
    def pids(self) -> list[int]:
        """The ids of the processes."""
        return [process.pid for process in self._processes if process.pid is not None]

    def send(self, worker: int, message: bytes) -> None:
        """Ask a worker; the answer must be received before the next request for the same group.

        Raises:
            WorkerError: where it has died.
        """
        try:
            self._connections[worker].send_bytes(message)
        except OSError:
            # It may have said why before it went.
            self.receive(worker)
            raise self._death(worker) from None

    def receive(self, worker: int) -> Any:
        """Wait for an answer; None where it is empty.

        Raises:
            WorkerError: where the worker has raised or died.
        """
        try:
            message = self._connections[worker].recv_bytes()
        except (EOFError, OSError):
            raise self._death(worker) from None
        except BaseException:  # Ctrl-C in the middle of a message: what comes next would be misread
            self.close()
            raise
        if not message:
            return None
        kind, value = pickle.loads(message)
        if kind == DONE:
            return value
        self.close()
        raise WorkerError(f"{self._title(worker)} raised, and all workers were ended:\n\n{value.rstrip()}")

    def call(self, name: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of all workers at once, with the arguments of each; what they return."""
        for worker, own in enumerate(arguments):
            self.send(worker, pickle.dumps((name, own), pickle.HIGHEST_PROTOCOL))
        return [self.receive(worker) for worker in range(len(arguments))]

    def close(self) -> None:
        """End the workers, those that hang after some seconds by force."""
        self._end()

    def _title(self, worker: int) -> str:
        return f"worker {worker + 1} of {len(self.names)} ({self.names[worker]})"

    def _death(self, worker: int) -> WorkerError:
        if not self.is_open:
            return WorkerError("the workers have been ended")
        process = self._processes[worker]
        process.join(_GRACE)
        code = process.exitcode
        self.close()
        if code is None or code >= 0:
            how = f"ended by itself with exit code {code}"
        else:
            how = f"was ended by {_signal_name(-code)}"
        hint = "what it printed last may say why"
        if code == -signal.SIGKILL:
            hint = "where nobody did that by hand, memory was short: type a smaller num_workers, or num_envs"
        elif not self._has_begun:
            hint = "workers import the script that starts them: where it is yours, put what it does under "
            hint += 'if __name__ == "__main__":'
        return WorkerError(f"{self._title(worker)} {how}, and all others were ended; {hint}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _end(connections: list[Connection], processes: list[BaseProcess]) -> None:
    """A worker leaves when its connection is closed; one that hangs is killed."""
    for connection in connections:
        connection.close()
    deadline = monotonic() + _GRACE
    for process in processes:
        process.join(max(0.0, deadline - monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()
