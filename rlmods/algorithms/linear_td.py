"""Off-policy TD of a linear critic while a policy gradient moves the target policy and the behaviour policy follows.

Sutton 1988, "Learning to predict by the methods of temporal differences", TD(0), with the importance ratio of Precup,
Sutton & Singh 2000; its actor is that of Sutton et al. 2000 with the TD error as advantage. The critic is
Q(s, a) = w·φ(s, a)/√D over frozen features; policies are Gaussians with means θᵀψ(s)/√D_a and fixed spreads.

One iteration, with all parameters frozen while it samples:

    a ~ μ(·|s),  ρ = π(a|s)/μ(a|s),  φ̄ = E φ(s′, a′) for a′ ~ π(·|s′)
    δ = r + γ w·φ̄/√D − w·φ/√D
    w   ← w + α_w c Σ ρ δ φ
    θ_π ← θ_π + α_π c Σ ρ δ ∇log π(a|s)
    θ_μ ← (1 − β) θ_μ + β θ_π,  then both are projected on a ball

Deviations:

1. The sums are handed to autograd as the gradient of a linear loss −c⟨w, G_w⟩, so that clip, hooks and every gradient
   safeguard see an update like that of any network; the optimiser is plain SGD.
2. In raw mode φ̄ is the exact expectation by default, where others sample a′.
3. GTD2, TDC (Sutton et al. 2009) and emphatic TD (Sutton, Mahmood & White 2016) are arguments, and so are clipped
   ratios and V-trace (Espeholt et al. 2018).
4. No 1/√D multiplies the update: the step that matters is α_w c N T |λ|_max/√D, and `dimensionless_step` sets it.
"""

import math
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.linear_td_settings import Method, ScaleMode, check_ranges
from rlmods.algorithms.reference_stream import ReferenceStream
from rlmods.functional.gaussian_policy import executed_action, importance_ratio
from rlmods.functional.linear_dynamics import td_matrix
from rlmods.functional.off_policy import (
    Coefficients,
    clipped_ratio,
    emphasis,
    emphatic_td_coefficients,
    gtd2_coefficients,
    td_coefficients,
    tdc_coefficients,
    vtrace_advantage,
)
from rlmods.functional.off_policy_metrics import ratio_metrics, td_error_metrics
from rlmods.networks.linear_actor import LinearActor, LinearActors, one_tensor
from rlmods.networks.random_features import CriticFeatures, FeatureSettings, teacher_weight
from rlmods.types import EnvSpec, EpisodeBatch, LinearTransitions, Observation, Policy, Rollout

_CALIBRATION_ROLLOUTS = 10


class Samples(NamedTuple):
    """What the update is made of, M = T·N samples in the order of time."""

    feature: Tensor  # [M, D], φ
    reward: Tensor  # [M]
    value: Tensor  # [M], w·φ/√D
    next_value: Tensor  # [M], w·φ̄/√D
    td_error: Tensor  # [M], δ
    density_ratio: Tensor  # [M], ρ
    ratio: Tensor  # [M], ρ after its clip
    score: Tensor  # [M, A], (a − m_π)/(σ_π² √D_a): the outer product with ψ is ∇log π
    actor_feature: Tensor  # [M, D_a], ψ
    clipped_distance: Tensor  # [M], ‖a − executed a‖ where the environment clips


class LinearTD(Algorithm):
    """Linear off-policy actor-critic with a moving target policy.

    Args:
        spec: of an environment that names its frozen features.
        learning_rate: of the critic, α_w.
        actor_learning_rate: of the target policy, α_π; 0 fixes it.
        beta: how far the behaviour policy follows the target policy in an iteration, 0 (not at all) to 1.
        behaviour_std: standard deviation of μ, σ_μ.
        target_std: standard deviation of π, σ_π.
        num_bootstrap_samples: actions of π for φ̄; 0 takes a′ = 0; None is exact where the environment executes actions
            as they are, and 4 elsewhere.
        method: td0, gtd2, tdc or etd (emphatic TD).
        auxiliary_learning_rate: of the auxiliary weights of gtd2 and tdc.
        ratio_clip: upper bound of the ratio; None does not clip.
        vtrace_lambda: λ of V-trace's traces, whose bounds ρ̄ and c̄ are `ratio_clip` and 1; None makes one-step updates.
        scale_mode: the sums are multiplied by 1/(N·T) (BT) or by 1/(√N·T) (sqrtB_T).
        dimensionless_step: α_w c N T |λ|_max/√D, instead of `learning_rate`. The eigenvalue is that of the mean matrix
            of the first ten rollouts, on which nothing is learned. Where it is real, TD is stable below 2.
        theta_radius: both policies are projected on ‖θ‖ ≤ this; 0 does not.
        theta_init_scale: standard deviation of θ at the start.
        w_init_scale: standard deviation of w at the start.
        behaviour_offset_scale: standard deviation of θ_μ − θ_π at the start.
        max_grad_norm: L2 bound of the update c·(G_w, G_θ); None does not clip.
        random_stream: torch's global generator, or numpy streams of `seed` in the order of the published runs, which
            reproduces their numbers.
        seed: of the numpy streams.

    Raises:
        ValueError: where the environment names no features, or a value lies outside its range.
    """

    learns_from = "rollouts"
    teacher_weight: Tensor

    def __init__(
        self,
        spec: EnvSpec,
        *,
        learning_rate: float = 0.2,
        actor_learning_rate: float = 0.1,
        beta: float = 0.2,
        behaviour_std: float = 0.2,
        target_std: float = 0.2,
        num_bootstrap_samples: int | None = None,
        method: Method = "td0",
        auxiliary_learning_rate: float = 0.2,
        ratio_clip: float | None = None,
        vtrace_lambda: float | None = None,
        scale_mode: ScaleMode = "BT",
        dimensionless_step: float | None = None,
        theta_radius: float = 4.0,
        theta_init_scale: float = 0.1,
        w_init_scale: float = 0.1,
        behaviour_offset_scale: float = 0.0,
        max_grad_norm: float | None = None,
        random_stream: Literal["torch", "numpy"] = "torch",
        seed: int = 0,
    ) -> None:
        super().__init__(spec)
        if "features" not in spec.get("settings", {}):
            raise ValueError(
                f"LinearTD got {spec['env_id']}, which names no frozen features, expected an environment of the "
                "off-policy laboratory: type --data.init_args.env_id rlmods/TorusGobletGhost-v0"
            )
        self.save_hyperparameters()
        self.learning_rate = learning_rate
        self.actor_learning_rate = actor_learning_rate
        self.auxiliary_learning_rate = auxiliary_learning_rate
        self.beta = beta
        self.behaviour_std = behaviour_std
        self.target_std = target_std
        self.method = method
        self.ratio_clip = ratio_clip
        self.vtrace_lambda = vtrace_lambda
        self.scale_mode = scale_mode
        self.dimensionless_step = dimensionless_step
        self.theta_radius = theta_radius
        self.max_grad_norm = max_grad_norm
        settings = spec["settings"]
        self.action_mode, self.v_max = settings["action_mode"], settings["v_max"]
        is_sampled = num_bootstrap_samples is None and not self.has_exact_bootstrap
        self.num_bootstrap_samples = 4 if is_sampled else num_bootstrap_samples
        check_ranges(self.hparams)
        features: FeatureSettings = settings["features"]
        self.critic_features = CriticFeatures(features)
        self.register_buffer("teacher_weight", teacher_weight(features), persistent=False)
        self.stream = ReferenceStream(seed) if random_stream == "numpy" else None
        normal = self.stream.initial_normal if self.stream is not None else torch.randn
        actor_size, action_size = features["actor_feature_dim"], features["action_size"]
        dtype = getattr(torch, features["precision"])
        theta = theta_init_scale * normal(actor_size, action_size)
        offset = behaviour_offset_scale * normal(actor_size, action_size) if behaviour_offset_scale else 0.0
        self.actors = LinearActors(
            features,
            theta.to(dtype),
            (theta + offset).to(dtype, copy=True),
            behaviour_std=behaviour_std,
            target_std=target_std,
        )
        self.weight = nn.Parameter((w_init_scale * normal(features["feature_dim"])).to(dtype))
        has_auxiliary = method in ("gtd2", "tdc")
        self.auxiliary_weight = nn.Parameter(torch.zeros_like(self.weight)) if has_auxiliary else None
        self._calibrations = 0
        self._mean_matrix = torch.zeros(1, 1, dtype=torch.float64)  # [D, D] once there is a rollout
        self._rollout_shape = torch.Size((1, 1))  # [T, N] of the last one
        self.value_scale = 1.0 / math.sqrt(features["feature_dim"])

    # Policies

    def begin_rollout(self, num_envs: int, num_steps: int) -> list[int] | None:
        """Draw an iteration's seeds and noise from the numpy stream; with torch's there is nothing to do."""
        if self.stream is None:
            return None
        return self.stream.begin_rollout(num_envs, num_steps, self.num_bootstrap_samples or 0)

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Actions `[N, A]` of μ, before the environment clips or squashes them; evaluation draws from π instead."""
        noise = None if deterministic or self.stream is None else self.stream.next_action_noise()
        return self.actors.draw(one_tensor(observation), of_target=deterministic, noise=noise)

    def behaviour_policy(self) -> Policy:
        """μ, from torch's generator."""
        return LinearActor(self.actors, of_target=False)

    def target_policy(self) -> Policy:
        """π, from torch's generator."""
        return LinearActor(self.actors, of_target=True)

    def policy_means(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means of μ and of π, `[..., A]`."""
        return self.actors.means(observation)

    # One iteration

    def training_step(self, batch: Rollout, batch_idx: int) -> dict[str, Tensor]:
        """One update on one rollout. Returns its signals, `[1, M]`, and the iteration's metrics, `[]` float64."""
        optimizer = self.single_optimizer()
        self._rollout_shape = batch.reward.shape
        if self.dimensionless_step is not None and self._calibrations < _CALIBRATION_ROLLOUTS:
            self._calibrate(self.dimensionless_step, batch)
            self.count_iteration(optimizer)
            return {}
        samples = self.samples(batch)
        self._set_learning_rates(optimizer)
        before = [parameter.detach().clone() for parameter in (self.weight, self.actors.theta)]
        grad_norm = self.optimize(optimizer, self._loss(samples, batch), self.max_grad_norm, counts=True)
        self.update_steps += 1
        self.actors.follow(self.beta, self.theta_radius)
        signals = {
            "q_value": samples.value,
            "td_target": samples.value + samples.td_error,
            "td_error": samples.td_error,
            "importance_ratio": samples.density_ratio,
        }
        stacked = {name: signal.detach().unsqueeze(0) for name, signal in signals.items()}
        return stacked | {"grad_norm/linear": grad_norm.unsqueeze(0)} | self._metrics(samples, before)

    @torch.no_grad()
    def samples(self, rollout: Rollout) -> Samples:
        """Ratios, TD errors and scores of a rollout."""
        observation = one_tensor(rollout.observation).flatten(0, 1)
        next_observation = one_tensor(rollout.next_observation).flatten(0, 1)
        drawn = rollout.action.flatten(0, 1)
        executed, action = self._actions(drawn)
        actor_feature = self.actors.features(observation)
        behaviour_mean = self.actors.mean(actor_feature, self.actors.behaviour_theta)
        target_mean = self.actors.mean(actor_feature, self.actors.theta)
        ratio = importance_ratio(action, behaviour_mean, self.behaviour_std, target_mean, self.target_std)
        feature = self.critic_features(observation, executed)
        reward = rollout.reward.flatten().to(feature)
        value = self.value_scale * (feature @ self.weight)
        next_value = self.value_scale * self._next_value(next_observation, self.weight, rollout.reward.shape)
        target = reward + rollout.discount.flatten().to(feature) * next_value
        for transform in self.target_transforms:
            target = transform(target)
        return Samples(
            feature=feature,
            reward=reward,
            value=value,
            next_value=next_value,
            td_error=target - value,
            density_ratio=ratio,
            ratio=clipped_ratio(ratio, self.ratio_clip),
            score=(action - target_mean) / (self.target_std**2 * math.sqrt(actor_feature.shape[-1])),
            actor_feature=actor_feature,
            clipped_distance=torch.linalg.vector_norm(drawn - action, dim=-1),
        )

    def _actions(self, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """What the environment executes of a draw, and where the densities are taken, `[M, A]` each."""
        executed = executed_action(drawn, self.action_mode, self.v_max)
        # Where the environment clips, those of the published runs are taken at the clipped action: no density ratio.
        return executed, executed if self.action_mode in ("ball_clip", "box_clip") else drawn

    def _next_value(self, observation: Tensor, weight: Tensor, shape: torch.Size) -> Tensor:
        """weight·φ̄ of the next observations `[M, O]`."""
        mean = self.actors.means(observation)[1]
        if self.num_bootstrap_samples is None:
            return self.critic_features.expected_value(weight, observation, mean, self.target_std)
        actions = self._bootstrap_actions(mean, self.num_bootstrap_samples, shape)
        return self.critic_features.mean_value(weight, observation, actions)

    def _bootstrap_actions(self, mean: Tensor, num_samples: int, shape: torch.Size | None = None) -> Tensor:
        """Executed actions `[M, K, A]` of π; zeros for K = 0. The numpy stream has drawn those of `shape` [T, N]."""
        if num_samples == 0:
            return torch.zeros_like(mean).unsqueeze(1)
        if self.stream is not None and shape is not None:
            noise = self.stream.bootstrap_noise(shape).to(mean)
        else:
            noise = torch.randn(mean.shape[0], num_samples, mean.shape[-1], dtype=mean.dtype, device=mean.device)
        return executed_action(mean.unsqueeze(1) + self.target_std * noise, self.action_mode, self.v_max)

    def _loss(self, samples: Samples, rollout: Rollout) -> Tensor:
        """−c⟨parameters, G⟩: linear, so that its gradient is the update's direction, times −c."""
        with torch.no_grad():
            coefficients = self._coefficients(samples, rollout)
            weight_sum = coefficients.feature @ samples.feature
            advantage = coefficients.feature
            if self.auxiliary_weight is not None:
                next_observation = one_tensor(rollout.next_observation).flatten(0, 1)
                weight_sum = weight_sum + coefficients.bootstrap_feature @ self._bootstrap_feature(
                    next_observation, self.num_bootstrap_samples, rollout.reward.shape
                )
                advantage = samples.ratio * samples.td_error
            theta_sum = samples.actor_feature.T @ (advantage.unsqueeze(1) * samples.score)
            scale = self.scale(rollout.reward.shape)
        loss = (self.weight * weight_sum).sum() + (self.actors.theta * theta_sum).sum()
        if self.auxiliary_weight is not None:
            loss = loss + (self.auxiliary_weight * (coefficients.auxiliary @ samples.feature)).sum()
        return -scale * loss

    def losses(self, batch: Rollout) -> dict[str, Tensor]:
        """The linear loss that `training_step` takes the gradient of, by name: `loss`, a scalar."""
        return {"loss": self._loss(self.samples(batch), batch)}

    def _coefficients(self, samples: Samples, rollout: Rollout) -> Coefficients:
        """What multiplies φ and φ̄ in the sums, `[M]` each."""
        discount = float(rollout.discount.amax())  # one for all: the torus never terminates
        if self.auxiliary_weight is not None:
            auxiliary_value = self.value_scale * (samples.feature @ self.auxiliary_weight)
            gradient_td = gtd2_coefficients if self.method == "gtd2" else tdc_coefficients
            return gradient_td(samples.ratio, samples.td_error, auxiliary_value, discount)
        shape = rollout.reward.shape
        ended = rollout.terminated | rollout.truncated
        if self.vtrace_lambda is not None:
            bound = math.inf if self.ratio_clip is None else self.ratio_clip
            td_error, ratio = samples.td_error.view(shape), samples.density_ratio.view(shape)
            advantage = vtrace_advantage(td_error, ratio, discount, bound, min(1.0, bound), self.vtrace_lambda, ended)
            return td_coefficients(torch.ones_like(samples.ratio), advantage.flatten())
        if self.method == "etd":
            follow_on = emphasis(samples.ratio.view(shape), discount, ended.roll(1, dims=0))
            return emphatic_td_coefficients(samples.ratio, samples.td_error, follow_on.flatten())
        return td_coefficients(samples.ratio, samples.td_error)

    def _bootstrap_feature(self, observation: Tensor, num_samples: int | None, shape: torch.Size | None) -> Tensor:
        """φ̄, `[M, D]`, of the next observations `[M, O]`; where it is sampled, anew, as an update is linear in it."""
        mean = self.actors.means(observation)[1]
        if num_samples is None:
            return self.critic_features.expectation(observation, mean, self.target_std)
        return self.critic_features.mean(observation, self._bootstrap_actions(mean, num_samples, shape))

    def scale(self, shape: torch.Size) -> float:
        """c, for a rollout `[T, N]`."""
        num_steps, num_envs = shape
        return 1.0 / (num_steps * (num_envs if self.scale_mode == "BT" else math.sqrt(num_envs)))

    def _set_learning_rates(self, optimizer: LightningOptimizer) -> None:
        rates = {
            "critic": self.learning_rate,
            "actor": self.actor_learning_rate,
            "auxiliary": self.auxiliary_learning_rate,
        }
        for group in optimizer.param_groups:
            group["lr"] = rates[group["name"]] * self.learning_rate_scale

    @torch.no_grad()
    def _calibrate(self, dimensionless_step: float, rollout: Rollout) -> None:
        """Take a rollout into the mean of the TD matrix, and after the last set the learning rate by it."""
        seen = self.linear_transitions(rollout, self.num_bootstrap_samples)
        matrix = td_matrix(seen.feature, seen.bootstrap_feature, seen.importance_ratio, seen.discount)
        self._calibrations += 1
        self._mean_matrix = self._mean_matrix + (matrix.double() - self._mean_matrix) / self._calibrations
        if self._calibrations == _CALIBRATION_ROLLOUTS:
            largest = self.value_scale * float(torch.linalg.eigvals(self._mean_matrix).abs().amax())
            self.learning_rate = dimensionless_step / (
                self.scale(rollout.reward.shape) * rollout.reward.numel() * largest
            )

    def _metrics(self, samples: Samples, before: list[Tensor]) -> dict[str, Tensor]:
        """The iteration in numbers, `[]` float64: TD errors and ratios before the update, norms after it."""
        weight, theta = self.weight.detach().double(), self.actors.theta.detach().double()
        clips = samples.clipped_distance.double()
        metrics = {
            "td_loss": samples.td_error.double().square().mean(),
            "critic_teacher_error": (weight - self.teacher_weight.double()).square().mean(),
            "tracking_gap": (theta - self.actors.behaviour_theta.double()).square().sum() / theta.shape[0],
            **ratio_metrics(samples.ratio),
            **td_error_metrics(samples.td_error),
            "w_norm": torch.linalg.vector_norm(weight),
            "clip_fraction": (clips > 1e-12).double().mean(),
            "clipped_distance": clips.mean(),
            "delta_w_norm": torch.linalg.vector_norm(weight - before[0].double()),
            "delta_theta_pi_norm": torch.linalg.vector_norm(theta - before[1].double()),
            "behaviour_std": torch.tensor(self.behaviour_std, dtype=torch.float64),
            "target_std": torch.tensor(self.target_std, dtype=torch.float64),
        }
        return metrics | {
            "update_steps": torch.tensor(self.update_steps),
            "learning_rate": torch.tensor(self.critic_learning_rate, dtype=torch.float64),
        }

    # What the probes ask

    @property
    def has_exact_bootstrap(self) -> bool:
        """Whether E[φ(s′, a′)] has a closed form: of cosines of Gaussian actions that are executed as they are."""
        return bool(self.action_mode == "raw")

    @property
    def critic_weight(self) -> Tensor:
        """w, `[D]`."""
        return self.weight.detach()

    @property
    def critic_learning_rate(self) -> float:
        """α_w as it is used."""
        return self.learning_rate * self.learning_rate_scale

    @property
    def train_step_scale(self) -> float:
        """α_w c: what an iteration multiplies the sum of ρδφ with."""
        return self.critic_learning_rate * self.scale(self._rollout_shape)

    @property
    def mean_step(self) -> float:
        """α_w c N T: what an iteration multiplies the mean of ρδφ with."""
        return self.train_step_scale * self._rollout_shape.numel()

    @torch.no_grad()
    def linear_transitions(self, rollout: Rollout, num_bootstrap_samples: int | None) -> LinearTransitions:
        """What the critic sees of a rollout, chain after chain; None is the exact expectation of φ̄.

        Raises:
            ValueError: where there is no exact expectation.
        """
        if num_bootstrap_samples is None and not self.has_exact_bootstrap:
            raise ValueError(
                f"got num_bootstrap_samples = None in the action mode {self.action_mode}, which has no closed form, "
                "expected a number of samples: type num_bootstrap_samples=8"
            )
        observation, next_observation, drawn = (
            one_tensor(field).transpose(0, 1).flatten(0, 1)
            for field in (rollout.observation, rollout.next_observation, rollout.action)
        )
        executed, action = self._actions(drawn)
        behaviour_mean, target_mean = self.policy_means(observation)
        ratio = importance_ratio(action, behaviour_mean, self.behaviour_std, target_mean, self.target_std)
        return LinearTransitions(
            feature=self.critic_features(observation, executed),
            bootstrap_feature=self._bootstrap_feature(next_observation, num_bootstrap_samples, None),
            importance_ratio=clipped_ratio(ratio, self.ratio_clip),
            reward=rollout.reward.transpose(0, 1).flatten().to(action),
            discount=float(rollout.discount.amax()),
        )

    # Evaluation and state

    def evaluation_metrics(self, episodes: EpisodeBatch) -> dict[str, Tensor]:
        """Adds `q_start`, E_π Q at the first observations, and `q_gap`, by how much it missed what then came.

        A truncated episode is continued by the critic's own value. `q_gap_sem` is the standard error of the mean gap.
        """
        metrics = super().evaluation_metrics(episodes)
        start = self._state_value(one_tensor(episodes.start_observation)).double()
        final = self._state_value(one_tensor(episodes.final_observation)).double()
        gap = start - (episodes.discounted_returns.to(start) + episodes.final_discount * final)
        metrics["q_start"] = start.mean()
        metrics["q_gap"] = gap.mean()
        metrics["q_gap_sem"] = gap.std(correction=0) / max(gap.numel() - 1, 1) ** 0.5
        return metrics

    @torch.no_grad()
    def _state_value(self, observation: Tensor) -> Tensor:
        """E_π Q(s, a), `[E]`; where it is sampled, apart from the training's randomness."""
        with isolate_rng():
            mean = self.policy_means(observation)[1]
            if self.num_bootstrap_samples is None:
                value = self.critic_features.expected_value(self.weight, observation, mean, self.target_std)
            else:
                actions = self._bootstrap_actions(mean, max(self.num_bootstrap_samples, 1))
                value = self.critic_features.mean_value(self.weight, observation, actions)
        return self.value_scale * value

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the calibration and the numpy stream."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["algorithm"]["learning_rate"] = self.learning_rate
        checkpoint["algorithm"]["calibrations"] = self._calibrations
        checkpoint["algorithm"]["mean_matrix"] = (
            self._mean_matrix if 0 < self._calibrations < _CALIBRATION_ROLLOUTS else None
        )
        checkpoint["algorithm"]["stream"] = None if self.stream is None else self.stream.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them."""
        super().on_load_checkpoint(checkpoint)
        if self.dimensionless_step is not None:
            self.learning_rate = checkpoint["algorithm"]["learning_rate"]
            self._calibrations = checkpoint["algorithm"]["calibrations"]
            if checkpoint["algorithm"]["mean_matrix"] is not None:
                self._mean_matrix = checkpoint["algorithm"]["mean_matrix"]
        if self.stream is not None and checkpoint["algorithm"]["stream"] is not None:
            self.stream.load_state_dict(checkpoint["algorithm"]["stream"])

    def configure_optimizers(self) -> Optimizer:
        """SGD with the parameter groups `critic`, `actor` and, for gtd2 and tdc, `auxiliary`."""
        groups: list[dict[str, Any]] = [
            {"params": [self.weight], "name": "critic", "lr": self.learning_rate},
            {"params": [self.actors.theta], "name": "actor", "lr": self.actor_learning_rate},
        ]
        if self.auxiliary_weight is not None:
            groups.append({"params": [self.auxiliary_weight], "name": "auxiliary", "lr": self.auxiliary_learning_rate})
        return SGD(groups, lr=self.learning_rate)
