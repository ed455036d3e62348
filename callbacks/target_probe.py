"""How a module makes its targets, found out by asking it: identities that its ordinary targets do not show."""

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlmods.callbacks.target_networks import target_value_networks
from rlmods.types import ReplayBatch, SoftValues


def probe_targets(pl_module: LightningModule, batch: Any) -> dict[str, Tensor]:
    """Whether the targets of the module's `td_target(transition)` are y = R + D·V, with the batch's own D.

    Returns:
        Empty where the module has no such method or the batch is no `ReplayBatch`. Else `requires_grad`: whether they
        carry a graph; in the unit of the targets,
        `discount_ignored`: how far y with half of D misses half of D·V; and, where target networks that return values
        of actions `[B, A]`, of twins `[2, B]` or of one action `[B]`, or distributions `[B, A, Z]` that `head.values`
        of the module reads, were asked, `bootstrap_outside`: how far y − R lies outside D times what they said of the
        next state. Whatever action a policy takes there, its value is not outside; soft values may be, for the entropy
        comes in.
    """
    td_target = getattr(pl_module, "td_target", None)
    if not callable(td_target) or not isinstance(batch, ReplayBatch):
        return {}
    transition = batch.minibatches()[0].transition
    said: list[Tensor] = []
    read = getattr(getattr(pl_module, "head", None), "values", None)

    def listen(*call: Any) -> None:
        output = call[-1]
        if isinstance(output, Tensor) and output.dim() == transition.reward.dim() + 2 and callable(read):
            output = read(output)
        columns = _values_by_transition(output, transition.reward) if isinstance(output, Tensor) else None
        if columns is not None:
            said.append(columns)

    in_use: list[Any] = getattr(pl_module, "target_transforms", [])
    transforms = list(in_use)
    in_use.clear()
    handles = [network.register_forward_hook(listen) for network in target_value_networks(pl_module).values()]
    try:
        targets = []
        for factor in (1.0, 0.5):
            # The same noise in both, and none of the training's; a graph only where the method lets one be made.
            with isolate_rng(), torch.enable_grad():
                targets.append(td_target(transition._replace(discount=transition.discount * factor)))
    finally:
        for handle in handles:
            handle.remove()
        in_use.extend(transforms)
    carries_graph = torch.tensor(float(targets[0].requires_grad), device=targets[0].device)
    whole, half = (target.detach() - transition.reward for target in targets)
    # The targets that were trained on may be clamped, and these not: what of them is rounding, they say themselves.
    rounding = 1e-4 * targets[0].detach().abs().amax()
    missed = ((whole - 2.0 * half).abs().amax() - rounding).clamp(min=0.0)
    probed = {"discount_ignored": missed, "requires_grad": carries_graph}
    if said and not isinstance(pl_module, SoftValues):
        values = torch.cat([value.detach() for value in said], dim=-1)
        low, high = transition.discount * values.amin(-1), transition.discount * values.amax(-1)
        probed["bootstrap_outside"] = torch.maximum(whole - high, low - whole).clamp(min=0.0).amax()
    return probed


def _values_by_transition(output: Tensor, reward: Tensor) -> Tensor | None:
    """Values `[B, n]` of a network's output for rewards `[B]`; None where it is of another shape, or of either."""
    by_action, by_twin = output.shape[:-1] == reward.shape, output.dim() > 1 and output.shape[1:] == reward.shape
    if by_action and by_twin:
        return None
    if output.shape == reward.shape:
        return output.unsqueeze(-1)
    if by_twin:
        return output.movedim(0, -1)
    return output if by_action else None
