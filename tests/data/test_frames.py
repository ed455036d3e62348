"""Frames are stored once: whatever is put in comes out as if whole stacks had been stored."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmods.data import frames as frames_module
from rlmods.data import memory
from rlmods.data.frames import FrameRing
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.segments import ReplaySegments
from rlmods.types import ArraySpec, EnvSpec, Transition

SIDE = 3
buffers = st.sampled_from([ReplayBuffer, PrioritizedReplayBuffer])


def make_spec(stack: int, side: int = SIDE, channels: int = 1, *, floats: int = 2) -> EnvSpec:
    pixels = ArraySpec(shape=[stack * channels, side, side], dtype="uint8", frame_stack=stack)
    return {
        "env_id": "camera",
        "observation": {"camera": pixels, "speed": {"shape": [floats], "dtype": "float32"}},
        "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2},
    }


def naive(spec: EnvSpec) -> EnvSpec:
    """The same, with the stacks as vectors, which a buffer keeps whole."""
    assert isinstance(spec["observation"], dict)
    observation: Any = {**spec["observation"]}
    observation["camera"] = {"shape": [math.prod(observation["camera"]["shape"])], "dtype": "uint8"}
    return {**spec, "observation": observation}


def flat(transitions: Transition) -> Transition:
    """The transitions with stacks as vectors."""
    observations = []
    for observation in (transitions.observation, transitions.next_observation):
        assert isinstance(observation, dict)
        observations.append(observation | {"camera": observation["camera"].flatten(-3)})
    return transitions._replace(observation=observations[0], next_observation=observations[1])


class Cameras:
    """Steps of several environments in the order of time, with stacks that are padded by the first frame."""

    def __init__(self, num: int, stack: int, n_steps: int, *, levels: int, length: int, seed: int) -> None:
        self.stack, self.n_steps, self.levels, self.length = stack, n_steps, levels, length
        self.rng = np.random.default_rng(seed)
        self.frames_shown = 0
        self.episodes = [self.episode() for _ in range(num)]

    def episode(self) -> list[Transition]:
        """The transitions of one episode, the last one first."""
        length = int(self.rng.integers(1, 2 * self.length))
        self.frames_shown += length + 1
        shown = torch.from_numpy(self.rng.integers(self.levels, size=(length + 1, SIDE, SIDE), dtype=np.uint8))
        padded = torch.cat([shown[:1].expand(self.stack - 1, -1, -1), shown])
        stacks = padded.unfold(0, self.stack, 1).permute(0, 3, 1, 2)
        speeds = torch.from_numpy(self.rng.random((length + 1, 2), dtype=np.float32))
        rows = [self.transition(stacks, speeds, i, min(i + self.n_steps, length)) for i in range(length)]
        return rows[::-1]

    def transition(self, stacks: Tensor, speeds: Tensor, first: int, last: int) -> Transition:
        one, other = ({"camera": stacks[i], "speed": speeds[i]} for i in (first, last))
        ended = torch.tensor(last == len(stacks) - 1)
        action, reward, discount = (torch.from_numpy(self.rng.random(n, dtype=np.float32)) for n in (2, 1, 1))
        return Transition(one, action, reward[0], discount[0], other, ended, ~ended)

    def collect(self, num_rows: int) -> Transition:
        """The next transitions `[M, ...]`; each environment gives one in its turn."""
        rows = []
        for i in range(num_rows):
            turn = i % len(self.episodes)
            self.episodes[turn] = self.episodes[turn] or self.episode()
            rows.append(self.episodes[turn].pop())
        columns: list[Any] = []
        for column in zip(*rows, strict=True):
            keyed = isinstance(column[0], dict)
            columns.append(
                {key: torch.stack([each[key] for each in column]) for key in column[0]}
                if keyed
                else torch.stack(column)
            )
        return Transition(*columns)


def assert_equal(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def held(buffer: ReplayBuffer) -> Transition:
    return buffer.rows(buffer.oldest, buffer.inserted)


@st.composite
def cameras(draw: st.DrawFn) -> Cameras:
    """Frames of few levels are often equal by chance; short episodes have more frames than a buffer has room for."""
    return Cameras(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 3)),
        levels=draw(st.sampled_from([1, 2, 256])),
        length=draw(st.sampled_from([1, 2, 12])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )


lengths = st.lists(st.integers(1, 30), min_size=1, max_size=6)
recent = st.sampled_from([1, 5, 64])


@given(buffers, cameras(), st.integers(1, 40), recent, lengths)
@settings(max_examples=60)
def test_it_equals_a_buffer_of_whole_stacks(
    buffer_class: type[ReplayBuffer], source: Cameras, capacity: int, min_recent: int, chunks: list[int]
) -> None:
    spec = make_spec(source.stack)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frames_module, "MIN_RECENT", min_recent)
        buffer, whole = buffer_class(spec, capacity, seed=0), buffer_class(naive(spec), capacity, seed=0)
    lost = False
    for chunk in chunks:
        transitions = source.collect(chunk)
        buffer.extend(transitions)
        whole.extend(flat(transitions))
        assert whole.oldest <= buffer.oldest < buffer.inserted == whole.inserted
        assert_equal(flat(held(buffer)), whole.rows(buffer.oldest, whole.inserted))
        sample = buffer.sample(2, 8, 0.5)
        assert bool(torch.isin(sample.index, torch.arange(buffer.oldest, buffer.inserted) % capacity).all())
        lost = lost or len(buffer) < len(whole)
        if not lost:
            assert_equal(sample._replace(transition=flat(sample.transition)), whole.sample(2, 8, 0.5))
        # Also of transitions that are lost: they must not come back.
        index = torch.from_numpy(source.rng.integers(min(buffer.inserted, capacity), size=(2, 8)))
        for each in (buffer, whole):
            each.feedback(index, torch.ones(2, 8))


@given(buffers, cameras(), st.integers(1, 40), recent, lengths, st.sampled_from([300, 2**30]))
@settings(max_examples=20)
def test_a_buffer_that_was_saved_goes_on_as_if_it_had_not(
    buffer_class: type[ReplayBuffer],
    source: Cameras,
    capacity: int,
    min_recent: int,
    chunks: list[int],
    max_bytes: int,
) -> None:
    spec = make_spec(source.stack)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        patch.setattr(frames_module, "MIN_RECENT", min_recent)
        buffer, segments = buffer_class(spec, capacity, seed=0), ReplaySegments(Path(name), max_bytes=max_bytes)
        for chunk in chunks:
            buffer.extend(source.collect(chunk))
            files = segments.append(buffer)
        other, again = buffer_class(spec, capacity, seed=1), ReplaySegments(Path(name), max_bytes=max_bytes)
        other.load_state_dict(buffer.state_dict())
        again.load(other, files)
        for chunk in chunks:
            assert (buffer.oldest, buffer.frames.state_dict()) == (other.oldest, other.frames.state_dict())
            assert_equal(held(buffer), held(other))
            assert_equal(buffer.sample(2, 8, 0.5), other.sample(2, 8, 0.5))
            transitions = source.collect(chunk)
            for each in (buffer, other):
                each.extend(transitions)
        assert segments.append(buffer).keys() == again.append(other).keys()


@pytest.mark.parametrize(("num_envs", "n_steps", "stack"), [(1, 1, 4), (8, 3, 4), (16, 1, 1), (4, 5, 3)])
def test_every_frame_is_stored_once_and_episodes_of_twenty_steps_fit(num_envs: int, n_steps: int, stack: int) -> None:
    source = Cameras(num_envs, stack, n_steps, levels=256, length=20, seed=0)
    buffer = ReplayBuffer(make_spec(stack), 1000, seed=0)
    for _ in range(30):
        buffer.extend(source.collect(100))
    to_come = sum(len(episode) for episode in source.episodes)
    assert source.frames_shown - to_come - num_envs <= buffer.frames.rings["camera"].inserted <= source.frames_shown
    assert len(buffer) == 1000


def test_the_newest_transition_never_pushes_out_its_own_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "MIN_RECENT", 1)
    source, buffer = Cameras(1, 4, 3, levels=256, length=12, seed=0), ReplayBuffer(make_spec(4), 1, seed=0)
    for _ in range(30):
        transitions = source.collect(1)
        buffer.extend(transitions)
        assert_equal(held(buffer), transitions)


def test_a_frame_that_is_shown_for_long_is_one_frame() -> None:
    source = Cameras(1, 4, 1, levels=1, length=50, seed=0)
    buffer = ReplayBuffer(make_spec(4), 100, seed=0)
    for _ in range(5):
        buffer.extend(source.collect(100))
    assert buffer.frames.rings["camera"].inserted == 1
    assert len(buffer) == 100


def test_two_frames_of_one_hash_are_two_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames_module, "hash", lambda _: 7, raising=False)
    source = Cameras(2, 3, 2, levels=3, length=5, seed=0)
    buffer, transitions = ReplayBuffer(make_spec(3), 80, seed=0), source.collect(60)
    buffer.extend(transitions)
    assert_equal(flat(held(buffer)).observation, flat(rows_from(transitions, buffer.oldest)).observation)


def rows_from(transitions: Transition, first: int) -> Transition:
    columns: list[Any] = [
        {key: tensor[first:] for key, tensor in column.items()} if isinstance(column, dict) else column[first:]
        for column in transitions
    ]
    return Transition(*columns)


def test_one_array_of_pixels_is_a_key_of_its_own() -> None:
    spec = make_spec(4)
    assert isinstance(spec["observation"], dict)
    alone: Any = {**spec, "observation": dict(spec["observation"])["camera"]}
    transitions = Cameras(1, 4, 1, levels=256, length=9, seed=0).collect(50)
    assert isinstance(transitions.observation, dict)
    assert isinstance(transitions.next_observation, dict)
    transitions = transitions._replace(
        observation=transitions.observation["camera"], next_observation=transitions.next_observation["camera"]
    )
    buffer = ReplayBuffer(alone, 50, seed=0)
    assert buffer.sample(0, 5, 0.0).transition.observation.shape == (0, 5, 4, SIDE, SIDE)  # type: ignore[union-attr]
    buffer.extend(transitions)
    assert_equal(held(buffer), transitions)
    sample = buffer.sample(3, 5, 0.0)
    assert isinstance(sample.transition.next_observation, Tensor)
    assert sample.transition.next_observation.shape == (3, 5, 4, SIDE, SIDE)


def test_only_new_frames_are_written_and_a_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    source = Cameras(1, 4, 1, levels=256, length=30, seed=0)
    buffer, segments = ReplayBuffer(make_spec(4), 200, seed=0), ReplaySegments(tmp_path)
    buffer.extend(source.collect(100))
    first = segments.append(buffer)
    assert [name.partition(".")[2] for name in first] == ["pt", "frames0.pt"]
    buffer.extend(source.collect(10))
    second = segments.append(buffer)
    new = sorted(second.keys() - first.keys())
    assert first.keys() < second.keys()
    assert new[0][:25] == "000000000100-000000000110"
    numbers = [int(number) for number in new[1][:25].split("-")]
    assert 10 <= numbers[1] - numbers[0] <= 12
    for name in first:
        (tmp_path / name).unlink()
    other = ReplayBuffer(make_spec(4), 200, seed=1)
    files = segments.append(buffer)
    other.load_state_dict(buffer.state_dict())
    ReplaySegments(tmp_path).load(other, files)
    assert_equal(held(buffer), held(other))
    without = {name: sha256 for name, sha256 in files.items() if name not in new}
    with pytest.raises(ValueError, match="hold the transitions 0 to 100, the buffer needs those up to 110"):
        ReplaySegments(tmp_path).load(other, without)


def test_a_million_stacks_and_vectors_take_less_than_8_gib() -> None:
    spec = make_spec(4, 84, floats=53)
    total = ReplayBuffer.memory_bytes(spec, 1_000_000)
    # Per row two observations of 4 numbers and 53 floats, aligned to 8, then action, reward, discount and the flags.
    frames, row = 1_100_000 + 4096 + 8, 2 * (4 * 8 + 53 * 4 + 4) + 2 * 4 + 4 + 4 + 2
    assert total == 1_000_000 * (row + -row % 8) + frames * (84 * 84 + 8)
    assert total < 8 * 2**30
    assert PrioritizedReplayBuffer.memory_bytes(spec, 1_000_000) < 8 * 2**30
    described = ReplayBuffer.describe(spec, 1_000_000)
    assert described == (
        "ReplayBuffer: 1,000,000 transitions of 8,319 bytes, 7.75 GiB, where whole stacks would take 52.98 GiB"
    )


def test_the_formula_is_what_is_allocated() -> None:
    spec = make_spec(3, 12, channels=3)
    buffer = ReplayBuffer(spec, 1000, seed=0)
    ring = buffer.frames.rings["camera"]
    allocated = buffer._rows.nbytes + ring._frames.nbytes + ring._last_row.nbytes
    assert ReplayBuffer.memory_bytes(spec, 1000) == allocated


def test_frames_beyond_the_memory_are_refused_with_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 2**20)
    with pytest.raises(ValueError, match=r"takes 7\.75 GiB.*try --data\.init_args\.buffer_size \d+") as error:
        ReplayBuffer(make_spec(4, 84, floats=53), 1_000_000, seed=0)
    ReplayBuffer(make_spec(4, 84, floats=53), int(str(error.value).split()[-1]), seed=0)


def test_bad_pixels_are_named_before_anything_is_written() -> None:
    buffer = ReplayBuffer(make_spec(4), 20, seed=0)
    good = Cameras(1, 4, 1, levels=256, length=9, seed=0).collect(5)
    assert isinstance(good.observation, dict)
    camera = good.observation["camera"]
    for bad, message in [
        ({"camera": camera[:, :3]}, r"observation\['camera'\] is uint8 \[5, 3, 3, 3\], expected uint8 \[5, 4, 3, 3\]"),
        ({"camera": camera.float()}, r"observation\['camera'\] is float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            buffer.extend(good._replace(observation=good.observation | bad))
    with pytest.raises(ValueError, match=r"observation has the keys \['speed'\], expected \['camera', 'speed'\]"):
        buffer.extend(good._replace(observation={"speed": good.observation["speed"]}))
    assert buffer.inserted == buffer.frames.rings["camera"].inserted == 0


def test_channels_must_be_a_multiple_of_the_frames() -> None:
    with pytest.raises(ValueError, match="4 channels of 3 frames"):
        FrameRing({"shape": [4, 8, 8], "dtype": "uint8", "frame_stack": 3}, 10)


def test_a_state_of_whole_stacks_is_refused() -> None:
    state = ReplayBuffer(naive(make_spec(4)), 20, seed=0).state_dict()
    with pytest.raises(ValueError, match=r"has frames of \[\], expected \['camera'\].*start a new one"):
        ReplayBuffer(make_spec(4), 20, seed=0).load_state_dict(state)
