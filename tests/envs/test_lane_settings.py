"""What a lane shooter cannot be made with is refused with a sentence."""

from typing import Any

import pytest

from rlmods.envs.lane_shooter import LaneShooter
from rlmods.envs.make import env_spec

ENV_ID = "rlmods/LaneShooter-v0"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_envs": 0}, "num_envs = 0, expected at least 1"),
        ({"num_lanes": 12}, r"num_lanes = 12, expected 16: .* type .*env_kwargs\.num_lanes"),
        ({"max_episode_steps": 0}, "max_episode_steps = 0, expected at least 1"),
        ({"max_episode_steps": 1.5}, "max_episode_steps = 1.5, expected a whole number"),
        ({"lives": 0}, r"lives = 0, expected a number in \[1, 9\]"),
        ({"lives": True}, "lives = True, expected a whole number"),
        ({"open": "yes"}, "open = 'yes', expected true, false, or nothing"),
        ({"points_scale": 0.0}, "points_scale = 0.0, expected a number above 0"),
        ({"points_scale": "1"}, "points_scale = '1', expected a finite number"),
        ({"points_clip": 0}, "points_clip = 0, expected a number above 0, or nothing"),
        ({"death_penalty": -1.0}, "death_penalty = -1.0, expected at least 0"),
        ({"shaping": -0.1}, "shaping = -0.1, expected at least 0"),
        ({"bonus": float("nan")}, "bonus = nan, expected a finite number"),
        ({"expert_mistakes": 1.1}, r"expert_mistakes = 1.1, expected a probability in \[0, 1\]"),
        ({"render_mode": "human"}, "render_mode = 'human', expected rgb_array or nothing"),
    ],
)
def test_settings_that_cannot_work_are_refused(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaneShooter(**({"num_envs": 8} | kwargs))


def test_the_spec_says_what_a_step_can_be_worth() -> None:
    spec = env_spec(ENV_ID, {"points_clip": 1.0, "death_penalty": 0.5, "expert_mistakes": 0.25})
    assert spec["action"] == {"kind": "discrete", "n": 20, "shape": [], "low": [], "high": []}
    assert spec["observation"] == {"shape": [122], "dtype": "float32"}
    assert spec["settings"] == {
        "reward_bounds": [-0.5, 1.0],
        "max_episode_steps": 2000,
        "lives": 1,
        "expert_mistakes": 0.25,
    }


def test_an_unknown_setting_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"env_kwargs .* do not fit .*Expected some of .*expert_mistakes"):
        env_spec(ENV_ID, {"mistakes": 0.1})
