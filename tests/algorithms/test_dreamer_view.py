"""What DreamerV3 shows of sequences to people."""

from typing import Any

import pytest
import torch
from dreamers import BOX, OBSERVATIONS, TWO_CHOICES, env_spec, make_certain, make_dreamer, make_sequences

from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.functional.open_loop import OpenLoop
from rlmods.types import ActionSpec, EnvSpec, Sequences

T, B, H = 4, 2, 3


def shown(model: DreamerV3, sequences: Sequences, context: int = 2, seed: int = 0) -> OpenLoop:
    torch.manual_seed(seed)
    return model.open_loop(sequences, context=context, horizon=H)


def certain_dreamer(spec: EnvSpec | None = None) -> DreamerV3:
    model = make_dreamer(spec, size="cpu", unimix=0.0)
    make_certain(model)
    return model


def small_dreamer(spec: EnvSpec | None = None) -> DreamerV3:
    return make_dreamer(spec, size="cpu")


def of_env(spec: EnvSpec) -> Sequences:
    """The states of the small model."""
    return make_sequences(spec)._replace(state=small_dreamer(spec).initial_state(B))


@pytest.mark.parametrize("action", [TWO_CHOICES, BOX])
@pytest.mark.parametrize("kind", ["vector", "image", "both"])
def test_shapes_and_units(kind: str, action: ActionSpec) -> None:
    spec = env_spec(OBSERVATIONS[kind], action)
    record = shown(small_dreamer(spec), of_env(spec))
    entries: dict[str, Any] = {"vector": {"": (4,)}, "image": {"": (3, 48, 48)}}
    entries["both"] = {"image": (3, 48, 48), "x": (4,)}
    for observation, rows in (
        (record.truth, T),
        (record.reconstruction, T),
        (record.prediction.observation, T),
        (record.dream.observation, H + 1),
    ):
        assert {key: tuple(array.shape) for key, array in observation.items()} == {
            key: (rows, B, *shape) for key, shape in entries[kind].items()
        }
        assert all(array.min() >= 0.0 and array.max() <= 1.0 for array in observation.values() if array.ndim == 5)
    for outlook, rows in ((record.prediction, T), (record.dream, H + 1)):
        assert {tuple(part.shape) for part in outlook[1:]} == {(rows, B)}
    for p in (record.posterior, record.prior, record.foreseen):
        assert p.shape == (T, B, 16, 4)
        assert torch.allclose(p.sum(-1), torch.ones(T, B, 16))


def test_the_truth_is_what_came() -> None:
    spec = env_spec(OBSERVATIONS["both"])
    sequences = of_env(spec)
    record = shown(small_dreamer(spec), sequences)
    assert isinstance(sequences.observation, dict)
    assert torch.equal(record.truth["x"], sequences.observation["x"])
    assert torch.equal(record.truth["image"] * 255.0, sequences.observation["image"].float())
    assert torch.equal(record.reward, sequences.reward)
    assert torch.equal(record.discount, sequences.discount)


def test_of_stacked_frames_the_newest_is_shown() -> None:
    spec = env_spec({"shape": [4, 48, 48], "dtype": "uint8", "frame_stack": 2})
    sequences = of_env(spec)
    record = shown(small_dreamer(spec), sequences)
    assert isinstance(sequences.observation, torch.Tensor)
    assert torch.equal(record.truth[""], sequences.observation[:, :, 2:].float() / 255.0)
    assert record.prediction.observation[""].shape == (T, B, 2, 48, 48)


def test_the_prediction_sees_the_context_alone() -> None:
    """With one class for each latent no draw matters: the context is reconstructed, and nothing later is looked at."""
    model, sequences = certain_dreamer(), of_env(env_spec())
    assert isinstance(sequences.observation, torch.Tensor)
    other = sequences.observation.clone()
    other[2:] += 3.0
    record = shown(model, sequences)
    changed = shown(model, sequences._replace(observation=other))
    assert torch.equal(record.prediction.observation[""], changed.prediction.observation[""])
    assert torch.equal(record.prediction.value, changed.prediction.value)
    assert torch.equal(record.foreseen, changed.foreseen)
    assert torch.allclose(record.prediction.observation[""][:2], record.reconstruction[""][:2], atol=1e-6)
    assert not torch.equal(record.reconstruction[""][2:], changed.reconstruction[""][2:])
    assert torch.allclose(record.foreseen[:3], record.prior[:3])  # of the same h up to the first row that is foreseen


def test_the_prediction_takes_the_actions_of_the_sequences() -> None:
    """The action of row 2 shows in row 3."""
    model, sequences = certain_dreamer(), of_env(env_spec())
    other = sequences.action.clone()
    other[2] = 1 - other[2]
    record, changed = shown(model, sequences), shown(model, sequences._replace(action=other))
    assert torch.equal(record.prediction.observation[""][:3], changed.prediction.observation[""][:3])
    assert not torch.equal(record.prediction.observation[""][3], changed.prediction.observation[""][3])


def test_the_dream_begins_at_the_last_row_of_the_context() -> None:
    record = shown(small_dreamer(), of_env(env_spec()))
    assert torch.equal(record.dream.observation[""][0], record.prediction.observation[""][1])
    assert torch.equal(record.dream.reward[0], record.prediction.reward[1])


def test_rows_count_until_the_episode_of_the_context_has_ended() -> None:
    """Beginnings in rows 1 and 3 of the first sequence, with a context of 2, and in row 2 of the second."""
    sequences = of_env(env_spec())
    is_first = torch.tensor([[0, 0], [1, 0], [0, 1], [1, 0]], dtype=torch.bool)
    record = shown(small_dreamer(), sequences._replace(is_first=is_first))
    assert record.counts.T.tolist() == [[True, True, True, False], [True, True, False, False]]


def test_a_context_of_everything_is_a_reconstruction() -> None:
    record = shown(small_dreamer(), of_env(env_spec()), context=T)
    assert torch.allclose(record.prediction.observation[""], record.reconstruction[""], atol=1e-6)
