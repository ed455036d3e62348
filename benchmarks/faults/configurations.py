"""Healthy configurations, ugly ones among them: what faults are laid over, and what no safeguard may act upon."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .environments import Corridor, ScaledReward, Solved, bench_id

BUDGET = 12_288
SMALL_MODEL: dict[str, Any] = {
    "hidden_sizes": [128, 128],
    "learning_rate": 2e-3,
    "target_update_interval": 50,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.05,
}
SMALL_DATA: dict[str, Any] = {
    "env_id": "CartPole-v1",
    "total_env_steps": BUDGET,
    "num_envs": 4,
    "n_steps": 3,
    "learning_starts": 512,
    "steps_per_iteration": 64,
    "updates_per_iteration": 32,
    "eval_every": 1_024,
    "eval_episodes": 10,
    # Environments with a fault around them have no native vector version: with "sync" they draw the same numbers.
    "vectorization": "sync",
}


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """A run without a fault.

    Attributes:
        name: of its folder.
        trap: why a safeguard might cry wolf.
        model: arguments of DQN, laid over `SMALL_MODEL`.
        data: arguments of the data module, laid over `SMALL_DATA`.
        score: the evaluation metric that says how good the agent is; a fault of the reward must not change it.
        random_score: of an agent that knows nothing.
    """

    name: str
    trap: str
    model: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    score: str = "eval/mean_ep_length"
    random_score: float = 20.0

    def settings(self) -> dict[str, Any]:
        """What is trained, as JSON."""
        return {"model": SMALL_MODEL | dict(self.model), "data": SMALL_DATA | dict(self.data), "score": self.score}


_ALL = [
    Configuration(name="small", trap="the default: returns swing between 10 and 500"),
    Configuration(name="clipped", trap="the clip works in most updates", model={"max_grad_norm": 0.5}),
    Configuration(name="unclipped", trap="no clip at all", model={"max_grad_norm": None}),
    Configuration(
        name="one-step",
        trap="slow: it is at 200 when the budget ends",
        model={"hidden_sizes": [64, 64], "learning_rate": 1e-3, "target_update_interval": 100},
        data={"n_steps": 1},
    ),
    Configuration(
        name="short-limit", trap="most episodes end by truncation", data={"env_kwargs": {"max_episode_steps": 50}}
    ),
    Configuration(name="small-buffer", trap="replay forgets after 500 transitions", data={"buffer_size": 500}),
    Configuration(
        name="fast-target-soft", trap="the target follows at once", model={"tau": 0.5, "target_update_interval": 1}
    ),
    Configuration(name="fast-target-hard", trap="copied every four updates", model={"target_update_interval": 4}),
    Configuration(
        name="sparse",
        trap="no reward for thousands of steps, then 1",
        model={"exploration_fraction": 0.7},
        data={"env_id": bench_id(Corridor)},
        score="eval/mean_reward",
        random_score=0.0,
    ),
    Configuration(name="wild", trap="a learning rate four times too high", model={"learning_rate": 8e-3}),
    Configuration(
        name="solved",
        trap="deterministic, loss and gradients vanish",
        model={"exploration_final_eps": 0.0, "exploration_fraction": 0.1},
        data={"env_id": bench_id(Solved)},
        score="eval/mean_reward",
        random_score=5.0,
    ),
    Configuration(
        name="shipped",
        trap="n-step, prioritised, eight environments, the learning rate falls to 0",
        model={
            "learning_rate": 4e-3,
            "final_learning_rate": 1e-6,
            "target_update_interval": 60,
            "exploration_final_eps": 0.04,
            "exploration_fraction": 0.1,
        },
        data={
            "num_envs": 8,
            "learning_starts": 1_000,
            "updates_per_iteration": 16,
            "prioritized_replay": True,
            "prioritized_replay_alpha": 0.8,
            "vectorization": "auto",
        },
    ),
    Configuration(
        name="acrobot",
        trap="all rewards are -1, the values are negative",
        data={"env_id": "Acrobot-v1"},
        score="eval/mean_reward",
        random_score=-500.0,
    ),
    Configuration(
        name="mountain-car",
        trap="no episode ever terminates, nothing is learned",
        data={"env_id": "MountainCar-v0"},
        score="eval/mean_reward",
        random_score=-200.0,
    ),
    Configuration(name="annealed", trap="the learning rate falls to 0", model={"final_learning_rate": 0.0}),
    Configuration(name="dueling-mse", trap="large losses", model={"dueling": True, "loss": "mse"}),
    Configuration(
        name="tiny-reward",
        trap="rewards of 0.0001: the first values lie above every bound",
        data={
            "env_id": bench_id(ScaledReward),
            "env_kwargs": {"env_id": "CartPole-v1", "factor": 1e-4, "onset": 0.0},
        },
    ),
]
CONFIGURATIONS = {configuration.name: configuration for configuration in _ALL}
