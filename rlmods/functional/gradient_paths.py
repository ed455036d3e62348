"""Which loss depends on which parameter, asked of autograd: an identity of the graph, not a statistic."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def gradient_reach(losses: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[str, list[float | None]]:
    """L2 norm of the gradient of each loss by each parameter; None where the graph has no path between them.

    Leaves every `.grad` alone, keeps the graph, and waits for the device.

    Args:
        losses: of any shape, summed; one without a graph reaches nothing.
        parameters: n; frozen ones are reached by nothing.
    """
    positions = [position for position, parameter in enumerate(parameters) if parameter.requires_grad]
    learning = [parameters[position] for position in positions]
    reach: dict[str, list[float | None]] = {}
    for name, loss in losses.items():
        reach[name] = [None] * len(parameters)
        if not (loss.requires_grad and learning):
            continue
        gradients = torch.autograd.grad(loss.sum(), learning, retain_graph=True, allow_unused=True)
        for position, gradient in zip(positions, gradients, strict=True):
            if gradient is not None:
                reach[name][position] = float(gradient.detach().float().norm())
    return reach


def last_in_graph(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those on which no other one depends; of several names of one tensor the first."""
    first = {id(tensors[name]): name for name in reversed(list(tensors))}
    names = [name for name in tensors if first[id(tensors[name])] == name]
    return [name for name in names if not any(_depends(tensors[other], tensors[name]) for other in names)]


def _depends(output: Tensor, on: Tensor) -> bool:
    if output is on or not (output.requires_grad and on.requires_grad):
        return False
    (gradient,) = torch.autograd.grad(output.sum(), on, retain_graph=True, allow_unused=True)
    return gradient is not None
