"""Multi-layer perceptrons."""

from collections.abc import Callable, Sequence

from torch import nn


def mlp(
    num_inputs: int,
    hidden_sizes: Sequence[int],
    num_outputs: int | None = None,
    *,
    linear: Callable[[int, int], nn.Linear] = nn.Linear,
) -> nn.Sequential:
    """Linear layers with ReLU between them: `[B, num_inputs]` to `[B, num_outputs]`.

    Args:
        num_inputs: width of the input.
        hidden_sizes: width of each hidden layer, each followed by a ReLU.
        num_outputs: width of a last linear layer; None ends with the last ReLU.
        linear: makes a layer of its widths.
    """
    layers: list[nn.Module] = []
    for size in hidden_sizes:
        layers += [linear(num_inputs, size), nn.ReLU()]
        num_inputs = size
    if num_outputs is not None:
        layers.append(linear(num_inputs, num_outputs))
    return nn.Sequential(*layers)
