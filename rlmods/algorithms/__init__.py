"""One algorithm, one file."""

from rlmods.algorithms.dqn import DQN
from rlmods.algorithms.linear_td import LinearTD

__all__ = ["DQN", "LinearTD"]
