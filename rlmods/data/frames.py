"""Pixels in replay: each frame is stored once, and stacks are rebuilt when they are drawn."""

from collections import deque
from collections.abc import Callable
from math import ceil, prod
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.segments import SegmentPart
from rlmods.types import ArraySpec, EnvSpec, Observation, Transition, is_array_spec

# An episode of T transitions has T + 1 frames: there is room for them where episodes are at least this long.
EPISODE_LENGTH: Final = 10
# A frame comes again a few transitions of all environments later, and is looked for among this many.
MAX_RECENT: Final = 4096
MIN_RECENT: Final = 64


class FrameRing:
    """The frames `[C, H, W]` of one key. Frame number `f`, counted from 0 for ever, lies in slot `f % capacity`.

    Nothing is assumed about the order in which stacks come: a frame that is among the last ones stored is found by its
    content and not stored again. A transition whose frame had to give way to a new one is lost, with all before it.

    Attributes:
        capacity: in frames.
        frame_bytes: of one frame.
        inserted: frames ever stored.
        oldest_row: the transitions before this number are lost.
    """

    def __init__(self, spec: ArraySpec, num_rows: int) -> None:
        """Allocate the ring.

        Args:
            spec: Of the stacks, uint8 `[S·C, H, W]`.
            num_rows: Transitions that are to be held.

        Raises:
            ValueError: The channels are no multiple of the frames.
        """
        self.stack = spec.get("frame_stack", 1)
        self._shape = spec["shape"]
        channels, height, width = self._shape
        if channels % self.stack:
            raise ValueError(f"got {channels} channels of {self.stack} frames, expected a multiple: make the spec anew")
        self.capacity = _num_frames(spec, num_rows)
        self.frame_bytes = _frame_bytes(spec)
        self.inserted = self.oldest_row = 0
        self._frames = np.zeros((self.capacity, channels // self.stack, height, width), dtype=np.uint8)
        self._last_row = np.full(self.capacity, -1)  # the last transition that each frame belongs to
        self._max_recent = _max_recent(num_rows)
        self._recent: dict[int, int] = {}  # hash to number, of the last frames stored
        self._hashes: deque[int] = deque()  # of the same frames, the oldest first

    @staticmethod
    def memory_bytes(spec: ArraySpec, num_rows: int) -> int:
        """Bytes that a ring for this many transitions takes."""
        return _num_frames(spec, num_rows) * (_frame_bytes(spec) + np.dtype(np.int64).itemsize)

    def insert(self, first_row: int, *stacks: Tensor) -> list[Tensor]:
        """Store what is new in stacks `[M, S·C, H, W]` of the transitions number `first_row` and following.

        Returns:
            For each, the numbers of its frames `[M, S]`.
        """
        num = len(stacks[0])
        frames = np.stack([stack.numpy(force=True) for stack in stacks], axis=1)
        frames = frames.reshape(num, len(stacks) * self.stack, *self._frames.shape[1:])
        numbers = [[self._insert(frame, first_row + i) for frame in row] for i, row in enumerate(frames)]
        return list(torch.tensor(numbers, dtype=torch.int64).view(num, len(stacks), self.stack).unbind(1))

    def take(self, numbers: Tensor) -> Tensor:
        """Numbers `[..., S]` to stacks `[..., S·C, H, W]`, a copy."""
        slots = numbers.numpy() % self.capacity
        frames = self._frames.take(slots.reshape(-1), axis=0)
        return torch.from_numpy(frames.reshape(*slots.shape[:-1], *self._shape))

    def first_needed(self, oldest_row: int) -> int:
        """The first frame that a transition from `oldest_row` on belongs to, or that can still be found."""
        oldest = max(0, self.inserted - self.capacity)
        last_row = self._last_row.take(np.arange(oldest, self.inserted) % self.capacity)
        recent = max(0, self.inserted - self._max_recent)
        return min(recent, oldest + int(np.argmax(np.append(last_row, oldest_row) >= oldest_row)))

    def frames(self, first: int, last: int) -> Tensor:
        """A copy of the frames number `first` to `last`, exclusive, `[M, C, H, W]`."""
        return torch.from_numpy(self._frames.take(np.arange(first, last) % self.capacity, axis=0))

    def restore_frames(self, first: int, frames: Tensor) -> None:
        """Put frames `[M, C, H, W]`, number `first` and following, back; the oldest ones come first."""
        for number, frame in enumerate(frames.numpy(), first):
            self._frames[number % self.capacity] = frame
            if number >= self.inserted - self._max_recent:
                self._remember(number, hash(frame.tobytes()))

    def restore_rows(self, first_row: int, *numbers: Tensor) -> None:
        """Say which frames `[M, S]` the transitions number `first_row` and following are made of."""
        for each in numbers:
            row = np.arange(first_row, first_row + len(each)).repeat(self.stack)
            np.maximum.at(self._last_row, each.numpy().reshape(-1) % self.capacity, row)

    def segment_part(self, suffix: str, oldest_row: int) -> SegmentPart:
        """The frames that transitions from `oldest_row` on need, as they are written to disk."""
        return SegmentPart(
            "frames",
            suffix,
            self.first_needed(oldest_row),
            self.inserted,
            self.frame_bytes,
            lambda first, last: {"frames": self.frames(first, last)},
            lambda first, content: self.restore_frames(first, content["frames"]),
        )

    def load_state(self, inserted: int, oldest_row: int) -> None:
        """Continue with these, once the transitions and the frames are restored as well."""
        self.inserted, self.oldest_row = inserted, oldest_row
        self._last_row[:] = -1
        self._recent.clear()
        self._hashes.clear()

    def _insert(self, frame: npt.NDArray[np.uint8], row: int) -> int:
        content = frame.tobytes()
        content_hash = hash(content)
        number = self._recent.get(content_hash)
        # Two frames may have one hash, which also differs between processes: the content decides.
        if number is None or self._frames[number % self.capacity].tobytes() != content:
            number = self.inserted
            self.oldest_row = max(self.oldest_row, int(self._last_row[number % self.capacity]) + 1)
            self._frames[number % self.capacity] = frame
            self._remember(number, content_hash)
            self.inserted += 1
        self._last_row[number % self.capacity] = row
        return number

    def _remember(self, number: int, content_hash: int) -> None:
        self._recent[content_hash] = number
        self._hashes.append(content_hash)
        if len(self._hashes) > self._max_recent:
            forgotten = self._hashes.popleft()
            if self._recent[forgotten] == number - self._max_recent:
                del self._recent[forgotten]


class FrameStore:
    """A ring of frames for each array of pixels in an observation; none where there are no pixels.

    Attributes:
        rings: by the key of the observation; the key is empty where the observation is one array.
        oldest_row: the transitions before this number have lost a frame.
    """

    def __init__(self, spec: EnvSpec, num_rows: int) -> None:
        """Allocate the rings for this many transitions."""
        self.rings = {key: FrameRing(array, num_rows) for key, array in pixel_arrays(spec).items()}
        self.oldest_row = 0

    @staticmethod
    def memory_bytes(spec: EnvSpec, num_rows: int) -> int:
        """Bytes that the rings for this many transitions take."""
        return sum(FrameRing.memory_bytes(array, num_rows) for array in pixel_arrays(spec).values())

    def insert(self, first_row: int, transitions: Transition) -> Transition:
        """Store the frames of transitions `[M]`; returned are the transitions with numbers in the place of pixels."""
        numbered = self._map(transitions, lambda ring, *stacks: ring.insert(first_row, *stacks))
        self.oldest_row = self._find_oldest_row()
        return numbered

    def take(self, transitions: Transition) -> Transition:
        """The transitions with pixels in the place of numbers."""
        return self._map(transitions, lambda ring, *numbers: [ring.take(each) for each in numbers])

    def restore_rows(self, first_row: int, transitions: Transition) -> None:
        """Say which frames transitions with numbers, `first_row` and following, are made of."""
        for key, ring in self.rings.items():
            ring.restore_rows(first_row, *(_get(each, key) for each in _observations(transitions)))

    def state_dict(self) -> dict[str, int]:
        """How many frames each ring was given."""
        return {key: ring.inserted for key, ring in self.rings.items()}

    def load_state_dict(self, state_dict: dict[str, int], oldest_row: int) -> None:
        """Continue where `state_dict` was taken, with the transitions from `oldest_row` on.

        Raises:
            ValueError: The state is of other pixels, or older than the rings.
        """
        if state_dict.keys() != self.rings.keys():
            raise ValueError(
                f"the state has frames of {sorted(state_dict)}, expected {sorted(self.rings)}: a run that stored whole "
                "stacks cannot go on; start a new one without --ckpt_path"
            )
        for key, ring in self.rings.items():
            ring.load_state(state_dict[key], oldest_row)
        self.oldest_row = self._find_oldest_row()

    def _find_oldest_row(self) -> int:
        return max((ring.oldest_row for ring in self.rings.values()), default=0)

    def _map(self, transitions: Transition, function: Callable[..., list[Tensor]]) -> Transition:
        for key, ring in self.rings.items():
            before = _observations(transitions)
            after = function(ring, *(_get(each, key) for each in before))
            observation, following = (_set(each, key, tensor) for each, tensor in zip(before, after, strict=True))
            transitions = transitions._replace(observation=observation, next_observation=following)
        return transitions


def pixel_arrays(spec: EnvSpec) -> dict[str, ArraySpec]:
    """The arrays of pixels by key; the key is empty where the observation is one array."""
    observation = spec["observation"]
    arrays = {"": observation} if is_array_spec(observation) else observation
    return {key: array for key, array in arrays.items() if array["dtype"] == "uint8" and len(array["shape"]) == 3}


def with_frame_numbers(spec: EnvSpec) -> EnvSpec:
    """The spec of what a row holds: numbers of frames in the place of pixels."""
    observation = spec["observation"]
    numbers = {
        key: ArraySpec(shape=[array.get("frame_stack", 1)], dtype="int64") for key, array in pixel_arrays(spec).items()
    }
    stored = numbers.get("", observation) if is_array_spec(observation) else observation | numbers
    return EnvSpec(env_id=spec["env_id"], observation=stored, action=spec["action"])


def _frame_bytes(spec: ArraySpec) -> int:
    return prod(spec["shape"]) // spec.get("frame_stack", 1)


def _max_recent(num_rows: int) -> int:
    return min(max(num_rows // 8, MIN_RECENT), MAX_RECENT)


def _num_frames(spec: ArraySpec, num_rows: int) -> int:
    # A new transition may be made of the oldest frame that is found and of 2 S new ones: none may push out another.
    return num_rows + ceil(num_rows / EPISODE_LENGTH) + _max_recent(num_rows) + 2 * spec.get("frame_stack", 1)


def _observations(transitions: Transition) -> tuple[Observation, Observation]:
    return transitions.observation, transitions.next_observation


def _get(observation: Observation, key: str) -> Tensor:
    return observation[key] if isinstance(observation, dict) else observation


def _set(observation: Observation, key: str, tensor: Tensor) -> Observation:
    return {**observation, key: tensor} if isinstance(observation, dict) else tensor
