import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_random_features import settings_of
from torch import Tensor

from rlmods.networks.linear_actor import LinearActors


def make_actors(theta: Tensor, behaviour_theta: Tensor) -> LinearActors:
    sizes = settings_of(observation_size=3, actor_feature_dim=theta.shape[0])
    return LinearActors(sizes, theta, behaviour_theta, behaviour_std=0.5, target_std=2.0)


def random_actors(seed: int = 0) -> LinearActors:
    generator = torch.Generator().manual_seed(seed)
    return make_actors(*(torch.randn(4, 2, generator=generator, dtype=torch.float64) for _ in range(2)))


def observations(size: int = 5) -> Tensor:
    return torch.randn(size, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def test_golden_mean() -> None:
    """θᵀψ/√4 with ψ = (1, 2, 0, 0): half of (1 + 6, 2 + 8)."""
    theta = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    actors = make_actors(theta, torch.zeros(4, 2))
    assert actors.mean(torch.tensor([1.0, 2.0, 0.0, 0.0]), theta).tolist() == [3.5, 5.0]


def test_the_means_of_both_policies() -> None:
    actors = random_actors()
    observation = observations()
    psi = actors.features(observation)
    behaviour, target = actors.means(observation)
    torch.testing.assert_close(behaviour, psi @ actors.behaviour_theta / 2.0)
    torch.testing.assert_close(target, psi @ actors.theta / 2.0)
    assert target.requires_grad
    assert not behaviour.requires_grad


@pytest.mark.parametrize("of_target", [False, True])
def test_a_draw_is_mean_and_noise(of_target: bool) -> None:
    actors = random_actors()
    observation = observations()
    noise = torch.full((5, 2), 3.0)  # single precision, as the actions of a double one
    mean, std = (actors.means(observation)[1], 2.0) if of_target else (actors.means(observation)[0], 0.5)
    with torch.no_grad():
        action = actors.draw(observation, of_target=of_target, noise=noise)
        assert action.dtype == torch.float64
        torch.testing.assert_close(action, mean + 3.0 * std)
        torch.manual_seed(4)
        drawn = actors.draw(observation, of_target=of_target)
        torch.manual_seed(4)
        torch.testing.assert_close(drawn, mean + std * torch.randn(5, 2, dtype=torch.float64))


@settings(max_examples=30)
@given(beta=st.floats(0.0, 1.0), radius=st.sampled_from([0.0, 0.5, 100.0]), seed=st.integers(0, 100))
def test_the_behaviour_follows(beta: float, radius: float, seed: int) -> None:
    actors = random_actors(seed)
    theta, behaviour = actors.theta.detach().clone(), actors.behaviour_theta.clone()
    actors.follow(beta, radius)
    expected = [theta, (1.0 - beta) * behaviour + beta * theta]
    for result, unprojected in zip((actors.theta, actors.behaviour_theta), expected, strict=True):
        length = float(unprojected.norm())
        factor = radius / length if 0.0 < radius < length else 1.0
        torch.testing.assert_close(result.detach(), factor * unprojected, rtol=1e-10, atol=1e-14)


def test_beta_1_makes_them_equal_and_beta_0_leaves_it() -> None:
    actors = random_actors()
    before = actors.behaviour_theta.clone()
    actors.follow(0.0, 0.0)
    assert torch.equal(actors.behaviour_theta, before)
    actors.follow(1.0, 0.0)
    assert torch.equal(actors.behaviour_theta, actors.theta)


def test_the_gap_shrinks_by_one_minus_beta() -> None:
    """Golden: a gap of norm 1 is 0.9ⁿ after n steps of β = 0.1."""
    theta = torch.zeros(4, 2, dtype=torch.float64)
    actors = make_actors(theta.clone(), theta.index_fill(0, torch.tensor([0]), math.sqrt(0.5)))
    for _ in range(3):
        actors.follow(0.1, 0.0)
    assert float(actors.behaviour_theta.norm()) == pytest.approx(0.729)


def test_only_theta_is_trained_and_both_are_saved() -> None:
    actors = random_actors()
    assert [name for name, _ in actors.named_parameters()] == ["theta"]
    assert sorted(actors.state_dict()) == ["behaviour_theta", "theta"]
    other = random_actors(1)
    other.load_state_dict(actors.state_dict())
    assert torch.equal(other.behaviour_theta, actors.behaviour_theta)
