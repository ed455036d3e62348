import math

import torch
from torch.nn import Linear, Parameter

from rlmods.functional.gradients import gradient_norms, parameter_ownership


def test_golden_norms() -> None:
    gradients = [torch.tensor([3.0, -4.0]), torch.tensor([[-2.0]])]
    assert gradient_norms(gradients).tolist() == [[5.0, 2.0], [4.0, 2.0]]


def test_sparse_gradients_count_with_their_values() -> None:
    sparse = torch.sparse_coo_tensor(
        torch.tensor([[0, 2, 2]]), torch.tensor([3.0, 1.0, 3.0]), (9,), check_invariants=True
    )
    assert gradient_norms([sparse]).tolist() == [[5.0], [4.0]]


def test_measuring_changes_nothing_not_even_where_it_is_infinite() -> None:
    """Measured by a clip at infinity, as some do, an infinite norm makes all gradients NaN."""
    gradients = [torch.tensor([math.inf, 1.0]), torch.tensor([2.0])]
    norms = gradient_norms(gradients)
    assert norms.tolist() == [[math.inf, 2.0], [math.inf, 2.0]]
    assert [gradient.tolist() for gradient in gradients] == [[math.inf, 1.0], [2.0]]


def test_ownership() -> None:
    module = torch.nn.ModuleDict({"a": Linear(1, 1), "b": Linear(1, 1), "c": Linear(1, 1)})
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    module["a"].bias.requires_grad_(False)
    module["c"].weight.grad = None
    a, b = list(module["a"].parameters()), list(module["b"].parameters())
    ownership = parameter_ownership(dict(module.named_parameters()), [[*a, b[0], Parameter(torch.ones(1))], [b[0]]])
    assert ownership.foreign == 1
    assert ownership.forgotten == ["b.bias", "c.bias"]
    assert ownership.shared == ["b.weight"]
    assert ownership.frozen == ["a.bias"]
