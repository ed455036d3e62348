"""What DreamerV3's model dreams with the actions that were taken, against what was seen."""

import math
import sys
from pathlib import Path

import pytest
import torch
from dreamers import OBSERVATIONS, env_spec, make_certain, make_dreamer, make_sequences
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from mutation_bench.dreamer_mutations import KLAveraged, PriorSeesPosterior

from rlmods.algorithms.dreamer_open_loop import dreaming_kl, open_loop_error
from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.algorithms.dreamer_version import VersionName
from rlmods.functional.two_hot import symlog
from rlmods.types import Sequences


def errors_of(model: DreamerV3, sequences: Sequences, *, memory: float = 0.0, num_rows: int = 16) -> Tensor:
    torch.manual_seed(0)
    state = torch.full_like(model.initial_state(sequences.reward.shape[1]), memory)
    return open_loop_error(model.world_model, sequences._replace(state=state), num_rows)


@pytest.mark.parametrize("kind", ["vector", "image", "both"])
@pytest.mark.parametrize(("num_rows", "expected"), [(3, 3), (16, 4)])
def test_one_number_a_row(kind: str, num_rows: int, expected: int) -> None:
    spec = env_spec(OBSERVATIONS[kind])
    errors = errors_of(make_dreamer(spec), make_sequences(spec), num_rows=num_rows)
    assert errors.shape == (expected,)
    assert bool((errors > 0.0).all())


def test_golden_error_of_predicting_the_mean() -> None:
    """A decoder that says the mean of all rows leaves all of the variance: 1 in the mean over rows of equal spread."""
    model, batch = make_dreamer(), make_sequences()
    assert isinstance(batch.observation, Tensor)
    # Each row has the same two observations.
    batch = batch._replace(observation=batch.observation[:1].expand(4, -1, -1).clone())
    assert isinstance(batch.observation, Tensor)
    output = model.world_model.decoder.to_vectors.output
    with torch.no_grad():
        output.weight.zero_()
        output.bias.copy_(symlog(batch.observation).mean((0, 1)))
    assert errors_of(model, batch).tolist() == pytest.approx([1.0] * 4, rel=1e-4)


def test_nothing_is_known_after_the_episode() -> None:
    batch = make_sequences()
    begins = batch.is_first.clone()
    begins[2] = True
    errors = errors_of(make_dreamer(), batch._replace(is_first=begins)).tolist()
    assert [math.isnan(error) for error in errors] == [False, False, True, True]


def test_the_actions_that_were_taken_move_the_dream_and_not_its_first_row() -> None:
    model, batch = make_dreamer(), make_sequences()
    other = batch._replace(action=1 - batch.action)
    first, second = errors_of(model, batch), errors_of(model, other)
    assert first[0] == second[0]
    assert bool((first[1:] != second[1:]).all())


@pytest.mark.parametrize("begins", [True, False])
def test_what_was_before_a_beginning_does_not_count(begins: bool) -> None:
    model, batch = make_dreamer(), make_sequences()
    is_first = batch.is_first.clone()
    is_first[0] = begins
    batch = batch._replace(is_first=is_first)
    assert torch.equal(errors_of(model, batch), errors_of(model, batch, memory=0.5)) == begins


# The KL of the prior that dreams


def kls_of(model: DreamerV3, sequences: Sequences) -> tuple[Tensor, Tensor]:
    """Of the losses and of the dreams, with the same draws."""
    torch.manual_seed(0)
    of_losses = model.world_model_losses(sequences)[1]["kl_dynamics"].detach()
    torch.manual_seed(0)
    return of_losses, dreaming_kl(model.world_model, sequences)


@pytest.mark.parametrize("version", ["v1_2023", "v2_2024", "2025"])
@pytest.mark.parametrize("kind", ["vector", "both"])
def test_a_model_learns_the_prior_that_dreams(version: VersionName, kind: str) -> None:
    spec = env_spec(OBSERVATIONS[kind])
    sequences = make_sequences(spec)
    of_losses, of_dreams = kls_of(make_dreamer(spec, version=version), sequences)
    assert bool(of_dreams[0].isnan().all())
    assert of_dreams[1:].flatten().tolist() == pytest.approx(of_losses[1:].flatten().tolist(), rel=1e-3)


def test_where_an_episode_begins_nothing_dreams() -> None:
    sequences = make_sequences()
    begins = sequences.is_first.clone()
    begins[2, 1] = True
    of_losses, of_dreams = kls_of(make_dreamer(), sequences._replace(is_first=begins))
    assert of_dreams.isnan().tolist() == [[True, True], [False, False], [False, True], [False, False]]
    known = ~of_dreams.isnan()
    assert of_dreams[known].tolist() == pytest.approx(of_losses[known].tolist(), rel=1e-3)


def test_golden_kl_of_a_prior_that_knows_nothing() -> None:
    """A posterior that is certain is L·ln C away from a uniform prior."""
    model = make_dreamer(unimix=0.0)
    make_certain(model)
    rssm = model.world_model.rssm
    with torch.no_grad():
        rssm.prior.output.weight.zero_()
    of_dreams = kls_of(model, make_sequences())[1]
    expected = rssm.num_latents * math.log(rssm.num_classes)
    assert of_dreams[1:].flatten().tolist() == pytest.approx([expected] * 6, rel=1e-3)


def test_a_mean_over_the_latents_is_not_what_dreams() -> None:
    model = KLAveraged(env_spec(), size="1M")
    of_losses, of_dreams = kls_of(model, make_sequences())
    ratio = (of_dreams[1:] / of_losses[1:]).flatten().tolist()
    assert ratio == pytest.approx([model.world_model.rssm.num_latents] * 6, rel=1e-3)


def test_a_prior_that_has_seen_the_answer_is_not_what_dreams() -> None:
    of_losses, of_dreams = kls_of(PriorSeesPosterior(env_spec(), size="1M"), make_sequences())
    assert bool((of_losses[1:] != of_dreams[1:]).all())
