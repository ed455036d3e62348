import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.data.replay import ReplayBuffer
from rlmods.data.strata import StratifiedReplayBuffer
from rlmods.types import EnvSpec, ReplaySample, Transition

SPEC: EnvSpec = {
    "env_id": "vector",
    "observation": {"shape": [1], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}
MIXED = {"recent": 0.25, "high_reward": 0.25, "before_end": 0.125, "uniform": 0.375}


def transitions(first: int, last: int, *, rewards: list[float] | None = None, ends_every: int = 4) -> Transition:
    """Transitions whose action is their number; every fourth one contains the end of an episode."""
    number = torch.arange(first, last)
    reward = torch.zeros(len(number)) if rewards is None else torch.tensor(rewards)
    ended = number % ends_every == ends_every - 1
    observation = number.float().unsqueeze(1)
    return Transition(observation, number, reward, reward, observation, ended, torch.zeros_like(ended))


def buffer_of(capacity: int, num: int, strata: dict[str, float], **options: Any) -> StratifiedReplayBuffer:
    """Filled in threes; the reward of every fifth transition is 1."""
    buffer = StratifiedReplayBuffer(SPEC, capacity, seed=0, replay_strata=strata, **options)
    for first in range(0, num, 3):
        last = min(first + 3, num)
        buffer.extend(transitions(first, last, rewards=[float(number % 5 == 0) for number in range(first, last)]))
    return buffer


def drawn(sample: ReplaySample) -> set[int]:
    return set(sample.transition.action.flatten().tolist())


@pytest.mark.parametrize("num", [7, 8, 9, 12, 17, 41])
def test_recent_is_a_matter_of_time_wherever_the_ring_has_its_end(num: int) -> None:
    """Eight slots, filled up to five times: the last quarter is always the two newest."""
    buffer = buffer_of(8, num, {"recent": 1.0})
    assert drawn(buffer.sample(4, 32, 0.0)) == {num - 2, num - 1}


@pytest.mark.parametrize("num", [11, 20, 21, 22, 23, 61])
def test_members_are_those_that_are_held_and_belong(num: int) -> None:
    held = range(max(0, num - 10), num)
    buffer = buffer_of(10, num, {"before_end": 1.0})
    assert drawn(buffer.sample(4, 32, 0.0)) == {number for number in held if number % 4 == 3}
    buffer = buffer_of(10, num, {"high_reward": 1.0})
    assert drawn(buffer.sample(4, 32, 0.0)) == {number for number in held if number % 5 == 0}
    assert buffer.sizes() == {
        "recent": 3,
        "high_reward": 2,
        "before_end": sum(number % 4 == 3 for number in held),
        "uniform": 10,
    }


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.integers(1, 12))
@settings(max_examples=50)
def test_no_slot_is_drawn_that_is_not_held_and_of_its_stratum(lengths: list[int], capacity: int) -> None:
    buffer, inserted = StratifiedReplayBuffer(SPEC, capacity, seed=0, replay_strata=MIXED), 0
    for length in lengths:
        buffer.extend(transitions(inserted, inserted + length, rewards=torch.rand(length).tolist()))
        inserted += length
        held = set(range(inserted - min(inserted, capacity), inserted))
        members = buffer._members["before_end"]
        assert set(members.numbers(np.arange(len(members))).tolist()) == {n for n in held if n % 4 == 3}
    if inserted:
        assert drawn(buffer.sample(2, 16, 0.0)) <= held


def test_uniform_strata_are_uniform_replay() -> None:
    """The same draws, bit for bit, and weights of one."""
    uniform = ReplayBuffer(SPEC, 10, seed=0)
    uniform.extend(transitions(0, 14))
    stratified = StratifiedReplayBuffer(SPEC, 10, seed=0, replay_strata={"uniform": 1.0})
    stratified.extend(transitions(0, 14))
    for _ in range(3):
        one, other = uniform.sample(2, 8, 0.3), stratified.sample(2, 8, 0.3)
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_the_share_of_an_empty_stratum_goes_to_uniform() -> None:
    buffer = StratifiedReplayBuffer(SPEC, 10, seed=0, replay_strata={"before_end": 0.5, "high_reward": 0.5})
    buffer.extend(transitions(0, 3))  # nothing ends, and no reward is higher than another
    assert buffer.shares() == {"recent": 0.0, "high_reward": 0.0, "before_end": 0.0, "uniform": 1.0}
    assert drawn(buffer.sample(4, 32, 0.0)) == {0, 1, 2}
    buffer.extend(transitions(3, 4))
    assert buffer.shares() == {"recent": 0.0, "high_reward": 0.0, "before_end": 0.5, "uniform": 0.5}


def test_golden_probabilities() -> None:
    """20 held of 23: 5 recent, 4 with a reward (5, 10, 15, 20), 5 ends (3, 7, 11, 15, 19).

    Of number 15: 0.25/4 + 0.125/5 + 0.375/20 = 0.10625. Of 20, which is recent: 0.25/5 + 0.25/4 + 0.375/20 = 0.13125.
    Of 4, which is in no stratum: 0.375/20 = 0.01875.
    """
    buffer = buffer_of(20, 23, MIXED)
    slots = np.array([15, 20, 4]) % 20
    assert buffer.probabilities(slots).tolist() == pytest.approx([0.10625, 0.13125, 0.01875])
    assert buffer.probabilities(np.arange(20)).sum() == pytest.approx(1.0)


def test_draws_follow_the_probabilities_and_the_shares_hold_in_each_mini_batch() -> None:
    buffer = buffer_of(20, 23, MIXED)
    index = buffer.sample(4_000, 16, 0.0).index
    frequency = torch.bincount(index.flatten(), minlength=20) / index.numel()
    expected = torch.from_numpy(buffer.probabilities(np.arange(20))).float()
    # Five standard deviations of a binomial at the largest of them.
    assert float((frequency - expected).abs().max()) < 5 * (0.15 / index.numel()) ** 0.5
    ended = index % 20 % 4 == 3
    assert int(ended.sum(1).min()) >= 2  # 16 · 0.125 places of before_end


def test_importance_weights_make_the_mean_that_of_uniform_replay() -> None:
    """Σ P(i) w(i) x(i) / Σ P(i) w(i) is the plain mean where β is 1, for any x."""
    buffer = buffer_of(20, 23, MIXED)
    slots = torch.arange(20)
    probability = torch.from_numpy(buffer.probabilities(slots.numpy()))
    weight = buffer._importance_weight(slots.unsqueeze(0).numpy(), 0.0)[0].double()
    values = torch.linspace(-3.0, 5.0, 20, dtype=torch.float64) ** 3
    weighted = (probability * weight * values).sum() / (probability * weight).sum()
    torch.testing.assert_close(weighted, values.mean(), rtol=1e-5, atol=1e-5)
    assert float(weight.max()) == 1.0
    uncorrected = buffer_of(20, 23, MIXED, replay_strata_beta=0.0).sample(2, 8, 0.0)
    assert torch.equal(uncorrected.importance_weight, torch.ones(2, 8))


def test_a_high_reward_is_judged_against_the_last_ones_and_keeps_its_place() -> None:
    buffer = StratifiedReplayBuffer(SPEC, 8, seed=0, replay_strata={"high_reward": 1.0})
    buffer.extend(transitions(0, 4, rewards=[0.0, 1.0, 2.0, 3.0]))  # the third quartile is 2.25
    assert drawn(buffer.sample(2, 16, 0.0)) == {3}
    buffer.extend(transitions(4, 6, rewards=[9.0, 9.0]))  # of 0 1 2 3 9 9 it is 7.5
    assert drawn(buffer.sample(2, 16, 0.0)) == {3, 4, 5}


def test_resume_continues_bit_for_bit() -> None:
    buffer = buffer_of(10, 23, MIXED)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    restored = StratifiedReplayBuffer(SPEC, 10, seed=4, replay_strata=MIXED)
    restored.load_state_dict(torch.load(file, weights_only=True))
    restored.restore_rows(13, buffer.stored_rows(13, 23))
    for first in (23, 26, 40):
        torch.testing.assert_close(buffer.sample(2, 8, 0.5), restored.sample(2, 8, 0.5), rtol=0, atol=0)
        for each in (buffer, restored):
            each.extend(transitions(first, first + 3, rewards=[1.0, 0.0, 2.0]))


@pytest.mark.parametrize(
    ("strata", "beta", "words"),
    [
        ({"recents": 1.0}, 1.0, r"replay_strata with \['recents'\], expected some of \['recent', 'high_reward'"),
        ({"recent": 0.5, "uniform": 0.2}, 1.0, "add up to 0.7, expected shares from 0 that add up to 1"),
        ({"recent": -0.5, "uniform": 1.5}, 1.0, "expected shares from 0"),
        ({"recent": float("nan")}, 1.0, "expected shares from 0"),
        ({"uniform": 1.0}, 1.5, "replay_strata_beta = 1.5, expected 0"),
    ],
)
def test_shares_that_cannot_be_drawn_are_refused(strata: dict[str, float], beta: float, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StratifiedReplayBuffer(SPEC, 4, seed=0, replay_strata=strata, replay_strata_beta=beta)
