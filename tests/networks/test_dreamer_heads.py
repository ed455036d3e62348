"""Numbers over bins, and the actions of a dream."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from rlmods.networks.action_heads import CategoricalHead
from rlmods.networks.dreamer_heads import ActionVector, BinSpace, BoundedNormalHead, TwoHotHead, dreamer_action_head
from rlmods.types import ActionSpec, EnvSpec


def spec(**action: Any) -> EnvSpec:
    defaults: ActionSpec = {"kind": "continuous", "n": 0, "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 1.0]}
    merged: Any = {**defaults, **action}
    return {"env_id": "test", "observation": {"shape": [3], "dtype": "float32"}, "action": merged}


DISCRETE = spec(kind="discrete", n=3, shape=[], low=[], high=[])
MULTI_DISCRETE = spec(kind="multi_discrete", nvec=[2, 3], shape=[2], low=[], high=[])


def two_hot_head(space: BinSpace = "symexp", num_bins: int = 255, log_bound: float = 20.0) -> TwoHotHead:
    torch.manual_seed(0)
    return TwoHotHead(6, 8, 2, num_bins=num_bins, log_bound=log_bound, space=space)


@pytest.mark.parametrize("space", ["symexp", "symlog"])
def test_the_first_prediction_is_exactly_zero_and_costs_the_logarithm_of_the_bins(space: BinSpace) -> None:
    """ln 255 = 5.541, whatever the number."""
    head, features = two_hot_head(space), torch.randn(50, 6)
    logits = head(features)
    assert torch.equal(head.mean(logits), torch.zeros(50))
    assert head.loss(logits, torch.randn(50) * 1e3).tolist() == pytest.approx([math.log(255.0)] * 50)


def test_golden_the_two_spaces_share_a_number_in_different_ways() -> None:
    """3 between the bins 2 and 8, that is e^b − 1 for b = ln 3 and 2 ln 3.

    In its own space 1/6 of it lies on the upper bin; after symlog ln 4 is (ln 4 − ln 3)/ln 3 = 0.2619 of the way.
    """
    log_probabilities = torch.tensor([-9.0, -9.0, -9.0, 0.0, -1.0])  # a number for each bin; a distribution or not
    for space, expected in (("symexp", 1.0 / 6.0), ("symlog", math.log(4.0 / 3.0) / math.log(3.0))):
        head = two_hot_head(space, num_bins=5, log_bound=2.0 * math.log(3.0))  # type: ignore[arg-type]
        assert -head.log_likelihood(log_probabilities, torch.tensor(3.0)).item() == pytest.approx(expected, rel=1e-5)


def test_golden_the_two_spaces_mean_different_numbers() -> None:
    """Half on 0 and half on 8: 4; after symlog the middle of 0 and ln 9, which is 3 − 1 = 2."""
    logits = torch.tensor([-1e9, -1e9, 0.0, -1e9, 0.0])
    for space, expected in (("symexp", 4.0), ("symlog", 2.0)):
        head = two_hot_head(space, num_bins=5, log_bound=2.0 * math.log(3.0))  # type: ignore[arg-type]
        assert head.mean(logits).item() == pytest.approx(expected, rel=1e-5)
        assert head.bound == pytest.approx(8.0)


def test_learning_a_number_makes_it_the_mean() -> None:
    head, features = two_hot_head(num_bins=41, log_bound=8.0), torch.randn(1, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(40):
        optimizer.zero_grad()
        head.loss(head(features), torch.tensor([137.0])).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert head.mean(head(features)).item() == pytest.approx(137.0, rel=0.02)


def test_golden_mass_of_the_ends() -> None:
    """First row 1/8 + 1/8, second row 1/2 + 1/4: the mean is 1/2."""
    log_probabilities = torch.tensor([[0.125, 0.75, 0.125], [0.5, 0.25, 0.25]]).log().requires_grad_()
    mass = TwoHotHead.end_mass(log_probabilities)
    assert mass.item() == pytest.approx(0.5)
    assert not mass.requires_grad


def test_bins_are_no_parameters_and_in_no_checkpoint() -> None:
    assert not any("bins" in name for name in two_hot_head().state_dict())


def test_golden_bounds_of_a_normal_policy() -> None:
    """Mean tanh, σ = 0.1 + 0.9·sigmoid(x + 2): for zeros σ = 0.1 + 0.9·0.8808 = 0.8927, and at the ends 0.1 and 1."""
    head = BoundedNormalHead(spec(shape=[1], low=[-1.0], high=[1.0]))
    for output, std in ((0.0, 0.89272), (-100.0, 0.1), (100.0, 1.0)):
        outputs = torch.tensor([[0.5, output]])
        sample = torch.tensor([[0.3]])
        log_prob, entropy = head.log_prob_and_entropy(outputs, sample)
        peer = Normal(math.tanh(0.5), std)
        assert log_prob.item() == pytest.approx(float(peer.log_prob(sample)), abs=1e-4)  # type: ignore[no-untyped-call]
        assert entropy.item() == pytest.approx(float(peer.entropy()), abs=1e-4)  # type: ignore[no-untyped-call]


def test_several_normals_are_independent() -> None:
    torch.manual_seed(0)
    head, outputs, sample = BoundedNormalHead(spec()), torch.randn(5, 4), torch.randn(5, 2)
    peer = Normal(outputs[:, :2].tanh(), 0.1 + 0.9 * (outputs[:, 2:] + 2.0).sigmoid())
    log_prob, entropy = head.log_prob_and_entropy(outputs, sample)
    torch.testing.assert_close(log_prob, peer.log_prob(sample).sum(-1))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(entropy, peer.entropy().sum(-1))  # type: ignore[no-untyped-call]
    assert torch.equal(head.log_prob(outputs, sample), log_prob)


def test_draws_of_a_normal_policy() -> None:
    """μ = tanh 1 = 0.7616, σ = 0.8927: the draw leaves the cube, the action is clipped into the box."""
    torch.manual_seed(0)
    head = BoundedNormalHead(spec())
    outputs = torch.tensor([[1.0, -1.0, 0.0, 0.0]]).expand(20_000, 4)
    sample = head.draw(outputs, deterministic=False)
    assert sample.mean(0).tolist() == pytest.approx([0.7616, -0.7616], abs=0.025)  # 4 standard errors
    assert sample.std(0).tolist() == pytest.approx([0.8927, 0.8927], abs=0.02)
    action = head.action(sample)
    assert action.amin(0).tolist() == [-2.0, 0.0]
    assert action.amax(0).tolist() == [2.0, 1.0]
    assert head.draw(outputs[:1], deterministic=True).tolist()[0] == pytest.approx([0.7616, -0.7616], abs=1e-4)


def test_golden_discrete_actions_have_a_floor() -> None:
    """1 % of the uniform distribution over 3 actions: 0.99 + 1/300 and 1/300."""
    head = dreamer_action_head(DISCRETE, 0.01)
    outputs = torch.tensor([[100.0, 0.0, 0.0]])
    assert isinstance(head, CategoricalHead)
    assert head.log_prob(outputs, torch.tensor([0])).exp().item() == pytest.approx(0.99 + 1.0 / 300.0)
    assert head.log_prob(outputs, torch.tensor([2])).exp().item() == pytest.approx(1.0 / 300.0)
    _, entropy = head.log_prob_and_entropy(outputs, torch.tensor([0]))
    p, q = 0.99 + 1.0 / 300.0, 1.0 / 300.0
    assert entropy.item() == pytest.approx(-p * math.log(p) - 2.0 * q * math.log(q), rel=1e-4)


def test_the_heads_of_the_three_kinds_of_actions() -> None:
    assert dreamer_action_head(spec(), 0.01).num_outputs == 4
    assert dreamer_action_head(DISCRETE, 0.01).num_outputs == 3
    multiple = dreamer_action_head(MULTI_DISCRETE, 0.01)
    assert multiple.num_outputs == 5
    assert multiple.draw(torch.zeros(7, 5), deterministic=False).shape == (7, 2)


def test_golden_vectors_of_actions() -> None:
    """Of a box from (−2, 0) to (2, 1): (1, 0.25) is half-way up the first and a quarter below the second's middle."""
    assert ActionVector(DISCRETE).of_action(torch.tensor([2, 0])).tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    several = ActionVector(MULTI_DISCRETE).of_action(torch.tensor([[1, 2], [0, 0]]))
    assert several.tolist() == [[0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 0.0, 0.0]]
    assert ActionVector(spec()).of_action(torch.tensor([[1.0, 0.25]])).tolist() == [[0.5, -0.5]]


def test_draws_outside_the_cube_are_divided_by_their_size() -> None:
    vectors = ActionVector(spec()).of_sample(torch.tensor([[3.0, -0.5], [-1.5, 1.0]]))
    assert vectors.tolist() == [[1.0, -0.5], [-1.0, 1.0]]


@pytest.mark.parametrize("environment", [spec(), DISCRETE, MULTI_DISCRETE])
def test_the_model_gets_the_same_vector_of_a_dreamt_action_and_of_the_replayed_one(environment: EnvSpec) -> None:
    torch.manual_seed(0)
    head, vector = dreamer_action_head(environment, 0.01), ActionVector(environment)
    sample: Tensor = head.draw(torch.randn(64, head.num_outputs), deterministic=False)
    dreamt = vector.of_sample(sample)
    assert dreamt.shape == (64, vector.width)
    assert dreamt.dtype == torch.float32
    torch.testing.assert_close(vector.of_action(head.action(sample)), dreamt, rtol=0.0, atol=1e-6)
