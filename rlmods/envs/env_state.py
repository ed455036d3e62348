"""Saves and restores the state of environments bit for bit, without knowing them by name.

A layer (a wrapper, an environment, a native vector environment) is saved by its own `get_state` and `set_state` where
it has both, else by its attributes, where all of them are numbers, text, arrays, generators, spaces, MuJoCo data or
containers of these. One attribute of another kind (a Box2D body, an emulator) may hide state: such an environment is
not saved. Specs and functions are rebuilt by the constructor and not saved.
"""

import enum
import sys
import types
from collections import deque
from typing import Any, Protocol, cast, runtime_checkable

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorWrapper

_DTYPES = frozenset(
    map(np.dtype, ["?", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "f2", "f4", "f8"])
)
_CONSTANTS = (EnvSpec, enum.Enum, np.dtype, type, types.FunctionType, types.MethodType, types.BuiltinFunctionType)
_CONSTRUCTION = frozenset({"_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs"})  # what gymnasium rebuilds from


class UnsavableError(Exception):
    """An environment holds something that cannot be saved."""


@runtime_checkable
class SavesItself(Protocol):
    """An environment that knows its own state, its random generator included."""

    def get_state(self) -> Any:
        """The state, made of numbers, text, arrays, generators and containers of these."""
        ...

    def set_state(self, state: Any) -> None:
        """Continue from a state that `get_state` gave."""
        ...


def get_state(env: Any) -> list[dict[str, Any]]:
    """The state of an environment or native vector environment, one entry for each of its wrappers, outermost first.

    Raises:
        UnsavableError: A layer holds something that cannot be saved.
    """
    return [{"layer": type(layer).__name__, "state": _get_layer(layer)} for layer in _layers(env)]


def set_state(env: Any, state: list[dict[str, Any]]) -> None:
    """Put a state from `get_state` into an environment that was made alike and reset at least once.

    Raises:
        ValueError: The environment is made of other layers than the saved one.
    """
    layers = _layers(env)
    saved, made = [entry["layer"] for entry in state], [type(layer).__name__ for layer in layers]
    if saved != made:
        raise ValueError(f"Expected the environment that was saved, {saved}, got {made}. Use the env_id of that run.")
    for layer, entry in zip(layers, state, strict=True):
        if isinstance(layer, SavesItself):
            layer.set_state(_decode(entry["state"], None))
            continue
        attributes = vars(layer)
        for name, value in entry["state"].items():
            attributes[name] = _decode(value, attributes.get(name))


class StatefulEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Offers an environment's state as an attribute, because a vector environment's worker only passes attributes on.

    `reset_next` stands for a vector environment's intention to reset at its next step, which lives in the worker's
    local variables and is out of reach.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.reset_next = False

    @property
    def env_state(self) -> dict[str, Any] | None:
        """The state of all that is wrapped; None where it cannot be saved."""
        try:
            return {"layers": get_state(self.env), "reset_next": self.reset_next}
        except UnsavableError:
            return None

    @env_state.setter
    def env_state(self, state: dict[str, Any]) -> None:
        set_state(self.env, state["layers"])
        self.reset_next = state["reset_next"]

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Step, or reset where the step before the restored state ended an episode."""
        if not self.reset_next:
            return self.env.step(action)
        observation, info = self.reset()
        return observation, 0.0, False, False, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset; nothing is left to be reset afterwards."""
        self.reset_next = False
        return self.env.reset(seed=seed, options=options)


def _layers(env: Any) -> list[Any]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper | VectorWrapper):
        layers.append(layers[-1].env)
    return layers


def _get_layer(layer: Any) -> Any:
    if isinstance(layer, SavesItself):
        return _encode(layer.get_state())
    wrapped = layer.env if isinstance(layer, gym.Wrapper | VectorWrapper) else None
    return {
        name: _encode(value)
        for name, value in vars(layer).items()
        if value is None or not (value is wrapped or name in _CONSTRUCTION or _is_constant(value))
    }


def _is_constant(value: Any) -> bool:
    if isinstance(value, _CONSTANTS):
        return True
    mujoco, rendering = sys.modules.get("mujoco"), sys.modules.get("gymnasium.envs.mujoco.mujoco_rendering")
    return (mujoco is not None and isinstance(value, mujoco.MjModel)) or (
        rendering is not None and isinstance(value, rendering.MujocoRenderer)
    )


def _encode(value: Any) -> Any:
    """To None, bool, int, float, str, ndarray, list and dict with str keys. Every dict has the key `kind`."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -(2**63) <= value < 2**63 else {"kind": "int", "value": str(value)}
    if kind is np.ndarray and value.dtype in _DTYPES:
        return value.copy()
    if isinstance(value, np.generic) and value.dtype in _DTYPES:
        return {"kind": "scalar", "value": np.array(value)}
    if kind is list:
        return [_encode(item) for item in value]
    if kind is tuple:
        return {"kind": "tuple", "value": [_encode(item) for item in value]}
    if kind is deque:
        return {"kind": "deque", "value": [_encode(item) for item in value], "maxlen": value.maxlen}
    if kind is dict:
        return {"kind": "dict", "value": [[_encode(key), _encode(item)] for key, item in value.items()]}
    return _encode_object(value)


def _decode(saved: Any, current: Any) -> Any:
    """The inverse of `_encode`. Objects are filled in place, because others may refer to them."""
    if isinstance(saved, np.ndarray):
        return saved.copy()
    if isinstance(saved, list):
        return [_decode(item, None) for item in saved]
    if not isinstance(saved, dict):
        return saved
    kind, value = saved["kind"], saved["value"]
    if kind == "int":
        return int(value)
    if kind == "scalar":
        return value[()]
    if kind == "tuple":
        return tuple(_decode(value, None))
    if kind == "deque":
        return deque(_decode(value, None), saved["maxlen"])
    if kind == "dict":
        return {_decode(key, None): _decode(item, None) for key, item in value}
    return _fill_object(kind, value, current)


def _encode_object(value: Any) -> dict[str, Any]:
    if type(value) is np.random.Generator:
        return {"kind": "generator", "value": _encode(value.bit_generator.state)}
    if isinstance(value, gym.Space):
        return {"kind": "space", "value": _encode(value._np_random)}
    return {"kind": "mujoco", "value": _mujoco_arrays(value)}


def _fill_object(kind: str, value: Any, current: Any) -> Any:
    if kind == "generator":
        return _set_generator(current, _decode(value, None))
    if kind == "space":
        current._np_random = _decode(value, current._np_random)
        return current
    return _set_mujoco(current, value)


def _set_generator(current: Any, state: dict[str, Any]) -> np.random.Generator:
    if type(current) is not np.random.Generator:
        current = np.random.Generator(getattr(np.random, state["bit_generator"])())
    current.bit_generator.state = state
    return cast(np.random.Generator, current)


def _mujoco_arrays(data: Any) -> dict[str, Any]:
    """The integration state, and what the last step derived from it, which some rewards read at the next step."""
    mujoco = sys.modules.get("mujoco")
    if mujoco is None or not isinstance(data, mujoco.MjData):
        raise UnsavableError(type(data).__name__)
    integration = np.empty(mujoco.mj_stateSize(data.model, mujoco.mjtState.mjSTATE_INTEGRATION))
    mujoco.mj_getState(data.model, data, integration, mujoco.mjtState.mjSTATE_INTEGRATION)
    derived = {name: getattr(data, name) for name in dir(data) if not name.startswith("_")}
    arrays = {name: value.copy() for name, value in derived.items() if type(value) is np.ndarray}
    return {"integration": integration, "derived": arrays}


def _set_mujoco(data: Any, saved: dict[str, Any]) -> Any:
    mujoco = sys.modules["mujoco"]
    mujoco.mj_setState(data.model, data, saved["integration"], mujoco.mjtState.mjSTATE_INTEGRATION)
    for name, value in saved["derived"].items():
        current = getattr(data, name)
        if current.shape == value.shape:  # arrays of contacts have another length; each step computes them anew
            current[...] = value
    return data
