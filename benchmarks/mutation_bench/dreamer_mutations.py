"""DreamerV3 with one line broken, each as it was published or as it is often written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rlmods.algorithms import dreamer_v3
from rlmods.algorithms.dreamer_v3 import Dream, DreamerV3
from rlmods.algorithms.laprop import LaProp
from rlmods.data import SequenceDataModule
from rlmods.functional.discrete_latents import latent_kl
from rlmods.functional.returns import lambda_return
from rlmods.networks.rssm import RSSM, LatentState, Observed
from rlmods.types import Decision, Observation, SequenceBatch, Sequences

WorldModelLosses = tuple[dict[str, Tensor], dict[str, Tensor], LatentState, Tensor]


class Dreamer(DreamerV3):
    """Nothing is broken."""


@contextmanager
def _in_the_algorithm(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Another function under a name that `dreamer_v3` uses."""
    before = getattr(dreamer_v3, name)
    setattr(dreamer_v3, name, function)
    try:
        yield
    finally:
        setattr(dreamer_v3, name, before)


@contextmanager
def _replaced(module: nn.Module, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Another method of a module."""
    object.__setattr__(module, name, method)
    try:
        yield
    finally:
        object.__delattr__(module, name)


# The KL


class KLAveraged(Dreamer):
    """The KL is the mean over the latents, and the free nats are those of a single one."""

    def world_model_losses(self, batch: Sequences) -> WorldModelLosses:
        """With the mean."""
        num_latents = self.world_model.rssm.num_latents
        with _in_the_algorithm("latent_kl", lambda p, q: latent_kl(p, q) / num_latents):
            return super().world_model_losses(batch)


class StraightThroughFreeNats(Dreamer):
    """The free nats change the number, not the gradient."""

    def world_model_losses(self, batch: Sequences) -> WorldModelLosses:
        """With the gradient of the KL everywhere."""
        found: list[Tensor] = []

        def listen(p: Tensor, q: Tensor) -> Tensor:
            found.append(latent_kl(p, q))
            return found[-1]

        with _in_the_algorithm("latent_kl", listen):
            losses, *others = super().world_model_losses(batch)
        for name, kl in zip(("dynamics", "representation"), found, strict=True):
            losses[name] = losses[name].detach() + kl - kl.detach()
        return losses, *others  # type: ignore[return-value]


# The recurrence, step by step, so that a line of it can be broken


class _Stepwise(RSSM):
    """What `observe` does, as a loop."""

    resets_action = True

    def observe(self, tokens: Tensor, previous_action: Tensor, is_first: Tensor, state: LatentState) -> Observed:
        """One step after the other."""
        goes_on = (~is_first).unsqueeze(-1).to(state.deter.dtype)
        action = previous_action * goes_on if self.resets_action else previous_action
        of_action, of_tokens = self.core.of_actions(action), self.posterior_of_tokens(tokens)
        return self._observe_by_steps(of_action, of_tokens, goes_on, self._uniform(*is_first.shape), state)


class _KeepsAction(_Stepwise):
    resets_action = False


class _Detached(_Stepwise):
    def _posterior(self, state: LatentState, *others: Tensor) -> tuple[LatentState, Tensor]:
        return super()._posterior(state.detach(), *others)


class _TokensOnly(_Stepwise):
    def _posterior(self, state: LatentState, *others: Tensor) -> tuple[LatentState, Tensor]:
        width = self.posterior_of_deter.out_features
        with _replaced(self.posterior_of_deter, "forward", lambda deter: deter.new_zeros(len(deter), width)):
            return super()._posterior(state, *others)


class _AfterPosterior(RSSM):
    """The prior of a step is made of a state that has already consumed the posterior's draw."""

    def observe(self, tokens: Tensor, previous_action: Tensor, is_first: Tensor, state: LatentState) -> Observed:
        """With the prior of one step more."""
        observed = super().observe(tokens, previous_action, is_first, state)
        flat = LatentState(*(part.flatten(0, 1) for part in observed.state))
        after = self.core(*flat, self.core.of_actions(previous_action.flatten(0, 1)))
        return observed._replace(prior=self.prior_of(after).log().view_as(observed.prior))


class Stepwise(Dreamer):
    """The loop, right in every line."""

    rssm_class: type[RSSM] = _Stepwise

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.world_model.rssm.__class__ = self.rssm_class


class ActionNotReset(Stepwise):
    """Where an episode begins, the last action of the one before goes on."""

    rssm_class = _KeepsAction


class RecurrenceDetached(Stepwise):
    """No gradient crosses a step."""

    rssm_class = _Detached


class PosteriorIgnoresH(Stepwise):
    """The posterior sees the observation alone."""

    rssm_class = _TokensOnly


class PriorSeesPosterior(Stepwise):
    """The prior has seen what it is to foresee."""

    rssm_class = _AfterPosterior


class ResetsLate(Dreamer):
    """A step after it should."""

    def world_model_losses(self, batch: Sequences) -> WorldModelLosses:
        """With beginnings moved by a row."""
        moved = torch.cat([torch.zeros_like(batch.is_first[:1]), batch.is_first[:-1]])
        return super().world_model_losses(batch._replace(is_first=moved))


# Dreams


class LambdaReturnShifted(Dreamer):
    """The return of a state is continued by its own value, not by the next one's."""

    def behaviour_losses(self, dream: Dream) -> Any:
        """With the values of a row before."""

        def shifted(reward: Tensor, discount: Tensor, value: Tensor, gae_lambda: float) -> Tensor:
            return lambda_return(reward, discount, torch.cat([value[:1], value[:-1]]), gae_lambda)

        with _in_the_algorithm("lambda_return", shifted):
            return super().behaviour_losses(dream)


class ContinuationUnused(Dreamer):
    """The head is trained, and dreams go on with γ for ever."""

    def dream(self, state: LatentState, is_terminal: Tensor | None = None) -> Dream:
        """Without an end."""
        dream = super().dream(state, is_terminal)
        return dream._replace(discount=torch.full_like(dream.discount, 1.0 - 1.0 / 333.0))


class _Unweighted(Tensor):
    """A discount whose product is 1."""

    def cumprod(self, dim: int) -> Tensor:  # type: ignore[override]
        """Ones."""
        return torch.ones_like(self.as_subclass(Tensor))


class NoContinuationWeight(Dreamer):
    """States after the end of a dream count as much as others."""

    def behaviour_losses(self, dream: Dream) -> Any:
        """With weights of 1."""
        unweighted = dream.discount.as_subclass(_Unweighted)
        with _in_the_algorithm("lambda_return", lambda r, d, v, g: lambda_return(r, d.as_subclass(Tensor), v, g)):
            return super().behaviour_losses(dream._replace(discount=unweighted))


# What is learned from what


class TruncationAsTermination(Dreamer):
    """The target of the continuation is made of the rows that end an episode, for good or not."""

    def world_model_losses(self, batch: Sequences) -> WorldModelLosses:
        """With the discount of is_last."""
        return super().world_model_losses(batch._replace(discount=batch.discount * ~batch.is_last))


class PolicyIsBlind(Dreamer):
    """Acts on a latent state of zeros."""

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """Whatever it sees."""
        nothing = (
            torch.zeros_like(observation)
            if isinstance(observation, Tensor)
            else {key: torch.zeros_like(column) for key, column in observation.items()}
        )
        return super().decide(nothing, state, deterministic=deterministic)


class ValueNotZero(Dreamer):
    """The last layer of the critic begins as any other."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        for module in self.critic.modules():
            if isinstance(module, nn.Linear) and not bool(module.weight.any()):
                nn.init.normal_(module.weight, std=0.1)


class SlowCriticFrozen(Dreamer):
    """Nobody moves the slow critic."""

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """Without its update."""
        with _in_the_algorithm("polyak_update", lambda *_: None):
            return super().training_step(batch, batch_idx)


class _RunningMaximum(LaProp):
    """Divides by the largest gradient there ever was."""

    def _update(self, parameters: list[Tensor], *others: Any) -> None:
        before = [self.state[parameter]["square"].clone() for parameter in parameters]
        super()._update(parameters, *others)
        for parameter, square in zip(parameters, before, strict=True):
            torch.maximum(self.state[parameter]["square"], square, out=self.state[parameter]["square"])


class RunningMaximum(Dreamer):
    """The mean of the squared gradients never falls."""

    def configure_optimizers(self) -> Optimizer:
        """With the maximum."""
        optimizer = super().configure_optimizers()
        optimizer.__class__ = _RunningMaximum
        return optimizer


# The data


class EndsLost(SequenceDataModule):
    """Rows that end an episode are not marked, unless it ends for good."""

    def iterate(self, trainer: Any) -> SequenceBatch:
        """Without is_last."""
        batch = super().iterate(trainer)
        return batch._replace(is_last=torch.zeros_like(batch.is_last))


class TerminalsLost(SequenceDataModule):
    """Every end is stored as that of a time limit."""

    def iterate(self, trainer: Any) -> SequenceBatch:
        """Without is_terminal."""
        batch = super().iterate(trainer)
        return batch._replace(
            is_terminal=torch.zeros_like(batch.is_terminal), discount=torch.full_like(batch.discount, self.gamma)
        )
