"""Gradients tensor by tensor, and who owns the parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm and largest magnitude of each tensor, `[2, n]` float32 on the device. Changes nothing.

    Both, because a clip by norm scales them alike and a clip by value does not.

    Args:
        gradients: n of them, n ≥ 1; sparse ones count with their values.
    """
    dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in gradients]
    norms = [*torch._foreach_norm(dense), *torch._foreach_norm(dense, math.inf)]
    return torch.stack(norms).float().reshape(2, -1)


class Ownership(NamedTuple):
    """How the parameters of a module and of its optimisers differ, by name."""

    foreign: int  # parameters of the optimisers that the module does not have
    forgotten: list[str]  # learn and have a gradient, but are in no optimiser
    shared: list[str]  # in more than one optimiser
    frozen: list[str]  # in an optimiser, but `requires_grad` is False


def parameter_ownership(named: Mapping[str, Tensor], optimizers: Iterable[Iterable[Tensor]]) -> Ownership:
    """Compare the parameters of a module with those that its optimisers hold, by identity.

    Args:
        named: the module's parameters.
        optimizers: the parameters of each optimiser.
    """
    holders: dict[int, int] = {}
    for parameters in optimizers:
        for identity in {id(parameter) for parameter in parameters}:
            holders[identity] = holders.get(identity, 0) + 1
    names = {id(parameter): name for name, parameter in named.items()}
    return Ownership(
        foreign=sum(identity not in names for identity in holders),
        forgotten=[
            name
            for name, parameter in named.items()
            if id(parameter) not in holders and parameter.requires_grad and parameter.grad is not None
        ],
        shared=[names[identity] for identity, count in holders.items() if count > 1 and identity in names],
        frozen=[name for name, parameter in named.items() if id(parameter) in holders and not parameter.requires_grad],
    )
