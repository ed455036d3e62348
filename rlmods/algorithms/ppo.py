"""Proximal policy optimisation.

Schulman et al. 2017, "Proximal Policy Optimization Algorithms", Algorithm 1. https://arxiv.org/abs/1707.06347

    for each iteration:
        run π_old in N environments for T steps, with log π_old(a|s)
        Â by generalised advantage estimation (Schulman et al. 2016), V̂ = Â + V
        for each epoch, for each mini-batch:
            ρ = π(a|s)/π_old(a|s)
            minimise −E min(ρ Â, clip(ρ, 1 ± ε) Â) + c_v E (V − V̂)² − c_e E H[π]

Deviations from the paper:

1. The defaults and the details are those of Stable-Baselines3: advantages are standardised in each mini-batch, the
   gradient is clipped by its norm, `target_kl` ends the epochs, the value may be clipped, the value's loss is not
   halved, layers begin orthogonal.
2. A segment that ends without a termination, at a time limit or at the rollout's end, is continued by V of the true
   last observation; its last step counts like all others.
3. Continuous actions are tanh of a Gaussian whose σ is bounded by construction. The Gaussian that the environment
   clips stays available (`action_distribution: unbounded`): its σ may leave the box, and then actions are coin flips.
4. With `vtrace_rho_bar` and `vtrace_c_bar` values, ratios and advantages are computed anew before each epoch after the
   first, with the ratios clipped as in V-trace (Espeholt et al. 2018); on the first they are GAE's. The advantage is
   δ_t + λ discount_t (v_{t+1} − V(s_{t+1})): the step's own ratio is that of the surrogate.
5. Mini-batches consist of segments of `bptt_horizon` steps. With `prio_alpha` they are drawn with replacement by their
   advantages, and weighted by (S P)^−β, with β going to 1.
6. Schedules are taken at the beginning of a rollout: the first has the full learning rate, the last more than 0.
7. Where an environment spends frames on resets they are left out, and up to one step a mini-batch with them, so that
   all mini-batches of a rollout have the same size.
"""

import warnings
from collections.abc import Iterator, Sequence

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.optimizers import MuonParameters, OptimizerName, make_optimizers
from rlmods.algorithms.ppo_settings import check_batch, check_ppo_settings
from rlmods.algorithms.segments import Segments, cut_segments, flat, take_segments
from rlmods.functional.off_policy import vtrace_advantage
from rlmods.functional.policy_gradient import (
    approximate_kl,
    clipped_surrogate_loss,
    explained_variance,
    segment_probabilities,
    segment_weight,
    standardized,
    value_loss,
)
from rlmods.functional.schedules import Schedule, annealed
from rlmods.networks.action_heads import ActionDistribution, GaussianHead, action_head
from rlmods.networks.actor_critic import Activation, ActorCritic
from rlmods.signals import stack_signals
from rlmods.types import Decision, Decisions, EnvSpec, Observation, Rollout, RolloutSource


class PPO(Algorithm):
    """Clipped surrogate, generalised advantages, value function, entropy bonus; with or without an LSTM.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        hidden_sizes: widths of the hidden layers of actor and critic, which share pixels' convolutions and the LSTM.
        activation: between them, tanh or relu.
        learning_rate: of all parameters, at the start.
        learning_rate_schedule: constant, or linear or cosine down to 0 at the end of the budget.
        n_epochs: passes over a rollout.
        batch_size: steps of a mini-batch.
        gae_lambda: λ of the advantages, in [0, 1].
        clip_range: ε of the surrogate, at the start.
        clip_range_schedule: as that of the learning rate.
        clip_range_vf: by how much a value may leave the old one, in units of the return; None does not clip.
        normalize_advantage: standardise advantages in each mini-batch.
        ent_coef: coefficient of the entropy bonus.
        vf_coef: coefficient of the value's loss.
        max_grad_norm: L2 bound of the gradient; None does not clip.
        target_kl: no further update on a rollout once the KL from the policy that acted exceeds 1.5 of it; None has
            no such limit.
        vtrace_rho_bar: clip of the ratios of TD errors; None is plain GAE, as computed once a rollout.
        vtrace_c_bar: clip of the ratios of traces.
        prio_alpha: exponent of the priority of a segment, Σ|Â|; 0 draws each once an epoch.
        prio_beta0: exponent of its importance weight at the start; it ends at 1.
        bptt_horizon: steps of a segment, through which an LSTM is differentiated; None is 1 without an LSTM, else the
            whole rollout.
        lstm_hidden_size: units of an LSTM between observations and both networks; None has none.
        action_distribution: of continuous actions: bounded (tanh of a Gaussian, σ < 1) or unbounded (clipped Gaussian).
        log_std_init: log σ at the start, in units of half the action range.
        optimizer: adam, adamw or muon; Muon gets the hidden layers' matrices, and Adam the rest.
        muon_parameters: all_matrices gives it heads and log σ too, where its constant step is a drift.
        weight_decay: of adamw and muon.

    Raises:
        ValueError: where a value lies outside its range, or bounded actions have no bounds.
    """

    network_settings = ("lstm_hidden_size", "activation", "action_distribution")
    learns_from = "rollouts"

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        activation: Activation = "tanh",
        learning_rate: float = 3e-4,
        learning_rate_schedule: Schedule = "constant",
        n_epochs: int = 10,
        batch_size: int = 64,
        gae_lambda: float = 0.95,
        clip_range: float = 0.2,
        clip_range_schedule: Schedule = "constant",
        clip_range_vf: float | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float | None = 0.5,
        target_kl: float | None = None,
        vtrace_rho_bar: float | None = None,
        vtrace_c_bar: float | None = None,
        prio_alpha: float = 0.0,
        prio_beta0: float = 0.2,
        bptt_horizon: int | None = None,
        lstm_hidden_size: int | None = None,
        action_distribution: ActionDistribution = "bounded",
        log_std_init: float = -0.5,
        optimizer: OptimizerName = "adam",
        muon_parameters: MuonParameters = "hidden_matrices",
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(spec)
        self.save_hyperparameters()
        check_ppo_settings(self.hparams)
        self.learning_rate = learning_rate
        self.learning_rate_schedule: Schedule = learning_rate_schedule
        self.n_epochs = n_epochs
        self.batch_size = batch_size
        self.gae_lambda = gae_lambda
        self.clip_range = clip_range
        self.clip_range_schedule: Schedule = clip_range_schedule
        self.clip_range_vf = clip_range_vf
        self.normalize_advantage = normalize_advantage
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.vtrace_rho_bar = vtrace_rho_bar
        self.vtrace_c_bar = vtrace_c_bar
        self.prio_alpha = prio_alpha
        self.prio_beta0 = prio_beta0
        self.bptt_horizon = bptt_horizon
        self.optimizer: OptimizerName = optimizer
        self.muon_parameters: MuonParameters = muon_parameters
        self.weight_decay = weight_decay
        if action_distribution == "unbounded" and spec["action"]["kind"] == "continuous":
            warnings.warn(
                "action_distribution is unbounded: nothing keeps σ within the action box, and once it has left it most "
                "actions are clipped to its corners while the KL looks small; bounded is the default",
                stacklevel=2,
            )
        self.head = action_head(spec, action_distribution, log_std_init)
        self.networks = ActorCritic(spec, self.head.num_outputs, hidden_sizes, activation, lstm_hidden_size)

    def setup(self, stage: str) -> None:
        """Adds the division of a rollout into mini-batches, and says it.

        Raises:
            ValueError: where it does not divide.
        """
        super().setup(stage)
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not isinstance(source, RolloutSource):
            return
        horizon = self.segment_length(source.n_steps)
        num_minibatches = check_batch(source.num_envs, source.n_steps, self.batch_size, horizon)
        rollout = source.num_envs * source.n_steps
        rank_zero_info(
            f"PPO: {source.num_envs} environments x {source.n_steps} steps = {rollout} steps a rollout = "
            f"{rollout // horizon} segments of {horizon} = {num_minibatches} mini-batches of {self.batch_size}; "
            f"{self.n_epochs} epochs make {self.n_epochs * num_minibatches} updates"
        )
        if self.prio_alpha > 0.0 and num_minibatches == 1:
            warnings.warn(
                f"prio_alpha = {self.prio_alpha} has no effect: the mini-batch is the whole rollout, of which every "
                "segment is used anyway; make batch_size smaller, or prio_alpha 0",
                stacklevel=2,
            )

    def segment_length(self, n_steps: int) -> int:
        """Steps of a segment, L, for rollouts of T steps."""
        if self.bptt_horizon is not None:
            return self.bptt_horizon
        return 1 if self.networks.lstm is None else n_steps

    # Acting

    def initial_state(self, num_envs: int) -> Tensor:
        """Zeros `[N, S]`."""
        return torch.zeros(num_envs, self.networks.state_size, device=self.device)

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """An action of π for observations `[N, *shape]` and states `[N, S]`."""
        features, state = self.networks.step(observation, state)
        outputs = self.networks.actor(features)
        sample = self.head.draw(outputs, deterministic=deterministic)
        return Decision(self.head.action(sample), sample, self.head.log_prob(outputs, sample), state)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Actions for observations with which episodes begin, as far as there is a memory."""
        num = next(iter(observation.values())).shape[0] if isinstance(observation, dict) else observation.shape[0]
        return self.decide(observation, self.initial_state(num), deterministic=deterministic).action

    # One iteration

    def learning_rate_at(self, progress: float) -> float:
        """Of a rollout that begins when this part of the budget is spent, 0 to 1."""
        return annealed(progress, self.learning_rate, self.learning_rate_schedule)

    def clip_range_at(self, progress: float) -> float:
        """ε of a rollout that begins then."""
        return annealed(progress, self.clip_range, self.clip_range_schedule)

    def training_step(self, batch: Rollout, batch_idx: int) -> dict[str, Tensor]:
        """All updates on one rollout. Returns their signals."""
        # Of the rollout's frames, not of its steps, which may differ between processes.
        spent = (batch.env_steps - batch.valid.numel() * self.trainer.world_size) / max(self.total_env_steps, 1)
        progress = max(0.0, spent)
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        rate = self.learning_rate_at(progress)
        learning_rates = [self.set_learning_rate(optimizer, rate) for optimizer in optimizers]
        clip_range = self.clip_range_at(progress)

        number = max(1, batch.valid.numel() // self.batch_size)
        segments, of_rollout = self._prepared(batch, number)
        updates: list[dict[str, Tensor]] = []
        epoch = 0
        for epoch in range(1, self.n_epochs + 1):
            if epoch > 1 and self.vtrace_rho_bar is not None:
                segments, _ = self._prepared(batch, number)
            made, is_far = self._epoch(
                optimizers, self.minibatches(segments, number, progress), clip_range, counts=epoch == 1
            )
            updates += made
            if is_far:
                break
        signals = _ratio_signals(stack_signals(updates), clip_range) | of_rollout
        signals |= {
            "learning_rate": torch.tensor(learning_rates[0]),
            "clip_range": torch.tensor(clip_range),
            "ent_coef": torch.tensor(self.ent_coef),
            "epochs": torch.tensor(epoch),
            "update_steps": torch.tensor(self.update_steps),
        }
        return signals

    def _epoch(
        self,
        optimizers: Sequence[LightningOptimizer],
        minibatches: Iterator[Segments],
        clip_range: float,
        *,
        counts: bool,
    ) -> tuple[list[dict[str, Tensor]], bool]:
        """One pass over the rollout: the signals of its updates, and whether the policy has gone too far for more."""
        updates: list[dict[str, Tensor]] = []
        for minibatch in minibatches:
            signals = self.loss_signals(minibatch, clip_range)
            is_first = counts and not updates
            if self.target_kl is not None and not is_first:
                kl = _mean(approximate_kl(signals["log_ratio"].detach()), signals.get("weight"))
                # All processes end their epochs together, or they wait for each other's gradients for ever.
                if float(self.trainer.strategy.reduce(kl, reduce_op="mean")) > 1.5 * self.target_kl:
                    return updates, True
            signals["grad_norm"] = self.optimize_all(optimizers, signals["loss"], self.max_grad_norm, counts=is_first)
            self.update_steps += 1
            updates.append(signals)
        return updates, False

    def _prepared(self, batch: Rollout, number: int) -> tuple[Segments, dict[str, Tensor]]:
        """Segments and signals; where there is one mini-batch its advantages are standardised once for all epochs."""
        segments, signals = self.segments(batch)
        return (self._normalized(segments) if number == 1 else segments), signals

    def minibatches(self, segments: Segments, number: int, progress: float) -> Iterator[Segments]:
        """Some mini-batches of equal size: a permutation of all segments, or drawn by their priority."""
        length, num_segments = segments.begins.shape
        size = num_segments // number
        if number == 1:
            yield segments
        elif self.prio_alpha > 0.0:
            counted = segments.advantage if segments.weight is None else segments.advantage * segments.weight
            probability = segment_probabilities(counted, self.prio_alpha)
            weight = segment_weight(probability, self.prio_beta0 + (1.0 - self.prio_beta0) * progress)
            for _ in range(number):
                drawn = torch.multinomial(probability, size, replacement=True)
                minibatch = take_segments(segments, drawn)
                importance = weight[drawn].expand(length, -1)
                own = minibatch.weight
                yield self._normalized(minibatch)._replace(weight=importance if own is None else importance * own)
        else:
            order = torch.randperm(num_segments, device=segments.begins.device)[: number * size]
            for drawn in torch.split(order, size):
                yield self._normalized(take_segments(segments, drawn))

    def _normalized(self, minibatch: Segments) -> Segments:
        if not self.normalize_advantage:
            return minibatch
        return minibatch._replace(advantage=standardized(minibatch.advantage, minibatch.weight))

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        """The loss of a mini-batch with standardised advantages and what it was made of, scalars and `[B]`."""
        observation, sample = flat(minibatch.observation), minibatch.sample.flatten(0, 1)
        features = self.networks.sequence(observation, minibatch.state, minibatch.begins)
        log_prob, entropy = self.head.log_prob_and_entropy(self.networks.actor(features), sample)
        value = self.networks.value(features)
        weight = None if minibatch.weight is None else minibatch.weight.flatten()
        log_ratio = log_prob - minibatch.log_prob.flatten()
        ratio = log_ratio.exp()
        policy_loss = _mean(clipped_surrogate_loss(ratio, minibatch.advantage.flatten(), clip_range), weight)
        targets, old_value = minibatch.value_target.flatten(), minibatch.value.flatten()
        critic_loss = _mean(value_loss(value, targets, old_value, self.clip_range_vf), weight)
        mean_entropy = _mean(entropy, weight)
        loss = policy_loss + self.vf_coef * critic_loss
        if self.ent_coef > 0.0:
            loss = loss - self.ent_coef * mean_entropy
        signals = {
            "loss": loss,
            "policy_loss": policy_loss,
            "value_loss": critic_loss,
            "entropy": mean_entropy,
            "log_ratio": log_ratio,
        }
        return signals if weight is None else signals | {"weight": weight}

    # The rollout

    @torch.no_grad()
    def segments(self, rollout: Rollout) -> tuple[Segments, dict[str, Tensor]]:
        """The rollout with values and advantages, cut into segments, and its own signals."""
        decisions = self._decisions(rollout)
        shape = rollout.valid.shape
        ended = rollout.terminated | rollout.truncated | ~rollout.valid
        begins = torch.zeros_like(ended)
        begins[1:] = ended[:-1]
        features, ratio = self._rollout_features(rollout, decisions, begins)
        value = self.networks.value(features.flatten(0, 1)).view(shape)
        next_value = self.next_value(rollout, decisions, value)
        target = rollout.reward.float() + rollout.discount.float() * next_value
        for transform in self.target_transforms:
            target = transform(target)
        rho_bar, c_bar = self.vtrace_rho_bar or 1.0, self.vtrace_c_bar or 1.0
        td_error, discount = target - value, rollout.discount.float()
        value_error = vtrace_advantage(td_error, ratio, discount, rho_bar, c_bar, self.gae_lambda, ended)
        value_target = value + value_error
        advantage = value_error
        if self.vtrace_rho_bar is not None:
            # The surrogate multiplies a step's own ratio: here it would count twice.
            advantage = td_error.clone()
            advantage[:-1] += self.gae_lambda * discount[:-1] * ~ended[:-1] * value_error[1:]
        valid = rollout.valid
        signals = {
            "value": value[valid].unsqueeze(0),
            "value_target": value_target[valid].unsqueeze(0),
            "advantage": advantage[valid].unsqueeze(0),
            "explained_variance": explained_variance(value[valid], value_target[valid]).unsqueeze(0),
        }
        if isinstance(self.head, GaussianHead):
            signals |= self._action_signals(self.networks.actor(features[valid]), decisions.sample[valid])
        all_valid = bool(valid.all())
        columns = Segments(
            observation=rollout.observation,
            sample=decisions.sample,
            log_prob=decisions.log_prob,
            begins=begins,
            advantage=advantage,
            value=value,
            value_target=value_target,
            weight=None if all_valid else valid.float(),
            state=decisions.state,
        )
        length = self.segment_length(len(valid))
        return cut_segments(columns, length, None if all_valid else valid), signals

    def _decisions(self, rollout: Rollout) -> Decisions:
        if rollout.decisions is None:
            raise TypeError(
                "got a rollout without the decisions of the policy, expected one that was collected with PPO.decide: "
                "type data = RolloutDataModule(...)"
            )
        return rollout.decisions

    def _rollout_features(self, rollout: Rollout, decisions: Decisions, begins: Tensor) -> tuple[Tensor, Tensor]:
        """Features `[T, N, F]` and ratios `[T, N]` of all steps with the policy as it is now."""
        if self.vtrace_rho_bar is None and self.networks.lstm is not None:
            return self.networks.remembered(decisions.next_state), torch.ones_like(decisions.log_prob)
        observation = flat(rollout.observation)
        features = self.networks.sequence(observation, decisions.state[0], begins)
        ratio = torch.ones_like(decisions.log_prob)
        if self.vtrace_rho_bar is not None:
            log_prob = self.head.log_prob(self.networks.actor(features), decisions.sample.flatten(0, 1))
            ratio = (log_prob.view_as(decisions.log_prob) - decisions.log_prob).exp()
        return features.view(*begins.shape, -1), ratio

    def next_value(self, rollout: Rollout, decisions: Decisions, value: Tensor) -> Tensor:
        """V of the true successors, `[T, N]`: of the last observation where an episode or the rollout ends."""
        next_value = torch.empty_like(value)
        next_value[:-1] = value[1:]
        is_last = rollout.truncated | rollout.terminated
        is_last[-1] = True
        observation = rollout.next_observation
        last = (
            {key: rows[is_last] for key, rows in observation.items()}
            if isinstance(observation, dict)
            else (observation[is_last])
        )
        features, _ = self.networks.step(last, decisions.next_state[is_last])
        next_value[is_last] = self.networks.value(features)
        return next_value

    def _action_signals(self, mean: Tensor, sample: Tensor) -> dict[str, Tensor]:
        """σ, |μ| and how many actions lie at the ends of their range, `[1, A]` each, in the cube's units."""
        if not isinstance(self.head, GaussianHead):
            return {}
        return {
            "action_std": self.head.bounded_log_std().exp(),
            "action_mean_abs": mean.abs().mean(0, keepdim=True),
            "action_saturation": (self.head.unit_action(sample).abs() > 0.99).float().mean(0, keepdim=True),
        }

    def losses(self, batch: Rollout) -> dict[str, Tensor]:
        """The differentiable losses of a rollout, by name."""
        segments, _ = self.segments(batch)
        signals = self.loss_signals(self._normalized(segments), self.clip_range)
        return {name: signals[name] for name in ("policy_loss", "value_loss")}

    def configure_optimizers(self) -> list[Optimizer]:
        """Parameter groups `actor`, `critic` and, where there are any, `shared` and `log_std`."""
        networks = self.networks
        return make_optimizers(
            {
                "actor": list(networks.actor.parameters()),
                "critic": list(networks.critic.parameters()),
                "shared": networks.shared_parameters(),
                "log_std": list(self.head.parameters()),
            },
            networks.hidden_matrices(),
            optimizer=self.optimizer,
            muon_parameters=self.muon_parameters,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
        )


def _ratio_signals(signals: dict[str, Tensor], clip_range: float) -> dict[str, Tensor]:
    """With ratios, KL and clip fraction of all K updates, made at once of `log_ratio` and perhaps `weight`."""
    log_ratio, weight = signals.pop("log_ratio"), signals.pop("weight", torch.ones(()))
    ratio = log_ratio.exp()
    counted = (weight > 0.0).expand_as(ratio).to(ratio.dtype)
    number = counted.sum(-1)
    return signals | {
        "approx_kl": (approximate_kl(log_ratio) * counted).sum(-1) / number,
        "clip_fraction": (((ratio - 1.0).abs() > clip_range) * counted).sum(-1) / number,
        "importance_ratio": torch.where(counted > 0.0, ratio, 1.0),
    }


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (values * weight).sum() / (weight > 0.0).sum()
