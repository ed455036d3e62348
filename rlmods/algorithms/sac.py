"""Soft actor-critic.

Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", Algorithm 1.
https://arxiv.org/abs/1812.05905

Deviations from the paper:

1. The policy, its density and the entropy live in the cube [-1, 1]^A, whatever the action's bounds; the critic sees
   actions scaled to it. In the environment's units log π would be smaller by the log of the box's volume / 2^A.
2. The temperature's loss is -log α · (log π + H̄), as in the authors' code, and not α times the same: the sign of its
   gradient is equal, its size does not shrink with α.
3. Collection and updates alternate in blocks: an iteration collects `steps_per_iteration` environment steps and then
   makes `updates_per_iteration` updates on a stack of mini-batches drawn at once.
4. `terminated` alone ends an episode's value; a time limit bootstraps.
5. The mean squared errors of the critics are summed without the paper's factor ½.
6. Pixels are treated as in `TD3`: convolutions that the critic owns, bounded trunks, random shifts. Next observations
   are encoded by the online convolutions unless `target_encoder_tau` is given.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.continuous_settings import check_continuous_settings
from rlmods.functional.continuous_policy import squashed_gaussian
from rlmods.functional.td import td_target
from rlmods.networks.continuous import (
    ActionBox,
    Encodable,
    EncoderOwnership,
    actor_and_critic,
    encode_once,
    num_observations,
    shift_transition,
    target_encoders,
)
from rlmods.networks.pixel_encoders import PixelEncoder
from rlmods.networks.target import polyak_update
from rlmods.signals import stack_signals
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Observation, ReplayBatch, Transition

# Bounds of the log standard deviation, those of the authors' code.
LOG_STD_MIN, LOG_STD_MAX = -20.0, 2.0


class SAC(Algorithm):
    """Squashed Gaussian actor, twin critics, automatic temperature.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        hidden_sizes: widths of the hidden layers of actor and critics.
        learning_rate: of all Adam optimisers.
        tau: share of the online critics in a target update, in (0, 1].
        target_update_interval: updates between two target updates.
        ent_coef: the temperature α; `auto` learns it, from 1 on.
        target_entropy: H̄ in nats; `auto` is -A.
        n_critics: at least 1; the least of them bootstraps.
        max_grad_norm: L2 bound of the gradient by optimiser (`critic`, `actor`, `ent_coef`); who is not named is not
            clipped.
        encoder: convolutions for pixels (`drq_v2` or `nature`); vectors need none.
        encoder_ownership: who owns them, as in `TD3`.
        features_dim: width of the bounded trunk behind pixels; None passes the features on as they are.
        random_shift: pixels by which images are moved at random; 0 does not.
        target_encoder_tau: share in the update of a target encoder; None has one only where `separate`, with `tau`.

    Raises:
        ValueError: where the actions are not a bounded box or a value lies outside its range.
    """

    network_settings = ("n_critics", "encoder", "encoder_ownership", "features_dim", "target_encoder_tau", "ent_coef")

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        target_update_interval: int = 1,
        ent_coef: float | Literal["auto"] = "auto",
        target_entropy: float | Literal["auto"] = "auto",
        n_critics: int = 2,
        max_grad_norm: Mapping[str, float] | None = None,
        encoder: PixelEncoder = "drq_v2",
        encoder_ownership: EncoderOwnership = "shared_critic",
        features_dim: int | None = 50,
        random_shift: int = 4,
        target_encoder_tau: float | None = None,
    ) -> None:
        super().__init__(spec)
        self.save_hyperparameters()
        check_continuous_settings(self.hparams, optimizers=("critic", "actor", "ent_coef"))
        self.learning_rate = learning_rate
        self.tau = tau
        self.target_update_interval = target_update_interval
        self.max_grad_norm = dict(max_grad_norm or {})
        self.random_shift = random_shift
        self.target_encoder_tau = tau if target_encoder_tau is None else target_encoder_tau
        self.actions = ActionBox(spec)
        self.target_entropy = -float(self.actions.num_actions) if target_entropy == "auto" else target_entropy
        self.learns_ent_coef = ent_coef == "auto"
        self.log_ent_coef = nn.Parameter(
            torch.tensor(math.log(1.0 if ent_coef == "auto" else ent_coef)), requires_grad=self.learns_ent_coef
        )
        self.actor, self.critic = actor_and_critic(
            spec,
            self.actions,
            hidden_sizes,
            num_outputs=2 * self.actions.num_actions,
            num_critics=n_critics,
            pixel_encoder=encoder,
            encoder_ownership=encoder_ownership,
            features_dim=features_dim,
        )
        has_target_encoder = encoder_ownership == "separate" or target_encoder_tau is not None
        self.target_critic = self.critic.target_copy(shares_encoder=not has_target_encoder)

    @property
    def entropy_coefficient(self) -> Tensor:
        """α, a scalar on the device, without a graph."""
        return self.log_ent_coef.detach().exp()

    def distribution(self, observation: Encodable) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation before the tanh, `[B, A]` each."""
        mean, log_std = self.actor(observation).chunk(2, -1)
        return mean, log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """A draw of π, or its mode, `[N, *shape]` for observations `[N, *shape]`; uniform before `learning_starts`."""
        if env_steps < self.learning_starts and not deterministic:
            return self.actions.sample(num_observations(observation))
        mean, log_std = self.distribution(observation)
        if deterministic:
            return self.actions.from_cube(mean.tanh())
        return self.actions.from_cube(squashed_gaussian(mean, log_std)[0])

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """One iteration: K updates on K mini-batches. Returns their signals, none during warm-up."""
        optimizers = self.named_optimizers()
        if batch.num_updates == 0:
            self.count_iteration(optimizers["critic"])
            return {}
        learning_rates = [self.set_learning_rate(optimizer, self.learning_rate) for optimizer in optimizers.values()]
        minibatches = batch.minibatches()
        signals = stack_signals(
            [self.update(optimizers, minibatch, counts=minibatch is minibatches[-1]) for minibatch in minibatches]
        )
        self.feed_back(batch.index, td_error=signals["td_error"])
        signals["learning_rate"] = torch.tensor(learning_rates[0])
        signals["update_steps"] = torch.tensor(self.update_steps)
        return signals

    def update(
        self, optimizers: Mapping[str, LightningOptimizer], minibatch: Minibatch, *, counts: bool
    ) -> dict[str, Tensor]:
        """One step of critic, actor and temperature on B transitions, and a target update when it is due."""
        minibatch = minibatch._replace(transition=self.augment(minibatch.transition))
        limits = self.max_grad_norm
        signals = self.critic_signals(minibatch)
        signals["grad_norm/critic"] = self.optimize(
            optimizers["critic"], signals["loss"], limits.get("critic"), counts=counts
        )
        signals |= self.actor_signals(minibatch.transition.observation)
        signals["grad_norm/actor"] = self.optimize(
            optimizers["actor"], signals["actor_loss"], limits.get("actor"), counts=False
        )
        signals["ent_coef"] = self.entropy_coefficient
        if self.learns_ent_coef:
            signals["ent_coef_loss"] = self.ent_coef_loss(signals["entropy"])
            signals["grad_norm/ent_coef"] = self.optimize(
                optimizers["ent_coef"], signals["ent_coef_loss"], limits.get("ent_coef"), counts=False
            )
        self.update_steps += 1
        if self.update_steps % self.target_update_interval == 0:
            self.update_targets()
        return signals

    def augment(self, transition: Transition) -> Transition:
        """Images moved at random, those of the next observations on their own."""
        return shift_transition(transition, self.critic.encoder, self.random_shift)

    def critic_signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """The critic's loss (equation 5), summed over the twins, and what it was made of, `[B]` each."""
        transition = minibatch.transition
        features = self.critic.encode(transition.observation)
        q_values = self.critic.value(features, transition.action)
        target = self.td_target(transition)
        loss = (minibatch.importance_weight * (q_values - target).square()).mean(-1).sum()
        signals = {"loss": loss, "critic_loss": loss, "td_target": target, "td_error": target - q_values[0]}
        return signals | self.critic.signals(q_values, features)

    @torch.no_grad()
    def td_target(self, transition: Transition) -> Tensor:
        """Soft bootstrap targets `[B]` (equations 2 and 3), after the callables of `target_transforms`."""
        next_observation = encode_once(transition.next_observation, self.actor, self.target_critic)
        next_action, log_density = squashed_gaussian(*self.distribution(next_observation))
        next_value = self.target_critic(next_observation, self.actions.from_cube(next_action)).amin(0)
        soft_value = next_value - self.entropy_coefficient * log_density
        target = td_target(transition.reward, transition.discount, soft_value)
        for transform in self.target_transforms:
            target = transform(target)
        return target

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """The actor's loss (equation 9), α log π(a|s) - min Q(s, a), and what it was made of, `[B]` each.

        It takes observations, never features: the critic encodes them itself, and no gradient reaches it.
        """
        encoded = self.critic.encoded_without_gradient(observation)
        mean, log_std = self.distribution(encoded if self.actor.borrows(encoded) else observation)
        unit_action, log_density = squashed_gaussian(mean, log_std)
        with self.critic.frozen():
            q_values = self.critic(encoded, self.actions.from_cube(unit_action))
        actor_loss = (self.entropy_coefficient * log_density - q_values.amin(0)).mean()
        entropy = -log_density.mean()
        return {"actor_loss": actor_loss, "q_policy": q_values[0], "pre_tanh": mean, "entropy": entropy}

    def ent_coef_loss(self, entropy: Tensor) -> Tensor:
        """The temperature's loss, log α · (H - H̄) (equation 18): α rises where the entropy is below its target."""
        return self.log_ent_coef * (entropy.detach() - self.target_entropy)

    def update_targets(self) -> None:
        """The target critics follow; a target encoder with a τ of its own."""
        polyak_update(self.target_critic.head_parameters, self.critic.head_parameters, self.tau)
        for target_encoder, encoder in target_encoders([(self.target_critic, self.critic)]):
            polyak_update(target_encoder.parameters(), encoder.parameters(), self.target_encoder_tau)

    def losses(self, batch: ReplayBatch | Minibatch) -> dict[str, Tensor]:
        """The differentiable losses of a mini-batch (of a stack: their means), by name."""
        minibatches = batch.minibatches() if isinstance(batch, ReplayBatch) else [batch]
        losses: dict[str, list[Tensor]] = {}
        for minibatch in minibatches:
            minibatch = minibatch._replace(transition=self.augment(minibatch.transition))
            signals = self.critic_signals(minibatch) | self.actor_signals(minibatch.transition.observation)
            if self.learns_ent_coef:
                signals["ent_coef_loss"] = self.ent_coef_loss(signals["entropy"])
            for name in ("critic_loss", "actor_loss", "ent_coef_loss"):
                if name in signals:
                    losses.setdefault(name, []).append(signals[name])
        return {name: torch.stack(values).mean() for name, values in losses.items()}

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds what Q1 expected at the first observations.

        Without a gap: a soft value also counts the entropy to come, which the return does not.
        """
        mean, _ = self.distribution(episodes.start_observation)
        q_start = self.critic.first(episodes.start_observation, self.actions.from_cube(mean.tanh())).mean()
        return super().evaluation_metrics(episodes) | {"q_start": q_start}

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for critic, actor and temperature, each with one parameter group of its name."""
        groups = {"critic": list(self.critic.parameters()), "actor": self.actor.own_parameters()}
        if self.learns_ent_coef:
            groups["ent_coef"] = [self.log_ent_coef]
        return [
            Adam([{"params": parameters, "name": name}], lr=self.learning_rate, fused=True)
            for name, parameters in groups.items()
        ]
