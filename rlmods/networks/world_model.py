"""The world model of DreamerV3: what was seen, what is remembered, what comes next, and what that is worth."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlmods.networks.dreamer_heads import ActionVector, BinSpace, TwoHotHead
from rlmods.networks.dreamer_observations import (
    ImageConvolutions,
    ObservationDecoder,
    ObservationEncoder,
    ObservationKeys,
)
from rlmods.networks.normed import NormedMLP
from rlmods.networks.rssm import RSSM, CoreKind, LatentState
from rlmods.types import EnvSpec


class ModelSize(NamedTuple):
    """Widths of all networks."""

    deter: int  # of h
    hidden: int  # of all layers
    num_classes: int  # of a latent variable
    depth: int  # of the convolutions
    num_latents: int = 32
    num_blocks: int = 8  # of the recurrent core


class WorldModel(nn.Module):
    """Encoder, recurrent state-space model, decoder, heads for reward and continuation.

    Args:
        spec: of the environment.
        size: of the networks.
        unimix: of the latents.
        num_bins: of the reward.
        log_bound: of its bins.
        space: of its bins.
        core: of the recurrence.
        learns_initial_state: with which an episode begins, else with zeros.
        convolutions: of the image encoder.
    """

    def __init__(
        self,
        spec: EnvSpec,
        size: ModelSize,
        *,
        unimix: float,
        num_bins: int,
        log_bound: float,
        space: BinSpace,
        core: CoreKind,
        learns_initial_state: bool,
        convolutions: ImageConvolutions,
    ) -> None:
        super().__init__()
        keys = ObservationKeys(spec)
        self.action_vector = ActionVector(spec)
        self.encoder = ObservationEncoder(keys, hidden=size.hidden, depth=size.depth, convolutions=convolutions)
        self.rssm = RSSM(
            self.encoder.num_tokens,
            self.action_vector.width,
            deter=size.deter,
            hidden=size.hidden,
            num_latents=size.num_latents,
            num_classes=size.num_classes,
            num_blocks=size.num_blocks,
            unimix=unimix,
            core=core,
            learns_initial_state=learns_initial_state,
        )
        state = (size.deter, size.num_latents * size.num_classes)
        self.decoder = ObservationDecoder(keys, state, hidden=size.hidden, depth=size.depth, num_blocks=size.num_blocks)
        num_features = self.rssm.num_features
        self.reward = TwoHotHead(num_features, size.hidden, 1, num_bins=num_bins, log_bound=log_bound, space=space)
        self.continuation = NormedMLP(num_features, size.hidden, 1, 1)

    @property
    def state_widths(self) -> list[int]:
        """Of h, z and an action."""
        return [self.rssm.deter, self.rssm.num_features - self.rssm.deter, self.action_vector.width]

    def pack(self, latents: LatentState, action: Tensor) -> Tensor:
        """What is remembered between two observations, `[..., S]` float32: h, z and the action, side by side."""
        return torch.cat([latents.deter, latents.stoch, action], -1).float()

    def unpack(self, state: Tensor) -> tuple[LatentState, Tensor]:
        """The same apart."""
        deter, stoch, action = torch.split(state, self.state_widths, -1)
        return LatentState(deter, stoch), action

    def action_effects(self) -> Callable[[Tensor], Tensor]:
        """What draws of the policy, `[N]` or `[N, D]`, add to the core: a table where an action is one number."""
        vector, core = self.action_vector, self.rssm.core
        if not vector.is_single:
            return lambda sample: core.of_actions(vector.of_sample(sample))
        table: Tensor = core.of_actions(vector.of_sample(torch.arange(vector.width, device=self.rssm.device)))
        return lambda sample: table[sample]

    def continuation_logits(self, features: Tensor) -> Tensor:
        """Of γ·P(the episode goes on), `[...]` float32, for latent states `[..., F]`."""
        logits: Tensor = self.continuation(features)
        return logits.squeeze(-1).float()
