"""The environments of a training that collects rollouts: in this process, or shared out to workers."""

import os
from functools import partial
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rlmods.data.experience import ExperienceDataModule
from rlmods.data.rollout_parts import AnyEnvironments
from rlmods.envs.make import make_envs
from rlmods.envs.worker_envs import WorkerEnvironments


def training_environments(
    data: ExperienceDataModule,
    num_workers: int | None,
    *,
    double_buffering: bool,
    reward_dtype: type[np.floating[Any]],
) -> AnyEnvironments:
    """The `num_envs` environments of a data module.

    Args:
        data: whose settings they have.
        num_workers: processes that step them; None steps them here.
        double_buffering: whether the workers step one half while the policy decides for the other.
        reward_dtype: of the rewards.
    """
    if num_workers is None:
        return data.make_environments(data.num_envs, reward_dtype=reward_dtype)
    cores = os.cpu_count() or 1
    if num_workers > cores:
        rank_zero_warn(
            f"got num_workers = {num_workers} on a machine of {cores} cores: they will wait for each other; type "
            f"--data.init_args.num_workers {cores}"
        )
    num_groups = 2 if double_buffering else 1
    rank_zero_info(
        f"environments: {data.num_envs} = {num_workers} workers x {num_groups} groups x "
        f"{data.num_envs // (num_workers * num_groups)}"
    )
    return WorkerEnvironments(
        partial(
            make_envs,
            data.env_id,
            env_kwargs=data.env_kwargs,
            resize=data.resize,
            grayscale=data.grayscale,
            frame_stack=data.frame_stack,
            reward_dtype=reward_dtype,
            borrow=True,
        ),
        data.spec,
        data.num_envs,
        num_workers,
        double_buffering=double_buffering,
        reward_dtype=reward_dtype,
    )
