import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_skeleton import make_trainer
from torch import Tensor
from torch.distributions import Normal

from rlmods.algorithms import LinearTD
from rlmods.algorithms.linear_td import Samples
from rlmods.data import RolloutDataModule
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.functional.linear_dynamics import td_matrix
from rlmods.types import OffPolicyLinear, Policy, Rollout, SeedsRollouts

ENV_ID = "rlmods/TorusGobletGhost-v0"
NUM_ENVS, NUM_STEPS, GAMMA = 2, 3, 0.9
NEAR = {"eps_catch": 0.4, "eps_pick": 0.4}  # much happens


def make_data(num_iterations: int = 2, *, env: dict[str, Any] | None = None, **options: Any) -> RolloutDataModule:
    env_kwargs = {"feature_dim": 8, "actor_feature_dim": 4, "max_episode_steps": 50, "precision": "float64", **NEAR}
    defaults = {"num_envs": NUM_ENVS, "n_steps": NUM_STEPS, "gamma": GAMMA, "eval_episodes": 2, "eval_every": 10**9}
    settings = defaults | {"seed": 0} | options
    steps = settings["num_envs"] * settings["n_steps"] * num_iterations
    return RolloutDataModule(ENV_ID, steps, env_kwargs=env_kwargs | (env or {}), **settings)


def make_model(data: RolloutDataModule, **options: Any) -> LinearTD:
    """With steps that move: policies and critic are far from 0, and from each other."""
    torch.manual_seed(1)
    defaults: dict[str, Any] = {
        "learning_rate": 1.0,
        "actor_learning_rate": 2.0,
        "behaviour_std": 0.5,
        "target_std": 0.6,
        "theta_radius": 0.0,
        "theta_init_scale": 1.0,
        "w_init_scale": 1.0,
        "behaviour_offset_scale": 0.5,
    }
    return LinearTD(data.spec, **(defaults | options))


class Parameters(NamedTuple):
    weight: Tensor
    theta: Tensor
    behaviour_theta: Tensor
    auxiliary: Tensor


def parameters_of(model: LinearTD) -> Parameters:
    auxiliary = torch.zeros_like(model.weight) if model.auxiliary_weight is None else model.auxiliary_weight
    fields = (model.weight, model.actors.theta, model.actors.behaviour_theta, auxiliary)
    return Parameters(*(field.detach().clone() for field in fields))


class Iteration(NamedTuple):
    batch: Rollout
    samples: Samples
    bootstrap_feature: Tensor  # [M, D]
    before: Parameters
    after: Parameters
    gradients: list[Tensor]  # of w and θ, as a hook sees them after the backward pass
    outputs: dict[str, Tensor]


class Record(Callback):
    """Each iteration of a run whose bootstrap is exact."""

    def __init__(self) -> None:
        self.iterations: list[Iteration] = []
        self.gradients: list[Tensor] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(pl_module, LinearTD)
        self.before = parameters_of(pl_module)
        self.samples = pl_module.samples(batch)
        with torch.no_grad():
            self.bootstrap_feature = pl_module._bootstrap_feature(
                as_tensor(batch.next_observation), pl_module.num_bootstrap_samples, batch.reward.shape
            )

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, LinearTD)
        assert pl_module.weight.grad is not None
        assert pl_module.actors.theta.grad is not None
        self.gradients = [pl_module.weight.grad.clone(), pl_module.actors.theta.grad.clone()]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LinearTD)
        after = parameters_of(pl_module)
        self.iterations.append(
            Iteration(batch, self.samples, self.bootstrap_feature, self.before, after, self.gradients, outputs)
        )


def fit(folder: Path, data: RolloutDataModule, model: LinearTD, *callbacks: Callback, **options: Any) -> Trainer:
    defaults: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "limit_val_batches": 0}
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(folder, *callbacks, **(defaults | options))
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def iterations(folder: Path, num_iterations: int = 2, *, data: Any = None, **options: Any) -> list[Iteration]:
    data = data or make_data(num_iterations)
    record = Record()
    fit(folder, data, make_model(data, **options), record)
    return record.iterations


def rollout(model: LinearTD, data: RolloutDataModule, num_steps: int = NUM_STEPS) -> Rollout:
    """One of the behaviour policy, without a trainer."""
    collector = RolloutCollector(data.make_environments(NUM_ENVS), gamma=GAMMA, seed=3)
    return collector.collect(model, num_steps, num_processes=1, device=torch.device("cpu"))


def as_tensor(observation: Any) -> Tensor:
    assert isinstance(observation, Tensor)
    return observation.flatten(0, 1)


# The contract


def test_it_keeps_its_protocols() -> None:
    model = make_model(make_data())
    assert isinstance(model, OffPolicyLinear)
    assert isinstance(model, SeedsRollouts)
    assert isinstance(model.behaviour_policy(), Policy)


@pytest.mark.parametrize("mode", ["raw", "ball_clip", "box_clip", "tanh"])
def test_the_ratio_is_a_ratio_of_densities(mode: str) -> None:
    data = make_data(env={"action_mode": mode})
    model = make_model(data)
    batch = rollout(model, data)
    samples = model.samples(batch)
    action = batch.action.flatten(0, 1)
    if mode == "box_clip":
        action = action.clamp(-0.4, 0.4)
    if mode == "ball_clip":
        action = action * (0.4 / action.norm(dim=1, keepdim=True)).clamp(max=1.0)
    behaviour_mean, target_mean = model.policy_means(as_tensor(batch.observation))
    target: Any = Normal(target_mean, 0.6)
    behaviour: Any = Normal(behaviour_mean, 0.5)
    log_ratio = target.log_prob(action) - behaviour.log_prob(action)
    torch.testing.assert_close(samples.density_ratio, log_ratio.sum(1).exp().detach(), rtol=1e-10, atol=0.0)


def test_the_score_is_the_gradient_of_the_log_density() -> None:
    data = make_data()
    model = make_model(data)
    batch = rollout(model, data)
    samples = model.samples(batch)
    for sample in range(NUM_ENVS * NUM_STEPS):
        policy: Any = Normal(model.policy_means(as_tensor(batch.observation)[sample])[1], 0.6)
        log_density = policy.log_prob(batch.action.flatten(0, 1)[sample]).sum()
        (expected,) = torch.autograd.grad(log_density, model.actors.theta)
        score = torch.outer(samples.actor_feature[sample], samples.score[sample])
        torch.testing.assert_close(score, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("mode", ["raw", "tanh"])
def test_the_td_error_two_ways(mode: str) -> None:
    """From the samples, and from features made one by one; with 2 samples as with the exact expectation."""
    data = make_data(env={"action_mode": mode})
    model = make_model(data, num_bootstrap_samples=None if mode == "raw" else 2)
    batch = rollout(model, data)
    torch.manual_seed(3)
    samples = model.samples(batch)
    torch.manual_seed(3)
    seen = model.linear_transitions(batch, model.num_bootstrap_samples)
    executed = batch.action.flatten(0, 1) if mode == "raw" else 0.4 * batch.action.flatten(0, 1).tanh()
    feature = model.critic_features(as_tensor(batch.observation), executed)
    torch.manual_seed(3)
    with torch.no_grad():
        bootstrap_feature = model._bootstrap_feature(
            as_tensor(batch.next_observation), model.num_bootstrap_samples, batch.reward.shape
        )
    weight, root = model.critic_weight, math.sqrt(8)
    expected = batch.reward.flatten() + GAMMA * (bootstrap_feature @ weight) / root - feature @ weight / root
    torch.testing.assert_close(samples.td_error, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(samples.feature, feature)
    # The probes see the same, trajectory after trajectory.
    order = torch.arange(NUM_ENVS * NUM_STEPS).view(NUM_STEPS, NUM_ENVS).T.flatten()
    torch.testing.assert_close(seen.feature, feature[order])
    torch.testing.assert_close(seen.importance_ratio, samples.ratio[order])
    torch.testing.assert_close(seen.reward, samples.reward[order])
    if mode == "raw":
        torch.testing.assert_close(seen.bootstrap_feature, bootstrap_feature[order])


def test_without_bootstrap_samples_the_next_action_is_0() -> None:
    data = make_data()
    model = make_model(data, num_bootstrap_samples=0)
    batch = rollout(model, data)
    next_observation = as_tensor(batch.next_observation)
    feature = model.critic_features(next_observation, torch.zeros(NUM_ENVS * NUM_STEPS, 2, dtype=torch.float64))
    torch.testing.assert_close(model.samples(batch).next_value, feature @ model.critic_weight / math.sqrt(8))


def test_many_samples_come_near_the_exact_expectation() -> None:
    data = make_data()
    exact, sampled = make_model(data), make_model(data, num_bootstrap_samples=4000)
    batch = rollout(exact, data)
    torch.testing.assert_close(exact.samples(batch).next_value, sampled.samples(batch).next_value, atol=0.03, rtol=0.0)


def test_no_gradient_goes_through_the_target() -> None:
    data = make_data()
    model = make_model(data)
    batch = rollout(model, data)
    samples = model.samples(batch)
    assert not any(field.requires_grad for field in samples)
    loss = model.losses(batch)["loss"]
    gradients = torch.autograd.grad(loss, [model.weight, model.actors.theta])
    weighted = samples.ratio * samples.td_error / (NUM_ENVS * NUM_STEPS)
    torch.testing.assert_close(gradients[0], -(weighted @ samples.feature))
    torch.testing.assert_close(gradients[1], -(samples.actor_feature.T @ (weighted.unsqueeze(1) * samples.score)))


@pytest.mark.parametrize(("mode", "factor"), [("BT", 0.25), ("sqrtB_T", 0.5)])
def test_the_scale_from_one_trajectory_to_four(mode: Any, factor: float) -> None:
    model = make_model(make_data(), scale_mode=mode)
    one, four = (model.scale(torch.Size((5, num_envs))) for num_envs in (1, 4))
    assert one == pytest.approx(1 / 5)
    assert four / one == pytest.approx(factor)


# Updates, by hand


def sums(of: Iteration, factor: Callable[[int, int], float]) -> tuple[Tensor, Tensor]:
    """Σ factor·φ and Σ factor·∇log π, in loops; the factor is that of step t of trajectory n."""
    weight_sum, theta_sum = torch.zeros_like(of.before.weight), torch.zeros_like(of.before.theta)
    for t in range(NUM_STEPS):
        for n in range(NUM_ENVS):
            sample = t * NUM_ENVS + n
            weight_sum += factor(t, n) * of.samples.feature[sample]
            theta_sum += factor(t, n) * torch.outer(of.samples.actor_feature[sample], of.samples.score[sample])
    return weight_sum, theta_sum


def check_update(of: Iteration, weight_sum: Tensor, theta_sum: Tensor, scale: float, beta: float = 0.2) -> None:
    expected = [-scale * weight_sum, -scale * theta_sum]
    for gradient, one in zip(of.gradients, expected, strict=True):
        torch.testing.assert_close(gradient, one, rtol=1e-10, atol=1e-14)
    theta = of.before.theta + 2.0 * scale * theta_sum
    torch.testing.assert_close(of.after.weight, of.before.weight + scale * weight_sum)
    torch.testing.assert_close(of.after.theta, theta)
    torch.testing.assert_close(of.after.behaviour_theta, (1.0 - beta) * of.before.behaviour_theta + beta * theta)


@pytest.mark.parametrize(("mode", "scale"), [("BT", 1 / 6), ("sqrtB_T", 1 / (3 * math.sqrt(2)))])
def test_td0(tmp_path: Path, mode: str, scale: float) -> None:
    for one in iterations(tmp_path, scale_mode=mode):
        ratio, td_error = (x.view(NUM_STEPS, NUM_ENVS) for x in (one.samples.density_ratio, one.samples.td_error))
        assert float((ratio - 1.0).abs().min()) > 1e-3
        check_update(one, *sums(one, lambda t, n: float(ratio[t, n] * td_error[t, n])), scale)  # noqa: B023


def test_clipped_td0(tmp_path: Path) -> None:
    clips = 0
    for one in iterations(tmp_path, ratio_clip=0.8):
        ratio = one.samples.density_ratio.view(NUM_STEPS, NUM_ENVS)
        td_error = one.samples.td_error.view(NUM_STEPS, NUM_ENVS)
        clips += int((ratio > 0.8).sum())
        check_update(one, *sums(one, lambda t, n: min(0.8, float(ratio[t, n])) * float(td_error[t, n])), 1 / 6)  # noqa: B023
        assert float(one.outputs["max_rho"]) <= 0.8
        assert torch.equal(one.outputs["importance_ratio"][0], one.samples.density_ratio)
    assert clips > 0


@pytest.mark.parametrize("method", ["gtd2", "tdc"])
def test_gradient_td(tmp_path: Path, method: str) -> None:
    first, second = iterations(tmp_path, method=method, auxiliary_learning_rate=0.7)
    for one in (first, second):
        samples = one.samples
        weight_sum, auxiliary_sum = torch.zeros(8, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
        for i in range(NUM_STEPS * NUM_ENVS):
            phi, phi_bar, rho, delta = (
                samples.feature[i],
                one.bootstrap_feature[i],
                samples.ratio[i],
                samples.td_error[i],
            )
            h = float(one.before.auxiliary @ phi) / math.sqrt(8)
            weight_sum += rho * (h * (phi - GAMMA * phi_bar) if method == "gtd2" else delta * phi - GAMMA * h * phi_bar)
            auxiliary_sum += (rho * delta - h) * phi
        _, theta_sum = sums(one, lambda t, n: float((samples.ratio * samples.td_error)[t * NUM_ENVS + n]))  # noqa: B023
        check_update(one, weight_sum, theta_sum, 1 / 6)
        torch.testing.assert_close(one.after.auxiliary, one.before.auxiliary + 0.7 * auxiliary_sum / 6)
    assert torch.equal(first.after.weight, first.before.weight) == (method == "gtd2")
    assert not torch.equal(second.after.weight, second.before.weight)


@pytest.mark.parametrize("limit", [50, 2])
def test_etd(tmp_path: Path, limit: int) -> None:
    """The follow-on trace begins with each rollout, and with each episode within it."""
    data = make_data(env={"max_episode_steps": limit})
    for one in iterations(tmp_path, data=data, method="etd"):
        ratio, td_error = (x.view(NUM_STEPS, NUM_ENVS) for x in (one.samples.density_ratio, one.samples.td_error))
        assert bool(one.batch.truncated.any()) == (limit == 2)
        follow_on = torch.ones(NUM_STEPS, NUM_ENVS, dtype=torch.float64)
        for t in range(1, NUM_STEPS):
            for n in range(NUM_ENVS):
                if not one.batch.truncated[t - 1, n]:
                    follow_on[t, n] = 1.0 + GAMMA * ratio[t - 1, n] * follow_on[t - 1, n]
        check_update(one, *sums(one, lambda t, n: float((follow_on * ratio * td_error)[t, n])), 1 / 6)  # noqa: B023


@pytest.mark.parametrize("limit", [2, 100])
@pytest.mark.parametrize("clip", [None, 1.1, 0.7])
def test_vtrace(tmp_path: Path, clip: float | None, limit: int) -> None:
    """The traces end with each rollout, and with each episode within it."""
    bound = math.inf if clip is None else clip
    data = make_data(env={"max_episode_steps": limit})
    for one in iterations(tmp_path, data=data, vtrace_lambda=0.8, ratio_clip=clip):
        ratio, td_error = (x.view(NUM_STEPS, NUM_ENVS) for x in (one.samples.density_ratio, one.samples.td_error))
        advantage = torch.zeros(NUM_STEPS + 1, NUM_ENVS, dtype=torch.float64)
        for t in reversed(range(NUM_STEPS)):
            trace = GAMMA * 0.8 * ratio[t].clamp(max=min(1.0, bound)) * ~one.batch.truncated[t]
            advantage[t] = ratio[t].clamp(max=bound) * td_error[t] + trace * advantage[t + 1]
        check_update(one, *sums(one, lambda t, n: float(advantage[t, n])), 1 / 6)  # noqa: B023


# Equivalences


def final(folder: Path, num_iterations: int = 3, *, data: Any = None, **options: Any) -> Parameters:
    return iterations(folder, num_iterations, data=data, **options)[-1].after


def equal(first: Parameters, second: Parameters) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_etd_of_single_steps_is_td0(tmp_path: Path) -> None:
    first, second = (final(tmp_path, data=make_data(3, n_steps=1), method=method) for method in ("etd", "td0"))
    assert equal(first, second)


def test_vtrace_without_traces_is_clipped_td0(tmp_path: Path) -> None:
    first = final(tmp_path, vtrace_lambda=0.0, ratio_clip=1.05)
    assert equal(first, final(tmp_path, ratio_clip=1.05))
    assert not equal(first, final(tmp_path))


def test_on_policy_all_ratios_are_1_and_there_is_no_gap(tmp_path: Path) -> None:
    on_policy = {"beta": 1.0, "behaviour_std": 0.6, "behaviour_offset_scale": 0.0}
    for one in iterations(tmp_path, 3, **on_policy):
        assert torch.equal(one.samples.density_ratio, torch.ones(NUM_ENVS * NUM_STEPS, dtype=torch.float64))
        assert one.outputs["tracking_gap"] == 0.0
        assert one.outputs["mean_rho2"] == 1.0
        assert not torch.equal(one.after.theta, one.before.theta)


def test_with_beta_0_the_behaviour_is_frozen(tmp_path: Path) -> None:
    for one in iterations(tmp_path, beta=0.0):
        assert torch.equal(one.after.behaviour_theta, one.before.behaviour_theta)
        assert not torch.equal(one.after.theta, one.before.theta)


def test_both_policies_stay_in_their_ball(tmp_path: Path) -> None:
    one = iterations(tmp_path, 1, theta_radius=0.5)[0]
    assert float(one.before.theta.norm()) > 0.5
    assert [float(theta.norm()) for theta in (one.after.theta, one.after.behaviour_theta)] == pytest.approx([0.5, 0.5])
    unprojected = one.before.theta - 2.0 * one.gradients[1]
    torch.testing.assert_close(one.after.theta, 0.5 * unprojected / unprojected.norm())
    behaviour = 0.8 * one.before.behaviour_theta + 0.2 * unprojected
    torch.testing.assert_close(one.after.behaviour_theta, 0.5 * behaviour / behaviour.norm())


def test_a_halved_learning_rate_scale_halves_the_step(tmp_path: Path) -> None:
    steps = []
    for scale in (1.0, 0.5):
        data, record = make_data(1), Record()
        model = make_model(data, method="tdc")
        model.learning_rate_scale = scale
        fit(tmp_path, data, model, record)
        one = record.iterations[0]
        assert one.outputs["learning_rate"] == scale
        assert model.mean_step == pytest.approx(scale)
        steps.append([after - before for after, before in zip(one.after, one.before, strict=True)])
    for whole, half in zip(*steps, strict=True):
        if whole is not steps[0][2]:  # θ_μ follows by β, whatever the rate
            torch.testing.assert_close(half, 0.5 * whole)


@pytest.mark.parametrize("mode", ["BT", "sqrtB_T"])
def test_a_dimensionless_step_is_in_units_of_the_largest_eigenvalue(tmp_path: Path, mode: str) -> None:
    """Of the mean matrix of the first ten rollouts, on which nothing is learned."""
    data, record = make_data(12), Record()
    model = make_model(data, dimensionless_step=0.3, learning_rate=99.0, scale_mode=mode)
    trainer = fit(tmp_path, data, model, record)
    first, rest = record.iterations[:10], record.iterations[10:]
    matrices = [td_matrix(one.samples.feature, one.bootstrap_feature, one.samples.ratio, GAMMA) for one in first]
    largest = float(torch.linalg.eigvals(torch.stack(matrices).mean(0)).abs().max()) / math.sqrt(8)
    assert model.mean_step * largest == pytest.approx(0.3, rel=1e-10)
    assert all(equal(one.before, one.after) and one.outputs == {} for one in first)
    assert [float(one.outputs["learning_rate"]) for one in rest] == [model.learning_rate] * 2
    assert (trainer.global_step, model.update_steps) == (12, 2)


def test_without_a_discount_the_critic_finds_the_teacher(tmp_path: Path) -> None:
    """A contraction: w_R predicts the reward exactly, and each step comes nearer to it."""
    data = make_data(60, gamma=0.0, num_envs=32, n_steps=4, env={"feature_dim": 5, "p_mix": 0.0, **NEAR})
    on_policy: dict[str, Any] = {"actor_learning_rate": 0.0, "target_std": 0.5, "behaviour_offset_scale": 0.0}
    learned = iterations(tmp_path, data=data, dimensionless_step=1.3, **on_policy)[10:]
    errors = [float(one.outputs["critic_teacher_error"]) for one in learned]
    assert all(after < before for before, after in pairwise(errors))
    assert errors[-1] < 1e-5 * errors[0]
