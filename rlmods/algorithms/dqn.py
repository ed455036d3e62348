"""Deep Q-network.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", Algorithm 1.
https://www.nature.com/articles/nature14236

Deviations from the paper:

1. Double Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), distributions of returns (C51,
   Bellemare et al. 2017), noisy layers (Fortunato et al. 2018), n-step returns and prioritised replay (Schaul et al.
   2016) are arguments; the last two belong to the data module, which stores the horizon's own discount with each
   transition.
2. Adam instead of RMSProp; the gradient is clipped by its norm; the Huber loss takes the place of the clipped error.
3. Collection and updates alternate in blocks: an iteration collects `steps_per_iteration` environment steps and then
   makes updates on a stack of `updates_per_iteration` mini-batches drawn at once. Priorities are therefore up to that
   many mini-batches old. With `accumulate_grad_batches` = k an update learns from k of them.
4. The target network is updated on the clock of gradient updates, softly where `tau` < 1, and in full besides every
   `target_hard_update_interval`.
5. A truncated episode (time limit) bootstraps; only a terminated one does not.
6. C51 learns from prioritised replay by KL(target ‖ prediction), as Rainbow (Hessel et al. 2018) does. `td_error` is
   target − value there too.
7. Noise is drawn once for all rows of an update, and at each step of the collection for each environment; the online
   network selects the next action with the noise with which it is trained. Evaluation has none.
8. Actions of an expert may be imitated (`bc_coef`): cross-entropy of softmax Q(s, ·), not the margin of DQfD (Hester et
   al. 2018), which is in units of the return and must be chosen anew for each scale of the rewards. Each transition of
   the expert has the weight `bc_coef` against its own TD loss; both are means over the mini-batch.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.dqn_settings import check_accumulation, check_dqn_settings, check_support, check_warmup
from rlmods.functional.exploration import epsilon_greedy
from rlmods.functional.schedules import Schedule, linear_schedule, scheduled
from rlmods.functional.td import td_target
from rlmods.networks.noisy import NoiseMode, draw_noise, noise_mode
from rlmods.networks.q_network import q_network
from rlmods.networks.target import polyak_update
from rlmods.networks.value_heads import value_head
from rlmods.signals import stack_signals
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Observation, ReplayBatch, Transition, UpdateSettings


class DQN(Algorithm):
    """Deep Q-network with its common extensions as arguments.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        hidden_sizes: widths of the hidden layers.
        learning_rate: of Adam, at the start of the run, or after the warm-up.
        final_learning_rate: at the end of the budget; None keeps `learning_rate`.
        learning_rate_schedule: constant, linear or cosine between the two; None is linear where there is a final one.
        learning_rate_warmup: part of the budget, from its beginning, over which the learning rate rises from 0.
        loss: Huber (threshold 1) or mean squared error; a distribution has the cross-entropy.
        double_q: select the next action with the online network.
        dueling: a value and centred advantages instead of one head.
        num_atoms: 1 learns the value; more (51 in C51) the distribution of the return on a support of so many atoms.
        v_min: the first of them, in units of the return.
        v_max: the last.
        noisy: layers with noise of a learned size; ε stays, and wins where it draws.
        noisy_std: initial size of the noise, σ₀.
        accumulate_grad_batches: mini-batches whose gradients make one update, a divisor of `updates_per_iteration`.
        tau: share of the online network in a target update, in (0, 1]; 1 copies it.
        target_update_interval: gradient updates between two target updates.
        target_hard_update_interval: gradient updates between two full copies, whatever `tau`; None makes none besides.
        exploration_initial_eps: probability of a random action at the start.
        exploration_final_eps: probability of a random action after the exploration phase.
        exploration_fraction: part of the budget over which it falls.
        exploration_care_scale: factor on it where the environment says that exploration is lethal, in [0, 1].
        bc_coef: weight of the imitation of an expert's actions at the start; 0 does not imitate.
        bc_final_coef: the same after the imitation phase.
        bc_fraction: part of the budget over which it goes from the one to the other in a straight line.
        max_grad_norm: L2 bound of the gradient; None does not clip.

    Attributes:
        learning_rate_at: the scheduled learning rate at a part of the budget.
        head: what the outputs of the networks mean: values, or logits of atoms.
        bc_weight: of the imitation in the updates of the last iteration.
        exploration_override: takes the place of ε; None is the schedule.
        soft_update_step: `update_steps` at the last target update by `tau`.
        hard_update_step: the same of the last full copy.

    Raises:
        ValueError: where the actions are not discrete, a value lies outside its range, or one would not be used; in
            `setup`, where the support of the atoms is narrower than the values, or mini-batches are left over.
    """

    network_settings = ("dueling", "num_atoms", "v_min", "v_max", "noisy")

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        final_learning_rate: float | None = None,
        learning_rate_schedule: Schedule | None = None,
        learning_rate_warmup: float = 0.0,
        loss: Literal["huber", "mse"] = "huber",
        double_q: bool = True,
        dueling: bool = False,
        num_atoms: int = 1,
        v_min: float | None = None,
        v_max: float | None = None,
        noisy: bool = False,
        noisy_std: float = 0.5,
        accumulate_grad_batches: int = 1,
        tau: float = 1.0,
        target_update_interval: int = 500,
        target_hard_update_interval: int | None = None,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        exploration_fraction: float = 0.1,
        exploration_care_scale: float = 1.0,
        bc_coef: float = 0.0,
        bc_final_coef: float = 0.0,
        bc_fraction: float = 1.0,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        super().__init__(spec)
        self.save_hyperparameters()
        check_dqn_settings(spec, self.hparams)
        self.learning_rate = learning_rate
        self.learning_rate_warmup = learning_rate_warmup
        self.learning_rate_at = partial(
            scheduled,
            start=learning_rate,
            end=learning_rate if final_learning_rate is None else final_learning_rate,
            schedule=learning_rate_schedule or ("constant" if final_learning_rate is None else "linear"),
            warmup=learning_rate_warmup,
        )
        self.double_q = double_q
        self.support = None if v_min is None or v_max is None else (v_min, v_max)
        self.noisy = noisy
        self.accumulate_grad_batches = accumulate_grad_batches
        self.tau = tau
        self.target_update_interval = target_update_interval
        self.target_hard_update_interval = target_hard_update_interval
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self.exploration_fraction = exploration_fraction
        self.exploration_care_scale = exploration_care_scale
        self.bc_coef, self.bc_final_coef, self.bc_fraction = bc_coef, bc_final_coef, bc_fraction
        self.max_grad_norm = max_grad_norm
        self.bc_weight = bc_coef
        self.exploration_override: float | None = None
        self.soft_update_step = self.hard_update_step = 0
        self.head = value_head(loss, num_atoms, v_min, v_max)
        self.q_network, self.target_network = (
            q_network(spec, hidden_sizes, dueling=dueling, num_atoms=num_atoms, noisy_std=noisy_std if noisy else None)
            for _ in range(2)
        )
        self.target_network.requires_grad_(False).load_state_dict(self.q_network.state_dict())

    def setup(self, stage: str) -> None:
        """Adds what the settings of the data must fit.

        Raises:
            ValueError: where the support of the atoms is narrower than the values, or mini-batches are left over.
        """
        super().setup(stage)
        source = self.trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit" or not isinstance(source, UpdateSettings):
            return
        check_accumulation(source.updates_per_iteration, self.accumulate_grad_batches)
        check_warmup(self.learning_rate_warmup, self.learning_starts, self.total_env_steps)
        if self.support is not None:
            check_support(*self.support, self.spec.get("settings", {}).get("reward_bounds"), source.gamma)

    # Acting

    def action_values(self, observation: Observation) -> Tensor:
        """Q of observations `[M, *shape]`, without noise: `[M, n]`."""
        return self._q_values(observation, "none")

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """ε-greedy actions `[N]` for observations `[N, *shape]`."""
        if deterministic:
            return self.action_values(observation).argmax(-1)
        return self._explore(observation, self.exploration_rate(env_steps))

    def act_with_care(self, observation: Observation, care: Tensor, *, env_steps: int) -> Tensor:
        """The same with ε times `exploration_care_scale` in the environments `[N]` bool that need care."""
        scale = torch.where(care, self.exploration_care_scale, 1.0)
        return self._explore(observation, self.exploration_rate(env_steps) * scale)

    def _explore(self, observation: Observation, epsilon: float | Tensor) -> Tensor:
        greedy_action = self._q_values(observation, "each_row").argmax(-1)
        return epsilon_greedy(greedy_action, self.spec["action"]["n"], epsilon)

    def _q_values(self, observation: Observation, noise: NoiseMode) -> Tensor:
        if not self.noisy:
            return self.head.values(self.q_network(observation))
        with noise_mode(self.q_network, noise):
            return self.head.values(self.q_network(observation))

    def exploration_rate(self, env_steps: int) -> float:
        """ε after `env_steps` environment steps."""
        if self.exploration_override is not None:
            return self.exploration_override
        return linear_schedule(
            env_steps / max(self.total_env_steps, 1),
            start=self.exploration_initial_eps,
            end=self.exploration_final_eps,
            fraction=self.exploration_fraction,
        )

    # One iteration

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """One iteration on K mini-batches: an update for each, or for each group of `accumulate_grad_batches`.

        Returns their signals, none during warm-up. Those of transitions are `[K, B]` as the batch is, losses `[K]`,
        whatever the groups; `grad_norm/q` has one number for each update.
        """
        optimizer = self.single_optimizer()
        if batch.num_updates == 0:
            self.count_iteration(optimizer)
            return {}
        learning_rate = self.set_learning_rate(optimizer, self.learning_rate_at(batch.progress))
        self.bc_weight = linear_schedule(
            batch.progress, start=self.bc_coef, end=self.bc_final_coef, fraction=self.bc_fraction
        )
        minibatches, k = batch.minibatches(), self.accumulate_grad_batches
        # A last group may be smaller where a limit of the replay ratio cut the stack.
        groups = [minibatches[first : first + k] for first in range(0, len(minibatches), k)]
        updates = [self.update(optimizer, group, counts=group is groups[-1]) for group in groups]
        signals = stack_signals([of_minibatch for update in updates for of_minibatch in update])
        self.feed_back(batch.index, td_error=signals.get("td_kl", signals["td_error"]))
        if batch.by_expert is not None:
            agreed = (signals.pop("is_greedy") & batch.by_expert).sum()
            signals["expert_agreement"] = agreed / batch.by_expert.sum().clamp(min=1)  # 0 where there is none
            signals["bc_coef"] = torch.tensor(self.bc_weight)
        clocks = {
            "learning_rate": learning_rate,
            "exploration_rate": self.exploration_rate(batch.env_steps),
            "update_steps": self.update_steps,
            "target_age_soft": self.update_steps - self.soft_update_step,
            "target_age_hard": self.update_steps - self.hard_update_step,
        }
        return signals | {name: torch.tensor(value) for name, value in clocks.items()}

    def update(
        self, optimizer: LightningOptimizer, minibatches: Sequence[Minibatch], *, counts: bool
    ) -> list[dict[str, Tensor]]:
        """One gradient step on the mean loss of k mini-batches of B transitions; target updates when they are due.

        Returns the signals of each mini-batch; those of the last have the norm of the gradient.
        """
        if self.noisy:
            draw_noise(self.q_network, self.target_network)
        signals = []
        for minibatch in minibatches[:-1]:
            signals.append(self.signals(minibatch))
            self.accumulate(optimizer, signals[-1]["loss"] / len(minibatches))
        signals.append(self.signals(minibatches[-1]))
        loss = signals[-1]["loss"] if len(minibatches) == 1 else signals[-1]["loss"] / len(minibatches)
        signals[-1]["grad_norm/q"] = self.optimize(optimizer, loss, self.max_grad_norm, counts=counts)
        self.update_steps += 1
        self._update_target()
        return signals

    def _update_target(self) -> None:
        online, target = self.q_network.parameters(), self.target_network.parameters()
        hard_interval = self.target_hard_update_interval
        copies = hard_interval is not None and self.update_steps % hard_interval == 0
        if self.update_steps % self.target_update_interval == 0:
            self.soft_update_step = self.update_steps
            copies = copies or self.tau == 1.0
            if not copies:
                polyak_update(target, online, self.tau)
        if copies:
            self.hard_update_step = self.update_steps
            polyak_update(target, online, 1.0)

    def losses(self, batch: ReplayBatch | Minibatch) -> dict[str, Tensor]:
        """The differentiable losses of a mini-batch (of a stack: their mean), by name: `loss`, a scalar."""
        minibatches = batch.minibatches() if isinstance(batch, ReplayBatch) else [batch]
        return {"loss": torch.stack([self.signals(minibatch)["loss"] for minibatch in minibatches]).mean()}

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """The loss of a mini-batch and what it was made of, `[B]` each."""
        transition = minibatch.transition
        outputs = self.q_network(transition.observation)
        prediction = self.head.of_action(outputs, transition.action)
        bootstrap = self.bootstrap(transition)
        target = self.td_target(transition, bootstrap)
        sample_loss, more = self.head.sample_loss(prediction, target, transition.discount, bootstrap)
        loss = (minibatch.importance_weight * sample_loss).mean()
        if minibatch.by_expert is not None:
            q_values = self.head.values(outputs)
            more["is_greedy"] = q_values.argmax(-1) == transition.action
            if self.bc_weight > 0.0:
                cross_entropy = F.cross_entropy(q_values, transition.action, reduction="none")
                more["bc_loss"] = (minibatch.by_expert * cross_entropy).mean()
                loss = loss + self.bc_weight * more["bc_loss"]
        q_value = self.head.values(prediction)
        return {"loss": loss, "q_value": q_value, "td_target": target, "td_error": target - q_value, **more}

    @torch.no_grad()
    def bootstrap(self, transition: Transition) -> Tensor:
        """What the target network says of the next observation and the action chosen there, `[B]` or `[B, Z]`."""
        target_outputs = self.target_network(transition.next_observation)
        online_outputs = self.q_network(transition.next_observation) if self.double_q else None
        return self.head.bootstrap(target_outputs, online_outputs)

    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        """Target values `[B]`, of a distribution its mean, after the callables of `target_transforms`.

        Args:
            transition: `[B, ...]`.
            bootstrap: `bootstrap(transition)`, for who has it already.
        """
        bootstrap_value = self.head.values(self.bootstrap(transition) if bootstrap is None else bootstrap)
        target = td_target(transition.reward, transition.discount, bootstrap_value)
        for transform in self.target_transforms:
            target = transform(target)
        return target

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds what max_a Q expected at the first observations, and by how much it was wrong (`value_gap`)."""
        start_value = self.action_values(episodes.start_observation).amax(-1)
        final_value = self.action_values(episodes.final_observation).amax(-1)
        return super().evaluation_metrics(episodes) | self.value_gap(episodes, start_value, final_value)

    def configure_optimizers(self) -> Optimizer:
        """Adam with one parameter group, named `q`."""
        group = {"params": list(self.q_network.parameters()), "name": "q"}
        return Adam([group], lr=self.learning_rate, fused=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds when the target was updated last."""
        super().on_save_checkpoint(checkpoint)
        steps = {"soft_update_step": self.soft_update_step, "hard_update_step": self.hard_update_step}
        checkpoint["algorithm"] |= steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores it."""
        super().on_load_checkpoint(checkpoint)
        self.soft_update_step = checkpoint["algorithm"]["soft_update_step"]
        self.hard_update_step = checkpoint["algorithm"]["hard_update_step"]
