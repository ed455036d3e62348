import math
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmods.networks import random_features
from rlmods.networks.random_features import (
    ActorFeatures,
    CriticFeatures,
    FeatureSettings,
    check_feature_settings,
    teacher_weight,
)


def settings_of(**changes: Any) -> FeatureSettings:
    defaults: dict[str, Any] = {
        "observation_size": 18,
        "action_size": 2,
        "feature_dim": 12,
        "actor_feature_dim": 6,
        "feature_sigma": 1.0,
        "actor_feature_norm": 1.0,
        "lambda_action_penalty": 0.1,
        "teacher_base_scale": 0.05,
        "feature_seed": 0,
        "precision": "float64",
    }
    return cast(FeatureSettings, defaults | changes)


def inputs(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    observation = torch.randn(size, 18, generator=generator, dtype=torch.float64)
    return observation, torch.randn(size, 2, generator=generator, dtype=torch.float64)


def test_golden_features_are_those_of_the_published_run() -> None:
    """Drawn from numpy's SeedSequence(0): its first child is the actor's, the second the critic's."""
    sizes = settings_of(feature_dim=2048, actor_feature_dim=512)
    actor, critic = ActorFeatures(sizes), CriticFeatures(sizes)
    assert actor.weight[:2, 0].tolist() == pytest.approx([0.3402812213349085, -0.21117649182638673], rel=1e-15)
    assert actor.bias[:2].tolist() == pytest.approx([-0.10684410597422203, -0.05389843750912998], rel=1e-15)
    assert critic.input_weight[:2, 0].tolist() == pytest.approx([0.8050894723742356, -1.9120592174903859], rel=1e-15)
    teacher = teacher_weight(sizes)
    assert teacher[:2].tolist() == pytest.approx([0.04710495018888014, -0.034924626022908134], rel=1e-15)
    assert teacher[-4:].tolist() == [-1.0, 1.0, -1.0, -0.1]
    # The last column of W belongs to the constant 1 and is a part of the phase.
    generator = np.random.default_rng(np.random.SeedSequence(0).spawn(3)[1])
    constant = generator.standard_normal((2044, 21))[:2, 20]
    assert (critic.input_weight[-1, :2].numpy() - constant).tolist() == pytest.approx(
        [1.3906256320009902, 3.630755032869485]
    )


@pytest.mark.parametrize("changes", [{}, {"feature_dim": 5}, {"feature_sigma": 3.0}])
def test_the_features_of_a_state_and_an_action(changes: Any) -> None:
    """√(2/M) cos(W [o; a; 1] + b), the three events, ‖a‖²."""
    critic = CriticFeatures(settings_of(**changes))
    observation, action = inputs(3)
    feature = critic(observation, action)
    cosines = feature.shape[1] - 4
    for row in range(3):
        z = [*observation[row].tolist(), *action[row].tolist(), 1.0]
        for column in range(cosines):
            angle = sum(w * x for w, x in zip(critic.input_weight[:, column].tolist(), z, strict=True))
            expected = math.sqrt(2.0 / cosines) * math.cos(angle)
            assert feature[row, column] == pytest.approx(expected, abs=1e-12)
        assert feature[row, cosines:-1].tolist() == observation[row, 14:17].tolist()
        assert feature[row, -1] == pytest.approx(float(action[row, 0] ** 2 + action[row, 1] ** 2))


def test_the_scale_of_the_frequencies() -> None:
    one, three = CriticFeatures(settings_of()), CriticFeatures(settings_of(feature_sigma=3.0))
    torch.testing.assert_close(three.input_weight[:-1], 3.0 * one.input_weight[:-1])


def test_features_are_as_long_as_those_of_the_published_run() -> None:
    """E‖φ‖² is 1 for the cosines, and what the events and the actions add; there it was 1.054."""
    critic = CriticFeatures(settings_of(feature_dim=2048))
    observation, action = inputs(200)
    observation[:, 14:17] = 0.0
    squared = critic(observation, 0.25 * action).square().sum(1)
    # E‖a‖⁴ = 8σ⁴ = 0.031 without the clip.
    assert float(squared.mean()) == pytest.approx(1.031, abs=0.02)


def test_the_seed_is_the_features_own() -> None:
    torch.manual_seed(5)
    first = CriticFeatures(settings_of(feature_seed=3))
    torch.manual_seed(6)
    assert torch.equal(first.input_weight, CriticFeatures(settings_of(feature_seed=3)).input_weight)
    assert not torch.equal(first.input_weight, CriticFeatures(settings_of(feature_seed=4)).input_weight)


def test_single_precision_is_the_same_features_rounded() -> None:
    double, single = (settings_of(precision=precision) for precision in ("float64", "float32"))
    observation, action = inputs(20)
    feature = CriticFeatures(single)(observation.float(), action.float())
    assert feature.dtype == torch.float32
    torch.testing.assert_close(feature.double(), CriticFeatures(double)(observation, action), atol=1e-5, rtol=0.0)
    actor_feature = ActorFeatures(single)(observation.float())
    assert actor_feature.dtype == torch.float32
    torch.testing.assert_close(actor_feature.double(), ActorFeatures(double)(observation), atol=1e-6, rtol=0.0)
    assert torch.equal(teacher_weight(single), teacher_weight(double).float())


def test_nothing_of_them_is_trained_or_saved() -> None:
    for features in (ActorFeatures(settings_of()), CriticFeatures(settings_of())):
        assert not list(features.parameters())
        assert not features.state_dict()


# Functions of many transitions


@settings(max_examples=20)
@given(size=st.integers(1, 7), num_samples=st.integers(1, 3), seed=st.integers(0, 1000))
def test_values_are_products_with_the_features(size: int, num_samples: int, seed: int) -> None:
    critic = CriticFeatures(settings_of())
    observation, mean = inputs(size, seed)
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(size, num_samples, 2, generator=generator, dtype=torch.float64)
    weight = torch.randn(12, generator=generator, dtype=torch.float64)
    kept = weight.clone()
    torch.testing.assert_close(critic.value(weight, observation, mean), critic(observation, mean) @ weight)
    expected = torch.stack([critic(observation, actions[:, sample]) for sample in range(num_samples)]).mean(0)
    torch.testing.assert_close(critic.mean(observation, actions), expected)
    torch.testing.assert_close(critic.mean_value(weight, observation, actions), expected @ weight)
    expectation = critic.expectation(observation, mean, 0.6)
    torch.testing.assert_close(critic.expected_value(weight, observation, mean, 0.6), expectation @ weight)
    assert torch.equal(weight, kept)


def test_the_expectation_is_the_mean_of_a_large_sample() -> None:
    critic = CriticFeatures(settings_of())
    observation, mean = inputs(3)
    noise = torch.randn(3, 20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    std = 0.7
    repeated = observation.repeat_interleave(20_000, dim=0)
    sample = critic(repeated, (mean.unsqueeze(1) + std * noise).flatten(0, 1)).view(3, 20_000, -1)
    standard_error = sample.std(1) / math.sqrt(20_000)
    gap = (sample.mean(1) - critic.expectation(observation, mean, std)).abs()
    # 27 numbers that vary; the events do not.
    assert bool((gap <= 4.0 * standard_error + 1e-12).all())
    assert bool((standard_error[:, -1] > 0.0).all())


def test_without_a_spread_the_expectation_is_the_feature_of_the_mean() -> None:
    critic = CriticFeatures(settings_of())
    observation, mean = inputs(4)
    assert torch.equal(critic.expectation(observation, mean, 0.0), critic(observation, mean))


def test_blocks_of_all_sizes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = CriticFeatures(settings_of())
    observation, action = inputs(11)
    actions = torch.stack([action, -action], 1)
    weight = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64)

    def everything() -> list[Tensor]:
        return [
            critic(observation, action),
            critic.mean(observation, actions),
            critic.value(weight, observation, action),
            critic.mean_value(weight, observation, actions),
            critic.expected_value(weight, observation, action, 0.3),
        ]

    at_once = everything()
    for elements in (1, 3 * 12, 11 * 12):
        monkeypatch.setattr(random_features, "_BLOCK_ELEMENTS", elements)
        for result, expected in zip(everything(), at_once, strict=True):
            torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-14)


# The actor's


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), norm=st.floats(0.01, 5.0), size=st.sampled_from([1, 6, 40]))
def test_the_actors_features_are_no_longer_than_their_norm(seed: int, norm: float, size: int) -> None:
    actor = ActorFeatures(settings_of(actor_feature_dim=size, actor_feature_norm=norm))
    observation, _ = inputs(5, seed)
    plain = torch.tanh(observation @ actor.weight + actor.bias)
    length = plain.norm(dim=1, keepdim=True)
    feature = actor(observation)
    torch.testing.assert_close(feature, torch.where(length > norm, plain * norm / length, plain), rtol=1e-9, atol=0.0)
    assert bool((feature.norm(dim=1) <= norm * (1.0 + 1e-12)).all())


def test_the_actors_features_of_any_leading_shape() -> None:
    actor = ActorFeatures(settings_of())
    observation, _ = inputs(6)
    kept = observation.clone()
    feature = actor(observation)
    torch.testing.assert_close(actor(observation.view(3, 2, 18)), feature.view(3, 2, 6))
    torch.testing.assert_close(actor(observation[0]), feature[0])
    assert torch.equal(observation, kept)


@pytest.mark.parametrize(
    ("name", "value"),
    [("feature_dim", 4), ("actor_feature_dim", 0), ("teacher_base_scale", -0.1), ("precision", "float16")],
)
def test_settings_outside_their_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"got {name} = {value!r}, expected .*env_kwargs\.{name} VALUE"):
        check_feature_settings(settings_of(**{name: value}))
