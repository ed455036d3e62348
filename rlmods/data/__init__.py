"""Collection, replay and evaluation, as Lightning data modules."""

from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.rollouts import RolloutDataModule

__all__ = ["PrioritizedReplayBuffer", "ReplayBuffer", "ReplayDataModule", "RolloutDataModule"]
