"""What a swarm cannot be made with is refused with a sentence."""

from typing import Any

import pytest

from rlmods.data.rollouts import RolloutDataModule
from rlmods.envs.drone_swarm import DroneSwarm

ENV_ID = "rlmods/DroneSwarm-v0"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 12}, r"num_envs = 12 drones in swarms of num_agents = 8.*num_envs 16, or .*num_agents 1"),
        ({"num_agents": 0}, r"num_agents = 0, expected a multiple"),
        ({"level": 2}, r"level = 2, expected 0, a point mass, or 1, a quadrotor: type .*env_kwargs\.level"),
        ({"task": "race"}, "task = 'race', expected one of hover, waypoint, pick_and_place"),
        ({"observation": "tiny"}, "expected one of full, lite"),
        ({"num_waypoints": 6}, r"num_waypoints = 6, expected a number in \[1, 5\]"),
        ({"arena": [6.0, 6.0]}, "arena = .*, expected three half sides"),
        ({"arena": [6.0, 6.0, 11.0]}, "arena = .*, expected three half sides"),
        ({"arena": "wide"}, "arena = 'wide', expected three numbers"),
        ({"randomization": 1.0}, "randomization = 1.0, expected a share"),
        ({"randomization": "much"}, "randomization = 'much', expected a finite number"),
        ({"curriculum": 2.0}, "curriculum = 2.0, expected a share of the training"),
        ({"curriculum_scale": 0.5}, "curriculum_scale = 0.5, expected at least 1"),
        ({"reward_radius": 0.0}, "reward_radius = 0.0, expected a length above 0"),
        ({"reward_weights": {"speeed": 1.0}}, r"reward_weights = \['speeed'\], expected names among distance, speed"),
        ({"reward_weights": {"speed": "1"}}, r"reward_weights = \{'speed': '1'\}, expected a finite number for speed"),
        ({"task": "hover", "max_episode_steps": 19}, r"max_episode_steps = 19, expected at least the 20 steps"),
        ({"reward_weights": 3}, r"reward_weights = 3, expected names with numbers"),
        ({"max_episode_steps": None}, "max_episode_steps = None, expected a whole number"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0, expected at least 1"),
        ({"collision_distance": -1}, "collision_distance = -1, expected a distance"),
        ({"counter_metric": 1}, "counter_metric = 1, expected true or false"),
        ({"render_mode": "human"}, "render_mode = 'human', expected rgb_array or nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DroneSwarm(**({"num_envs": 8} | kwargs))


def test_the_data_module_refuses_numbers_that_are_no_whole_swarms() -> None:
    with pytest.raises(ValueError, match=r"num_envs = 20 .* type --data.init_args.num_envs 24"):
        RolloutDataModule(ENV_ID, 10_000, num_envs=20, eval_episodes=8)
    with pytest.raises(
        ValueError, match=r"eval_episodes = 10 .* swarms of 8, .* type --data.init_args.eval_episodes 16"
    ):
        RolloutDataModule(ENV_ID, 10_000, num_envs=24)
    data = RolloutDataModule(ENV_ID, 10_000, num_envs=24, eval_episodes=16)
    assert data.spec["observation"] == {"shape": [42], "dtype": "float32"}
    assert data.spec["action"]["shape"] == [3]
    assert (data.spec["action"]["low"], data.spec["action"]["high"]) == ([-1.0] * 3, [1.0] * 3)


def test_seeds_of_another_number_of_drones_are_refused() -> None:
    with pytest.raises(ValueError, match="got 3 seeds, expected one number or 8 of them"):
        DroneSwarm(8).reset(seed=[1, 2, 3])
