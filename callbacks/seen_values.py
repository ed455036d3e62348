"""What the transitions that a run has seen allow values to be, soft values too."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rlmods.callbacks.transitions import num_action_dimensions
from rlmods.functional.value_bounds import ValueInterval, longest_bootstrap, soft_value_interval, value_interval
from rlmods.types import SoftValues


class SeenValues:
    """The interval of the values that all transitions so far allow.

    Soft values have no lower end. Their upper end takes the largest entropy bonus so far, because a coefficient that
    falls leaves behind what was learned with it.
    """

    def __init__(self) -> None:
        self._of_rewards: ValueInterval | None = None
        self._bootstrap = torch.tensor(-torch.inf)
        self._entropy_bonus: Tensor | None = None  # None where values are not soft

    @property
    def interval(self) -> ValueInterval | None:
        """None before the first transition."""
        if self._of_rewards is None or self._entropy_bonus is None:
            return self._of_rewards
        return soft_value_interval(self._of_rewards, self._bootstrap, self._entropy_bonus)

    @property
    def size(self) -> Tensor | None:
        """Of the interval; without a lower end, from the low of the rewards alone."""
        if self.interval is None or self._of_rewards is None:
            return None
        return self.interval.high - self._of_rewards.low

    def see(self, reward: Tensor, discount: Tensor) -> None:
        """Widen it by transitions `[...]`."""
        seen = value_interval(reward, discount)
        self._of_rewards = seen if self._of_rewards is None else self._of_rewards.hull(seen)
        self._bootstrap = torch.maximum(self._bootstrap.to(reward), longest_bootstrap(discount))

    def see_entropy(self, entropy_bonus: Tensor | None) -> None:
        """Widen it by a bonus α·H, a scalar; None where values are not soft."""
        if entropy_bonus is not None:
            before = entropy_bonus if self._entropy_bonus is None else self._entropy_bonus.to(entropy_bonus)
            self._entropy_bonus = torch.maximum(before, entropy_bonus)

    def state_dict(self) -> dict[str, Any]:
        """Numbers."""
        return {
            "of_rewards": None if self._of_rewards is None else [float(bound) for bound in self._of_rewards],
            "bootstrap": float(self._bootstrap),
            "entropy_bonus": None if self._entropy_bonus is None else float(self._entropy_bonus),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        bounds, bonus = state_dict["of_rewards"], state_dict["entropy_bonus"]
        self._of_rewards = None if bounds is None else ValueInterval(torch.tensor(bounds[0]), torch.tensor(bounds[1]))
        self._bootstrap = torch.tensor(state_dict["bootstrap"])
        self._entropy_bonus = None if bonus is None else torch.tensor(bonus)


def entropy_bonus(pl_module: LightningModule, outputs: Any, transition: Any) -> Tensor | None:
    """α·H, a scalar, with the largest entropy H that the policy's actions can have; None where values are not soft.

    Args:
        pl_module: whose `entropy_coefficient` is α.
        outputs: of `training_step`; its signal `ent_coef` `[K]` goes before.
        transition: whose actions `[..., A]` are seen as lying in [−1, 1]. How many discrete ones there are it does not
            say: H is then ∞.
    """
    if isinstance(outputs, Mapping) and "ent_coef" in outputs:
        coefficient: Tensor = outputs["ent_coef"].detach().float().amax()
    elif isinstance(pl_module, SoftValues):
        coefficient = pl_module.entropy_coefficient.detach().float()
    else:
        return None
    num_actions = num_action_dimensions(transition)
    return coefficient * (math.inf if num_actions is None else num_actions * math.log(2.0))
