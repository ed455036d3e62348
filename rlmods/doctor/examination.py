"""All rules, asked of the objects that a run would be made of: effective values, never configured ones."""

import math

import psutil

from rlmods.algorithms.dqn import DQN
from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.algorithms.linear_td import LinearTD
from rlmods.algorithms.ppo import PPO
from rlmods.algorithms.sac import SAC
from rlmods.algorithms.td3 import TD3
from rlmods.callbacks import TargetClamp, ValueBoundGuard
from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.experience import ExperienceDataModule
from rlmods.data.expert import ExpertDataModule
from rlmods.data.rollouts import RolloutDataModule
from rlmods.data.sequences import SequenceDataModule
from rlmods.doctor import budget as budgets
from rlmods.doctor import linear, policies, replay, rollouts, schedules, targets, updates, values
from rlmods.doctor.budget import Budget
from rlmods.doctor.line import Line
from rlmods.doctor.subject import (
    Subject,
    abilities_of,
    accumulated,
    budget_of,
    episode_limit,
    experience_bytes,
    network_bytes,
    reward_bounds,
    value_interval,
)
from rlmods.doctor.world_model import examine_world_model
from rlmods.functional.expert_share import expert_share
from rlmods.networks.action_heads import LOG_STD_HIGH, BoundedGaussianHead, GaussianHead
from rlmods.networks.value_heads import CategoricalHead, ScalarHead


def examine(subject: Subject) -> list[Line]:
    """What the rules say, the run first, then its data, its values, its algorithm."""
    model, data = subject.model, subject.data
    if not isinstance(data, ExperienceDataModule):
        return [
            Line("WARN", "data", f"{type(data).__name__} is no data module of rlmods", "Nothing is known of the run")
        ]
    budget = budget_of(subject, data)
    lines = [*_run(subject, data, budget), *_experience(subject, data, budget), *_values(subject, data)]
    if isinstance(model, DQN):
        lines += _dqn(model, data, budget)
    elif isinstance(model, TD3):
        lines += _td3(model, budget)
    elif isinstance(model, SAC):
        lines += _sac(model, data, budget)
    elif isinstance(model, PPO) and isinstance(data, RolloutDataModule):
        lines += _ppo(subject, model, data, budget)
    elif isinstance(model, LinearTD):
        lines += _linear_td(model, budget)
    elif isinstance(model, DreamerV3):
        lines += examine_world_model(model, data, budget, value_interval(data))
    else:
        note = "Its own arithmetic is not known; what holds for every algorithm is above"
        lines.append(Line("PASS", "algorithm", f"{type(model).__name__} is no algorithm of rlmods", note))
    return lines


def _run(subject: Subject, data: ExperienceDataModule, budget: Budget) -> list[Line]:
    lines = [budgets.updates(budget)]
    if isinstance(data, ReplayDataModule):
        acts_at_random = isinstance(subject.model, TD3 | SAC)
        lines.append(budgets.warm_up(budget, data.learning_starts, acts_at_random))
    return [
        *lines,
        budgets.evaluations(
            budget,
            data.eval_every,
            data.eval_episodes,
            episode_limit(data),
            allowed=subject.trainer.limit_val_batches != 0,
        ),
        budgets.evaluation_episodes(data.eval_episodes),
        budgets.logging(subject.trainer.log_every_n_steps, budget.num_iterations),  # type: ignore[attr-defined]
    ]


def _experience(subject: Subject, data: ExperienceDataModule, budget: Budget) -> list[Line]:
    memory = replay.memory(
        experience_bytes(data, subject.model),
        network_bytes(subject.model),
        psutil.virtual_memory().available,
        data.buffer_size if isinstance(data, ReplayDataModule | SequenceDataModule) else None,
    )
    if not isinstance(data, ReplayDataModule):
        return [memory]
    processes = subject.processes
    drawn = data.updates_per_iteration * data.batch_size
    bounds = replay.VALUE_BASED if isinstance(subject.model, DQN) else replay.ACTOR_CRITIC
    held = min(budget.first_update // processes, data.buffer_size)
    lines = [
        updates.effective_batch(data.batch_size, accumulated(subject.model), processes, data.buffer_size),
        replay.replay_ratio(drawn, data.steps_per_iteration, data.max_replay_ratio, bounds),
        replay.first_batch(data.batch_size, held, data.learning_starts),
        replay.buffer(data.buffer_size, budget.end // processes, budget.first_update // processes),
        memory,
    ]
    if data.prioritized_replay:
        alpha, beta0 = data.prioritized_replay_alpha, data.prioritized_replay_beta0
        lines.append(replay.priorities(alpha, beta0, data.updates_per_iteration))
    if data.replay_strata is not None:
        lines.append(replay.strata(data.replay_strata, data.replay_strata_beta))
    if isinstance(data, ExpertDataModule):
        lines += _curriculum(data, budget)
    return lines


def _curriculum(data: ExpertDataModule, budget: Budget) -> list[Line]:
    start, decay, decay_steps, floor, _ = data.schedule
    last = expert_share(budget.end, start=start, decay=decay, decay_steps=decay_steps, floor=floor)
    return [
        schedules.expert(data.env_id, exists=abilities_of(data).has_expert),
        schedules.expert_curriculum(*data.schedule, budget=budget.total_env_steps),
        schedules.mixed_returns(data.n_steps, last, through_expert=data.n_step_through_expert),
    ]


def _values(subject: Subject, data: ExperienceDataModule) -> list[Line]:
    has_replay = isinstance(data, ReplayDataModule)
    n_steps = data.n_steps if isinstance(data, ReplayDataModule | RolloutDataModule) else 1
    bound = value_interval(data)
    lines = [
        values.discounting(data.gamma, n_steps, episode_limit(data), bootstraps_after=has_replay),
        values.value_bound(bound, reward_bounds(data.spec), data.gamma),
    ]
    for callback in subject.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, TargetClamp | ValueBoundGuard):
            cuts = isinstance(callback, TargetClamp) and callback.mode != "observe"
            name = type(callback).__name__
            lines.append(values.clamp(name, (callback.low, callback.high), bound, cuts=cuts))
    return lines


def _dqn(model: DQN, data: ExperienceDataModule, budget: Budget) -> list[Line]:
    interval, hard_interval = model.target_update_interval, model.target_hard_update_interval
    is_squared = isinstance(model.head, ScalarHead) and model.head.loss == "mse"
    lines = [
        targets.target_mixing(model.tau, interval, "target_update_interval", *_pace(budget)),
        updates.learning_rate(
            model.learning_rate, _rates(model.learning_rate_at, budget), budget.progress(budget.start)
        ),
        updates.gradient_clip(model.max_grad_norm, is_squared=is_squared),
        schedules.exploration_rate(
            model.exploration_initial_eps,
            model.exploration_final_eps,
            model.exploration_fraction,
            budget.total_env_steps,
            budget.first_update,
            model.exploration_care_scale,
            noisy=model.noisy,
        ),
    ]
    if hard_interval is not None:
        lines.append(targets.hard_copies(hard_interval, model.tau, interval, budget.num_updates))
    if isinstance(model.head, CategoricalHead) and model.support is not None:
        support = values.Interval(*model.support)
        lines.append(values.support(model.head.atoms.numel(), support, value_interval(data)))
    if max(model.bc_coef, model.bc_final_coef) > 0.0:
        lines.append(
            schedules.cloning(
                model.bc_coef,
                model.bc_final_coef,
                model.bc_fraction,
                budget.total_env_steps,
                budget.first_update,
                has_expert=isinstance(data, ExpertDataModule),
            )
        )
    return lines


def _pace(budget: Budget) -> tuple[int, float, float]:
    return budget.num_updates, budget.frames_per_update, budget.updates_per_iteration


def _rates(rate_at: updates.RateAt, budget: Budget) -> updates.Rates:
    """From the first update to the last."""
    first = max(budget.first_update, budget.start + budget.steps_per_iteration)
    return updates.rates(rate_at, budget.progress(first), budget.progress(budget.end))


def _td3(model: TD3, budget: Budget) -> list[Line]:
    delay = model.policy_delay
    return [
        targets.target_mixing(model.tau, delay, "policy_delay", *_pace(budget)),
        policies.policy_delay(delay, budget.num_updates, budget.updates_per_iteration),
        updates.learning_rate(model.learning_rate, _rates(lambda _: model.learning_rate, budget)),
        *(updates.gradient_clip(model.max_grad_norm.get(name), name) for name in ("critic", "actor")),
        schedules.exploration_noise(
            model.exploration_noise, model.final_exploration_noise, model.exploration_fraction, budget.total_env_steps
        ),
        policies.target_noise(model.target_policy_noise, model.target_noise_clip),
    ]


def _sac(model: SAC, data: ExperienceDataModule, budget: Budget) -> list[Line]:
    num_actions, interval = model.actions.num_actions, model.target_update_interval
    return [
        targets.target_mixing(model.tau, interval, "target_update_interval", *_pace(budget)),
        updates.learning_rate(model.learning_rate, _rates(lambda _: model.learning_rate, budget)),
        *(updates.gradient_clip(model.max_grad_norm.get(name), name) for name in ("critic", "actor")),
        policies.target_entropy(model.target_entropy, num_actions)
        if model.learns_ent_coef
        else policies.fixed_temperature(float(model.entropy_coefficient), num_actions, data.gamma),
    ]


def _ppo(subject: Subject, model: PPO, data: RolloutDataModule, budget: Budget) -> list[Line]:
    # Schedules are taken where a rollout begins.
    last = budget.progress((budget.num_iterations - 1) * budget.steps_per_iteration)
    applied = updates.rates(model.learning_rate_at, budget.progress(budget.start), last)
    clip_range = model.clip_range_at(budget.progress(budget.start))
    anneals = "constant" in (model.learning_rate_schedule, model.clip_range_schedule)
    lines = [
        rollouts.rollout_batch(
            data.num_envs,
            data.n_steps,
            subject.processes,
            model.batch_size,
            model.n_epochs,
            normalizes=model.normalize_advantage,
        ),
        rollouts.schedule_length(budget.num_iterations, anneals=not anneals),
        rollouts.advantage_horizon(data.gamma, model.gae_lambda, data.n_steps),
        updates.learning_rate(model.learning_rate, applied, budget.progress(budget.start)),
        rollouts.policy_step(clip_range, model.target_kl),
        updates.gradient_clip(model.max_grad_norm, "all"),
        _entropy_bonus(model),
    ]
    bound = value_interval(data)
    if model.clip_range_vf is not None and bound is not None:
        lines.append(values.value_clip(model.clip_range_vf, bound, budget.num_iterations))
    if isinstance(model.head, GaussianHead):
        std = float(model.head.bounded_log_std().detach().exp().amax())
        highest = math.exp(LOG_STD_HIGH) if isinstance(model.head, BoundedGaussianHead) else None
        lines.append(policies.initial_std(std, highest, model.head.num_outputs))
    return lines


def _entropy_bonus(model: PPO) -> Line:
    action = model.spec["action"]
    choices = action.get("nvec", [action["n"]]) if action["kind"] != "continuous" else [2] * model.head.num_outputs
    bounded = action["kind"] != "continuous" or isinstance(model.head, BoundedGaussianHead)
    entropy = math.fsum(math.log(n) for n in choices)  # ln 2 of each action in [−1, 1]
    return policies.entropy_bonus(model.ent_coef, entropy, len(choices), model.batch_size, bounded=bounded)


def _linear_td(model: LinearTD, budget: Budget) -> list[Line]:
    settings = model.spec.get("settings", {})
    features = settings["features"]
    radius = settings["v_max"] if model.action_mode == "ball_clip" else None
    return [
        linear.critical_step(model.dimensionless_step, model.learning_rate, features["feature_dim"]),
        linear.importance_ratio(
            model.behaviour_std, model.target_std, features["action_size"], radius, model.ratio_clip
        ),
        linear.following(model.beta, model.actor_learning_rate, budget.num_iterations),
    ]
