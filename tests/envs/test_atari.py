"""Atari's games of lanes, where the extra is installed."""

import importlib.util

import numpy as np
import pytest

from rlmods.envs.make import make_envs

IS_INSTALLED = importlib.util.find_spec("ale_py") is not None


@pytest.mark.skipif(not IS_INSTALLED, reason="ale-py is not installed")
@pytest.mark.parametrize(("env_id", "num_actions"), [("rlmods/BeamRider-v0", 9), ("rlmods/Turmoil-v0", 12)])
def test_a_game_becomes_stacked_grey_frames(env_id: str, num_actions: int) -> None:
    environments = make_envs(env_id, 2, frame_stack=4)
    assert environments.spec["observation"] == {"shape": [4, 84, 84], "dtype": "uint8", "frame_stack": 4}
    assert environments.spec["action"]["n"] == num_actions
    first = environments.reset(0)
    assert isinstance(first, np.ndarray)
    for action in range(num_actions):
        result = environments.step(np.full(2, action))
    assert isinstance(result.observation, np.ndarray)
    assert not np.array_equal(result.observation[:, -1], first[:, -1])
    assert not environments.can_save  # at a resume the running episodes are truncated
    environments.close()


@pytest.mark.skipif(IS_INSTALLED, reason="ale-py is installed")
def test_without_the_extra_it_is_named() -> None:
    with pytest.raises(ValueError, match=r'BeamRider-v0 needs an extra .*: ale-py; type pip install "rlmods\[atari\]"'):
        make_envs("rlmods/BeamRider-v0", 2)
