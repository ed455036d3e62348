"""Distributions over actions."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Categorical, Normal

from rlmods.networks.action_heads import (
    LOG_STD_HIGH,
    LOG_STD_LOW,
    BoundedGaussianHead,
    GaussianHead,
    UnboundedGaussianHead,
    action_head,
)
from rlmods.types import ActionSpec, EnvSpec


def spec(**action: Any) -> EnvSpec:
    defaults: ActionSpec = {"kind": "continuous", "n": 0, "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 1.0]}
    merged: Any = {**defaults, **action}
    return {"env_id": "test", "observation": {"shape": [3], "dtype": "float32"}, "action": merged}


DISCRETE = spec(kind="discrete", n=3, shape=[], low=[], high=[])
MULTI_DISCRETE = spec(kind="multi_discrete", nvec=[2, 3], shape=[2], low=[], high=[])


def test_a_categorical_is_that_of_torch() -> None:
    head = action_head(DISCRETE, "bounded", -0.5)
    outputs, sample = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]), torch.tensor([1, 2])
    log_prob, entropy = head.log_prob_and_entropy(outputs, sample)
    peer = Categorical(logits=outputs)
    torch.testing.assert_close(log_prob, peer.log_prob(sample))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(entropy, peer.entropy())  # type: ignore[no-untyped-call]
    torch.testing.assert_close(head.log_prob(outputs, sample), log_prob)


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    torch.manual_seed(0)
    head = action_head(DISCRETE, "bounded", -0.5)
    outputs = torch.tensor([[0.0, math.log(2.0), math.log(5.0)]]).expand(80_000, 3)
    counts = torch.bincount(head.draw(outputs, deterministic=False), minlength=3) / 80_000
    assert counts.tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.006)  # 3.4 standard errors
    assert head.draw(outputs[:1], deterministic=True).tolist() == [2]


def test_several_discrete_actions_are_independent() -> None:
    head = action_head(MULTI_DISCRETE, "bounded", -0.5)
    outputs = torch.tensor([[0.0, 0.0, 0.0, math.log(2.0), 0.0]])
    log_prob, entropy = head.log_prob_and_entropy(outputs, torch.tensor([[1, 1]]))
    assert float(log_prob) == pytest.approx(math.log(0.5) + math.log(0.5))
    assert float(entropy) == pytest.approx(math.log(2.0) + 1.5 * math.log(2.0))
    assert head.draw(outputs, deterministic=True).tolist()[0][1] == 1
    assert head.draw(outputs, deterministic=False).shape == (1, 2)


def test_the_gaussian_is_that_of_torch() -> None:
    head = UnboundedGaussianHead(spec(), 0.3)
    mean, sample = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.1, 3.0]])
    peer = Normal(mean, math.exp(0.3))
    log_prob, entropy = head.log_prob_and_entropy(mean, sample)
    torch.testing.assert_close(log_prob, peer.log_prob(sample).sum(-1))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(entropy, peer.entropy().sum(-1))  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("parameter", [-1e4, -3.0, 0.0, 3.0, 1e4])
def test_sigma_is_bounded_by_construction(parameter: float) -> None:
    head = BoundedGaussianHead(spec(), -0.5)
    assert head.bounded_log_std().tolist()[0] == pytest.approx([-0.5, -0.5], abs=1e-6)
    with torch.no_grad():
        head.log_std.fill_(parameter)
    log_std = head.bounded_log_std().detach()
    assert LOG_STD_LOW <= float(log_std.amin()) <= float(log_std.amax()) <= LOG_STD_HIGH


def test_actions_stay_in_the_box() -> None:
    torch.manual_seed(0)
    for head in (BoundedGaussianHead(spec(), -0.1), UnboundedGaussianHead(spec(), 3.0)):
        action = head.action(head.draw(torch.full((500, 2), 0.3), deterministic=False))
        low, high = action.amin(0).tolist(), action.amax(0).tolist()
        assert low[0] >= -2.0
        assert low[1] >= 0.0
        assert high[0] <= 2.0
        assert high[1] <= 1.0


def test_the_entropy_of_a_bounded_policy_is_at_most_that_of_the_cube() -> None:
    """And the estimate is the integral: σ small and μ = 0 leave the Gaussian's entropy."""
    torch.manual_seed(0)
    wide = BoundedGaussianHead(spec(), -1e-3)
    _, entropy = wide.log_prob_and_entropy(torch.zeros(20_000, 2), torch.zeros(20_000, 2))
    assert 0.9 * 2.0 * math.log(2.0) < float(entropy.mean()) < 2.0 * math.log(2.0)
    narrow = BoundedGaussianHead(spec(), -4.0)
    _, entropy = narrow.log_prob_and_entropy(torch.zeros(20_000, 2), torch.zeros(20_000, 2))
    assert float(entropy.mean()) == pytest.approx(2.0 * (-4.0 + 0.5 * math.log(2.0 * math.pi * math.e)), abs=1e-3)


def test_the_entropy_of_an_unbounded_policy_leaves_the_cube() -> None:
    """Four dimensions with entropy 32.73 have σ = 866 in a box of ±1."""
    head = UnboundedGaussianHead(spec(shape=[4], low=[-1.0] * 4, high=[1.0] * 4), math.log(866.0))
    _, entropy = head.log_prob_and_entropy(torch.zeros(1, 4), torch.zeros(1, 4))
    assert float(entropy) == pytest.approx(32.73, abs=0.01)
    assert float(entropy) > 4.0 * math.log(2.0)


def test_actions_without_bounds_need_an_unbounded_policy() -> None:
    endless = spec(low=[-math.inf, 0.0], high=[math.inf, 1.0])
    with pytest.raises(ValueError, match="without bounds"):
        action_head(endless, "bounded", -0.5)
    head = action_head(endless, "unbounded", 0.0)
    assert isinstance(head, GaussianHead)
    assert head.action(torch.tensor([[50.0, -50.0]])).tolist() == [[50.0, -50.0]]


def test_a_sigma_outside_its_bounds_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_std_init = 1.0.*type --model.init_args.log_std_init"):
        action_head(spec(), "bounded", 1.0)
