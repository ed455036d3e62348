"""Replay buffers: a preallocated ring of transitions, drawn from uniformly or by priority."""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.flags import FlagRing
from rlmods.data.frames import FrameStore, pixel_arrays, with_frame_numbers
from rlmods.data.memory import check_memory
from rlmods.data.priorities import Index, PriorityTree
from rlmods.data.segments import SegmentPart
from rlmods.functional.priorities import annealed_beta, importance_weight, td_error_priority
from rlmods.memory import size_text
from rlmods.types import ArraySpec, EnvSpec, Observation, ReplaySample, Transition


class ReplayBuffer:
    """Uniform replay with replacement. Transition number `r`, counted from 0 for ever, lies in slot `r % capacity`.

    One transition is one row of memory, so that drawing it costs one cache miss instead of one per field. The fields
    of a sample are therefore strided views of the rows drawn; `.contiguous()` where a kernel asks for it.

    Pixels (uint8 `[C, H, W]`) are not in the row: their frames are stored once, for all the stacks that they are part
    of, and the row holds their numbers. Where episodes are so short that the frames run out before the rows do, the
    buffer holds fewer transitions than its capacity.

    Attributes:
        by_expert: Whether an expert chose the action of each transition; None where the buffer does not store it.
    """

    def __init__(self, spec: EnvSpec, buffer_size: int, *, seed: int, stores_expert: bool = False) -> None:
        """Allocate the ring.

        Args:
            spec: What one transition holds. Observations keep their dtype.
            buffer_size: Capacity in transitions, at least 1.
            seed: Of the draws, which touch no global random state.
            stores_expert: Whether to store who chose the actions, a byte each.

        Raises:
            ValueError: `buffer_size` is below 1 or does not fit into the memory that is available.
        """
        check_memory(buffer_size, "transitions", self.memory_bytes(spec, buffer_size))
        self.capacity = buffer_size
        self.inserted = 0  # transitions ever inserted
        self.frames = FrameStore(spec, buffer_size)
        self.by_expert = FlagRing(buffer_size) if stores_expert else None
        self._rows = np.zeros(buffer_size, dtype=_row_dtype(with_frame_numbers(spec)))
        self._given = np.empty(0, dtype=_row_dtype(spec))  # the layout of what `extend` is given
        self._generator = np.random.default_rng(seed)
        self._ones = torch.ones(0)

    @classmethod
    def memory_bytes(cls, spec: EnvSpec, buffer_size: int) -> int:
        """Bytes that a buffer of this size takes."""
        row_bytes = _row_dtype(with_frame_numbers(spec)).itemsize
        return buffer_size * row_bytes + FrameStore.memory_bytes(spec, buffer_size)

    @classmethod
    def describe(cls, spec: EnvSpec, buffer_size: int) -> str:
        """What a buffer of this size costs, to be said before it is allocated."""
        total = cls.memory_bytes(spec, buffer_size)
        cost = f"{cls.__name__}: {buffer_size:,} transitions of {total / buffer_size:,.0f} bytes, {size_text(total)}"
        if not pixel_arrays(spec):
            return cost
        return f"{cost}, where whole stacks would take {size_text(buffer_size * _row_dtype(spec).itemsize)}"

    @property
    def row_bytes(self) -> int:
        """Bytes of one transition, without its frames."""
        return self._rows.dtype.itemsize

    @property
    def oldest(self) -> int:
        """The number of the oldest transition that is held; `inserted` where none is."""
        return max(0, self.inserted - self.capacity, self.frames.oldest_row)

    def __len__(self) -> int:
        return self.inserted - self.oldest

    def extend(self, transitions: Transition, by_expert: Tensor | None = None) -> None:
        """Insert transitions `[M]`, the oldest first; where M exceeds the capacity, the last ones stay.

        Args:
            transitions: `[M, ...]`.
            by_expert: `[M]` bool, whether an expert chose the action, where the buffer stores it.

        Raises:
            ValueError: A field has another shape, dtype or set of keys than the spec says. Nothing was written then.
        """
        num = transitions.reward.shape[0]
        _check_fields(self._given, transitions)
        self._write_flags(by_expert, num)
        stored = self.frames.insert(self.inserted, transitions)
        self._write(self.inserted, stored, kept=min(num, self.capacity))
        self.inserted += num

    def sample(self, num_batches: int, batch_size: int, progress: float) -> ReplaySample:
        """Draw K mini-batches of B transitions at once.

        Args:
            num_batches: K; 0 draws nothing, from an empty buffer too.
            batch_size: B, at least 1.
            progress: Of the run, as a fraction of its budget.

        Raises:
            ValueError: The buffer is empty.
        """
        if self.inserted == 0 and num_batches > 0:
            raise ValueError("the replay buffer is empty: extend() it before sample(), or raise `learning_starts`")
        index = self._draw(num_batches, batch_size)
        transition = self.frames.take(_transition(self._rows.take(index)))
        return ReplaySample(transition, torch.from_numpy(index), self._importance_weight(index, progress))

    def expert_flags(self, index: Tensor) -> Tensor | None:
        """Slots `[K, B]`, as drawn, to whether an expert chose their actions, `[K, B]` bool; None where not stored."""
        return None if self.by_expert is None else torch.from_numpy(self.by_expert.take(index.numpy()))

    def feedback(self, index: Tensor, td_error: Tensor) -> None:
        """Uniform replay learns nothing from TD errors."""

    def rows(self, first: int, last: int) -> Transition:
        """Contiguous copies of the transitions number `first` to `last`, exclusive.

        Raises:
            ValueError: The buffer does not hold them all.
        """
        return self.frames.take(self.stored_rows(first, last))

    def stored_rows(self, first: int, last: int) -> Transition:
        """As `rows`, but with the numbers of the frames `[M, S]` in the place of pixels."""
        if not self.oldest <= first <= last <= self.inserted:
            raise ValueError(
                f"rows {first} to {last} were asked for, the buffer holds {self.oldest} to {self.inserted}"
            )
        return _transition(self._rows.take(np.arange(first, last) % self.capacity), contiguous=True)

    def restore_rows(self, first: int, stored: Transition) -> None:
        """Put `stored_rows` `[M]`, number `first` and following, back into their slots, overwritten ones left out.

        Raises:
            ValueError: As in `extend`, or they go beyond `inserted`: load the `state_dict` first.
        """
        last = first + stored.reward.shape[0]
        if last > self.inserted:
            raise ValueError(
                f"rows {first} to {last} were given, the buffer ends at {self.inserted}: load its state_dict first"
            )
        _check_fields(self._rows, stored)
        self._write(first, stored, kept=max(0, min(last - first, last - self.oldest)))
        self.frames.restore_rows(first, stored)

    def state_dict(self) -> dict[str, Any]:
        """Everything but the transitions, which `ReplaySegments` saves."""
        return {
            "capacity": self.capacity,
            "inserted": self.inserted,
            "oldest": self.oldest,
            "generator": self._generator.bit_generator.state,
            "frames": self.frames.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken, once the transitions are restored as well.

        Raises:
            ValueError: The state is of another capacity or of other pixels.
        """
        if state_dict["capacity"] != self.capacity:
            raise ValueError(
                f"the state is of a buffer of {state_dict['capacity']} transitions, this one holds {self.capacity}: "
                f"resume with --data.init_args.buffer_size {state_dict['capacity']}"
            )
        # Both are absent from a checkpoint that was written before frames were stored once.
        self.frames.load_state_dict(state_dict.get("frames", {}), state_dict.get("oldest", 0))
        self.inserted = state_dict["inserted"]
        self._generator.bit_generator.state = state_dict["generator"]

    def segment_parts(self) -> Iterator[SegmentPart]:
        """The transitions, then what belongs to them; which frames are needed follows from the transitions."""
        yield SegmentPart(
            "transitions",
            "pt",
            self.oldest,
            self.inserted,
            self.row_bytes,
            lambda first, last: {"transition": self.stored_rows(first, last)._asdict()},
            lambda first, content: self.restore_rows(first, Transition(**content["transition"])),
        )
        if self.by_expert is not None:
            yield self.by_expert.segment_part(self.oldest, self.inserted)
        for i, (_, ring) in enumerate(sorted(self.frames.rings.items())):
            yield ring.segment_part(f"frames{i}.pt", self.oldest)

    def _draw(self, num_batches: int, batch_size: int) -> Index:
        held = len(self)
        index = self._generator.integers(max(1, held), size=(num_batches, batch_size))
        if held < min(self.inserted, self.capacity):  # the frames of the oldest transitions are gone
            index = (self.oldest + index) % self.capacity
        return index

    def _importance_weight(self, index: Index, progress: float) -> Tensor:
        if self._ones.shape != index.shape:
            self._ones = torch.ones(index.shape)
        return self._ones

    def _write_flags(self, by_expert: Tensor | None, num: int) -> None:
        if self.by_expert is None and by_expert is None:
            return
        if self.by_expert is None or by_expert is None:
            given, stored = ("nothing", "stores") if by_expert is None else ("flags", "does not store")
            raise ValueError(
                f"got {given} of who chose the actions, but the buffer {stored} it: make it with "
                f"stores_expert={by_expert is not None}"
            )
        _check_field("by_expert", by_expert, [num], np.dtype(np.bool_))
        self.by_expert.write(self.inserted, by_expert)

    def _write(self, first: int, transitions: Transition, *, kept: int) -> None:
        """Of transitions `[M]`, number `first` and following, write the last `kept`."""
        num = transitions.reward.shape[0]
        start = (first + num - kept) % self.capacity
        until_wrap = min(kept, self.capacity - start)
        for _, rows, tensor in _pairs(self._rows, transitions):
            values = tensor[num - kept :].numpy(force=True)
            rows[start : start + until_wrap] = values[:until_wrap]
            rows[: kept - until_wrap] = values[until_wrap:]


class PrioritizedReplayBuffer(ReplayBuffer):
    """Proportional prioritised replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952).

    Each mini-batch is stratified on its own, so that none of the K sees a part of the buffer only. Priorities are
    those of before the iteration: up to K updates old.
    """

    def __init__(
        self,
        spec: EnvSpec,
        buffer_size: int,
        *,
        seed: int,
        prioritized_replay_alpha: float = 0.6,
        prioritized_replay_beta0: float = 0.4,
        prioritized_replay_eps: float = 1e-6,
        stores_expert: bool = False,
    ) -> None:
        """Allocate the ring and the priorities.

        Args:
            spec: What one transition holds.
            buffer_size: Capacity in transitions, at least 1.
            seed: Of the draws.
            prioritized_replay_alpha: α, 0 (uniform) to 1 (in proportion to the TD error).
            prioritized_replay_beta0: β at the start of the run, 0 to 1; it ends at 1.
            prioritized_replay_eps: Added to the absolute TD error, above 0.
            stores_expert: Whether to store who chose the actions.

        Raises:
            ValueError: As in `ReplayBuffer`, or one of the three is out of range.
        """
        _check_unit_interval("prioritized_replay_alpha", prioritized_replay_alpha)
        _check_unit_interval("prioritized_replay_beta0", prioritized_replay_beta0)
        if not 0.0 < prioritized_replay_eps < float("inf"):
            raise ValueError(f"prioritized_replay_eps is {prioritized_replay_eps}, expected a finite number above 0")
        super().__init__(spec, buffer_size, seed=seed, stores_expert=stores_expert)
        self._alpha = prioritized_replay_alpha
        self._beta0 = prioritized_replay_beta0
        self._eps = prioritized_replay_eps
        self._tree = PriorityTree(buffer_size)

    @classmethod
    def memory_bytes(cls, spec: EnvSpec, buffer_size: int) -> int:
        """Bytes that a buffer of this size takes, its priorities included."""
        return super().memory_bytes(spec, buffer_size) + PriorityTree.memory_bytes(buffer_size)

    def extend(self, transitions: Transition, by_expert: Tensor | None = None) -> None:
        """As in `ReplayBuffer`. New transitions get the maximum priority, so that each is likely to be seen once."""
        first, oldest = self.inserted, self.oldest
        super().extend(transitions, by_expert)
        self._set_priorities(max(first, self.oldest), self.inserted, self._tree.maximum)
        # Transitions that have lost a frame are never drawn again.
        self._set_priorities(max(oldest, self.inserted - self.capacity), self.oldest, 0.0)

    def feedback(self, index: Tensor, td_error: Tensor) -> None:
        """Set the priorities of the transitions just learned from; of duplicates, the last one holds.

        A transition with a TD error that is not finite gets the lowest priority: nothing can be learned from it, and
        with the highest it would be drawn again and again.

        Args:
            index: `[K, B]`, as drawn.
            td_error: `[K, B]`, signed.

        Raises:
            ValueError: The shapes differ or no TD error is finite. Nothing was set then.
        """
        if index.shape != td_error.shape:
            raise ValueError(
                f"index has shape {list(index.shape)}, td_error {list(td_error.shape)}, expected equal ones"
            )
        td_error = td_error.detach().float().cpu()
        is_finite = td_error.isfinite()
        if not is_finite.all():
            if not is_finite.any():
                raise ValueError(
                    f"got {td_error.numel()} TD errors of which none is finite: the network or the data broke; add "
                    "rlmods.callbacks.NonFiniteGuard, which names where it began"
                )
            td_error = td_error.where(is_finite, 0.0)
        slots = index.reshape(-1).numpy(force=True)
        priority = td_error_priority(td_error, alpha=self._alpha, eps=self._eps).reshape(-1).numpy()
        if self.frames.rings:  # a transition that was lost since it was drawn stays lost
            priority = np.where(self._tree.priorities(slots) > 0.0, priority, np.float32(0.0))
        self._tree.set(slots, priority)

    def state_dict(self) -> dict[str, Any]:
        """As in `ReplayBuffer`, with the priorities."""
        return {**super().state_dict(), "priority_tree": self._tree.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in `ReplayBuffer`, with the priorities."""
        super().load_state_dict(state_dict)
        self._tree.load_state_dict(state_dict["priority_tree"])

    def _draw(self, num_batches: int, batch_size: int) -> Index:
        stratum = self._generator.random((num_batches, batch_size)) + np.arange(batch_size)
        mass = stratum * (self._tree.total / batch_size)
        return self._tree.sample(mass.reshape(-1)).reshape(num_batches, batch_size)

    def _set_priorities(self, first: int, last: int, priority: float) -> None:
        slots = np.arange(first, last) % self.capacity
        self._tree.set(slots, np.full(slots.shape, priority, dtype=np.float32))

    def _importance_weight(self, index: Index, progress: float) -> Tensor:
        priority = torch.from_numpy(self._tree.priorities(index))
        return importance_weight(priority, beta=annealed_beta(self._beta0, progress))


def _row_dtype(spec: EnvSpec) -> np.dtype[np.void]:
    """The layout of one transition. A dict observation is a structure within the structure."""
    action = spec["action"]
    observation = _observation_dtype(spec["observation"])
    fields: list[tuple[str, Any]] = [
        ("observation", observation),
        ("action", np.int64 if action["kind"] == "discrete" else (np.float32, tuple(action["shape"]))),
        ("reward", np.float32),
        ("discount", np.float32),
        ("next_observation", observation),
        ("terminated", np.bool_),
        ("truncated", np.bool_),
    ]
    return np.dtype(fields, align=True)  # torch refuses a view whose stride is no multiple of its item


def _observation_dtype(spec: ArraySpec | dict[str, ArraySpec]) -> Any:
    if isinstance(spec.get("dtype"), str):
        array = cast(ArraySpec, spec)
        return (np.dtype(array["dtype"]), tuple(array["shape"]))
    arrays = cast(dict[str, ArraySpec], spec)
    return np.dtype([(key, _observation_dtype(array)) for key, array in arrays.items()], align=True)


def _transition(rows: npt.NDArray[np.void], *, contiguous: bool = False) -> Transition:
    """Rows `[...]` as tensors, one view per field, or one copy per field."""

    def tensor(array: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array) if contiguous else array)

    def observation(array: npt.NDArray[Any]) -> Observation:
        keys = array.dtype.names
        return tensor(array) if keys is None else {key: tensor(array[key]) for key in keys}

    return Transition(
        observation(rows["observation"]),
        tensor(rows["action"]),
        tensor(rows["reward"]),
        tensor(rows["discount"]),
        observation(rows["next_observation"]),
        tensor(rows["terminated"]),
        tensor(rows["truncated"]),
    )


def _pairs(rows: npt.NDArray[np.void], transitions: Transition) -> Iterator[tuple[str, npt.NDArray[Any], Tensor]]:
    """Each field's name, its part of the rows, and the tensor given for it."""
    for name, value in zip(Transition._fields, transitions, strict=True):
        array = rows[name]
        keys = sorted(array.dtype.names or ())
        given = sorted(value) if isinstance(value, dict) else []
        if given != keys:
            raise ValueError(f"{name} has the keys {given}, expected {keys}")
        if isinstance(value, dict):
            yield from ((f"{name}[{key!r}]", array[key], value[key]) for key in keys)
        else:
            yield name, array, value


def _check_fields(rows: npt.NDArray[np.void], transitions: Transition) -> None:
    num = transitions.reward.shape[0]
    for name, array, tensor in _pairs(rows, transitions):
        _check_field(name, tensor, [num, *array.shape[1:]], array.dtype)


def _check_field(name: str, tensor: Tensor, shape: list[int], dtype: np.dtype[Any]) -> None:
    given = str(tensor.dtype).removeprefix("torch.")
    if list(tensor.shape) != shape or given != dtype.name:
        raise ValueError(f"{name} is {given} {list(tensor.shape)}, expected {dtype.name} {shape}, as the spec says")


def _check_unit_interval(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is {value}, expected 0 to 1")
