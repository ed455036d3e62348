"""The objects that a run would be made of, and the numbers that the rules ask of them."""

from math import ceil, prod
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import nn

from rlmods.algorithms.base import Algorithm
from rlmods.algorithms.dqn import DQN
from rlmods.algorithms.linear_td import LinearTD
from rlmods.algorithms.ppo import PPO
from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.experience import ExperienceDataModule
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.rollouts import RolloutDataModule
from rlmods.data.sequence_replay import SequenceReplay
from rlmods.data.sequences import SequenceDataModule
from rlmods.data.settings import steps_before_sequences
from rlmods.data.strata import StratifiedReplayBuffer
from rlmods.doctor.budget import Budget
from rlmods.doctor.values import Interval
from rlmods.functional.value_bounds import discounted_value_bounds
from rlmods.types import DecidingPolicy, EnvSpec, is_array_spec

_CALIBRATION_ITERATIONS = 10  # of a linear critic with a dimensionless step, in which nothing is learned


class Subject(NamedTuple):
    """What a run would be made of.

    Attributes:
        processes: over which it runs.
        start: environment steps that were made before: of a parent, or of a run that was stopped.
    """

    model: LightningModule
    data: LightningDataModule
    trainer: Trainer
    processes: int
    start: int


def attach(model: LightningModule, data: LightningDataModule, trainer: Trainer, start: int) -> tuple[Subject, str]:
    """Let the parts know each other as `fit` does, without its writing anything.

    Returns:
        The subject, and the sentence with which the model refuses; empty where it does not.
    """
    model.trainer = data.trainer = trainer
    trainer.datamodule = data  # type: ignore[attr-defined]
    refusal = ""
    try:
        model.setup("fit")
    except ValueError as error:
        refusal = str(error)
    finally:
        model.teardown("fit")
    return Subject(model, data, trainer, trainer.num_devices * trainer.num_nodes, start), refusal


def budget_of(subject: Subject, data: ExperienceDataModule) -> Budget:
    """The length of the run, with the trainer's own limits."""
    steps = data.steps_per_iteration * subject.processes
    iterations = ceil(data.total_env_steps / steps)
    limit = subject.trainer.limit_train_batches
    limit = limit if isinstance(limit, int) else int(limit * iterations)
    if subject.trainer.max_steps >= 0:
        limit = min(limit, subject.trainer.max_steps)
    first = _first_learning_iteration(subject, data)
    return Budget(
        data.total_env_steps,
        steps,
        min(iterations, limit),
        updates_per_iteration(subject.model, data),
        first * steps,
        subject.start,
    )


def _first_learning_iteration(subject: Subject, data: ExperienceDataModule) -> int:
    if isinstance(data, ReplayDataModule):
        starts = ceil(data.learning_starts / (data.steps_per_iteration * subject.processes))
        # With fewer vector steps no n-step return is complete.
        complete = data.n_steps * data.num_envs // data.steps_per_iteration + 1
        return max(1, starts, complete)
    if isinstance(data, SequenceDataModule):
        rows = steps_before_sequences(data.num_envs, data.batch_size, data.batch_length)
        starts = ceil(data.learning_starts / (data.steps_per_iteration * subject.processes))
        return max(1, starts, ceil(rows / data.steps_per_iteration))
    if isinstance(subject.model, LinearTD) and subject.model.dimensionless_step is not None:
        return _CALIBRATION_ITERATIONS + 1
    return 1


def updates_per_iteration(model: LightningModule, data: ExperienceDataModule) -> float:
    """Steps of the optimiser, on average, at most; of a module of another kind one."""
    if isinstance(data, ReplayDataModule):
        drawn = data.uses_per_transition * data.steps_per_iteration
        return drawn / (data.batch_size * accumulated(model))
    if isinstance(data, SequenceDataModule):
        return data.updates_per_policy_step * data.steps_per_iteration
    if isinstance(model, PPO):
        return model.n_epochs * max(1, data.steps_per_iteration // model.batch_size)
    return 1


def accumulated(model: LightningModule) -> int:
    """Mini-batches of one update."""
    return model.accumulate_grad_batches if isinstance(model, DQN) else 1


def episode_limit(data: ExperienceDataModule) -> int | None:
    """Steps after which an episode is cut; None where nothing says."""
    kwargs, settings = data.env_kwargs or {}, data.spec.get("settings", {})
    registered = gym.registry.get(data.env_id.rpartition(":")[2])
    limits = [
        kwargs.get("max_episode_steps"),
        settings.get("max_episode_steps"),
        None if registered is None else registered.max_episode_steps,
    ]
    return next((int(limit) for limit in limits if limit is not None), None)


def reward_bounds(spec: EnvSpec) -> list[float] | None:
    """Lowest and highest reward of one step; None where nobody says."""
    bounds = spec.get("settings", {}).get("reward_bounds")
    return None if bounds is None else [float(bound) for bound in bounds]


def value_interval(data: ExperienceDataModule) -> Interval | None:
    """In which every policy's values lie; None where the rewards are not known. A time limit does not end a value."""
    bounds = reward_bounds(data.spec)
    return None if bounds is None else Interval(*discounted_value_bounds(bounds[0], bounds[1], data.gamma))


def has_pixels(spec: EnvSpec) -> bool:
    """Whether an observation holds images."""
    observation = spec["observation"]
    arrays = [observation] if is_array_spec(observation) else observation.values()
    return any(array["dtype"] == "uint8" and len(array["shape"]) == 3 for array in arrays)


class Abilities(NamedTuple):
    """What the environments offer besides steps."""

    has_expert: bool
    says_care: bool


def abilities_of(data: ExperienceDataModule) -> Abilities:
    """Asked of the environments of the training, which are made, reset and closed again."""
    environments = data.make_environments(data.num_envs)
    try:
        environments.reset(0)
        return Abilities(environments.expert_action() is not None, environments.needs_care() is not None)
    finally:
        environments.close()


def experience_bytes(data: ExperienceDataModule, model: LightningModule) -> int:
    """What a process keeps: its replay as it is laid out, or one rollout with both observations of each step."""
    if isinstance(data, SequenceDataModule) and isinstance(model, DecidingPolicy):
        return SequenceReplay.memory_bytes(data.spec, data.buffer_size, model.initial_state(1).shape[1])
    if isinstance(data, ReplayDataModule):
        return _replay_class(data).memory_bytes(data.spec, data.buffer_size)
    observation = data.spec["observation"]
    arrays = [observation] if is_array_spec(observation) else observation.values()
    of_step = 2 * sum(prod(array["shape"]) * np.dtype(array["dtype"]).itemsize for array in arrays)
    return of_step * data.steps_per_iteration


def _replay_class(data: ReplayDataModule) -> type[ReplayBuffer]:
    if data.replay_strata is not None:
        return StratifiedReplayBuffer
    return PrioritizedReplayBuffer if data.prioritized_replay else ReplayBuffer


def network_bytes(model: nn.Module) -> int:
    """Parameters and buffers, and for those that learn a gradient and two moments besides."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(t.numel() * t.element_size() * (4 if t.requires_grad else 1) for t in tensors)


def first_optimizers(model: LightningModule) -> list[Any]:
    """The parameter groups that a fit would begin with."""
    if not isinstance(model, Algorithm):
        return []
    optimizers: Any = model.configure_optimizers()
    listed = optimizers if isinstance(optimizers, list) else [optimizers]
    return [group for optimizer in listed for group in optimizer.param_groups]


def is_rollout(data: LightningDataModule) -> bool:
    """Whether each iteration learns from a rollout alone."""
    return isinstance(data, RolloutDataModule)
