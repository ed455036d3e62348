"""Whether the optimisers hold the module's parameters, all that learn and no others."""

from collections.abc import Iterator

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.functional.gradients import parameter_ownership


def all_parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    """Those of all its groups."""
    for group in optimizer.param_groups:
        yield from group["params"]


def ownership_verdicts(
    pl_module: LightningModule, optimizers: list[Optimizer], *, others_step: bool = False
) -> list[Verdict]:
    """What is wrong with the ownership of the parameters now.

    Args:
        pl_module: whose parameters learn.
        optimizers: that Lightning knows.
        others_step: whether an optimiser that Lightning does not know holds the rest.
    """
    named = dict(pl_module.named_parameters())
    ownership = parameter_ownership(named, [all_parameters(optimizer) for optimizer in optimizers])
    forgotten = [] if others_step else ownership.forgotten
    # One without the other may be parameters in a plain list, or a network that is left alone on purpose.
    severity = Severity.ACT if ownership.foreign and forgotten else Severity.WARN
    verdicts = []
    if ownership.foreign:
        message = (
            f"the optimisers hold {ownership.foreign} parameters that {type(pl_module).__name__} does not have: they "
            "were replaced after the optimiser was made, which now trains a network that nobody uses; build networks "
            "in __init__, optimisers in configure_optimizers"
        )
        verdicts.append(Verdict("stale_parameters", severity, message, {"foreign": ownership.foreign}))
    if forgotten:
        message = (
            f"{_some(forgotten)} get gradients, but no optimiser holds them: they never change; give them to one in "
            "configure_optimizers, or requires_grad_(False)"
        )
        verdicts.append(Verdict("parameter_not_optimised", severity, message, {"parameters": forgotten}))
    if ownership.shared:
        message = (
            f"{_some(ownership.shared)} are held by more than one optimiser: each works against the other's moments"
        )
        verdicts.append(Verdict("shared_parameters", Severity.WARN, message, {"parameters": ownership.shared}))
    if ownership.frozen:
        message = f"{_some(ownership.frozen)} are in an optimiser, but frozen (requires_grad is False)"
        verdicts.append(Verdict("frozen_parameters", Severity.INFO, message, {"parameters": ownership.frozen}))
    return verdicts


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
