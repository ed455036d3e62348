"""What DreamerV3's model dreams with the actions that were taken, against what was seen."""

import torch
from torch import Tensor

from rlmods.algorithms.sequence_rows import flat_rows
from rlmods.functional.discrete_latents import latent_kl
from rlmods.functional.open_loop import relative_error, same_episode
from rlmods.networks.rssm import LatentState, Observed
from rlmods.networks.world_model import WorldModel
from rlmods.types import Observation, Sequences


@torch.no_grad()
def live_through(model: WorldModel, sequences: Sequences) -> tuple[Observed, Tensor]:
    """What the posterior makes of each row of sequences, from the stored states on, and the actions `[T, B, A]`."""
    before, action_before = model.unpack(sequences.state)
    shape = sequences.reward.shape
    action = model.action_vector.of_action(sequences.action.flatten(0, 1)).view(*shape, -1)
    tokens = model.encoder(flat_rows(sequences.observation)).view(*shape, -1)
    previous_action = torch.cat([action_before.unsqueeze(0), action[:-1]])
    return model.rssm.observe(tokens, previous_action, sequences.is_first, before), action


@torch.no_grad()
def dreaming_kl(model: WorldModel, sequences: Sequences) -> Tensor:
    """KL(posterior ‖ prior) with the prior that `imagine` draws from. Draws from torch's global generator.

    It asks the way that dreams go, not the one by which the losses come to their prior: in a model that learns what it
    dreams with, both are the same.

    Args:
        model: of the world.
        sequences: `[T, B, ...]`.

    Returns:
        `[T, B]` nat, summed over the latents; NaN in the first row and where an episode begins.
    """
    observed, action = live_through(model, sequences)
    lived = LatentState(*(part[:-1].flatten(0, 1) for part in observed.state))
    dreamt = model.rssm.imagine(lived, action[:-1].flatten(0, 1))
    prior = model.rssm.prior_of(dreamt.deter)
    # Without a share of the uniform distribution a class may have nothing.
    log_prior = prior.clamp(min=torch.finfo(prior.dtype).tiny).log().view_as(observed.posterior[1:])
    kl = latent_kl(observed.posterior, torch.cat([observed.posterior[:1], log_prior]))
    unknown = sequences.is_first.clone()
    unknown[0] = True
    return kl.masked_fill(unknown, torch.nan)


@torch.no_grad()
def open_loop_error(model: WorldModel, sequences: Sequences, num_rows: int) -> Tensor:
    """The error of dreams from the first row on, relative to predicting the mean. Draws from torch's global generator.

    Args:
        model: of the world.
        sequences: `[T, B, ...]`.
        num_rows: of which at most T are taken.

    Returns:
        `[T]`, in symlog for vectors and in [0, 1] for pixels, the mean of both where there are both. Row 0 is what the
        posterior makes of the observation, row t a dream of t steps. NaN where nothing is left of the episodes.
    """
    rows = min(num_rows, len(sequences.reward))
    before, action_before = model.unpack(sequences.state)
    action = model.action_vector.of_action(sequences.action[:rows].flatten(0, 1)).view(
        *sequences.reward[:rows].shape, -1
    )
    observation = _rows(sequences.observation, rows)
    tokens = model.encoder(flat_rows(_rows(observation, 1)))
    goes_on = (~sequences.is_first[0]).unsqueeze(-1).to(before.deter.dtype)
    remembered = LatentState(before.deter * goes_on, before.stoch * goes_on)
    states = [model.rssm.step(tokens, action_before * goes_on, remembered)]
    for taken in action[:-1]:
        states.append(model.rssm.imagine(states[-1], taken))
    dreamt = LatentState(torch.cat([one.deter for one in states]), torch.cat([one.stoch for one in states]))
    counts = same_episode(sequences.is_first[:rows])
    flat = flat_rows(observation)
    keys = model.decoder.keys
    targets = {"vectors": keys.vector, "images": keys.image}
    errors = [
        relative_error(error.view(counts.shape), targets[name](flat).flatten(1).view(*counts.shape, -1), counts)
        for name, error in model.decoder.errors(dreamt, flat).items()
    ]
    return torch.stack(errors).mean(0)


def _rows(observation: Observation, rows: int) -> Observation:
    """The first rows of `[T, B, *shape]`."""
    if isinstance(observation, Tensor):
        return observation[:rows]
    return {key: column[:rows] for key, column in observation.items()}
