"""Collection, replay and evaluation, as Lightning data modules."""

from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.expert import ExpertDataModule
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.rollouts import RolloutDataModule
from rlmods.data.sequence_replay import SequenceReplay
from rlmods.data.sequences import SequenceDataModule
from rlmods.data.strata import StratifiedReplayBuffer

__all__ = [
    "ExpertDataModule",
    "PrioritizedReplayBuffer",
    "ReplayBuffer",
    "ReplayDataModule",
    "RolloutDataModule",
    "SequenceDataModule",
    "SequenceReplay",
    "StratifiedReplayBuffer",
]
