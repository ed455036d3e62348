"""Replay of sequences: rows of all streams in one ring, drawn as windows of consecutive rows of one stream."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.memory import check_memory
from rlmods.data.priorities import Index
from rlmods.data.segments import SegmentPart
from rlmods.data.sequence_index import SequenceIndex
from rlmods.data.sequence_rows import SequenceRows, no_action
from rlmods.memory import size_text
from rlmods.types import EnvSpec, Observation, SequenceBatch, is_array_spec

_FLAGS = ("is_first", "is_last", "is_terminal")


class SequenceReplay:
    """A ring of rows. Row number `r`, counted from 0 for ever, in the order of insertion, lies in slot `r % capacity`.

    A sequence is `batch_length` + 1 consecutive rows of one stream, over the ends of episodes; of the first one only
    the state is used, with which a recurrent policy goes on. Rows never change, but for their states: those are the
    policy's own, and are replaced by newer ones after each time they were learned from.

    Each field is an array of its own, so that a batch comes contiguous.
    """

    def __init__(
        self,
        spec: EnvSpec,
        buffer_size: int,
        *,
        num_streams: int,
        batch_length: int,
        state_size: int,
        gamma: float,
        seed: int,
        online_queue: bool = True,
    ) -> None:
        """Allocate the ring.

        Args:
            spec: What a row holds. Observations keep their dtype.
            buffer_size: Capacity in rows, at least 1.
            num_streams: Environments, N.
            batch_length: Rows of a sequence, T, without the first one.
            state_size: Numbers of a state, S.
            gamma: Discount of one step.
            seed: Of the draws, which touch no global random state.
            online_queue: Whether each new window of T rows is drawn once before all others.

        Raises:
            ValueError: `buffer_size` is below 1 or does not fit into the memory that is available.
        """
        check_memory(buffer_size, "rows", self.memory_bytes(spec, buffer_size, state_size))
        self.capacity = buffer_size
        self.gamma = gamma
        self.inserted = 0  # rows ever inserted
        self.index = SequenceIndex(buffer_size, num_streams, batch_length, online_queue=online_queue)
        self._columns = _columns(spec, buffer_size)
        self._states = np.zeros((buffer_size, state_size), np.float32)
        self._generator = np.random.default_rng(seed)

    @classmethod
    def memory_bytes(cls, spec: EnvSpec, buffer_size: int, state_size: int) -> int:
        """Bytes that a replay of this size takes."""
        state_bytes = state_size * np.dtype(np.float32).itemsize
        return buffer_size * (_row_bytes(_columns(spec, 1)) + state_bytes) + SequenceIndex.memory_bytes(buffer_size)

    @classmethod
    def describe(cls, spec: EnvSpec, buffer_size: int, state_size: int) -> str:
        """What a replay of this size costs, to be said before it is allocated."""
        total = cls.memory_bytes(spec, buffer_size, state_size)
        return (
            f"{cls.__name__}: {buffer_size:,} rows of {total / buffer_size:,.0f} bytes, {size_text(total)}, of which "
            f"{4 * state_size * buffer_size / total:.0%} for states of {state_size:,} numbers"
        )

    @property
    def oldest(self) -> int:
        """The number of the oldest row that is held; `inserted` where none is."""
        return max(0, self.inserted - self.capacity)

    def __len__(self) -> int:
        return self.inserted - self.oldest

    def extend(self, rows: SequenceRows) -> None:
        """Insert M rows, the oldest first; where M exceeds the capacity, the last ones stay.

        Raises:
            ValueError: A field has another shape, dtype or set of keys than the spec says. Nothing was written then.
        """
        num = len(rows.reward)
        fields = self._checked(_flat(rows), num)
        _check_field("state", rows.state, (num, *self._states.shape[1:]), self._states.dtype)
        slots = self._write(self.inserted, fields, num, self.inserted + num)
        self._states[slots] = rows.state[num - len(slots) :].numpy(force=True)
        first, self.inserted = self.inserted, self.inserted + num
        self.index.append(first, rows.stream.numpy(force=True), self.oldest)

    def sample(self, num_batches: int, batch_size: int, *, env_steps: int, progress: float) -> SequenceBatch:
        """Draw K mini-batches of B sequences at once; windows of the online queue fill the first ones.

        Args:
            num_batches: K; 0 draws nothing, from an empty replay too.
            batch_size: B, at least 1.
            env_steps: Of the run, for the batch.
            progress: Of the run, for the batch.

        Raises:
            ValueError: No stream has enough rows yet.
        """
        numbers = self.index.draw(num_batches * batch_size, self._generator)
        numbers = numbers.reshape(len(numbers), num_batches, batch_size).swapaxes(0, 1)  # [K, T + 1, B]
        index = np.ascontiguousarray(numbers[:, 1:])
        taken = self._take(index % self.capacity)
        return SequenceBatch(
            observation=_observation(taken),
            action=taken["action"],
            reward=taken["reward"],
            is_first=taken["is_first"],
            is_last=taken["is_last"],
            is_terminal=taken["is_terminal"],
            discount=self.gamma * (~taken["is_terminal"]).float(),
            state=torch.from_numpy(self._states.take(numbers[:, 0] % self.capacity, axis=0)),
            index=torch.from_numpy(index),
            env_steps=env_steps,
            progress=progress,
        )

    def write_states(self, index: Tensor, state: Tensor) -> None:
        """Replace the states of rows; those that were overwritten meanwhile are left out.

        Args:
            index: Numbers of rows `[K, T, B]`, as drawn.
            state: `[K, T, B, S]`; of a row that is there several times the last one stays.

        Raises:
            ValueError: The shapes do not fit. Nothing was written then.
        """
        expected = (*index.shape, self._states.shape[1])
        if tuple(state.shape) != expected:
            raise ValueError(f"got states {list(state.shape)}, expected {list(expected)}, as the replay holds them")
        numbers = index.flatten().numpy(force=True)
        is_held = (numbers >= self.oldest) & (numbers < self.inserted)
        states = state.detach().float().flatten(0, -2).numpy(force=True)
        if not is_held.all():  # spares a copy of all states
            numbers, states = numbers[is_held], states[is_held]
        self._states[numbers % self.capacity] = states

    def rows(self, first: int, last: int) -> SequenceRows:
        """Copies of the rows number `first` to `last`, exclusive.

        Raises:
            ValueError: The replay does not hold them all.
        """
        if not self.oldest <= first <= last <= self.inserted:
            raise ValueError(
                f"rows {first} to {last} were asked for, the replay holds {self.oldest} to {self.inserted}"
            )
        slots = np.arange(first, last) % self.capacity
        taken = self._take(slots)
        others = {name: taken[name] for name in SequenceRows._fields[1:-1]}
        return SequenceRows(_observation(taken), **others, state=torch.from_numpy(self._states.take(slots, axis=0)))

    def segment_parts(self) -> Iterator[SegmentPart]:
        """The rows without their states, which change."""
        yield SegmentPart(
            "rows",
            "rows.pt",
            self.oldest,
            self.inserted,
            _row_bytes(self._columns),
            lambda first, last: self._take(np.arange(first, last) % self.capacity),
            self._restore,
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything but the rows, which `ReplaySegments` saves.

        The states are the replay's own memory, which may be large, and no copy: to be saved before it changes.
        """
        return {
            "capacity": self.capacity,
            "inserted": self.inserted,
            "index": self.index.state_dict(),
            "states": torch.from_numpy(self._states[: len(self)]),
            "generator": self._generator.bit_generator.state,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, once the rows are restored as well.

        Raises:
            ValueError: The state is of another capacity or of other states.
        """
        if state_dict["capacity"] != self.capacity:
            raise ValueError(
                f"the state is of a replay of {state_dict['capacity']} rows, this one holds {self.capacity}: "
                f"resume with --data.init_args.buffer_size {state_dict['capacity']}"
            )
        states = state_dict["states"].numpy()
        if states.shape[1] != self._states.shape[1]:
            raise ValueError(
                f"the state is of a policy that remembers {states.shape[1]} numbers, this one {self._states.shape[1]}: "
                "resume with the model that the checkpoint was trained with"
            )
        self.inserted = state_dict["inserted"]
        self.index.load_state_dict(state_dict["index"])
        self._states[: len(states)] = states
        self._generator.bit_generator.state = state_dict["generator"]

    def _restore(self, first: int, content: dict[str, Any]) -> None:
        fields = {name: content[name] for name in self._columns}
        num = len(fields["reward"])
        slots = self._write(first, self._checked(fields, num), num, self.inserted)
        stream = fields["stream"].numpy()[num - len(slots) :]
        self.index.restore(first + num - len(slots), stream, self.oldest)

    def _checked(self, fields: dict[str, Tensor], num: int) -> dict[str, Tensor]:
        if fields.keys() != self._columns.keys():
            raise ValueError(f"got rows of {sorted(fields)}, expected {sorted(self._columns)}, as the spec says")
        for name, column in self._columns.items():
            _check_field(name, fields[name], (num, *column.shape[1:]), column.dtype)
        return fields

    def _write(self, first: int, fields: dict[str, Tensor], num: int, inserted: int) -> Index:
        """Write rows number `first` and following but those that are overwritten; returns the slots of the others."""
        kept = max(0, min(num, first + num - (inserted - self.capacity)))
        slots: Index = np.arange(first + num - kept, first + num) % self.capacity
        for name, column in self._columns.items():
            column[slots] = fields[name][num - kept :].numpy(force=True)
        return slots

    def _take(self, slots: Index) -> dict[str, Tensor]:
        return {name: torch.from_numpy(column.take(slots, axis=0)) for name, column in self._columns.items()}


def _columns(spec: EnvSpec, num_rows: int) -> dict[str, npt.NDArray[Any]]:
    """An array for each field, by name; that of a dict observation by its keys besides."""
    observation = spec["observation"]
    arrays = {"observation": observation} if is_array_spec(observation) else _prefixed(observation)
    columns = {name: np.zeros((num_rows, *array["shape"]), array["dtype"]) for name, array in arrays.items()}
    return {
        **columns,
        "action": no_action(spec["action"], num_rows).numpy(),
        "reward": np.zeros(num_rows, np.float32),
        **{name: np.zeros(num_rows, np.bool_) for name in _FLAGS},
        "stream": np.zeros(num_rows, np.int64),
    }


def _prefixed(observation: dict[str, Any]) -> dict[str, Any]:
    return {f"observation/{key}": value for key, value in observation.items()}


def _flat(rows: SequenceRows) -> dict[str, Tensor]:
    observation = rows.observation
    columns = {"observation": observation} if isinstance(observation, Tensor) else _prefixed(observation)
    return columns | {name: getattr(rows, name) for name in SequenceRows._fields[1:-1]}


def _observation(columns: dict[str, Tensor]) -> Observation:
    if "observation" in columns:
        return columns["observation"]
    keys = [name.partition("/")[2] for name in columns if name.startswith("observation/")]
    return {key: columns[f"observation/{key}"] for key in keys}


def _row_bytes(columns: dict[str, npt.NDArray[Any]]) -> int:
    return sum(column[:1].nbytes for column in columns.values())


def _check_field(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    given = str(tensor.dtype).removeprefix("torch.")
    if tuple(tensor.shape) != shape or given != dtype.name:
        raise ValueError(
            f"{name} is {given} {list(tensor.shape)}, expected {dtype.name} {list(shape)}, as the spec says"
        )
