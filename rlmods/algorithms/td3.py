"""Twin delayed deep deterministic policy gradient.

Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", Algorithm 1.
https://arxiv.org/abs/1802.09477

DDPG (Lillicrap et al. 2016) is `n_critics=1, policy_delay=1, target_policy_noise=0`.

Deviations from the paper:

1. Networks work in the cube [-1, 1]^A: the critic sees actions scaled to it, both noises are in units of half the
   action range, and only `act` speaks the environment's units. Target actions are clipped to the bounds, which the
   paper's text leaves out and its authors' code does.
2. Collection and updates alternate in blocks: an iteration collects `steps_per_iteration` environment steps and then
   makes `updates_per_iteration` updates on a stack of mini-batches drawn at once.
3. `terminated` alone ends an episode's value; a time limit bootstraps. The paper's authors do the same by hand.
4. Pixels: the convolutions belong to the critic and are trained by its loss alone, the actor reads their features
   without a gradient through a bounded trunk of its own, images are shifted at random (Yarats et al. 2021, DrQ-v2), and
   the last layer of the actor begins near zero. Next observations are encoded by the online convolutions unless
   `target_encoder_tau` is given. `encoder_ownership` has the other two wirings.
5. The exploration noise may fall in a straight line (as in DrQ-v2); random actions fill `learning_starts`.
6. The default widths, learning rate and batch size are those of the authors' later code; the paper's are in
   `configs/td3_paper_2018.yaml`.
"""

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.optim import Adam, Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.continuous_settings import check_continuous_settings
from rlmods.functional.continuous_policy import noisy_action
from rlmods.functional.schedules import linear_schedule
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


class TD3(Algorithm):
    """Deterministic actor, twin critics, delayed and smoothed targets.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        hidden_sizes: widths of the hidden layers of actor and critics.
        learning_rate: of both Adam optimisers.
        tau: share of the online networks in a target update, in (0, 1].
        policy_delay: critic updates for each update of the actor and of all target networks.
        target_policy_noise: standard deviation of the noise on target actions, in half action ranges.
        target_noise_clip: bound of that noise.
        exploration_noise: standard deviation of the noise on actions, at the start.
        final_exploration_noise: after the exploration phase; None keeps `exploration_noise`.
        exploration_fraction: part of the budget over which it falls.
        n_critics: 2, or 1 for DDPG.
        max_grad_norm: L2 bound of the gradient by optimiser, `{critic: 10.0, actor: 1.0}`; who is not named is not
            clipped.
        encoder: convolutions for pixels (`drq_v2` or `nature`); vectors need none.
        encoder_ownership: who owns them. `shared_critic`: the critic, whose loss alone trains them. `separate`: actor
            and critic have their own, and targets of both. `shared_both`: one encoder in both optimisers.
        features_dim: width of the bounded trunk behind pixels; None passes the features on as they are.
        random_shift: pixels by which images are moved at random; 0 does not.
        target_encoder_tau: share in the update of a target encoder; None has one only where `separate`, with `tau`.

    Raises:
        ValueError: where the actions are not a bounded box or a value lies outside its range.
    """

    network_settings = ("n_critics", "encoder", "encoder_ownership", "features_dim", "target_encoder_tau")

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int] = (256, 256),
        learning_rate: float = 3e-4,
        tau: float = 0.005,
        policy_delay: int = 2,
        target_policy_noise: float = 0.2,
        target_noise_clip: float = 0.5,
        exploration_noise: float = 0.1,
        final_exploration_noise: float | None = None,
        exploration_fraction: float = 1.0,
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
        check_continuous_settings(self.hparams, optimizers=("critic", "actor"))
        self.learning_rate = learning_rate
        self.tau = tau
        self.policy_delay = policy_delay
        self.target_policy_noise = target_policy_noise
        self.target_noise_clip = target_noise_clip
        self.exploration_noise = exploration_noise
        self.final_exploration_noise = exploration_noise if final_exploration_noise is None else final_exploration_noise
        self.exploration_fraction = exploration_fraction
        self.max_grad_norm = dict(max_grad_norm or {})
        self.random_shift = random_shift
        self.target_encoder_tau = tau if target_encoder_tau is None else target_encoder_tau

        self.actions = ActionBox(spec)
        self.actor, self.critic = actor_and_critic(
            spec,
            self.actions,
            hidden_sizes,
            num_outputs=self.actions.num_actions,
            num_critics=n_critics,
            pixel_encoder=encoder,
            encoder_ownership=encoder_ownership,
            features_dim=features_dim,
        )
        has_target_encoder = encoder_ownership == "separate" or target_encoder_tau is not None
        self.target_critic = self.critic.target_copy(shares_encoder=not has_target_encoder)
        self.target_actor = self.actor.target_copy(shares_encoder=not has_target_encoder)
        if self.actor.encoder is self.critic.encoder:
            self.target_actor.encoder = self.target_critic.encoder

    def policy(self, observation: Encodable) -> Tensor:
        """π(s), `[B, *shape]`, without noise."""
        return self.actions.from_cube(self.actor(observation).tanh())

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """π(s) with noise `[N, *shape]` for observations `[N, *shape]`; uniform before `learning_starts`."""
        if env_steps < self.learning_starts and not deterministic:
            return self.actions.sample(num_observations(observation))
        unit_action = self.actor(observation).tanh()
        if deterministic:
            return self.actions.from_cube(unit_action)
        return self.actions.from_cube(noisy_action(unit_action, self.exploration_std(env_steps)))

    def exploration_std(self, env_steps: int) -> float:
        """Standard deviation of the noise after `env_steps` environment steps, in half action ranges."""
        return linear_schedule(
            env_steps / max(self.total_env_steps, 1),
            start=self.exploration_noise,
            end=self.final_exploration_noise,
            fraction=self.exploration_fraction,
        )

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
        signals["exploration_noise"] = torch.tensor(self.exploration_std(batch.env_steps))
        signals["update_steps"] = torch.tensor(self.update_steps)
        return signals

    def update(
        self, optimizers: Mapping[str, LightningOptimizer], minibatch: Minibatch, *, counts: bool
    ) -> dict[str, Tensor]:
        """One step of the critic on B transitions, and, when it is due, one of the actor and of the targets."""
        minibatch = minibatch._replace(transition=self.augment(minibatch.transition))
        signals = self.critic_signals(minibatch)
        limits = self.max_grad_norm
        signals["grad_norm/critic"] = self.optimize(
            optimizers["critic"], signals["loss"], limits.get("critic"), counts=counts
        )
        self.update_steps += 1
        if self.update_steps % self.policy_delay == 0:
            signals |= self.actor_signals(minibatch.transition.observation)
            signals["grad_norm/actor"] = self.optimize(
                optimizers["actor"], signals["actor_loss"], limits.get("actor"), counts=False
            )
            self.update_targets()
        return signals

    def augment(self, transition: Transition) -> Transition:
        """Images moved at random, those of the next observations on their own."""
        return shift_transition(transition, self.critic.encoder, self.random_shift)

    def critic_signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """The critic's loss on a mini-batch, MSE summed over the twins, and what it was made of, `[B]` each."""
        transition = minibatch.transition
        features = self.critic.encode(transition.observation)
        q_values = self.critic.value(features, transition.action)
        target = self.td_target(transition)
        loss = (minibatch.importance_weight * (q_values - target).square()).mean(-1).sum()
        signals = {"loss": loss, "critic_loss": loss, "td_target": target, "td_error": target - q_values[0]}
        return signals | self.critic.signals(q_values, features)

    @torch.no_grad()
    def td_target(self, transition: Transition) -> Tensor:
        """Bootstrap targets `[B]` (section 5.3), after the callables of `target_transforms`."""
        next_observation = encode_once(transition.next_observation, self.target_actor, self.target_critic)
        next_action = noisy_action(
            self.target_actor(next_observation).tanh(), self.target_policy_noise, self.target_noise_clip
        )
        next_value = self.target_critic(next_observation, self.actions.from_cube(next_action)).amin(0)
        target = td_target(transition.reward, transition.discount, next_value)
        for transform in self.target_transforms:
            target = transform(target)
        return target

    def actor_signals(self, observation: Observation) -> dict[str, Tensor]:
        """The actor's loss, -Q1(s, π(s)), with Algorithm 1's gradient by the chain rule, and what it was made of.

        It takes observations, never features: the critic encodes them itself, and no gradient reaches it.
        """
        encoded = self.critic.encoded_without_gradient(observation)
        pre_tanh = self.actor(encoded if self.actor.borrows(encoded) else observation)
        with self.critic.frozen():
            q_policy = self.critic.first(encoded, self.actions.from_cube(pre_tanh.tanh()))
        return {"actor_loss": -q_policy.mean(), "q_policy": q_policy, "pre_tanh": pre_tanh}

    def update_targets(self) -> None:
        """All target networks follow, θ⁻ ← (1 - τ)θ⁻ + τθ; a target encoder with a τ of its own."""
        pairs = [(self.target_critic, self.critic), (self.target_actor, self.actor)]
        for target, online in pairs:
            polyak_update(target.head_parameters, online.head_parameters, self.tau)
        for target_encoder, encoder in target_encoders(pairs):
            polyak_update(target_encoder.parameters(), encoder.parameters(), self.target_encoder_tau)

    def losses(self, batch: ReplayBatch | Minibatch) -> dict[str, Tensor]:
        """The differentiable losses of a mini-batch (of a stack: their means), by name."""
        minibatches = batch.minibatches() if isinstance(batch, ReplayBatch) else [batch]
        losses: dict[str, list[Tensor]] = {"critic_loss": [], "actor_loss": []}
        for minibatch in minibatches:
            minibatch = minibatch._replace(transition=self.augment(minibatch.transition))
            losses["critic_loss"].append(self.critic_signals(minibatch)["critic_loss"])
            losses["actor_loss"].append(self.actor_signals(minibatch.transition.observation)["actor_loss"])
        return {name: torch.stack(values).mean() for name, values in losses.items()}

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds what Q1 expected of the policy's actions, and by how much it was wrong (`value_gap`)."""
        start_value, final_value = (
            self.critic.first(observation, self.policy(observation))
            for observation in (episodes.start_observation, episodes.final_observation)
        )
        return super().evaluation_metrics(episodes) | self.value_gap(episodes, start_value, final_value)

    def configure_optimizers(self) -> list[Optimizer]:
        """Adam for the critic, and for the actor, each with one parameter group of its name."""
        groups = {"critic": list(self.critic.parameters()), "actor": self.actor.own_parameters()}
        return [
            Adam([{"params": parameters, "name": name}], lr=self.learning_rate, fused=True)
            for name, parameters in groups.items()
        ]
