"""Deep Q-network.

Mnih et al. 2015, "Human-level control through deep reinforcement learning", Algorithm 1.
https://www.nature.com/articles/nature14236

Deviations from the paper:

1. Double Q-learning (van Hasselt et al. 2016), dueling heads (Wang et al. 2016), n-step returns and prioritised replay
   (Schaul et al. 2016) are arguments; the last two belong to the data module, which stores the horizon's own discount
   with each transition.
2. Adam instead of RMSProp; the gradient is clipped by its norm; the Huber loss takes the place of the clipped error.
3. Collection and updates alternate in blocks: an iteration collects `steps_per_iteration` environment steps and then
   makes `updates_per_iteration` updates on a stack of mini-batches drawn at once. Priorities are therefore up to that
   many updates old.
4. The target network is updated on the clock of gradient updates, softly where `tau` < 1.
5. A truncated episode (time limit) bootstraps; only a terminated one does not.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Adam, Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.functional.exploration import epsilon_greedy
from rlmods.functional.schedules import linear_schedule
from rlmods.functional.td import action_value, double_q_bootstrap, q_learning_bootstrap, td_target
from rlmods.networks.q_network import q_network
from rlmods.networks.target import polyak_update
from rlmods.signals import stack_signals
from rlmods.types import EnvSpec, EpisodeBatch, Minibatch, Observation, ReplayBatch, Transition


class DQN(Algorithm):
    """Deep Q-network with its common extensions as arguments.

    Args:
        spec: of the environment; the command line fills it in from the data module.
        hidden_sizes: widths of the hidden layers.
        learning_rate: of Adam, at the start of the run.
        final_learning_rate: reached in a straight line at the end of the budget; None keeps `learning_rate`.
        loss: Huber (threshold 1) or mean squared error.
        double_q: select the next action with the online network.
        dueling: a value and centred advantages instead of one head.
        tau: share of the online network in a target update, in (0, 1]; 1 copies it.
        target_update_interval: gradient updates between two target updates.
        exploration_initial_eps: probability of a random action at the start.
        exploration_final_eps: probability of a random action after the exploration phase.
        exploration_fraction: part of the budget over which it falls.
        max_grad_norm: L2 bound of the gradient; None does not clip.

    Raises:
        ValueError: where the actions are not discrete or a value lies outside its range.
    """

    network_settings = ("dueling",)

    def __init__(
        self,
        spec: EnvSpec,
        *,
        hidden_sizes: Sequence[int] = (64, 64),
        learning_rate: float = 1e-3,
        final_learning_rate: float | None = None,
        loss: Literal["huber", "mse"] = "huber",
        double_q: bool = True,
        dueling: bool = False,
        tau: float = 1.0,
        target_update_interval: int = 500,
        exploration_initial_eps: float = 1.0,
        exploration_final_eps: float = 0.05,
        exploration_fraction: float = 0.1,
        max_grad_norm: float | None = 10.0,
    ) -> None:
        super().__init__(spec)
        if spec["action"]["kind"] != "discrete":
            raise ValueError(
                f"DQN got the {spec['action']['kind']} actions of {spec['env_id']}, expected discrete ones: "
                "type --data.init_args.env_id CartPole-v1, or choose an algorithm for continuous actions"
            )
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.final_learning_rate = learning_rate if final_learning_rate is None else final_learning_rate
        self.loss = loss
        self.double_q = double_q
        self.tau = tau
        self.target_update_interval = target_update_interval
        self.exploration_initial_eps = exploration_initial_eps
        self.exploration_final_eps = exploration_final_eps
        self.exploration_fraction = exploration_fraction
        self.max_grad_norm = max_grad_norm
        _check_ranges(self)
        self.q_network = q_network(spec, hidden_sizes, dueling=dueling)
        self.target_network = q_network(spec, hidden_sizes, dueling=dueling).requires_grad_(False)
        self.target_network.load_state_dict(self.q_network.state_dict())

    def action_values(self, observation: Observation) -> Tensor:
        """Q of observations `[M, *shape]`: `[M, n]`."""
        value: Tensor = self.q_network(observation)
        return value

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """ε-greedy actions `[N]` for observations `[N, *shape]`."""
        greedy_action: Tensor = self.q_network(observation).argmax(-1)
        if deterministic:
            return greedy_action
        return epsilon_greedy(greedy_action, self.spec["action"]["n"], self.exploration_rate(env_steps))

    def exploration_rate(self, env_steps: int) -> float:
        """ε after `env_steps` environment steps."""
        return linear_schedule(
            env_steps / max(self.total_env_steps, 1),
            start=self.exploration_initial_eps,
            end=self.exploration_final_eps,
            fraction=self.exploration_fraction,
        )

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        """One iteration: K updates on K mini-batches. Returns their signals, none during warm-up."""
        optimizer = self.single_optimizer()
        if batch.num_updates == 0:
            self.count_iteration(optimizer)
            return {}
        learning_rate = linear_schedule(
            batch.progress, start=self.learning_rate, end=self.final_learning_rate, fraction=1.0
        )
        effective_learning_rate = self.set_learning_rate(optimizer, learning_rate)
        minibatches = batch.minibatches()
        signals = stack_signals(
            [self.update(optimizer, minibatch, counts=minibatch is minibatches[-1]) for minibatch in minibatches]
        )
        self.feed_back(batch.index, td_error=signals["td_error"])
        signals["learning_rate"] = torch.tensor(effective_learning_rate)
        signals["exploration_rate"] = torch.tensor(self.exploration_rate(batch.env_steps))
        signals["update_steps"] = torch.tensor(self.update_steps)
        return signals

    def update(self, optimizer: LightningOptimizer, minibatch: Minibatch, *, counts: bool) -> dict[str, Tensor]:
        """One gradient step on a mini-batch of B transitions, and a target update when it is due."""
        signals = self.signals(minibatch)
        signals["grad_norm/q"] = self.optimize(optimizer, signals["loss"], self.max_grad_norm, counts=counts)
        self.update_steps += 1
        if self.update_steps % self.target_update_interval == 0:
            polyak_update(self.target_network.parameters(), self.q_network.parameters(), self.tau)
        return signals

    def losses(self, batch: ReplayBatch | Minibatch) -> dict[str, Tensor]:
        """The differentiable losses of a mini-batch (of a stack: their mean), by name: `loss`, a scalar."""
        minibatches = batch.minibatches() if isinstance(batch, ReplayBatch) else [batch]
        return {"loss": torch.stack([self.signals(minibatch)["loss"] for minibatch in minibatches]).mean()}

    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        """The loss of a mini-batch and what it was made of, `[B]` each."""
        transition = minibatch.transition
        q_value = action_value(self.q_network(transition.observation), transition.action)
        target = self.td_target(transition)
        td_error = target - q_value
        if self.loss == "huber":
            sample_loss = F.smooth_l1_loss(q_value, target, reduction="none")
        else:
            sample_loss = F.mse_loss(q_value, target, reduction="none")
        loss = (minibatch.importance_weight * sample_loss).mean()
        return {"loss": loss, "q_value": q_value, "td_target": target, "td_error": td_error}

    @torch.no_grad()
    def td_target(self, transition: Transition) -> Tensor:
        """Bootstrap targets `[B]`, after the callables of `target_transforms`."""
        target_q_values = self.target_network(transition.next_observation)
        if self.double_q:
            bootstrap_value = double_q_bootstrap(target_q_values, self.q_network(transition.next_observation))
        else:
            bootstrap_value = q_learning_bootstrap(target_q_values)
        target = td_target(transition.reward, transition.discount, bootstrap_value)
        for transform in self.target_transforms:
            target = transform(target)
        return target

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds what max_a Q expected at the first observations, and by how much it was wrong (`value_gap`)."""
        start_value = self.q_network(episodes.start_observation).amax(-1)
        final_value = self.q_network(episodes.final_observation).amax(-1)
        return super().evaluation_metrics(episodes) | self.value_gap(episodes, start_value, final_value)

    def configure_optimizers(self) -> Optimizer:
        """Adam with one parameter group, named `q`."""
        group = {"params": list(self.q_network.parameters()), "name": "q"}
        return Adam([group], lr=self.learning_rate, fused=True)


def _check_ranges(algorithm: DQN) -> None:
    """Refuse hyper-parameters outside their range."""
    ranges = {
        "learning_rate": (algorithm.learning_rate > 0.0, "above 0"),
        "final_learning_rate": (algorithm.final_learning_rate >= 0.0, "at least 0"),
        "tau": (0.0 < algorithm.tau <= 1.0, "in (0, 1]"),
        "target_update_interval": (algorithm.target_update_interval >= 1, "at least 1"),
        "exploration_initial_eps": (0.0 <= algorithm.exploration_initial_eps <= 1.0, "in [0, 1]"),
        "exploration_final_eps": (0.0 <= algorithm.exploration_final_eps <= 1.0, "in [0, 1]"),
        "exploration_fraction": (0.0 <= algorithm.exploration_fraction <= 1.0, "in [0, 1]"),
        "max_grad_norm": (algorithm.max_grad_norm is None or algorithm.max_grad_norm > 0.0, "above 0, or null"),
    }
    for name, (is_inside, expected) in ranges.items():
        if not is_inside:
            got = getattr(algorithm, name)
            raise ValueError(f"got {name} = {got}, expected a value {expected}: type --model.init_args.{name} VALUE")
