import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.replay import ReplayBuffer
from rlmods.data.segments import ReplaySegments
from rlmods.types import EnvSpec, Transition

SPEC: EnvSpec = {
    "env_id": "dict",
    "observation": {"pixels": {"shape": [2, 2], "dtype": "uint8"}, "state": {"shape": [3], "dtype": "float32"}},
    "action": {"kind": "continuous", "n": 0, "shape": [1], "low": [-1.0], "high": [1.0]},
}
CAPACITY = 10


def random_transitions(num: int) -> Transition:
    def observation() -> dict[str, torch.Tensor]:
        return {"pixels": torch.randint(256, (num, 2, 2), dtype=torch.uint8), "state": torch.rand(num, 3)}

    flag = torch.rand(num) < 0.5
    return Transition(observation(), torch.rand(num, 1), torch.rand(num), torch.rand(num), observation(), flag, ~flag)


def buffer_of(num: int) -> ReplayBuffer:
    buffer = ReplayBuffer(SPEC, CAPACITY, seed=0)
    buffer.extend(random_transitions(num))
    return buffer


def restored(buffer: ReplayBuffer, segments: ReplaySegments, files: dict[str, str]) -> ReplayBuffer:
    other = ReplayBuffer(SPEC, CAPACITY, seed=1)
    other.load_state_dict(buffer.state_dict())
    segments.load(other, files)
    return other


def assert_same(one: ReplayBuffer, other: ReplayBuffer) -> None:
    held = (one.inserted - len(one), one.inserted)
    torch.testing.assert_close(one.rows(*held), other.rows(*held), rtol=0, atol=0)
    if one.inserted:
        torch.testing.assert_close(one.sample(2, 8, 0.0), other.sample(2, 8, 0.0), rtol=0, atol=0)


@given(st.lists(st.integers(0, 25), max_size=6), st.sampled_from([1, 150, 2**30]))
@settings(max_examples=40, deadline=None)
def test_round_trip_after_every_append(lengths: list[int], max_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "not" / "there" / "yet"
        buffer, segments = buffer_of(0), ReplaySegments(folder, max_bytes=max_bytes)
        for length in lengths:
            buffer.extend(random_transitions(length))
            files = segments.append(buffer)
            assert_same(buffer, restored(buffer, ReplaySegments(folder), files))


def test_only_new_transitions_are_written(tmp_path: Path) -> None:
    buffer, segments = buffer_of(4), ReplaySegments(tmp_path)
    first = segments.append(buffer)
    assert segments.append(buffer) == first
    buffer.extend(random_transitions(3))
    second = segments.append(buffer)
    assert next(iter(second)) == next(iter(first))
    assert [name[:25] for name in second] == ["000000000000-000000000004", "000000000004-000000000007"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(second)
    buffer.extend(random_transitions(9))
    assert [name[:25] for name in segments.append(buffer)] == ["000000000004-000000000007", "000000000007-000000000016"]


def test_more_than_the_capacity_writes_what_survived(tmp_path: Path) -> None:
    segments, buffer = ReplaySegments(tmp_path), buffer_of(37)
    assert [name[:25] for name in segments.append(buffer)] == ["000000000027-000000000037"]


def test_another_future_keeps_the_files_of_the_older_checkpoint(tmp_path: Path) -> None:
    buffer, segments = buffer_of(4), ReplaySegments(tmp_path)
    first, state = segments.append(buffer), buffer.state_dict()
    buffer.extend(random_transitions(3))
    second = segments.append(buffer)
    other, again = ReplayBuffer(SPEC, CAPACITY, seed=0), ReplaySegments(tmp_path)
    other.load_state_dict(state)
    again.load(other, first)
    other.extend(random_transitions(3))
    third = again.append(other)
    assert set(first) < set(third)
    assert set(second) != set(third)
    assert_same(buffer, restored(buffer, ReplaySegments(tmp_path), second))
    assert_same(other, restored(other, ReplaySegments(tmp_path), third))


def test_a_buffer_that_went_back_must_be_loaded(tmp_path: Path) -> None:
    segments = ReplaySegments(tmp_path)
    segments.append(buffer_of(4))
    with pytest.raises(ValueError, match="load"):
        segments.append(buffer_of(3))


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    buffer, segments = buffer_of(4), ReplaySegments(tmp_path)
    files = segments.append(buffer)
    path = tmp_path / next(iter(files))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=f"{path.name} is corrupt"):
        restored(buffer, segments, files)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    buffer, segments = buffer_of(4), ReplaySegments(tmp_path)
    files = segments.append(buffer)
    (tmp_path / next(iter(files))).unlink()
    with pytest.raises(FileNotFoundError, match=next(iter(files))):
        restored(buffer, segments, files)


def test_files_that_do_not_cover_the_buffer_are_refused(tmp_path: Path) -> None:
    buffer, segments = buffer_of(4), ReplaySegments(tmp_path)
    segments.append(buffer)
    buffer.extend(random_transitions(3))
    files = segments.append(buffer)
    for name in files:
        with pytest.raises(ValueError, match="the buffer needs"):
            restored(buffer, ReplaySegments(tmp_path), {name: files[name]})
