import math

import pytest
import torch
from torch import Tensor

from rlmods.networks.q_network import DuelingHead, q_network
from rlmods.networks.value_heads import CategoricalHead, ScalarHead, value_head
from rlmods.types import EnvSpec

SPEC: EnvSpec = {
    "env_id": "Toy-v0",
    "observation": {"shape": [3], "dtype": "float32"},
    "action": {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []},
}
# Two transitions, two actions, atoms 0, 1 and 2: certainly 2 and certainly 0, then certainly 1 and half 0, half 2.
NEVER = -math.inf
LOGITS = torch.tensor([[[NEVER, NEVER, 0.0], [0.0, NEVER, NEVER]], [[NEVER, 0.0, NEVER], [0.0, NEVER, 0.0]]])


def test_a_scalar_head_takes_the_outputs_for_values() -> None:
    head, outputs = ScalarHead("huber"), torch.tensor([[1.0, 2.0], [4.0, 3.0]])
    assert head.values(outputs) is outputs
    assert head.of_action(outputs, torch.tensor([0, 1])).tolist() == [1.0, 3.0]
    assert head.bootstrap(outputs, None).tolist() == [2.0, 4.0]
    assert head.bootstrap(outputs, outputs.flip(-1)).tolist() == [1.0, 3.0]


def test_golden_values_of_distributions() -> None:
    head = CategoricalHead(0.0, 2.0, 3)
    assert head.values(LOGITS).tolist() == [[2.0, 0.0], [1.0, 1.0]]
    assert head.values(head.of_action(LOGITS, torch.tensor([1, 1]))).tolist() == [0.0, 1.0]


def test_mixed_precision_rounds_no_values() -> None:
    """Of the atoms 0 and 100 with logits 0 and 4: 100/(1 + e⁻⁴) = 98.2014; bfloat16 knows 98 and 98.5."""
    head = CategoricalHead(0.0, 100.0, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = head.values(torch.tensor([[0.0, 4.0]], dtype=torch.bfloat16))
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(98.2014, abs=1e-3)


def test_the_online_network_chooses_by_the_mean_and_the_target_network_tells_the_distribution() -> None:
    head = CategoricalHead(0.0, 2.0, 3)
    assert head.values(head.bootstrap(LOGITS, None)).tolist() == [2.0, 1.0]
    assert head.values(head.bootstrap(LOGITS, LOGITS.flip(1))).tolist() == [0.0, 1.0]


def loss_of(target: float, discount: float, bootstrap: list[float], prediction: list[float]) -> tuple[float, float]:
    head = CategoricalHead(0.0, 2.0, 3)
    loss, signals = head.sample_loss(
        torch.tensor([prediction]).log(),
        torch.tensor([target]),
        torch.tensor([discount]),
        torch.tensor([bootstrap]).log(),
    )
    return float(loss), float(signals["td_kl"])


def test_golden_loss_of_a_bellman_update() -> None:
    """R = 0.5, D = 0.5 of half 0, half 2: atoms at 0.5 and 1.5, y = 1; projected (1/4, 1/2, 1/4).

    Against (1/2, 1/4, 1/4): −(1/4 ln 1/2 + 1/2 ln 1/4 + 1/4 ln 1/4) = 7/4 ln 2; the entropy of the target is 3/2 ln 2.
    """
    loss, divergence = loss_of(1.0, 0.5, [0.5, 0.0, 0.5], [0.5, 0.25, 0.25])
    assert loss == pytest.approx(1.75 * math.log(2.0))
    assert divergence == pytest.approx(0.25 * math.log(2.0), abs=1e-6)


def test_a_terminated_transition_has_all_its_mass_at_the_reward() -> None:
    assert loss_of(1.5, 0.0, [0.5, 0.0, 0.5], [0.25, 0.25, 0.5])[0] == pytest.approx(0.5 * (math.log(4) + math.log(2)))


def test_a_target_that_was_moved_takes_its_distribution_along() -> None:
    """Moved from 1 to 1.5 the atoms lie at 1 and 2."""
    assert loss_of(1.5, 0.5, [0.5, 0.0, 0.5], [1e-6, 0.5, 0.5])[1] == pytest.approx(0.0, abs=1e-5)


def test_the_gradient_is_that_of_a_softmax() -> None:
    """∂/∂logit of a cross-entropy: p − m; 0 where the prediction is the target."""
    head, logits = CategoricalHead(0.0, 2.0, 3), torch.zeros(1, 3, requires_grad=True)
    loss, _ = head.sample_loss(logits, torch.ones(1), torch.zeros(1), torch.zeros(1, 3))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    torch.testing.assert_close(gradient, torch.tensor([[1 / 3, -2 / 3, 1 / 3]]))


@pytest.mark.parametrize("noisy_std", [None, 0.5])
@pytest.mark.parametrize("dueling", [False, True])
def test_networks_with_atoms(dueling: bool, noisy_std: float | None) -> None:
    torch.manual_seed(0)
    network = q_network(SPEC, [8], dueling=dueling, num_atoms=5, noisy_std=noisy_std)
    outputs: Tensor = network(torch.randn(4, 3))
    assert outputs.shape == (4, 2, 5)
    assert all(("std" in name) <= (noisy_std is not None) for name, _ in network.named_parameters())


def test_dueling_advantages_of_atoms_are_centred_over_the_actions() -> None:
    torch.manual_seed(0)
    head, features = DuelingHead(8, 3, num_atoms=5), torch.randn(4, 8)
    torch.testing.assert_close(head(features).mean(1), head.value(features))


def test_several_atoms_need_a_support() -> None:
    assert isinstance(value_head("huber", 1, None, None), ScalarHead)
    with pytest.raises(ValueError, match=r"num_atoms = 3 with v_min = 0.0, v_max = None, expected a support"):
        value_head("huber", 3, 0.0, None)
