"""Collection, replay and evaluation, as Lightning data modules."""

from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer

__all__ = ["PrioritizedReplayBuffer", "ReplayBuffer", "ReplayDataModule"]
