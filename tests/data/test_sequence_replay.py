import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_rollouts import SPEC, STATE_SIZE, Row, ScriptedEnvironment, collect
from torch import Tensor

from rlmods.data import memory
from rlmods.data.segments import ReplaySegments
from rlmods.data.sequence_replay import SequenceReplay
from rlmods.data.sequence_rows import RowJoiner, SequenceRows
from rlmods.types import EnvSpec, SequenceBatch

LENGTHS = st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=4), min_size=1, max_size=3)
ROLLOUTS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


class Stream:
    """Scripted environments, and the rows that come of their rollouts."""

    def __init__(self, lengths: list[list[int]], *, next_step: bool = False) -> None:
        self.environments = [
            ScriptedEnvironment(number, each, next_step=next_step) for number, each in enumerate(lengths, 1)
        ]
        self.joiner = RowJoiner(SPEC["action"], len(lengths), STATE_SIZE)

    def rows(self, num_steps: int) -> SequenceRows:
        return self.joiner.rows(collect(self.environments, num_steps))


def make_replay(stream: Stream, *, capacity: int = 100, length: int = 3, **options: Any) -> SequenceReplay:
    return SequenceReplay(
        SPEC,
        capacity,
        num_streams=len(stream.environments),
        batch_length=length,
        **({"state_size": STATE_SIZE, "gamma": 0.9, "seed": 0} | options),
    )


def as_rows(rows: SequenceRows | Any) -> list[Row]:
    """Flat fields to rows, after a look whether the columns of each field agree."""
    assert isinstance(rows.observation, Tensor)
    assert torch.equal(rows.observation, rows.observation[..., :1].expand_as(rows.observation))
    fields = (rows.observation[:, 0], *rows[1:6], rows.state[:, 0])
    return [Row(*values) for values in zip(*(field.tolist() for field in fields), strict=True)]


def sample(replay: SequenceReplay, num_batches: int, batch_size: int) -> SequenceBatch:
    return replay.sample(num_batches, batch_size, env_steps=7, progress=0.5)


def restored(replay: SequenceReplay, other: SequenceReplay, segments: ReplaySegments, files: Any) -> SequenceReplay:
    other.load_state_dict(replay.state_dict())
    segments.load(other, files)
    return other


# Rows


def test_golden_rows_of_two_episodes() -> None:
    """One step that terminates, two that meet a time limit; 5 frames of CartPole's way to reset are 5 rows."""
    rows = Stream([[1, 2]], next_step=True).rows(5)
    assert rows.is_first.tolist() == [True, False, True, False, False]
    assert rows.is_last.tolist() == [False, True, False, False, True]
    assert rows.is_terminal.tolist() == [False, True, False, False, False]
    assert rows.action.ne(0).tolist() == [True, False, True, True, False]
    assert rows.state.ne(0).all(1).tolist() == [True, False, True, True, False]
    assert rows.reward.ne(0).tolist() == [False, True, False, True, True]
    assert rows.reward.dtype == torch.float32


@given(LENGTHS, ROLLOUTS, st.booleans())
@settings(deadline=None)
def test_rows_are_what_the_environments_did(lengths: list[list[int]], rollouts: list[int], next_step: bool) -> None:
    """Whatever the episodes' lengths and ends, the way to reset, and where the rollouts are cut."""
    stream = Stream(lengths, next_step=next_step)
    all_rows = [stream.rows(num_steps) for num_steps in rollouts]
    num_rows = 0
    for number, environment in enumerate(stream.environments):
        of_stream = [row for rows in all_rows for row in as_rows(_select(rows, rows.stream == number))]
        assert of_stream == environment.rows
        num_rows += len(of_stream)
        for row, successor in pairwise(of_stream):
            assert row.is_last == successor.is_first
        assert all(row.reward == 0 for row in of_stream if row.is_first)
    assert num_rows == sum(len(rows.reward) for rows in all_rows)


def _select(rows: SequenceRows, chosen: Tensor) -> SequenceRows:
    return SequenceRows(*(field[chosen] for field in rows))  # type: ignore[index]


def test_rows_come_in_the_order_of_time() -> None:
    rows = Stream([[2], [9]]).rows(3)
    assert rows.stream.tolist() == [0, 1, 0, 1, 0, 0, 1]  # an episode of stream 0 ends at the second step


def test_an_abandoned_episode_ends_as_at_a_time_limit() -> None:
    stream = Stream([[4], [2], [9]])
    stream.rows(2)
    rows = stream.joiner.abandon(torch.tensor([[5.0, 5], [6, 6], [7, 7]]))
    waiting = [environment.reward for environment in stream.environments]
    assert rows.stream.tolist() == [0, 2]  # stream 1 is between two episodes
    assert as_rows(rows) == [
        Row(5, 0, waiting[0] or 0, False, True, False, 0),
        Row(7, 0, waiting[2] or 0, False, True, False, 0),
    ]
    following = stream.rows(1)
    assert following.is_first.tolist() == [True] * 3
    assert following.reward.tolist() == [0.0] * 3
    assert stream.joiner.abandon(torch.zeros(3, 2)).stream.tolist() == [0, 1, 2]


def test_a_policy_that_only_acts_is_refused() -> None:
    stream = Stream([[3]])
    with pytest.raises(ValueError, match="without decisions"):
        stream.joiner.rows(collect(stream.environments, 2)._replace(decisions=None))


# Sequences


@given(LENGTHS, ROLLOUTS, st.booleans(), st.integers(1, 4), st.integers(2, 40))
@settings(deadline=None)
def test_sequences_are_what_the_environments_did(
    lengths: list[list[int]], rollouts: list[int], next_step: bool, length: int, capacity: int
) -> None:
    stream = Stream(lengths, next_step=next_step)
    replay = make_replay(stream, capacity=capacity, length=length)
    for num_steps in rollouts:
        replay.extend(stream.rows(num_steps))
        if replay.index.num_starts:
            check(sample(replay, 2, 3), stream, length)


def check(batch: SequenceBatch, stream: Stream, length: int) -> None:
    assert batch.index.shape == batch.reward.shape == (2, length, 3)
    assert batch.state.shape == (2, 3, STATE_SIZE)
    assert torch.equal(batch.discount, 0.9 * (~batch.is_terminal).float())
    positions = {
        row.observation: (environment.rows, position)
        for environment in stream.environments
        for position, row in enumerate(environment.rows)
    }
    for update, one in enumerate(batch.minibatches()):
        assert torch.equal(one.reward, batch.reward[update])
        for column in range(3):
            assert isinstance(one.observation, Tensor)
            rows, position = positions[float(one.observation[0, column, 0])]
            expected = rows[position : position + length]
            fields = SequenceRows(
                observation=one.observation[:, column],
                action=one.action[:, column],
                reward=one.reward[:, column],
                is_first=one.is_first[:, column],
                is_last=one.is_last[:, column],
                is_terminal=one.is_terminal[:, column],
                stream=one.index[:, column],
                state=torch.zeros(length, 1),
            )
            assert as_rows(fields) == [row._replace(state=0) for row in expected]
            assert one.state[column].tolist() == [rows[position - 1].state] * STATE_SIZE


def test_the_observations_of_a_dict_and_continuous_actions_keep_their_types() -> None:
    spec: EnvSpec = {
        "env_id": "both",
        "observation": {"image": {"shape": [3, 4, 4], "dtype": "uint8"}, "vector": {"shape": [2], "dtype": "float32"}},
        "action": {"kind": "continuous", "n": 0, "shape": [2], "low": [-1.0] * 2, "high": [1.0] * 2},
    }
    replay = SequenceReplay(spec, 50, num_streams=1, batch_length=4, state_size=0, gamma=0.9, seed=0)
    flags = torch.zeros(8, dtype=torch.bool)
    image = torch.randint(256, (8, 3, 4, 4), dtype=torch.uint8)
    rows = SequenceRows(
        {"image": image, "vector": torch.rand(8, 2)}, torch.rand(8, 2), torch.rand(8), flags, flags, flags,
        torch.zeros(8, dtype=torch.int64), torch.zeros(8, 0),
    )  # fmt: skip
    replay.extend(rows)
    batch = sample(replay, 3, 2)
    assert isinstance(batch.observation, dict)
    assert torch.equal(batch.observation["image"], image[batch.index])
    assert batch.observation["image"].shape == (3, 4, 2, 3, 4, 4)
    assert torch.equal(batch.action, rows.action[batch.index])
    assert batch.state.shape == (3, 2, 0)
    one = batch.minibatches()[1]
    assert isinstance(one.observation, dict)
    assert one.observation["vector"].shape == (4, 2, 2)


def test_no_update_needs_no_rows() -> None:
    batch = sample(make_replay(Stream([[3]])), 0, 4)
    assert (batch.num_updates, batch.reward.shape) == (0, (0, 3, 4))
    assert (batch.env_steps, batch.progress) == (7, 0.5)
    assert batch.minibatches() == []


# States


def test_written_states_come_back_and_the_later_update_wins() -> None:
    stream = Stream([[50]])
    replay = make_replay(stream, length=2)
    replay.extend(stream.rows(10))
    index = torch.tensor([[[3], [4]], [[4], [5]]])  # [K, T, B]
    replay.write_states(index, index[..., None] + torch.tensor([0.25, 0.5]).view(2, 1, 1, 1).expand(2, 2, 1, 3))
    states = replay.rows(2, 7).state
    assert states[1:4].tolist() == [[3.25] * 3, [4.5] * 3, [5.5] * 3]
    assert [row.state for row in as_rows(replay.rows(0, 10))][2:7:4] == [
        row.state for row in stream.environments[0].rows[2:7:4]
    ]


def test_states_of_overwritten_rows_are_left_out() -> None:
    stream = Stream([[50]])
    replay = make_replay(stream, capacity=6, length=2)
    replay.extend(stream.rows(6))
    batch = sample(replay, 1, 4)
    replay.extend(stream.rows(4))
    before = replay.rows(6, 10).state
    replay.write_states(batch.index, torch.full((1, 2, 4, 3), -1.0, dtype=torch.bfloat16))
    assert torch.equal(replay.rows(6, 10).state, before)
    expected = torch.isin(torch.arange(4, 6), batch.index)
    assert torch.equal((replay.rows(4, 6).state == -1.0).all(1), expected)
    assert expected.any()


def test_states_of_another_shape_are_refused() -> None:
    replay = make_replay(Stream([[3]]))
    with pytest.raises(ValueError, match=r"got states \[1, 2, 4, 5\], expected \[1, 2, 4, 3\]"):
        replay.write_states(torch.zeros(1, 2, 4, dtype=torch.int64), torch.zeros(1, 2, 4, 5))


# Stop and resume


@given(LENGTHS, ROLLOUTS, ROLLOUTS, st.integers(6, 40))
@settings(deadline=None, max_examples=25)
def test_a_restored_replay_goes_on_alike(
    lengths: list[list[int]], before: list[int], after: list[int], capacity: int
) -> None:
    """Ring wrapped or not, online queue half drained or not, with states written in between."""
    stream = Stream(lengths)
    replay = make_replay(stream, capacity=capacity, length=2)
    with tempfile.TemporaryDirectory() as name:
        segments = ReplaySegments(Path(name), max_bytes=200)
        for num_steps in before:
            learn(replay, stream.rows(num_steps))
            files = segments.append(replay)
        other = make_replay(stream, capacity=capacity, length=2, seed=1)
        restored(replay, other, ReplaySegments(Path(name)), files)
    for num_steps in after:
        rows = stream.rows(num_steps)
        for expected, found in zip(learn(replay, rows), learn(other, rows), strict=True):
            assert torch.equal(expected, found)


def learn(replay: SequenceReplay, rows: SequenceRows) -> list[Tensor]:
    """An iteration: rows in, a batch out, its states back. Returned is all of the batch."""
    replay.extend(rows)
    batch = sample(replay, 2 if replay.index.num_starts else 0, 2)
    replay.write_states(batch.index, batch.index[..., None] + torch.full((3,), 0.5 + len(replay)))
    return [field for field in batch if isinstance(field, Tensor)]


def test_states_are_saved_whole_and_rows_once(tmp_path: Path) -> None:
    stream, segments = Stream([[50]]), ReplaySegments(tmp_path)
    replay = make_replay(stream, capacity=1000)
    replay.extend(stream.rows(10))
    first = segments.append(replay)
    replay.extend(stream.rows(5))
    assert [name[:25] for name in segments.append(replay)] == ["000000000000-000000000010", "000000000010-000000000015"]
    assert set(first) < {path.name for path in tmp_path.iterdir()}
    path = tmp_path / "state.pt"
    torch.save(replay.state_dict(), path)
    assert path.stat().st_size < 8000  # not the 12,000 bytes of 1,000 states
    assert torch.load(path, weights_only=True)["states"].shape == (15, 3)


def test_a_state_of_another_size_is_refused() -> None:
    stream = Stream([[3]])
    state = make_replay(stream).state_dict()
    with pytest.raises(ValueError, match=r"of 100 rows, this one holds 50: .*--data\.init_args\.buffer_size 100"):
        make_replay(stream, capacity=50).load_state_dict(state)
    with pytest.raises(ValueError, match="a policy that remembers 3 numbers, this one 4"):
        make_replay(stream, state_size=4).load_state_dict(state)


# Bad input and memory


def test_rows_of_another_shape_are_refused_before_anything_is_written() -> None:
    stream = Stream([[3]])
    replay, rows = make_replay(stream), stream.rows(4)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"observation": torch.zeros(5, 3)}, r"observation is float32 \[5, 3\], expected float32 \[5, 2\]"),
        ({"observation": {"a": torch.zeros(5, 2)}}, r"got rows of \['action', .*'observation/a'"),
        ({"reward": torch.zeros(5, dtype=torch.float64)}, r"reward is float64 \[5\], expected float32 \[5\]"),
        ({"state": torch.zeros(5, 2)}, r"state is float32 \[5, 2\], expected float32 \[5, 3\]"),
    ]
    for changes, message in bad:
        with pytest.raises(ValueError, match=message):
            replay.extend(rows._replace(**changes))
    assert len(replay) == 0
    assert not replay._columns["reward"].any()


def test_what_a_replay_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Observation 8, action 8, reward 4, three flags, stream 8, the row that follows 8, state 12: 51 bytes."""
    assert SequenceReplay.memory_bytes(SPEC, 10, 3) == 510
    text = SequenceReplay.describe(SPEC, 2**20, 3)
    assert text == "SequenceReplay: 1,048,576 rows of 51 bytes, 51.0 MiB, of which 24% for states of 3 numbers"
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 2**20)
    with pytest.raises(
        ValueError, match=r"rows takes 51\.0 MiB, 10\.0 MiB are available: try --data\.init_args"
    ) as error:
        make_replay(Stream([[3]]), capacity=2**20)
    make_replay(Stream([[3]]), capacity=int(str(error.value).split()[-1]))
