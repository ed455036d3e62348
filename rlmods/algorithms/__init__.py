"""The algorithms: one algorithm, one file."""

from rlmods.algorithms.dqn import DQN

__all__ = ["DQN"]
