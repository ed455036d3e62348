"""LaProp: momentum of normalised gradients.

Ziyin et al. 2020, "LaProp: Separating Momentum and Adaptivity in Adam". https://arxiv.org/abs/2002.04839
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT


class LaProp(Optimizer):
    """Divides a gradient by its bias-corrected RMS first, and takes the bias-corrected momentum of that.

    Adam does it the other way round: there an old, large gradient is divided by a new, small RMS.

    All parameters of a group take one chain of multi-tensor operations. A parameter without a gradient stays as it is,
    with its moments.

    Args:
        params: parameters, or groups of them.
        lr: learning rate, above 0.
        betas: β₁ of the momentum, β₂ of the squared gradient, in [0, 1).
        eps: added to the RMS.

    Raises:
        ValueError: where a value lies outside its range.
    """

    def __init__(
        self, params: ParamsT, lr: float = 4e-5, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-20
    ) -> None:
        for name, value, inside, expected in (
            ("lr", lr, lr > 0.0, "above 0"),
            ("betas", betas, all(0.0 <= beta < 1.0 for beta in betas), "two numbers in [0, 1)"),
            ("eps", eps, eps > 0.0, "above 0"),
        ):
            if not inside:
                raise ValueError(f"got {name} = {value}, expected {expected}")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update of all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for together, step in self._by_step(parameters):
                beta1, beta2 = group["betas"]
                self._update(together, step, group["lr"], beta1, beta2, group["eps"])
        return loss

    def _by_step(self, parameters: Iterable[Tensor]) -> Iterable[tuple[list[Tensor], int]]:
        """Parameters with the number of this step; those that were paused are behind."""
        groups: dict[int, list[Tensor]] = {}
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = 0
                state["momentum"] = torch.zeros_like(parameter)
                state["square"] = torch.zeros_like(parameter)
            state["step"] += 1
            groups.setdefault(state["step"], []).append(parameter)
        return [(together, step) for step, together in groups.items()]

    def _update(self, parameters: list[Tensor], step: int, lr: float, beta1: float, beta2: float, eps: float) -> None:
        gradients = [_gradient_of(parameter) for parameter in parameters]
        squares: list[Any] = [self.state[parameter]["square"] for parameter in parameters]
        momenta: list[Any] = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - beta2)
        rms = torch._foreach_sqrt(squares)
        torch._foreach_div_(rms, (1.0 - beta2**step) ** 0.5)
        torch._foreach_add_(rms, eps)
        torch._foreach_mul_(momenta, beta1)
        torch._foreach_addcdiv_(momenta, gradients, rms, 1.0 - beta1)
        torch._foreach_add_(parameters, momenta, alpha=-lr / (1.0 - beta1**step))


def _gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None  # noqa: S101, chosen so
    return parameter.grad
