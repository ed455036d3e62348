from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlmods.data.flags import FlagRing
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.segments import ReplaySegments
from rlmods.data.strata import StratifiedReplayBuffer
from rlmods.types import EnvSpec, Minibatch, ReplayBatch, Transition

SPEC: EnvSpec = {
    "env_id": "vector",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}
CAPACITY = 10


def transitions(first: int, last: int) -> Transition:
    number = torch.arange(first, last)
    observation, flag = number.float().unsqueeze(1), number < 0
    return Transition(observation, number, number.float(), number.float(), observation, flag, flag)


def by_expert(first: int, last: int) -> torch.Tensor:
    return torch.arange(first, last) % 3 == 0


def fill(buffer: ReplayBuffer, last: int) -> None:
    first = buffer.inserted
    buffer.extend(transitions(first, last), by_expert(first, last))


@given(st.integers(1, 12), st.lists(st.lists(st.booleans(), max_size=30), max_size=6))
def test_flags_equal_a_deque(capacity: int, blocks: list[list[bool]]) -> None:
    ring, model, written = FlagRing(capacity), deque[bool](maxlen=capacity), 0
    for block in blocks:
        ring.write(written, torch.tensor(block, dtype=torch.bool))
        model.extend(block)
        written += len(block)
        assert ring.between(written - len(model), written).tolist() == list(model)


def make(kind: str) -> ReplayBuffer:
    if kind == "uniform":
        return ReplayBuffer(SPEC, CAPACITY, seed=0, stores_expert=True)
    if kind == "prioritized":
        return PrioritizedReplayBuffer(SPEC, CAPACITY, seed=0, stores_expert=True)
    shares = {"recent": 0.5, "uniform": 0.5}
    return StratifiedReplayBuffer(SPEC, CAPACITY, seed=0, replay_strata=shares, stores_expert=True)


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "stratified"])
def test_who_chose_an_action_is_drawn_with_it(kind: str) -> None:
    buffer = make(kind)
    for last in (4, 9, 13, 31):
        fill(buffer, last)
        sample = buffer.sample(3, 16, 0.0)
        flags = buffer.expert_flags(sample.index)
        assert flags is not None
        assert torch.equal(flags, sample.transition.action % 3 == 0)


@pytest.mark.parametrize("kind", ["uniform", "prioritized", "stratified"])
def test_segments_hold_who_chose_the_actions(kind: str, tmp_path: Path) -> None:
    buffer, segments = make(kind), ReplaySegments(tmp_path)
    for last in (4, 13, 27):
        fill(buffer, last)
        files = segments.append(buffer)
        restored = make(kind)
        restored.load_state_dict(buffer.state_dict())
        ReplaySegments(tmp_path).load(restored, files)
        one, other = buffer.sample(2, 8, 0.0), restored.sample(2, 8, 0.0)
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        slots = torch.from_numpy(np.arange(buffer.oldest, buffer.inserted) % CAPACITY)
        mine, theirs = buffer.expert_flags(slots), restored.expert_flags(slots)
        assert mine is not None
        assert theirs is not None
        assert torch.equal(mine, theirs)
    assert len([name for name in files if name.endswith(".expert.pt")]) == len(files) // 2


def test_flags_are_stored_where_they_are_asked_for_and_only_there() -> None:
    without, with_flags = ReplayBuffer(SPEC, CAPACITY, seed=0), make("uniform")
    without.extend(transitions(0, 3))
    assert without.expert_flags(torch.zeros(1, 1, dtype=torch.int64)) is None
    with pytest.raises(ValueError, match=r"got flags .* does not store it: make it with stores_expert=True"):
        without.extend(transitions(3, 6), by_expert(3, 6))
    with pytest.raises(ValueError, match=r"got nothing .* the buffer stores it: make it with stores_expert=False"):
        with_flags.extend(transitions(0, 3))
    with pytest.raises(ValueError, match=r"by_expert is bool \[2\], expected bool \[3\]"):
        with_flags.extend(transitions(0, 3), by_expert(0, 2))
    assert (without.inserted, with_flags.inserted) == (3, 0)


def test_a_stack_gives_each_mini_batch_its_flags() -> None:
    number = torch.arange(6).view(2, 3)
    flags = torch.tensor([[True, False, False], [False, True, True]])
    value = number.float()
    transition = Transition(value, number, value, value, value, flags, flags)
    batch = ReplayBatch(transition, number, torch.ones(2, 3), 0, 0.0, flags)
    first, second = batch.minibatches()
    assert isinstance(first, Minibatch)
    assert first.by_expert is not None
    assert second.by_expert is not None
    assert first.by_expert.tolist() == [True, False, False]
    assert second.by_expert.tolist() == [False, True, True]
    assert [each.by_expert for each in batch._replace(by_expert=None).minibatches()] == [None, None]
