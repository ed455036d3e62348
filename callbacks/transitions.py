"""What safeguards ask of a batch that is not ours."""

import math
from typing import Any

from lightning.pytorch import Callback
from torch import Tensor

from rlmods.callbacks.safeguard import MissingInputError
from rlmods.types import Transition


def transition_of(batch: Any, safeguard: Callback, instead: str) -> Transition:
    """The transitions `[K, B]` or `[B]` of a batch: its `transition`, or the batch itself.

    Args:
        batch: as it reaches `training_step`.
        safeguard: who asks.
        instead: what the user can give the safeguard, where the batch has none.

    Raises:
        MissingInputError: where there are none.
    """
    transition = getattr(batch, "transition", batch)
    missing = [name for name in ("reward", "discount") if not hasattr(transition, name)]
    if missing:
        raise MissingInputError(
            f"{type(safeguard).__name__} needs transitions with reward and discount, but the batch is a "
            f"{type(batch).__name__} without {missing}: give the batch a field transition "
            f"(rlmods.types.Transition), or type {type(safeguard).__name__}({instead})"
        )
    return transition  # type: ignore[no-any-return]


def num_action_dimensions(batch: Any) -> int | None:
    """A of the actions `[..., *shape]` in a batch or in transitions; None where they are discrete or missing."""
    transition = getattr(batch, "transition", batch)
    action, reward = getattr(transition, "action", None), getattr(transition, "reward", None)
    if not isinstance(action, Tensor) or not isinstance(reward, Tensor) or not action.is_floating_point():
        return None
    return math.prod(action.shape[reward.dim() :])
