"""The recurrent core of DreamerV3 in its version of 2023: a GRU with layer norm.

Hafner et al. 2023, "Mastering Diverse Domains through World Models", version 1. https://arxiv.org/abs/2301.04104v1
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.networks.normed import truncated_normal_

_EPS = 1e-3


class LayerNormGRU(nn.Module):
    """One layer of z and a, then a GRU whose three gates are normed together; dense throughout.

    Args:
        deter: D, width of h.
        stoch: width of z, flat.
        num_actions: width of an action.
        hidden: width of the first layer.
    """

    def __init__(self, deter: int, stoch: int, num_actions: int, hidden: int) -> None:
        super().__init__()
        self.of_stoch = nn.Linear(stoch, hidden, bias=False)
        self.action_input = nn.Linear(num_actions, hidden, bias=False)
        for layer in (self.of_stoch, self.action_input):
            truncated_normal_(layer.weight, stoch + num_actions)
        self.norm = nn.LayerNorm(hidden, eps=_EPS)
        self.gates = nn.Linear(deter + hidden, 3 * deter, bias=False)
        truncated_normal_(self.gates.weight, deter + hidden)
        self.gates_norm = nn.LayerNorm(3 * deter, eps=_EPS)

    def of_actions(self, action: Tensor) -> Tensor:
        """What actions `[..., A]` add to the first layer, `[..., hidden]`."""
        added: Tensor = self.action_input(action)
        return added

    def forward(self, deter: Tensor, stoch: Tensor, of_action: Tensor) -> Tensor:
        """The h of the next step, `[B, D]`, from h `[B, D]`, z `[B, S]` and what the action adds, `[B, hidden]`."""
        inputs = F.silu(self.norm((self.of_stoch(stoch) + of_action).float()))
        gates = self.gates_norm(self.gates(torch.cat([deter, inputs], -1)).float())
        reset, candidate, update = gates.chunk(3, -1)
        candidate = torch.tanh(reset.sigmoid() * candidate)
        return torch.lerp(deter, candidate, (update - 1.0).sigmoid())
