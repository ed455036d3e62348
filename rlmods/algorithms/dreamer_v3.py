"""DreamerV3: learn a model of the world, and behave well in its dreams.

Hafner et al. 2025, "Mastering diverse control tasks through world models", Nature. https://arxiv.org/abs/2301.04104

    for each update, on B sequences of T steps:
        h_t, z_t = posterior states of the sequence                                         world model
        minimise −ln p(x_t, r_t, c_t | h_t, z_t)
                 + β_dyn max(1, KL[sg(post) ‖ prior]) + β_rep max(1, KL[post ‖ sg(prior)])
        from every state dream H steps with the prior and the actor                         imagination
        R_t = r_{t+1} + c_{t+1} ((1 − λ) v_{t+1} + λ R_{t+1})
        minimise −w_t (ln π(a_t) sg((R_t − v_t)/S) + η H[π])                                actor
        minimise −w_t (ln p_v(R_t) + ln p_v(v_slow))                                        critic
        minimise the same for λ-returns of the replayed rewards, continued by R_0           replay value

`version` chooses between this and what the authors published before (`Version` names each choice). Deviations from the
paper, beyond that:

1. K updates of an iteration learn from sequences that were drawn at once: stored states are up to K updates old.
2. The first layer of the posterior and that of the core are sums of two and three products, so that only what is
   recurrent waits for the step before. It is the same function, with the same number of parameters, but adaptive
   clipping bounds each of the matrices by its own norm.
3. Evaluation takes the most probable action (`eval_mode`); the authors sample it.
4. The last row of a sequence has no replayed return; its loss counts as 0 in the mean over the rows.
5. The code of 2025 does not mix the uniform distribution into discrete actions, though paper and configuration say so;
   here it is mixed. `actor_unimix` = 0 is that code.
6. All versions have the sizes, numbers of layers, initial weights, image decoder and, but for the core of 2023, the
   RMS norm of 2025. The sizes XS to XL of 2023 and its float16 are out of reach.
7. The three optimisers of 2023 are three parameter groups of one Adam, each with its own bound of the gradient's norm,
   ε and learning rate: the same function. All losses share a backward pass; each reaches the group it is meant for.
8. In the version of 2023 a continuous action that was drawn beyond the box has no gradient; the authors scale it.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.dreamer_open_loop import dreaming_kl, open_loop_error
from rlmods.algorithms.dreamer_optimizer import clip_adaptively_, clip_groups_, dreamer_optimizer, weighted_total
from rlmods.algorithms.dreamer_settings import SIZES, check_dreamer_settings, check_model_memory, check_value_bins
from rlmods.algorithms.dreamer_version import OF_VERSION, VersionName, describe_version, version_in_effect
from rlmods.algorithms.dreamer_view import Agent, open_loop
from rlmods.algorithms.phases import Phases
from rlmods.algorithms.sequence_rows import begun, flat_rows, num_rows
from rlmods.functional.discrete_latents import latent_entropy, latent_kl
from rlmods.functional.open_loop import OpenLoop, OpenLoopCheck
from rlmods.functional.returns import lambda_return
from rlmods.functional.schedules import Schedule, annealed
from rlmods.networks.dreamer_heads import TwoHotHead, dreamer_action_head
from rlmods.networks.frozen import frozen
from rlmods.networks.normed import NormedMLP
from rlmods.networks.return_scale import ReturnScale
from rlmods.networks.rssm import LatentState
from rlmods.networks.target import polyak_update
from rlmods.networks.world_model import WorldModel
from rlmods.signals import stack_signals
from rlmods.types import (
    Decision,
    EnvSpec,
    EpisodeBatch,
    Evaluator,
    LatentFeedback,
    Observation,
    SequenceBatch,
    Sequences,
)


class Dream(NamedTuple):
    """H steps from N states; without gradients, but for actions that the actor learns from by backpropagation."""

    features: Tensor  # [H + 1, N, F]
    sample: Tensor  # [H, N] or [H, N, A], what the actor drew
    reward: Tensor  # [H + 1, N], expected
    discount: Tensor  # [H + 1, N], γ·P(the episode goes on); of the first state perhaps what was replayed, without γ


class DreamerV3(Algorithm):
    """World model with discrete latents; actor and critic that learn from its dreams.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        size: of all networks.
        version: of the authors, which decides what is None here, and more (`Version`).
        learning_rate: of all parameters, or of the world model.
        behaviour_learning_rate: of actor and critic, where it is another.
        learning_rate_warmup: updates over which it rises from 0.
        learning_rate_schedule: constant, or linear or cosine down to 0 at the end of the budget.
        agc_clip: bound of each gradient tensor, in norms of its parameter; not in the version of 2023.
        imagination_horizon: H, steps of a dream.
        imagination_last: dream only from the last so many states of each sequence, M, and learn the replayed values
            of those; None takes all.
        gae_lambda: λ of the returns, in [0, 1].
        ent_coef: η of the actor's entropy.
        beta_dyn: weight of the KL that moves the prior.
        beta_rep: weight of the KL that moves the posterior.
        free_nats: below so many nats a KL has no gradient; it is the KL of the whole latent vector.
        unimix: share of the uniform distribution in the latents.
        actor_unimix: the same in discrete actions.
        num_bins: of rewards and values.
        log_bound: the last bin is symexp of it.
        return_scale_rate: of the moving percentiles of the returns.
        slow_critic_tau: by how much the slow critic follows in an update.
        slow_critic_coef: weight of the slow critic's value as a target.
        replay_value_coef: weight of the value loss on replayed rewards, whose gradient reaches the world model.
        eval_mode: argmax takes the most probable action in evaluations, sample draws it; both takes it, and plays the
            episodes of a validation a second time with draws, under `eval_sample/`.

    Attributes:
        choices: of the version, in effect; the hyper-parameters that were given are in it.
        gamma: discount of a step, of the data module; 1 until a trainer has attached it.

    Raises:
        ValueError: where a value lies outside its range; in `setup`, see there.
    """

    network_settings = ("version", "size", "num_bins", "log_bound")
    learns_from = "sequences"

    def __init__(
        self,
        spec: EnvSpec,
        *,
        size: Literal["cpu", "1M", "12M", "25M", "50M", "100M", "200M", "400M"] = "1M",
        version: VersionName = "2025",
        learning_rate: float | None = None,
        behaviour_learning_rate: float | None = None,
        learning_rate_warmup: int | None = None,
        learning_rate_schedule: Schedule = "constant",
        agc_clip: float | None = None,
        imagination_horizon: int = 15,
        imagination_last: int | None = None,
        gae_lambda: float = 0.95,
        ent_coef: float = 3e-4,
        beta_dyn: float | None = None,
        beta_rep: float = 0.1,
        free_nats: float = 1.0,
        unimix: float = 0.01,
        actor_unimix: float = 0.01,
        num_bins: int = 255,
        log_bound: float = 20.0,
        return_scale_rate: float = 0.01,
        slow_critic_tau: float = 0.02,
        slow_critic_coef: float = 1.0,
        replay_value_coef: float | None = None,
        eval_mode: Literal["both", "argmax", "sample"] = "both",
    ) -> None:
        super().__init__(spec)
        self.save_hyperparameters()
        check_dreamer_settings(self.hparams)
        self.choices = version_in_effect(version, self.hparams)
        self.hparams.update({setting: getattr(self.choices, setting) for setting in OF_VERSION})
        widths = SIZES[size]
        self.gamma = 1.0
        self.learning_rate_schedule: Schedule = learning_rate_schedule
        self.imagination_horizon = imagination_horizon
        self.imagination_last = imagination_last
        self.gae_lambda = gae_lambda
        self.ent_coef = ent_coef
        self.free_nats = free_nats
        self.slow_critic_tau = slow_critic_tau
        self.slow_critic_coef = slow_critic_coef
        self.eval_mode = eval_mode
        self.evaluates_draws = eval_mode == "sample"
        self.backpropagates = self.choices.actor_gradient == "backprop" and spec["action"]["kind"] == "continuous"
        self.world_model = WorldModel(
            spec,
            widths,
            unimix=unimix,
            num_bins=num_bins,
            log_bound=log_bound,
            space=self.choices.bins,
            core=self.choices.core,
            learns_initial_state=self.choices.initial_state == "learned",
            convolutions=self.choices.image_encoder,
        )
        num_features = self.world_model.rssm.num_features
        self.head = dreamer_action_head(spec, actor_unimix)
        self.actor = NormedMLP(num_features, widths.hidden, 3, self.head.num_outputs, output_scale=0.01)
        self.critic, self.slow_critic = (
            TwoHotHead(num_features, widths.hidden, 3, num_bins=num_bins, log_bound=log_bound, space=self.choices.bins)
            for _ in range(2)
        )
        self.slow_critic.requires_grad_(False).load_state_dict(self.critic.state_dict())
        self.return_scale = ReturnScale(return_scale_rate)
        self.phases = Phases()
        self.loss_scales = {
            "reward": 1.0,
            "continuation": 1.0,
            "dynamics": self.choices.beta_dyn,
            "representation": beta_rep,
            "actor": 1.0,
            "critic": 1.0,
        } | dict.fromkeys(self.world_model.decoder.kinds, 1.0)
        if self.choices.replay_value_coef > 0.0:
            self.loss_scales["replay_critic"] = self.choices.replay_value_coef

    def setup(self, stage: str) -> None:
        """Take γ from the data module; say what is in effect.

        Raises:
            ValueError: where the bins do not hold the values of the task, or training does not fit into memory.
        """
        super().setup(stage)
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        self.gamma = getattr(source, "gamma", self.gamma)
        if stage != "fit":
            return
        rank_zero_info(describe_version(self.hparams["version"], self.choices))
        check_value_bins(self.critic.bound, self.spec.get("settings", {}).get("reward_bounds"), self.gamma)
        state_size, device = self.initial_state(1).shape[1], self.trainer.strategy.root_device
        check_model_memory(self, self.hparams["size"], source, state_size=state_size, device=device)

    # Acting

    def initial_state(self, num_envs: int) -> Tensor:
        """Zeros `[N, S]`: h, z and the action before, side by side; they begin an episode."""
        return torch.zeros(num_envs, sum(self.world_model.state_widths), device=self.device)

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """A draw of π for observations `[N, *shape]` and states `[N, S]`, whose latents are drawn in any case."""
        latents, action = self.world_model.unpack(state)
        latents = self.world_model.rssm.step(self.world_model.encoder(observation), action, latents)
        outputs = self.actor(latents.features).float()
        sample = self.head.draw(outputs, deterministic=deterministic and not self.evaluates_draws)
        packed = self.world_model.pack(latents, self.world_model.action_vector.of_sample(sample))
        return Decision(self.head.action(sample), sample, self.head.log_prob(outputs, sample), packed)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Actions for observations with which episodes begin."""
        return self.decide(observation, self.initial_state(num_rows(observation)), deterministic=deterministic).action

    # One iteration

    def training_step(self, batch: SequenceBatch, batch_idx: int) -> dict[str, Tensor]:
        """K updates. Returns their signals `[K, ...]`, nothing during warm-up."""
        optimizer = self.single_optimizer()
        updates: list[dict[str, Tensor]] = []
        states: list[Tensor] = []
        learning_rate = 0.0
        for sequences in batch.minibatches():
            learning_rate = self.set_learning_rate(optimizer, self.learning_rate_at(self.update_steps, batch.progress))
            losses, signals, state = self._losses(sequences)
            loss = self.total(losses)
            with self.phases("optimizer"):
                signals["grad_norm"] = self.optimize(optimizer, loss, self.choices.agc_clip, counts=not updates)
                polyak_update(self.slow_critic.parameters(), self.critic.parameters(), self.slow_critic_tau)
            self.update_steps += 1
            signals |= {"loss": loss} | {f"{name}_loss": of.mean() for name, of in losses.items()}
            updates.append(signals | self.phases.take())
            states.append(state)
        if not updates:
            self.count_iteration(optimizer)
            return {}
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, LatentFeedback):
            source.write_states(batch.index, torch.stack(states))
        return stack_signals(updates) | {
            "learning_rate": torch.tensor(learning_rate),
            "update_steps": torch.tensor(self.update_steps),
            "value_bin_bound": torch.tensor(self.critic.bound),
        }

    def manual_backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """As elsewhere, with its time taken apart."""
        with self.phases("backward"):
            super().manual_backward(loss, *args, **kwargs)

    def learning_rate_at(self, update_steps: int, progress: float) -> float:
        """Of the update after so many, when this part of the budget is spent, 0 to 1."""
        warmth = min(1.0, (update_steps + 1) / max(self.choices.learning_rate_warmup, 1))
        return warmth * annealed(progress, self.choices.learning_rate, self.learning_rate_schedule)

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        """That of the world model; actor and critic have their own in proportion, where they have one."""
        effective = super().set_learning_rate(optimizer, learning_rate)
        if self.choices.behaviour_learning_rate is not None:
            for group in optimizer.param_groups[1:]:
                group["lr"] = effective * self.choices.behaviour_learning_rate / self.choices.learning_rate
        return effective

    def losses(self, batch: Sequences) -> dict[str, Tensor]:
        """The differentiable losses of an update by name, before their scales: `[T, B]`, of dreams `[M, B]`.

        Who asks for them moves nothing: the scale of the returns stays as it was.
        """
        percentiles = self.return_scale.percentiles.clone()
        losses, _, _ = self._losses(batch)
        self.phases.take()
        self.return_scale.percentiles.copy_(percentiles)
        return losses

    def total(self, losses: dict[str, Tensor]) -> Tensor:
        """Σ scale · mean over `[T, B]` or `[M, B]`; a ValueError where losses and scales do not belong together."""
        return weighted_total(losses, self.loss_scales)

    def _losses(self, batch: Sequences) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Losses `[T, B]`, signals, and the states after each row, `[T, B, S]`."""
        with self.phases("world_model"):
            losses, signals, latents, states = self.world_model_losses(batch)
        first = 0 if self.imagination_last is None else max(0, len(batch.reward) - self.imagination_last)
        latest = LatentState(latents.deter[first:], latents.stoch[first:])
        starts = LatentState(latest.deter.flatten(0, 1), latest.stoch.flatten(0, 1)).detach()
        with self.phases("imagination"):
            dream = self.dream(starts, batch.is_terminal[first:].flatten())
        with self.phases("behaviour"):
            behaviour, of_behaviour, returns = self.behaviour_losses(dream)
            shape = batch.reward[first:].shape
            losses |= {name: loss.mean(0).view(shape) for name, loss in behaviour.items()}
            if "replay_critic" in self.loss_scales:
                losses["replay_critic"] = self.replay_value_loss(batch, latest.features, returns[0].view(shape))
        return losses, signals | of_behaviour, states

    # The world model

    def world_model_losses(self, batch: Sequences) -> tuple[dict[str, Tensor], dict[str, Tensor], LatentState, Tensor]:
        """Losses, signals, latents `[T, B, ...]` with their gradient, and the states to be written back."""
        model = self.world_model
        action = model.action_vector.of_action(batch.action.flatten(0, 1)).view(*batch.reward.shape, -1)
        before, action_before = self.world_model.unpack(batch.state)
        previous_action = torch.cat([action_before.unsqueeze(0), action[:-1]])
        observation = flat_rows(batch.observation)
        tokens = model.encoder(observation).view(*batch.reward.shape, -1)
        is_first = batch.is_first if self.choices.context == "stored" else begun(batch.is_first)
        observed = model.rssm.observe(tokens, previous_action, is_first, before)
        features = observed.state.features
        prior, posterior = observed.prior, observed.posterior
        kl_dynamics = latent_kl(posterior.detach(), prior)
        kl_representation = latent_kl(posterior, prior.detach())
        reward_logits = model.reward(features)
        continuation = model.continuation_logits(features)
        # γ is a part of what the head learns, or comes after it.
        is_soft = self.choices.continuation == "soft"
        goes_on = batch.discount if is_soft else (~batch.is_terminal).float()
        errors = model.decoder.errors(LatentState(*(part.flatten(0, 1) for part in observed.state)), observation)
        losses = {name: error.view(batch.reward.shape) for name, error in errors.items()} | {
            "reward": model.reward.loss(reward_logits, batch.reward),
            "continuation": F.binary_cross_entropy_with_logits(continuation, goes_on, reduction="none"),
            "dynamics": kl_dynamics.clamp(min=self.free_nats),
            "representation": kl_representation.clamp(min=self.free_nats),
        }
        signals = {
            "kl_dynamics": kl_dynamics,
            "continuation": continuation.sigmoid() * (1.0 if is_soft else self.gamma),
            "discount": batch.discount,
            "prior_entropy": latent_entropy(prior.detach()).mean(),
            "posterior_entropy": latent_entropy(posterior.detach()).mean(),
        }
        return losses, signals, observed.state, model.pack(observed.state.detach(), action)

    # Behaviour

    def dream(self, state: LatentState, is_terminal: Tensor | None = None) -> Dream:
        """H steps of prior and actor from N states.

        Args:
            state: `[N, ...]`.
            is_terminal: `[N]`, whether its episode ended there; None where nobody knows, or the version does not look.
        """
        model = self.world_model
        features, samples = [state.features], []
        with torch.set_grad_enabled(self.backpropagates and torch.is_grad_enabled()), frozen(model):
            effects = model.action_effects()
            for _ in range(self.imagination_horizon):
                sample = self.head.draw(self.actor(features[-1].detach()).float(), deterministic=False)
                state = model.rssm.dream_on(state, effects(sample))
                features.append(state.features)
                samples.append(sample)
            stacked = torch.stack(features)
            reward = model.reward.mean(model.reward(stacked))
        with torch.no_grad():
            goes_on = model.continuation_logits(stacked).sigmoid()
        # Either γ is in it, or it is γ where the more probable is that the episode goes on.
        discount = goes_on if self.choices.continuation == "soft" else self.gamma * goes_on.round()
        if is_terminal is not None and self.choices.first_state == "replayed":
            discount[0] = (~is_terminal).to(discount.dtype)
        return Dream(stacked, torch.stack(samples).detach(), reward, discount)

    def behaviour_losses(self, dream: Dream) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Losses `[H, N]` of actor and critic, signals, and the returns `[H, N]`."""
        features = dream.features[:-1].detach()
        log_probabilities = self.critic(dream.features.detach()).log_softmax(-1)
        known = log_probabilities.detach()
        if self.backpropagates:
            with frozen(self.critic):
                value = self.critic.mean(self.critic(dream.features))
        else:
            value = self.critic.mean(known)
        returns = lambda_return(dream.reward, dream.discount, value, self.gae_lambda)
        for transform in self.target_transforms:
            returns = transform(returns)
        weight = dream.discount.cumprod(0)[:-1]
        scale = self.return_scale.update(returns.detach())
        advantage = (returns - value[:-1]) / scale
        outputs = self.actor(features).float()
        log_prob, entropy = self.head.log_prob_and_entropy(outputs.flatten(0, 1), dream.sample.flatten(0, 1))
        log_prob, entropy = log_prob.view_as(weight), entropy.view_as(weight)
        objective = advantage if self.backpropagates else log_prob * advantage
        returns, value, advantage = returns.detach(), value.detach(), advantage.detach()
        losses = {
            "actor": -weight * (objective + self.ent_coef * entropy),
            "critic": weight * self._value_loss(log_probabilities[:-1], returns, features),
        }
        signals = {
            "value": value[:-1].mean(0),
            "imagined_return": returns.mean(0),
            "advantage": advantage.mean(0),
            "return_scale": scale,
            "entropy": entropy.detach().mean(),
            "imagined_discount": dream.discount.mean(),
            "imagined_reward": dream.reward.detach().mean(),
            "imagined_reward_std": dream.reward.detach().std(0).mean(),
            "end_bin_mass": self.critic.end_mass(known),
        }
        return losses, signals, returns

    def _value_loss(self, log_probabilities: Tensor, returns: Tensor, features: Tensor) -> Tensor:
        """Cross-entropy with the returns and with what the slow critic expects."""
        with torch.no_grad():
            slow_value = self.slow_critic.mean(self.slow_critic(features))
        of_returns = self.critic.log_likelihood(log_probabilities, returns)
        return -of_returns - self.slow_critic_coef * self.critic.log_likelihood(log_probabilities, slow_value)

    def replay_value_loss(self, batch: Sequences, features: Tensor, imagined_return: Tensor) -> Tensor:
        """Of λ-returns over the replayed rewards, `[M, B]`; the gradient goes on into the world model.

        Args:
            batch: the sequences, of which the last M rows are learned from.
            features: `[M, B, F]` of their states.
            imagined_return: `[M, B]`, the return of the dreams that began there; continues the replayed one.
        """
        rows = slice(len(batch.reward) - len(features), None)
        reward, discount, is_last = batch.reward[rows], batch.discount[rows], batch.is_last[rows]
        returns = lambda_return(reward, discount, imagined_return, self.gae_lambda * (~is_last).to(reward.dtype))
        for transform in self.target_transforms:
            returns = transform(returns)
        before = features[:-1]
        loss = self._value_loss(self.critic(before).log_softmax(-1), returns, before.detach())
        # After an episode's last row comes the first of another.
        return F.pad(loss * ~is_last[:-1], (0, 0, 0, 1))

    # For people

    def open_loop(self, sequences: Sequences, *, context: int, horizon: int) -> OpenLoop:
        """What the model makes of sequences when it sees only their first rows, and what the actor dreams of then."""
        agent = Agent(self.spec, self.world_model, self.actor, self.head, self.critic)
        return open_loop(agent, sequences, context=context, horizon=horizon)

    def open_loop_check(self, sequences: Sequences) -> OpenLoopCheck:
        """Of dreams as long as the actor's, with the actions that were taken: see `rlmods.types.OpenLoopModel`."""
        error = open_loop_error(self.world_model, sequences, self.imagination_horizon + 1)
        return OpenLoopCheck(error, dreaming_kl(self.world_model, sequences))

    # Evaluation

    def validation_step(self, batch: Evaluator, batch_idx: int) -> STEP_OUTPUT:
        """As elsewhere; with `eval_mode` both a second time with draws."""
        outputs = super().validation_step(batch, batch_idx)
        if self.eval_mode == "both":
            self.evaluates_draws = True
            self._log_episodes("eval_sample", batch)
            self.evaluates_draws = False
        return outputs

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds `value_gap`; the last observations are valued as if an episode began with each."""
        start_value = self.first_value(episodes.start_observation)
        final_value = self.first_value(episodes.final_observation)
        return super().evaluation_metrics(episodes) | self.value_gap(episodes, start_value, final_value)

    @torch.no_grad()
    def first_value(self, observation: Observation) -> Tensor:
        """Values `[M]` of observations with which episodes begin; leaves torch's generator as it is."""
        latents, action = self.world_model.unpack(self.initial_state(num_rows(observation)))
        with isolate_rng():
            latents = self.world_model.rssm.step(self.world_model.encoder(observation), action, latents)
        return self.critic.mean(self.critic(latents.features))

    # Optimisation

    @property
    def groups(self) -> dict[str, nn.Module]:
        """What learns, by the name of its parameter group."""
        return {"world_model": self.world_model, "actor": self.actor, "critic": self.critic}

    def clip_(self, parameters: Sequence[nn.Parameter], max_grad_norm: float | None) -> Tensor:
        """Adaptive clipping of each tensor; where there is no bound, that of each group by its norm."""
        return clip_groups_(self.groups) if max_grad_norm is None else clip_adaptively_(parameters, max_grad_norm)

    def configure_optimizers(self) -> Optimizer:
        """Parameter groups `world_model`, `actor` and `critic` of one optimiser."""
        return dreamer_optimizer(self.groups, self.choices)
