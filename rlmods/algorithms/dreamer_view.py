"""What DreamerV3 makes of sequences, for people to look at: seen, foreseen and dreamt."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlmods.algorithms.dreamer_open_loop import live_through
from rlmods.algorithms.sequence_rows import flat_rows
from rlmods.functional.open_loop import OpenLoop, Outlook, same_episode
from rlmods.networks.action_heads import ActionHead
from rlmods.networks.dreamer_heads import TwoHotHead
from rlmods.networks.rssm import LatentState
from rlmods.networks.world_model import WorldModel
from rlmods.types import EnvSpec, Observation, Sequences, is_array_spec


class Agent(NamedTuple):
    """The parts of DreamerV3 that are looked at."""

    spec: EnvSpec
    world_model: WorldModel
    actor: nn.Module
    head: ActionHead
    critic: TwoHotHead


@torch.no_grad()
def open_loop(agent: Agent, sequences: Sequences, *, context: int, horizon: int) -> OpenLoop:
    """See `OpenLoop`. Draws from torch's global generator.

    Args:
        agent: whose model is looked at.
        sequences: `[T, B, ...]`.
        context: rows that the model sees, 1 to T.
        horizon: H, steps of the dream.
    """
    model = agent.world_model
    observed, action = live_through(model, sequences)
    last = LatentState(observed.state.deter[context - 1], observed.state.stoch[context - 1])
    foreseen = [last]
    for taken in action[context - 1 : -1]:
        foreseen.append(model.rssm.imagine(foreseen[-1], taken))
    states = LatentState(
        *(torch.cat([seen[: context - 1], ahead]) for seen, ahead in zip(observed.state, _stack(foreseen), strict=True))
    )
    counts = torch.ones_like(sequences.is_first)
    counts[context - 1 :] = same_episode(sequences.is_first[context - 1 :])
    return OpenLoop(
        truth=_truth(agent, sequences.observation),
        reward=sequences.reward,
        discount=sequences.discount,
        counts=counts,
        reconstruction=_decoded(agent, observed.state),
        prediction=_outlook(agent, states),
        posterior=observed.posterior.exp().mT,
        prior=observed.prior.exp().mT,
        foreseen=model.rssm.prior_of(states.deter).mT,
        dream=_outlook(agent, _dreamt(agent, last, horizon)),
        context=context,
    )


def _dreamt(agent: Agent, state: LatentState, horizon: int) -> LatentState:
    """`[H + 1, B, ...]` with the actor's own actions."""
    states = [state]
    for _ in range(horizon):
        sample = agent.head.draw(agent.actor(states[-1].features).float(), deterministic=False)
        action = agent.world_model.action_vector.of_sample(sample)
        states.append(agent.world_model.rssm.imagine(states[-1], action))
    return _stack(states)


def _outlook(agent: Agent, states: LatentState) -> Outlook:
    model, features = agent.world_model, states.features
    return Outlook(
        observation=_decoded(agent, states),
        reward=model.reward.mean(model.reward(features)),
        discount=model.continuation_logits(features).sigmoid(),
        value=agent.critic.mean(agent.critic(features)),
    )


def _decoded(agent: Agent, states: LatentState) -> dict[str, Tensor]:
    flat = LatentState(*(part.flatten(0, 1) for part in states))
    shape = states.deter.shape[:2]
    predicted = agent.world_model.decoder.predict(flat)
    return {key: _rows(_newest(agent, key, array), shape) for key, array in predicted.items()}


def _truth(agent: Agent, observation: Observation) -> dict[str, Tensor]:
    keys = agent.world_model.decoder.keys
    arrays = keys.arrays(flat_rows(observation))
    found = {key: arrays[key].float().flatten(1) for key in keys.vectors}
    found |= {key: _newest(agent, key, arrays[key].float() / 255.0) for key in keys.images}
    shape = next(iter(keys.arrays(observation).values())).shape[:2]
    return {key: _rows(array, shape) for key, array in found.items()}


def _newest(agent: Agent, key: str, array: Tensor) -> Tensor:
    """Of stacked frames `[M, frames·C, H, W]` the last one."""
    specs = agent.spec["observation"]
    frames = (specs if is_array_spec(specs) else specs[key]).get("frame_stack", 1)
    return array if array.ndim == 2 else array[:, -(array.shape[1] // frames) :]


def _rows(array: Tensor, shape: torch.Size) -> Tensor:
    """`[T·B, ...]` to `[T, B, ...]`."""
    return array.view(*shape, *array.shape[1:])


def _stack(states: list[LatentState]) -> LatentState:
    return LatentState(*(torch.stack(parts) for parts in zip(*states, strict=True)))
