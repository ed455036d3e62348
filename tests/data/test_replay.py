import io
from collections import deque
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmods.data import memory
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.types import EnvSpec, Transition

SPEC: EnvSpec = {
    "env_id": "vector",
    "observation": {"shape": [2], "dtype": "float64"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}
DICT_SPEC: EnvSpec = {
    "env_id": "dict",
    "observation": {
        "pixels": {"shape": [1, 2, 2], "dtype": "uint8"},
        "state": {"shape": [], "dtype": "float32"},
    },
    "action": {"kind": "continuous", "n": 0, "shape": [3], "low": [-1.0] * 3, "high": [1.0] * 3},
}
Buffers = type[ReplayBuffer]
both = pytest.mark.parametrize("buffer_class", [ReplayBuffer, PrioritizedReplayBuffer])


def transitions(first: int, last: int) -> Transition:
    """Transitions of `SPEC` that carry their own number."""
    number = torch.arange(first, last)
    observation = torch.stack([number, -number], dim=1).double()
    reward = number.float()
    odd = number % 2 == 1
    return Transition(observation, number, reward, reward / 2, observation + 1, odd, ~odd)


def dict_transitions(num: int) -> Transition:
    observation = {
        "pixels": torch.randint(256, (num, 1, 2, 2), dtype=torch.uint8),
        "state": torch.rand(num),
    }
    following = {key: tensor + 1 for key, tensor in observation.items()}
    flag = torch.zeros(num, dtype=torch.bool)
    return Transition(observation, torch.rand(num, 3), torch.rand(num), torch.rand(num), following, flag, ~flag)


def assert_equal(one: object, other: object) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def numbers(buffer: ReplayBuffer) -> list[int]:
    held: list[int] = buffer.rows(buffer.inserted - len(buffer), buffer.inserted).action.tolist()
    return held


@both
@given(st.integers(1, 12), st.lists(st.integers(0, 30), max_size=8))
@settings(max_examples=60, deadline=None)
def test_content_equals_a_deque(buffer_class: Buffers, capacity: int, lengths: list[int]) -> None:
    buffer, model, inserted = buffer_class(SPEC, capacity, seed=0), deque[int](maxlen=capacity), 0
    for length in lengths:
        buffer.extend(transitions(inserted, inserted + length))
        model.extend(range(inserted, inserted + length))
        inserted += length
        assert (buffer.inserted, len(buffer), numbers(buffer)) == (inserted, len(model), list(model))
    if inserted:
        sample = buffer.sample(3, 8, 0.5)
        drawn = sample.transition.action
        assert set(drawn.flatten().tolist()) <= set(model)
        assert_equal(sample.index, drawn % capacity)
        expected = transitions(0, inserted)
        for field, whole in zip(sample.transition, expected, strict=True):
            assert isinstance(whole, Tensor)
            assert_equal(field, whole[drawn])


@both
def test_shapes_and_dtypes_of_a_sample(buffer_class: Buffers) -> None:
    buffer = buffer_class(DICT_SPEC, 10, seed=0)
    stored = dict_transitions(7)
    buffer.extend(stored)
    transition, index, weight = buffer.sample(2, 5, 0.0)
    assert isinstance(transition.observation, dict)
    assert isinstance(stored.observation, dict)
    assert transition.observation["pixels"].dtype == torch.uint8
    assert (transition.action.shape, transition.action.dtype) == ((2, 5, 3), torch.float32)
    assert (index.shape, index.dtype, weight.shape, weight.dtype) == ((2, 5), torch.int64, (2, 5), torch.float32)
    for key, tensor in stored.observation.items():
        assert_equal(transition.observation[key], tensor[index])


@both
def test_no_mini_batches_are_drawn_from_an_empty_buffer_but_no_more(buffer_class: Buffers) -> None:
    buffer = buffer_class(SPEC, 4, seed=0)
    assert buffer.sample(0, 8, 0.0).index.shape == (0, 8)
    with pytest.raises(ValueError, match=r"empty.*learning_starts"):
        buffer.sample(1, 8, 0.0)


@both
def test_resume_continues_bit_for_bit(buffer_class: Buffers) -> None:
    buffer = buffer_class(SPEC, 10, seed=3)
    buffer.extend(transitions(0, 14))
    sample = buffer.sample(2, 4, 0.1)
    buffer.feedback(sample.index, torch.randn(2, 4))
    state = saved_and_loaded(buffer.state_dict())
    restored = buffer_class(SPEC, 10, seed=4)
    restored.load_state_dict(state)
    restored.restore_rows(0, transitions(0, 14))
    for _ in range(3):
        one, other = buffer.sample(2, 4, 0.5), restored.sample(2, 4, 0.5)
        assert_equal(one, other)
        td_error = torch.randn(2, 4)
        for each in (buffer, restored):
            each.feedback(one.index, td_error)
            each.extend(transitions(14, 17))


def test_a_bad_field_is_named_before_anything_is_written() -> None:
    buffer = ReplayBuffer(SPEC, 4, seed=0)
    good = transitions(0, 3)
    for bad, message in [
        (good._replace(reward=good.reward.double()), r"reward is float64 \[3\], expected float32 \[3\]"),
        (good._replace(truncated=good.truncated[:2]), r"truncated is bool \[2\], expected bool \[3\]"),
        (good._replace(observation=torch.zeros(3, 5).double()), r"float64 \[3, 5\], expected float64 \[3, 2\]"),
        (good._replace(next_observation={"a": torch.zeros(3)}), r"keys \['a'\], expected \[\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            buffer.extend(bad)
        assert buffer.inserted == 0


def test_rows_outside_the_buffer_are_refused() -> None:
    buffer = ReplayBuffer(SPEC, 4, seed=0)
    buffer.extend(transitions(0, 6))
    with pytest.raises(ValueError, match="holds 2 to 6"):
        buffer.rows(1, 4)
    with pytest.raises(ValueError, match="load its state_dict first"):
        buffer.restore_rows(4, transitions(4, 7))


def test_state_of_another_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match=r"buffer_size 5"):
        ReplayBuffer(SPEC, 4, seed=0).load_state_dict(ReplayBuffer(SPEC, 5, seed=0).state_dict())


def test_what_a_buffer_costs() -> None:
    assert ReplayBuffer.memory_bytes(SPEC, 10) == 10 * 56  # 16 + 8 + 4 + 4 + 16 + 1 + 1, aligned to 8
    assert ReplayBuffer.describe(SPEC, 2**20) == "ReplayBuffer: 1,048,576 transitions of 56 bytes, 56.0 MiB"


def test_a_buffer_beyond_the_memory_is_refused_with_one_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 10 * 2**20)
    with pytest.raises(ValueError, match=r"10\.0 MiB are available: try --data\.init_args\.buffer_size \d+") as error:
        ReplayBuffer(SPEC, 2**20, seed=0)
    ReplayBuffer(SPEC, int(str(error.value).split()[-1]), seed=0)
    with pytest.raises(ValueError, match="at least 1"):
        ReplayBuffer(SPEC, 0, seed=0)


def test_uniform_priorities_equal_uniform_replay() -> None:
    buffer = PrioritizedReplayBuffer(SPEC, 50, seed=0, prioritized_replay_alpha=0.0)
    buffer.extend(transitions(0, 80))
    buffer.feedback(torch.arange(50).view(5, 10), torch.randn(5, 10))
    # 50 strata of equal priorities: each transition is drawn exactly once in each mini-batch.
    sample = buffer.sample(4, 50, 0.3)
    assert_equal(sample.index.sort(dim=1).values, torch.arange(50).expand(4, 50))
    assert_equal(sample.importance_weight, torch.ones(4, 50))


def test_draws_are_in_proportion_to_the_priorities() -> None:
    buffer = PrioritizedReplayBuffer(SPEC, 4, seed=0, prioritized_replay_alpha=1.0, prioritized_replay_eps=1e-9)
    buffer.extend(transitions(0, 4))
    buffer.feedback(torch.tensor([[0, 1, 2, 3]]), torch.tensor([[1.0, -2.0, 3.0, -4.0]]))
    sample = buffer.sample(3, 100, 1.0)
    for drawn in sample.index:
        assert torch.bincount(drawn, minlength=4).sub(torch.tensor([10, 20, 30, 40])).abs().max() <= 1
    torch.testing.assert_close(sample.importance_weight, 1 / (1 + sample.index.float()))


def test_new_transitions_get_the_maximum_priority_and_the_last_feedback_holds() -> None:
    buffer = PrioritizedReplayBuffer(SPEC, 3, seed=0, prioritized_replay_alpha=1.0, prioritized_replay_eps=0.5)
    buffer.extend(transitions(0, 2))
    buffer.feedback(torch.tensor([[0, 0, 1]]), torch.tensor([[7.5, 0.5, 1.5]]))
    buffer.extend(transitions(2, 3))
    assert buffer.state_dict()["priority_tree"]["priorities"].tolist() == [1.0, 2.0, 8.0]


def test_feedback_is_checked() -> None:
    buffer = PrioritizedReplayBuffer(SPEC, 3, seed=0)
    buffer.extend(transitions(0, 3))
    with pytest.raises(ValueError, match=r"\[1, 2\], td_error \[2\]"):
        buffer.feedback(torch.tensor([[0, 1]]), torch.ones(2))
    with pytest.raises(ValueError, match="2 TD errors of which none is finite"):
        buffer.feedback(torch.tensor([[0, 1]]), torch.tensor([[torch.inf, torch.nan]]))


def test_what_nothing_can_be_learned_from_gets_the_lowest_priority() -> None:
    buffer = PrioritizedReplayBuffer(SPEC, 3, seed=0, prioritized_replay_alpha=1.0, prioritized_replay_eps=0.5)
    buffer.extend(transitions(0, 3))
    buffer.feedback(torch.tensor([[0, 1]]), torch.tensor([[1.0, torch.nan]]))
    assert buffer.state_dict()["priority_tree"]["priorities"].tolist() == [1.5, 0.5, 1.0]


@pytest.mark.parametrize(("alpha", "beta0", "eps"), [(1.1, 0.4, 1e-6), (0.6, -0.1, 1e-6), (0.6, 0.4, 0.0)])
def test_ranges_of_the_hyper_parameters(alpha: float, beta0: float, eps: float) -> None:
    with pytest.raises(ValueError, match=r"prioritized_replay_.* expected"):
        PrioritizedReplayBuffer(
            SPEC,
            3,
            seed=0,
            prioritized_replay_alpha=alpha,
            prioritized_replay_beta0=beta0,
            prioritized_replay_eps=eps,
        )
