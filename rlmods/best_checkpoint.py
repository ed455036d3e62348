"""The checkpoint that evaluated best: by what is known of its return, not by a lucky mean."""

import math
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from rlmods.callbacks.evaluations import Evaluation, interval_half_width

LOWER_BOUND = "eval/mean_reward_low"
_CONFIDENCE = 0.95


class BestCheckpoint(ModelCheckpoint):
    """Keeps the checkpoint whose evaluation has the highest lower bound of its mean return (Student, 95 %).

    An evaluation of one episode shows no spread; it is ranked by its return. One that is NaN is never the best.
    """

    def __init__(self) -> None:
        super().__init__(monitor=LOWER_BOUND, mode="max", filename="best-{step}")

    def _monitor_candidates(self, trainer: Trainer) -> dict[str, Tensor]:
        """Lightning's, and the lower bound where there is an evaluation."""
        candidates: dict[str, Any] = super()._monitor_candidates(trainer)
        parts = [candidates.get(f"eval/{name}") for name in ("mean_reward", "std_reward", "episodes")]
        if all(part is not None for part in parts):
            mean, std, episodes = (float(part) for part in parts)  # type: ignore[arg-type]
            is_known = episodes > 1 and math.isfinite(std)
            half_width = interval_half_width(Evaluation(mean, std, int(episodes)), _CONFIDENCE) if is_known else 0.0
            candidates[LOWER_BOUND] = torch.tensor(mean - half_width, dtype=torch.float64)
        return candidates
