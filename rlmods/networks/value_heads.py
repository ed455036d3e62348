"""What the outputs of a Q-network mean, and how they learn from a target: one value, or a distribution of returns."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.functional.categorical import (
    categorical_cross_entropy,
    categorical_kl,
    expected_value,
    project_onto_atoms,
)
from rlmods.functional.td import action_value, double_q_bootstrap, q_learning_bootstrap


class ValueHead(nn.Module):
    """Outputs of all actions are `[B, A]` or `[B, A, Z]`, those of one action `[B]` or `[B, Z]`. No parameters."""

    def values(self, outputs: Tensor) -> Tensor:
        """Q, `[B, A]` of all actions or `[B]` of one."""
        raise NotImplementedError

    def of_action(self, outputs: Tensor, action: Tensor) -> Tensor:
        """The outputs of the actions `[B]`."""
        raise NotImplementedError

    def bootstrap(self, target_outputs: Tensor, online_outputs: Tensor | None) -> Tensor:
        """What the target network says of the action that is greedy by the online network, without it by itself."""
        raise NotImplementedError

    def sample_loss(
        self, prediction: Tensor, target: Tensor, discount: Tensor, bootstrap: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each transition, and signals of it.

        Args:
            prediction: outputs of the stored action.
            target: `[B]`, the value that they should have.
            discount: `[B]`, with which the bootstrap entered it.
            bootstrap: as above.

        Returns:
            `[B]`, and what else there is to tell, `[B]` each by name.
        """
        raise NotImplementedError


class ScalarHead(ValueHead):
    """The outputs are the values.

    Args:
        loss: Huber with threshold 1, or squared error.
    """

    def __init__(self, loss: Literal["huber", "mse"]) -> None:
        super().__init__()
        self.loss = loss

    def values(self, outputs: Tensor) -> Tensor:
        """As they are."""
        return outputs

    def of_action(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Q(s, a)."""
        return action_value(outputs, action)

    def bootstrap(self, target_outputs: Tensor, online_outputs: Tensor | None) -> Tensor:
        """Q⁻(s′, argmax Q(s′, ·)), or max Q⁻(s′, ·)."""
        if online_outputs is None:
            return q_learning_bootstrap(target_outputs)
        return double_q_bootstrap(target_outputs, online_outputs)

    def sample_loss(
        self, prediction: Tensor, target: Tensor, discount: Tensor, bootstrap: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Of the TD error."""
        if self.loss == "huber":
            return F.smooth_l1_loss(prediction, target, reduction="none"), {}
        return F.mse_loss(prediction, target, reduction="none"), {}


class CategoricalHead(ValueHead):
    """The outputs are logits of Z atoms: a distribution of the return, whose mean is the value.

    Source: Bellemare et al. 2017, "A Distributional Perspective on Reinforcement Learning", Algorithm 1. The atoms of
    the target lie at y + D·(z − E Z): the distribution of the next state, its spread times the discount, around the
    value y. That is R + D·z, also where somebody has moved y.

    Args:
        v_min: the first atom.
        v_max: the last.
        num_atoms: Z, at least 2.
    """

    atoms: Tensor  # [Z]

    def __init__(self, v_min: float, v_max: float, num_atoms: int) -> None:
        super().__init__()
        self.register_buffer("atoms", torch.linspace(v_min, v_max, num_atoms), persistent=False)

    def values(self, outputs: Tensor) -> Tensor:
        """E Z."""
        return expected_value(outputs.float().softmax(-1), self.atoms)  # also in mixed precision

    def of_action(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Logits `[B, Z]`."""
        index = action.view(-1, 1, 1).expand(-1, 1, outputs.shape[-1])
        return outputs.gather(1, index).squeeze(1)

    def bootstrap(self, target_outputs: Tensor, online_outputs: Tensor | None) -> Tensor:
        """Logits `[B, Z]` of the action with the largest mean."""
        selecting = target_outputs if online_outputs is None else online_outputs
        return self.of_action(target_outputs, self.values(selecting).argmax(-1))

    def sample_loss(
        self, prediction: Tensor, target: Tensor, discount: Tensor, bootstrap: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Cross-entropy with the projected target; `td_kl` is the same without the target's entropy."""
        log_probabilities = prediction.float().log_softmax(-1)
        with torch.no_grad():
            probabilities = bootstrap.float().softmax(-1)
            spread = self.atoms - expected_value(probabilities, self.atoms).unsqueeze(-1)
            positions = target.unsqueeze(-1) + discount.unsqueeze(-1) * spread
            projected = project_onto_atoms(positions, probabilities, self.atoms)
            divergence = categorical_kl(projected, log_probabilities)
        return categorical_cross_entropy(projected, log_probabilities), {"td_kl": divergence}


def value_head(loss: Literal["huber", "mse"], num_atoms: int, v_min: float | None, v_max: float | None) -> ValueHead:
    """A distribution where there are several atoms, else a value.

    Raises:
        ValueError: for several atoms without a support.
    """
    if num_atoms == 1:
        return ScalarHead(loss)
    if v_min is None or v_max is None:
        raise ValueError(f"got num_atoms = {num_atoms} with v_min = {v_min}, v_max = {v_max}, expected a support")
    return CategoricalHead(v_min, v_max, num_atoms)
