"""Makes environments from a Gymnasium id, and describes them."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from rlmods.envs.env_state import StatefulEnv
from rlmods.envs.environments import AnyVectorEnv, Environments
from rlmods.envs.images import is_pixels, stack_frames, to_pixels
from rlmods.types import ActionSpec, ArraySpec, EnvSpec

Vectorization: TypeAlias = Literal["auto", "native", "sync", "async"]
AnyEnv: TypeAlias = gym.Env[Any, Any]

NATIVE_FROM = 5  # environments; with fewer, one after the other beats numpy's overhead (CartPole, measured)


def make_envs(
    env_id: str,
    num_envs: int,
    *,
    env_kwargs: dict[str, Any] | None = None,
    vectorization: Vectorization = "auto",
    render: bool = False,
    resize: tuple[int, int] | None = None,
    grayscale: bool = True,
    frame_stack: int = 1,
    reward_dtype: type[np.floating[Any]] = np.float32,
    borrow: bool = False,
) -> Environments:
    """Make N environments that step together.

    Args:
        env_id: Gymnasium's id, "CartPole-v1", or "module:EnvName-v0" for an id that importing the module registers.
        num_envs: N, at least 1.
        env_kwargs: For the environment's constructor, and `max_episode_steps`.
        vectorization: "native" is the environment's own vector implementation, "sync" one after the other, "async" a
            process each. "auto" is the faster one of native and sync.
        render: Whether `Environments.render` gives frames. A rendered environment's state may not be savable.
        resize: Height and width to shrink an image observation to. An image becomes uint8 `[C, H, W]` in any case.
        grayscale: Whether `resize` makes the image gray.
        frame_stack: Number of last images to stack as channels.
        reward_dtype: Of the rewards. Replay is single precision.
        borrow: Whether the observations of a step are read before the next one, and need not be copied.

    Raises:
        ValueError: An argument does not fit, or the environment is not known, not installed or not supported.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}, expected at least 1.")
    kwargs = dict(env_kwargs or {}) | ({"render_mode": "rgb_array"} if render else {})
    with _explained(env_id, kwargs):
        gym_spec = _find(env_id)
        make = partial(_make_one, gym_spec, kwargs, resize, grayscale, frame_stack)
        wrapped = resize is not None or frame_stack != 1
        if _is_native(gym_spec, kwargs, num_envs, vectorization, wrapped):
            vector_env = _make_native(gym_spec, num_envs, kwargs)
        else:
            vector_env = _vectorize(make, num_envs, is_async=vectorization == "async")
    try:
        spec = _describe_vector(env_id, vector_env, frame_stack)
        return Environments(vector_env, spec, reward_dtype=reward_dtype, borrow=borrow)
    except ValueError:
        vector_env.close()
        raise


def env_spec(
    env_id: str,
    env_kwargs: dict[str, Any] | None = None,
    *,
    num_envs: int = 1,
    resize: tuple[int, int] | None = None,
    grayscale: bool = True,
    frame_stack: int = 1,
) -> EnvSpec:
    """Describe an environment, in plain Python values. The arguments and errors are those of `make_envs`.

    Where it exists as a vector environment alone, `num_envs` of them are made, so that an impossible number is refused.
    """
    kwargs = dict(env_kwargs or {})
    with _explained(env_id, kwargs):
        gym_spec = _find(env_id)
        if gym_spec.entry_point is None:
            _is_native(gym_spec, kwargs, 1, "auto", resize is not None or frame_stack != 1)
            return _describe_vector(env_id, _make_native(gym_spec, num_envs, kwargs), frame_stack)
        env = _make_one(gym_spec, kwargs, resize, grayscale, frame_stack)
    try:
        return _describe(env_id, env.observation_space, env.action_space, frame_stack)
    finally:
        env.close()


def _make_native(gym_spec: gym.envs.registration.EnvSpec, num_envs: int, kwargs: dict[str, Any]) -> AnyVectorEnv:
    return gym.make_vec(gym_spec, num_envs, vectorization_mode="vector_entry_point", **kwargs)


def _describe_vector(env_id: str, vector_env: AnyVectorEnv, frame_stack: int) -> EnvSpec:
    spec = _describe(env_id, vector_env.single_observation_space, vector_env.single_action_space, frame_stack)
    settings = getattr(vector_env.unwrapped, "settings", None)
    return spec if settings is None else EnvSpec(**spec, settings=settings)


def _make_one(
    gym_spec: gym.envs.registration.EnvSpec,
    kwargs: dict[str, Any],
    resize: tuple[int, int] | None,
    grayscale: bool,
    frame_stack: int,
) -> AnyEnv:
    env: AnyEnv = to_pixels(gym.make(gym_spec, **kwargs))
    if resize is not None:
        from rlmods.envs.pixels import EarlyResize  # OpenCV is needed where images are shrunk, and only there

        env = EarlyResize(env, resize, grayscale)
    max_episode_steps = kwargs.get("max_episode_steps", gym_spec.max_episode_steps)
    return StatefulEnv(stack_frames(env, frame_stack, max_episode_steps))


def _vectorize(make: Callable[[], AnyEnv], num_envs: int, *, is_async: bool) -> AnyVectorEnv:
    vector_class = AsyncVectorEnv if is_async else SyncVectorEnv
    # `Environments` copies what it returns; gymnasium's own copy is a slower one.
    return vector_class([make] * num_envs, copy=False, autoreset_mode=AutoresetMode.SAME_STEP)


def _is_native(
    gym_spec: gym.envs.registration.EnvSpec,
    kwargs: dict[str, Any],
    num_envs: int,
    vectorization: Vectorization,
    wrapped: bool,
) -> bool:
    """Whether the native vector implementation is to be used; a ValueError where it is asked for and does not exist."""
    if gym_spec.entry_point is None:
        if wrapped or vectorization in ("sync", "async"):
            raise ValueError(
                f"{gym_spec.id} exists as a vector environment alone, without pixels. "
                'Expected vectorization="auto", and neither resize nor frame_stack.'
            )
        return True
    if vectorization in ("sync", "async"):
        return False
    if vectorization not in ("auto", "native"):
        raise ValueError(f'vectorization is {vectorization!r}, expected "auto", "native", "sync" or "async".')
    offered = gym_spec.vector_entry_point is not None and not gym_spec.additional_wrappers and not wrapped
    if vectorization == "native":
        if not offered:
            raise ValueError(
                f"{gym_spec.id} has no native vector implementation, or one without the wrappers asked for. "
                'Expected vectorization="auto", "sync" or "async".'
            )
        return True
    if not offered or num_envs < NATIVE_FROM:
        return False
    accepted = _accepted(gym_spec.vector_entry_point)
    return accepted is None or accepted.issuperset(kwargs)


def _find(env_id: str) -> gym.envs.registration.EnvSpec:
    """Gymnasium's entry for an id, after importing the module that it names."""
    module, _, name = env_id.rpartition(":")
    if name.startswith("ALE/"):
        module = module or "ale_py"
    if module:
        importlib.import_module(module)
    if name not in gym.registry:
        raise _unknown(env_id, name)
    return gym.registry[name]


@contextmanager
def _explained(env_id: str, kwargs: dict[str, Any]) -> Iterator[None]:
    """Say in a ValueError what was got, what is expected and what to type."""
    name = env_id.rpartition(":")[2]
    try:
        yield
    except gym.error.DependencyNotInstalled as error:
        raise ValueError(f"{env_id} needs an extra that is not installed: {error}") from error
    except ModuleNotFoundError as error:
        if name.startswith("ALE/"):
            raise ValueError(f'{env_id} needs ale-py. Type pip install "gymnasium[atari]".') from error
        raise ValueError(f"{env_id} needs the module {error.name!r}, which cannot be imported: install it.") from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        entry = gym.registry[name]
        accepted = _accepted(entry.entry_point or entry.vector_entry_point)
        expected = f" Expected some of {sorted(accepted)}." if accepted else ""
        raise ValueError(f"env_kwargs {kwargs} do not fit {env_id}: {error}.{expected}") from error


def _unknown(env_id: str, name: str) -> ValueError:
    close = difflib.get_close_matches(name, list(gym.registry), n=3) or [i for i in gym.registry if name in i][-3:]
    hint = f"Did you mean {' or '.join(close)}? " if close else ""
    return ValueError(
        f"No environment {env_id!r} is registered. {hint}"
        'Expected a Gymnasium id such as "CartPole-v1"; for one of your own type "your_module:YourEnv-v0".'
    )


def _accepted(entry_point: Any) -> set[str] | None:
    """Names of the keyword arguments that an environment takes; None where it takes any."""
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    parameters = inspect.signature(creator).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters} - {"num_envs"} | {"max_episode_steps"}


def _describe(env_id: str, observation: gym.Space[Any], action: gym.Space[Any], frame_stack: int) -> EnvSpec:
    if isinstance(observation, gym.spaces.Dict):
        described: ArraySpec | dict[str, ArraySpec] = {
            key: _describe_array(env_id, space, frame_stack) for key, space in observation.items()
        }
    else:
        described = _describe_array(env_id, observation, frame_stack)
    return EnvSpec(env_id=env_id, observation=described, action=_describe_action(env_id, action))


def _describe_array(env_id: str, space: gym.Space[Any], frame_stack: int) -> ArraySpec:
    if not isinstance(space, gym.spaces.Box):
        raise ValueError(
            f"{env_id} observes {space}. Expected a Box or a Dict of Boxes: register the environment wrapped in "
            "gymnasium.wrappers.FlattenObservation, which makes one Box of any space."
        )
    spec = ArraySpec(shape=list(space.shape), dtype=np.dtype(space.dtype).name)
    return ArraySpec(**spec, frame_stack=frame_stack) if frame_stack > 1 and is_pixels(space) else spec


def _describe_action(env_id: str, space: gym.Space[Any]) -> ActionSpec:
    if isinstance(space, gym.spaces.Discrete):
        return ActionSpec(kind="discrete", n=int(space.n), shape=[], low=[], high=[])
    if isinstance(space, gym.spaces.MultiDiscrete) and space.nvec.ndim == 1 and not space.start.any():
        nvec = [int(n) for n in space.nvec]
        return ActionSpec(kind="multi_discrete", n=0, nvec=nvec, shape=[len(nvec)], low=[], high=[])
    if isinstance(space, gym.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (bound.astype(float).ravel().tolist() for bound in (space.low, space.high))
        return ActionSpec(kind="continuous", n=0, shape=list(space.shape), low=low, high=high)
    raise ValueError(
        f"{env_id} acts in {space}. Expected a Discrete, a flat MultiDiscrete from 0, or a Box of floats: register the "
        "environment wrapped in "
        "gymnasium.wrappers.TransformAction, which maps one of these to it."
    )
