"""The recurrent state-space model: a deterministic state h and a discrete one z, with its prior and its posterior.

Hafner et al. 2025, "Mastering diverse control tasks through world models", figure 3 and methods.
https://arxiv.org/abs/2301.04104

    h_t = core(h_{t−1}, z_{t−1}, a_{t−1})     block GRU
    ẑ_t ~ prior(h_t)                          the dream
    z_t ~ posterior(h_t, x_t)                 what was seen

The prior of step t sees nothing of step t: it is a function of h_t, which is made before z_t is drawn.
"""

from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlmods.functional.discrete_latents import mixed_probabilities, one_hot_sample, straight_through
from rlmods.functional.normed_silu import normed_silu
from rlmods.functional.recurrent_scan import CoreWeights, PosteriorWeights, core_step, posterior_scan
from rlmods.networks.layer_norm_gru import LayerNormGRU
from rlmods.networks.normed import Affine, NormedLinear, NormedMLP, RMSNorm, initialized, truncated_normal_

CoreKind: TypeAlias = Literal["block_gru", "gru"]


class LatentState(NamedTuple):
    """What the model remembers; zeros where an episode begins."""

    deter: Tensor  # [..., D], h
    stoch: Tensor  # [..., L·C], z: L one-hot vectors, flat

    @property
    def features(self) -> Tensor:
        """What all heads see, `[..., D + L·C]`."""
        return torch.cat([self.deter, self.stoch], -1)

    def detach(self) -> "LatentState":
        """Without gradients."""
        return LatentState(self.deter.detach(), self.stoch.detach())


class Observed(NamedTuple):
    """A sequence as the model has lived it."""

    state: LatentState  # [T, B, ...], of the posterior
    prior: Tensor  # [T, B, C, L], log p
    posterior: Tensor  # [T, B, C, L], log p


class BlockGRU(nn.Module):
    """The recurrent core: gates that see a block of h each, and all of the layer that mixes z, a and h.

    Args:
        deter: D, a multiple of the blocks.
        stoch: width of z, flat.
        num_actions: width of an action.
        hidden: width of the layers that h, z and a go through.
        num_blocks: G.
    """

    def __init__(self, deter: int, stoch: int, num_actions: int, hidden: int, num_blocks: int) -> None:
        super().__init__()
        if deter % num_blocks:
            raise ValueError(f"got deter = {deter} in {num_blocks} blocks, expected a multiple of them")
        size = deter // num_blocks
        self.of_deter = NormedLinear(deter, hidden)
        self.of_stoch = NormedLinear(stoch, hidden)
        self.of_action = NormedLinear(num_actions, hidden)
        # Of the block-linear layer the part that is alike for all blocks is one matrix: [h, z] and a apart.
        self.inputs = nn.Linear(2 * hidden, deter, bias=False)
        self.action_input = nn.Linear(hidden, deter)
        self.block = nn.Parameter(torch.empty(num_blocks, size, size))
        # The fan-in is the whole width of the layer's input, not a block's.
        fan_in = deter + num_blocks * 3 * hidden
        for weight in (self.inputs.weight, self.action_input.weight, self.block):
            truncated_normal_(weight, fan_in)
        nn.init.zeros_(self.action_input.bias)
        self.norm = RMSNorm(deter)
        self.gates = nn.Parameter(torch.empty(3, num_blocks, size, size))
        truncated_normal_(self.gates, deter)
        self.gates_bias = nn.Parameter(torch.zeros(3, num_blocks, 1, size))

    def of_actions(self, action: Tensor) -> Tensor:
        """What actions `[..., A]` add to the layer that mixes, `[..., D]`."""
        added: Tensor = self.action_input(self.of_action(action))
        return added

    def weights(self) -> CoreWeights:
        """All others."""
        return CoreWeights(
            deter=self.of_deter.linear.weight,
            deter_bias=self.of_deter.linear.bias,
            stoch=self.of_stoch.linear.weight,
            stoch_bias=self.of_stoch.linear.bias,
            both_scale=torch.stack([self.of_deter.norm.scale, self.of_stoch.norm.scale]),
            inputs=self.inputs.weight,
            block=self.block,
            scale=self.norm.scale,
            gates=self.gates,
            gates_bias=self.gates_bias,
        )

    def forward(self, deter: Tensor, stoch: Tensor, of_action: Tensor) -> Tensor:
        """The h of the next step, `[B, D]`, from h `[B, D]`, z `[B, S]` and what the action adds, `[B, D]`."""
        return core_step(deter, stoch, of_action, self.weights()).deter


class RSSM(nn.Module):
    """Core, prior and posterior.

    Args:
        num_tokens: width of an encoded observation.
        num_actions: width of an action as the core gets it.
        deter: D, width of h.
        hidden: width of all layers.
        num_latents: L, variables of z.
        num_classes: C, of each.
        num_blocks: G, of the core.
        unimix: share of the uniform distribution in prior and posterior, for draws and KL alike.
        core: block_gru, or gru, the dense one of 2023, which has no blocks.
        learns_initial_state: an episode begins with a learned h and the most probable z of its prior; else with zeros.
    """

    def __init__(
        self,
        num_tokens: int,
        num_actions: int,
        *,
        deter: int,
        hidden: int,
        num_latents: int,
        num_classes: int,
        num_blocks: int,
        unimix: float,
        core: CoreKind = "block_gru",
        learns_initial_state: bool = False,
    ) -> None:
        super().__init__()
        self.deter = deter
        self.num_latents = num_latents
        self.num_classes = num_classes
        self.unimix = unimix
        stoch = num_latents * num_classes
        self.num_features = deter + stoch
        self.core = (
            BlockGRU(deter, stoch, num_actions, hidden, num_blocks)
            if core == "block_gru"
            else LayerNormGRU(deter, stoch, num_actions, hidden)
        )
        self.prior = NormedMLP(deter, hidden, 2, stoch)
        # The first layer of the posterior in two parts: that of the tokens needs no recurrence.
        self.posterior_of_tokens = nn.Linear(num_tokens, hidden)
        self.posterior_of_deter = nn.Linear(deter, hidden, bias=False)
        fan_in = num_tokens + deter
        truncated_normal_(self.posterior_of_tokens.weight, fan_in)
        nn.init.zeros_(self.posterior_of_tokens.bias)
        truncated_normal_(self.posterior_of_deter.weight, fan_in)
        self.posterior_norm = RMSNorm(hidden)
        self.posterior_output = initialized(Affine(hidden, stoch))
        self.initial_deter = nn.Parameter(torch.zeros(deter)) if learns_initial_state else None

    def initial_state(self, num: int) -> LatentState:
        """Zeros. Where the initial state is learned they stand for it, because no z of an episode is all zeros."""
        weight = self.posterior_output.bias
        return LatentState(
            weight.new_zeros(num, self.deter), weight.new_zeros(num, self.num_latents * self.num_classes)
        )

    def observe(self, tokens: Tensor, previous_action: Tensor, is_first: Tensor, state: LatentState) -> Observed:
        """Live through a sequence.

        Args:
            tokens: `[T, B, E]`, encoded observations.
            previous_action: `[T, B, A]`, that led to them.
            is_first: `[T, B]`, where nothing before counts: the state and the action before are zeros there.
            state: `[B, ...]`, before the first step.
        """
        goes_on = (~is_first).unsqueeze(-1).to(state.deter.dtype)
        of_action = self.core.of_actions(previous_action * goes_on)
        of_tokens, uniform = self.posterior_of_tokens(tokens), self._uniform(*is_first.shape)
        if self.initial_deter is not None or isinstance(self.core, LayerNormGRU):
            return self._observe_by_steps(of_action, of_tokens, goes_on, uniform, state)
        deter, stoch, posterior = posterior_scan(
            of_action,
            of_tokens,
            goes_on,
            state.deter,
            state.stoch,
            uniform,
            self.unimix,
            self.core.weights(),
            PosteriorWeights(
                deter=self.posterior_of_deter.weight,
                scale=self.posterior_norm.scale,
                output=self.posterior_output.weight,
                output_bias=self.posterior_output.bias,
            ),
        )
        return Observed(LatentState(deter, stoch), _log(self.prior_of(deter)), _log(posterior))

    def _observe_by_steps(
        self, of_action: Tensor, of_tokens: Tensor, goes_on: Tensor, uniform: Tensor, state: LatentState
    ) -> Observed:
        """What `posterior_scan` does for the block GRU and an initial state of zeros, for all others."""
        states: list[LatentState] = []
        posteriors: list[Tensor] = []
        for row, running in enumerate(goes_on.unbind()):
            before = LatentState(state.deter * running, state.stoch * running)
            state, posterior = self._posterior(before, of_action[row], of_tokens[row], uniform[row])
            states.append(state)
            posteriors.append(posterior)
        deter, stoch = (torch.stack(parts) for parts in zip(*states, strict=True))
        return Observed(LatentState(deter, stoch), _log(self.prior_of(deter)), _log(torch.stack(posteriors)))

    def step(self, tokens: Tensor, previous_action: Tensor, state: LatentState) -> LatentState:
        """The posterior state `[B, ...]` after one more observation, for who acts.

        Args:
            tokens: `[B, E]`.
            previous_action: `[B, A]`, that led to it; zeros where an episode begins.
            state: `[B, ...]`, before it; likewise.
        """
        of_action, of_tokens = self.core.of_actions(previous_action), self.posterior_of_tokens(tokens)
        return self._posterior(state, of_action, of_tokens, self._uniform(tokens.shape[0]))[0]

    def _posterior(
        self, before: LatentState, of_action: Tensor, of_tokens: Tensor, uniform: Tensor
    ) -> tuple[LatentState, Tensor]:
        """The state after one more observation, and the p `[B, C, L]` of which its z was drawn."""
        deter = self.core(*self._begun(before), of_action)
        query = of_tokens + self.posterior_of_deter(deter)
        posterior = self._probabilities(self.posterior_output(normed_silu(query, self.posterior_norm.scale)))
        sample = one_hot_sample(posterior, uniform)
        return LatentState(deter, straight_through(sample, posterior).flatten(-2)), posterior

    def _begun(self, state: LatentState) -> LatentState:
        """The learned initial state in place of zeros."""
        if self.initial_deter is None:
            return state
        begins = ~state.stoch.any(-1, keepdim=True)
        deter = self.initial_deter.tanh()
        likeliest = self.prior_of(deter).argmax(-2)  # [L]
        stoch = F.one_hot(likeliest, self.num_classes).T.flatten().to(deter.dtype)
        return LatentState(torch.where(begins, deter, state.deter), torch.where(begins, stoch, state.stoch))

    def prior_of(self, deter: Tensor) -> Tensor:
        """The p of ẑ, `[..., C, L]`."""
        return self._probabilities(self.prior(deter))

    def imagine(self, state: LatentState, action: Tensor) -> LatentState:
        """The next state of a dream, `[B, ...]`, after an action `[B, A]`."""
        return self.dream_on(state, self.core.of_actions(action))

    def dream_on(self, state: LatentState, of_action: Tensor) -> LatentState:
        """The same, from what the action adds to the core."""
        deter = self.core(*state, of_action)
        prior = self.prior_of(deter)
        sample = one_hot_sample(prior, self._uniform(deter.shape[0]))
        return LatentState(deter, (straight_through(sample, prior) if prior.requires_grad else sample).flatten(-2))

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self.posterior_output.bias.device

    def _uniform(self, *rows: int) -> Tensor:
        """Draws from torch's global generator, `[..., 1, L]`."""
        return torch.rand(*rows, 1, self.num_latents, device=self.device)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return mixed_probabilities(logits.view(*logits.shape[:-1], self.num_classes, self.num_latents), self.unimix)


def _log(probabilities: Tensor) -> Tensor:
    """Finite, so that p·ln p is 0 where p is, which without a share of the uniform distribution it may be."""
    return probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
