"""Small DreamerV3s, and sequences for them."""

from typing import Any

import torch
from torch import Tensor

from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.types import ActionSpec, ArraySpec, EnvSpec, Observation, Sequences, is_array_spec

GAMMA = 1.0 - 1.0 / 333.0
VECTOR: ArraySpec = {"shape": [4], "dtype": "float32"}
IMAGE: ArraySpec = {"shape": [3, 48, 48], "dtype": "uint8"}
TWO_CHOICES: ActionSpec = {"kind": "discrete", "n": 2, "shape": [], "low": [], "high": []}
BOX: ActionSpec = {"kind": "continuous", "n": 0, "shape": [2], "low": [-2.0, 0.0], "high": [2.0, 1.0]}
OBSERVATIONS: dict[str, Any] = {"vector": VECTOR, "image": IMAGE, "both": {"image": IMAGE, "x": VECTOR}}


def env_spec(observation: ArraySpec | dict[str, ArraySpec] = VECTOR, action: ActionSpec = TWO_CHOICES) -> EnvSpec:
    return EnvSpec(env_id="Toy-v0", observation=observation, action=action)


def make_dreamer(spec: EnvSpec | None = None, **settings: Any) -> DreamerV3:
    """With dreams of three steps."""
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"size": "1M", "imagination_horizon": 3}
    return DreamerV3(spec or env_spec(), **(defaults | settings))


@torch.no_grad()
def make_certain(model: DreamerV3) -> None:
    """Posterior latents of one class each, whatever the draw; of a model with a unimix of 0."""
    assert model.world_model.rssm.unimix == 0.0
    model.world_model.rssm.posterior_output.weight.mul_(1e6)


def make_sequences(spec: EnvSpec | None = None, *, steps: int = 4, rows: int = 2, seed: int = 1) -> Sequences:
    """In the middle of an episode, from states of zeros; any field may be replaced."""
    torch.manual_seed(seed)
    spec = spec or env_spec()
    model_state = make_dreamer(spec).initial_state(rows)
    nothing = torch.zeros(steps, rows, dtype=torch.bool)
    return Sequences(
        observation=_observation(spec, steps, rows),
        action=_action(spec["action"], steps, rows),
        reward=torch.randn(steps, rows),
        is_first=nothing,
        is_last=nothing,
        is_terminal=nothing,
        discount=torch.full((steps, rows), GAMMA),
        state=model_state,
        index=torch.arange(steps * rows).view(steps, rows),
    )


def _observation(spec: EnvSpec, steps: int, rows: int) -> Observation:
    observation = spec["observation"]
    if is_array_spec(observation):
        return _array(observation, steps, rows)
    return {key: _array(array, steps, rows) for key, array in observation.items()}


def _array(array: ArraySpec, steps: int, rows: int) -> Tensor:
    shape = (steps, rows, *array["shape"])
    return torch.randint(256, shape, dtype=torch.uint8) if array["dtype"] == "uint8" else torch.randn(shape)


def _action(action: ActionSpec, steps: int, rows: int) -> Tensor:
    if action["kind"] == "discrete":
        return torch.randint(action["n"], (steps, rows))
    low, high = torch.tensor(action["low"]), torch.tensor(action["high"])
    return low + (high - low) * torch.rand(steps, rows, *action["shape"])
