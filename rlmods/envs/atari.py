"""Two games of the Atari 2600 with lanes, from ale-py, with the preprocessing that published scores are of."""

import importlib
from typing import Any

import gymnasium as gym
from gymnasium.wrappers import AtariPreprocessing

FRAME_SKIP = 4
NOOP_MAX = 30  # frames, drawn at a reset, in which nothing is done


def beam_rider(**kwargs: Any) -> gym.Env[Any, Any]:
    """Beam Rider: `[84, 84]` uint8 every fourth frame, the brighter of the last two; 9 actions."""
    return _preprocessed("BeamRider", kwargs)


def turmoil(**kwargs: Any) -> gym.Env[Any, Any]:
    """Turmoil: seven lanes; as `beam_rider`, with 12 actions."""
    return _preprocessed("Turmoil", kwargs)


def _preprocessed(game: str, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    try:
        importlib.import_module("ale_py")  # registers its games
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled('ale-py; type pip install "rlmods[atari]"') from error
    env = gym.make(f"ALE/{game}-v5", **({"frameskip": 1, "repeat_action_probability": 0.0} | kwargs))
    return AtariPreprocessing(env, noop_max=NOOP_MAX, frame_skip=FRAME_SKIP, screen_size=84, grayscale_obs=True)
