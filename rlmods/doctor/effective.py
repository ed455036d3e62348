"""What is in effect at the start of a run, asked of its objects, and which settings have no reader there."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule

from rlmods.algorithms.dqn import DQN
from rlmods.algorithms.dreamer_v3 import DreamerV3
from rlmods.algorithms.dreamer_version import OF_VERSION
from rlmods.algorithms.linear_td import LinearTD
from rlmods.algorithms.ppo import PPO
from rlmods.algorithms.sac import SAC
from rlmods.algorithms.td3 import TD3
from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.experience import ExperienceDataModule
from rlmods.data.expert import ExpertDataModule
from rlmods.data.rollouts import RolloutDataModule
from rlmods.data.sequences import SequenceDataModule
from rlmods.doctor.settings import Setting, compare
from rlmods.doctor.subject import Subject, abilities_of, accumulated, budget_of, first_optimizers, has_pixels
from rlmods.networks.action_heads import GaussianHead

_MODEL, _DATA = "model.init_args.", "data.init_args."
_Effective = dict[str, tuple[Any, str]]


def effective_settings(subject: Subject, configured: Mapping[str, Any], in_vain: Mapping[str, str]) -> list[Setting]:
    """A row for each setting of model and data, and for those of the run that are decided only now.

    Args:
        subject: what the run would be made of.
        configured: all settings by dotted name.
        in_vain: those that have no effect, with the reason.
    """
    shown = {
        name: value
        for name, value in configured.items()
        if name.startswith((_MODEL, _DATA)) or name in ("seed_everything", "torch_threads", *_of_trainer(subject))
    }
    nothing = {name: ("no effect", reason) for name, reason in in_vain.items()}
    return compare(shown, _stored(subject, shown) | _of_trainer(subject) | _derived(subject) | nothing)


def _stored(subject: Subject, configured: Mapping[str, Any]) -> _Effective:
    """Plain attributes of the same name; of what is built into networks nothing is left to ask."""
    found: _Effective = {}
    for prefix, owner in ((_MODEL, subject.model), (_DATA, subject.data)):
        for name in configured:
            if not name.startswith(prefix):
                continue
            value = getattr(owner, name.removeprefix(prefix), inspect.Parameter.empty)
            if value is None or isinstance(value, bool | int | float | str | list | tuple):
                found[name] = value, ""
    return found


def _of_trainer(subject: Subject) -> _Effective:
    trainer: Any = subject.trainer
    return {
        "seed_everything": (torch.initial_seed(), ""),
        "torch_threads": (torch.get_num_threads(), ""),
        "trainer.accelerator": (type(trainer.accelerator).__name__.removesuffix("Accelerator").lower(), "as found"),
        "trainer.devices": (subject.processes, "processes in all"),
        "trainer.precision": (trainer.precision, ""),
        "trainer.log_every_n_steps": (trainer.log_every_n_steps, ""),
    }


def _derived(subject: Subject) -> _Effective:
    """What is computed from several settings."""
    data = subject.data
    if not isinstance(data, ExperienceDataModule):
        return {}
    budget = budget_of(subject, data)
    every = max(1, data.eval_every // budget.steps_per_iteration) * budget.steps_per_iteration
    effective: _Effective = {_DATA + "eval_every": (every, "whole iterations")}
    if data.seed is None:
        effective[_DATA + "seed"] = (torch.initial_seed(), "that of seed_everything")
    if isinstance(data, ReplayDataModule):
        batches = budget.updates_per_iteration * accumulated(subject.model)
        effective[_DATA + "updates_per_iteration"] = (round(batches, 3), "mini-batches on average")
        effective[_DATA + "learning_starts"] = (budget.first_update, "the iteration in which the first update is made")
    elif isinstance(data, SequenceDataModule):
        effective[_DATA + "learning_starts"] = (budget.first_update, "the iteration in which the first update is made")
    else:
        made = budget.num_iterations * budget.steps_per_iteration
        effective[_DATA + "total_env_steps"] = (made, "whole rollouts")
    return effective | _of_model(subject, data)


def _of_model(subject: Subject, data: ExperienceDataModule) -> _Effective:
    model, effective = subject.model, _Effective()
    budget = budget_of(subject, data)
    first = budget.progress(max(budget.first_update, budget.start + budget.steps_per_iteration))
    if isinstance(model, DQN):
        applied = model.learning_rate_at(first) * model.learning_rate_scale
        effective[_MODEL + "learning_rate"] = (applied, "at the first update")
        schedule = model.learning_rate_at.keywords["schedule"]
        effective[_MODEL + "learning_rate_schedule"] = (schedule, "")
        last = model.learning_rate_at(1.0) * model.learning_rate_scale
        effective[_MODEL + "final_learning_rate"] = (last, "at the end of the budget")
    elif isinstance(model, PPO):
        begun = budget.progress(budget.start)
        applied = model.learning_rate_at(begun) * model.learning_rate_scale
        effective[_MODEL + "learning_rate"] = (applied, "at the first rollout")
        effective[_MODEL + "clip_range"] = (model.clip_range_at(begun), "at the first rollout")
        if isinstance(data, RolloutDataModule):
            effective[_MODEL + "bptt_horizon"] = (model.segment_length(data.n_steps), "steps of a segment")
        if isinstance(model.head, GaussianHead):
            effective[_MODEL + "log_std_init"] = (round(float(model.head.bounded_log_std().detach().amax()), 6), "")
    elif isinstance(model, DreamerV3):
        source = f"version {model.hparams['version']}, or as given"
        effective |= {_MODEL + name: (getattr(model.choices, name), source) for name in OF_VERSION}
    elif isinstance(model, LinearTD) and model.dimensionless_step is not None:
        effective[_MODEL + "learning_rate"] = (None, "measured on the first ten rollouts, for dimensionless_step")
    else:
        rates = {group["name"]: group["lr"] for group in first_optimizers(model)}
        if rates and len(set(rates.values())) == 1:
            effective[_MODEL + "learning_rate"] = (next(iter(rates.values())), ", ".join(rates))
    if isinstance(model, SAC):
        effective[_MODEL + "ent_coef"] = (float(model.entropy_coefficient), "at the start")
    return effective


def defaults_of(subject: Subject) -> dict[str, Any]:
    """Defaults of the constructors of model and data, by dotted name."""
    return {
        prefix + name: parameter.default
        for prefix, owner in ((_MODEL, subject.model), (_DATA, subject.data))
        for name, parameter in inspect.signature(type(owner).__init__).parameters.items()
        if parameter.default is not parameter.empty
    }


def without_reader(subject: Subject) -> dict[str, str]:
    """Settings that have no effect beside the others, by dotted name, and why."""
    model, data = subject.model, subject.data
    reasons: dict[str, str] = {}
    if isinstance(data, ReplayDataModule) and not data.prioritized_replay:
        names = ("prioritized_replay_alpha", "prioritized_replay_beta0", "prioritized_replay_eps")
        reasons |= {_DATA + name: "prioritized_replay is false" for name in names}
    if isinstance(data, ReplayDataModule) and data.replay_strata is None:
        reasons[_DATA + "replay_strata_beta"] = "there are no replay_strata"
    if isinstance(data, ExpertDataModule) and data.schedule.decay == 1.0:
        reasons[_DATA + "expert_share_decay_steps"] = "expert_share_decay is 1"
    reasons |= _without_care(model, data)
    found: dict[str, str] = {}
    if isinstance(model, DQN):
        first = budget_of(subject, data).first_update if isinstance(data, ExperienceDataModule) else 0
        found = _without_reader_in_dqn(model, first)
    elif isinstance(model, TD3 | SAC):
        found = _without_reader_in_actor_critic(model)
    elif isinstance(model, PPO):
        found = _without_reader_in_ppo(model)
    elif isinstance(model, LinearTD):
        found = _without_reader_in_linear_td(model)
    elif isinstance(model, DreamerV3) and model.spec["action"]["kind"] == "continuous":
        found = {"actor_unimix": "actions are continuous"}
    return reasons | {_MODEL + name: reason for name, reason in found.items()}


def _without_care(model: LightningModule, data: LightningDataModule) -> dict[str, str]:
    """Factors for states that need care, where the environment never says that one does."""
    scales = {}
    if isinstance(model, DQN):
        scales[_MODEL + "exploration_care_scale"] = model.exploration_care_scale
    if isinstance(data, ExpertDataModule):
        scales[_DATA + "expert_care_scale"] = data.schedule.care_scale
    scales = {name: scale for name, scale in scales.items() if scale != 1.0}
    if not scales or not isinstance(data, ExperienceDataModule) or abilities_of(data).says_care:
        return {}
    return dict.fromkeys(scales, f"{data.env_id} never says that it needs care")


def _without_reader_in_dqn(model: DQN, first_update: int) -> dict[str, str]:
    found = {}
    if model.learning_rate_warmup * model.total_env_steps <= first_update:
        found["learning_rate_warmup"] = f"it is over at the first update, at {first_update:,}"
    if model.exploration_initial_eps == model.exploration_final_eps:
        found["exploration_fraction"] = "exploration_initial_eps is exploration_final_eps"
    if model.exploration_initial_eps == model.exploration_final_eps == 0.0:
        found["exploration_care_scale"] = "exploration_initial_eps and exploration_final_eps are 0"
    if not model.noisy:
        found["noisy_std"] = "noisy is false"
    if model.bc_coef == model.bc_final_coef:
        found["bc_fraction"] = "bc_coef is bc_final_coef"
    return found


def _without_reader_in_actor_critic(model: TD3 | SAC) -> dict[str, str]:
    found = {}
    if not has_pixels(model.spec):
        names = ("encoder", "encoder_ownership", "features_dim", "random_shift", "target_encoder_tau")
        found = dict.fromkeys(names, "there are no pixels")
    if isinstance(model, SAC):
        return found if model.learns_ent_coef else found | {"target_entropy": "ent_coef is fixed"}
    if model.target_policy_noise == 0.0:
        found["target_noise_clip"] = "target_policy_noise is 0"
    if model.exploration_noise == model.final_exploration_noise:
        found["exploration_fraction"] = "exploration_noise is final_exploration_noise"
    return found


def _without_reader_in_ppo(model: PPO) -> dict[str, str]:
    found = {}
    if model.optimizer != "muon":
        found["muon_parameters"] = f"optimizer is {model.optimizer}"
    if model.optimizer == "adam":
        found["weight_decay"] = "optimizer is adam"
    if model.prio_alpha == 0.0:
        found["prio_beta0"] = "prio_alpha is 0"
    if model.spec["action"]["kind"] != "continuous":
        found |= dict.fromkeys(("action_distribution", "log_std_init"), "actions are discrete")
    return found


def _without_reader_in_linear_td(model: LinearTD) -> dict[str, str]:
    found = {}
    if model.dimensionless_step is not None:
        found["learning_rate"] = "dimensionless_step sets it"
    if model.auxiliary_weight is None:
        found["auxiliary_learning_rate"] = f"method is {model.method}"
    if model.stream is None:
        found["seed"] = "random_stream is torch"
    return found
