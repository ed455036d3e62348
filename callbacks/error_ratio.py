"""How much error a value function has left to learn from."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_ERRORS = ("value_loss", "critic_loss", "td_error")


class ErrorRatio:
    """The squared error of value functions as a share of the largest so far, by the signals of an iteration.

    A gradient that is small because there is no error left is no defect: a solved task with a constant return leaves a
    critic nothing to learn.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, Tensor] = {}  # by signal

    @torch.no_grad()
    def measure(self, outputs: Any) -> Tensor:
        """The smallest over the signals, a scalar; 1 without any."""
        ratio = torch.ones(())
        for name in _ERRORS:
            if not (isinstance(outputs, Mapping) and isinstance(outputs.get(name), Tensor)):
                continue
            signal = outputs[name].float()
            error = signal.square().mean() if name == "td_error" else signal.mean()
            self.peaks[name] = torch.maximum(self.peaks.get(name, error).to(error), error)
            ratio = torch.minimum(ratio.to(error), torch.nan_to_num(error / self.peaks[name], nan=1.0))
        return ratio
