"""One algorithm, one file."""

from rlmods.algorithms.dqn import DQN
from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.algorithms.linear_td import LinearTD
from rlmods.algorithms.ppo import PPO
from rlmods.algorithms.sac import SAC
from rlmods.algorithms.td3 import TD3

__all__ = ["DQN", "PPO", "SAC", "TD3", "DreamerV3", "LinearTD"]
