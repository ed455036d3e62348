"""What the traps of a world model are tried with: sequences and dreams by hand, and a module's methods on them."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rlmods.algorithms.dreamer_v3 import Dream, DreamerV3
from rlmods.networks.rssm import Observed
from rlmods.types import EnvSpec, Observation, Sequences, is_array_spec

STEPS, ROWS = 5, 3
# The step whose observation or beginning is changed.
CHANGED = 2
_GAMMA = 1.0 - 1.0 / 333.0


def behaviour(
    model: DreamerV3, reward: list[float], discount: list[float], value: list[float], gae_lambda: float
) -> tuple[dict[str, Tensor], Tensor]:
    """The losses of a dream by hand, and its returns `[H]`."""
    features = torch.randn(len(reward), 1, model.world_model.rssm.num_features)
    columns = [torch.tensor(column).unsqueeze(1) for column in (reward, discount, value)]
    with torch.no_grad():
        sample = model.head.draw(model.actor(features[:-1]).float().flatten(0, 1), deterministic=False)
    dream = Dream(features, sample.view(len(reward) - 1, 1, *sample.shape[1:]), columns[0], columns[1])
    before, model.gae_lambda = model.gae_lambda, gae_lambda
    with torch.no_grad(), replaced(model.critic, "mean", lambda logits: columns[2][: len(logits)]):
        losses, _, returns = model.behaviour_losses(dream)
    model.gae_lambda = before
    return losses, returns.flatten()


def losses_with_latents(model: DreamerV3, num: int) -> tuple[dict[str, Tensor], list[Tensor]]:
    """The losses where the first latents are 0.6 nat from a uniform prior each, and both distributions."""
    rssm = model.world_model.rssm
    uniform = torch.full((rssm.num_classes, rssm.num_latents), 1.0 / rssm.num_classes)
    apart = uniform.clone()
    apart[:, :num] = _at_kl(0.6, rssm.num_classes).unsqueeze(1)
    leaves: list[Tensor] = []
    observe = rssm.observe

    def observe_these(*arguments: Tensor) -> Observed:
        observed = observe(*arguments)  # type: ignore[arg-type]
        logs = [each.log().expand_as(observed.prior).clone().requires_grad_(True) for each in (uniform, apart)]
        leaves.extend(logs)
        return observed._replace(prior=logs[0], posterior=logs[1])

    with replaced(rssm, "observe", observe_these):
        losses = model.world_model_losses(sequences(model))[0]
    return losses, leaves


def _at_kl(nats: float, num_classes: int) -> Tensor:
    """A distribution `[C]` so far from the uniform one: one class has more than the others."""
    low, high = 1.0 / num_classes, 1.0
    for _ in range(60):
        first = 0.5 * (low + high)
        rest = (1.0 - first) / (num_classes - 1)
        kl = math.log(num_classes) + first * math.log(first) + (num_classes - 1) * rest * math.log(max(rest, 1e-300))
        low, high = (first, high) if kl < nats else (low, first)
    return torch.tensor([first, *[rest] * (num_classes - 1)])


def losses_of(model: DreamerV3, batch: Sequences) -> dict[str, Tensor]:
    """Of the world model, `[T, B]`; each time with the same random numbers."""
    torch.manual_seed(3)
    with torch.no_grad():
        return model.world_model_losses(batch)[0]


def states_of(model: DreamerV3, batch: Sequences) -> Tensor:
    """Of the posterior, `[T, B, F]`; each time with the same random numbers."""
    torch.manual_seed(3)
    with torch.no_grad():
        return model.world_model_losses(batch)[2].features


def observed(model: DreamerV3, batch: Sequences) -> Observed:
    """What the recurrence makes of sequences; likewise."""
    torch.manual_seed(3)
    with torch.no_grad():
        return model.world_model.rssm.observe(*arguments_of_observe(model, batch))


def arguments_of_observe(model: DreamerV3, batch: Sequences) -> Any:
    """As the module itself makes them of sequences."""
    arguments: list[Any] = []  # made without a graph: tokens may be a leaf
    rssm = model.world_model.rssm
    observe = rssm.observe

    def listen(*given: Tensor) -> Observed:
        arguments.extend(given)
        return observe(*given)  # type: ignore[arg-type]

    with torch.no_grad(), replaced(rssm, "observe", listen):
        model.world_model_losses(batch)
    return arguments


def sequences(model: DreamerV3, steps: int = STEPS) -> Sequences:
    """In the middle of an episode, from states of zeros."""
    torch.manual_seed(1)
    nothing = torch.zeros(steps, ROWS, dtype=torch.bool)
    return Sequences(
        observation=_unflat(noise(model.spec, steps * ROWS, 1), steps),
        action=_actions(model.spec, steps),
        reward=torch.ones(steps, ROWS),
        is_first=nothing,
        is_last=nothing,
        is_terminal=nothing,
        discount=torch.full((steps, ROWS), _GAMMA),
        state=model.initial_state(ROWS),
        index=torch.arange(steps * ROWS).view(steps, ROWS),
    )


def noise(spec: EnvSpec, num: int, seed: int) -> Observation:
    """Noise, `[M, *shape]`."""
    generator = torch.Generator().manual_seed(seed)

    def of(array: Any) -> Tensor:
        shape = (num, *array["shape"])
        if array["dtype"] == "uint8":
            return torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        return torch.randn(shape, generator=generator)

    observation = spec["observation"]
    if is_array_spec(observation):
        return of(observation)
    return {key: of(array) for key, array in observation.items()}


def _unflat(observation: Observation, steps: int) -> Observation:
    if isinstance(observation, Tensor):
        return observation.view(steps, -1, *observation.shape[1:])
    return {key: column.view(steps, -1, *column.shape[1:]) for key, column in observation.items()}


def with_other_step(observation: Observation, other: Observation, *, before: bool = False) -> Observation:
    """Another observation in the changed step, or in the one before it."""
    if isinstance(observation, Tensor) and isinstance(other, Tensor):
        changed = observation.clone()
        changed[CHANGED - before] = other
        return changed
    assert isinstance(observation, dict)  # noqa: S101, both are of one spec
    assert isinstance(other, dict)  # noqa: S101
    return {key: with_other_step(column, other[key], before=before) for key, column in observation.items()}  # type: ignore[misc]


def _actions(spec: EnvSpec, steps: int) -> Tensor:
    action = spec["action"]
    if action["kind"] == "continuous":
        return torch.tensor(action["low"]).expand(steps, ROWS, -1).clone()
    shape = (steps, ROWS) if action["kind"] == "discrete" else (steps, ROWS, len(action["nvec"]))
    return torch.zeros(shape, dtype=torch.int64)


def has_choice(spec: EnvSpec) -> bool:
    """Whether there is more than one action."""
    return spec["action"]["kind"] == "continuous" or max(_choices(spec)) > 1


def _choices(spec: EnvSpec) -> list[int]:
    action = spec["action"]
    return [action["n"]] if action["kind"] == "discrete" else action["nvec"]


def other_action(spec: EnvSpec, action: Tensor) -> Tensor:
    """Than those of `sequences`, where there is a choice."""
    if spec["action"]["kind"] == "continuous":
        return torch.tensor(spec["action"]["high"]).expand_as(action)
    return torch.ones_like(action).remainder(torch.tensor(_choices(spec)).view(spec["action"]["shape"]))


@contextmanager
def replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Another method for a while."""
    object.__setattr__(module, name, method)
    try:
        yield
    finally:
        object.__delattr__(module, name)
