"""Rollouts for algorithms that learn from what the current policy has just done: T steps of N environments, once."""

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from rlmods.data.experience import TRAINING, ExperienceDataModule
from rlmods.data.observations import map_observation
from rlmods.data.processes import sum_over_processes
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.data.settings import check_rollout_settings, check_settings
from rlmods.data.training_environments import training_environments
from rlmods.envs.make import make_envs
from rlmods.envs.worker_pool import WorkerError
from rlmods.types import CollectionSeconds, Observation, Policy, Rollout

_NEVER = 2**31 - 1  # steps; None would be Gymnasium's own limit where it registered one


class RolloutDataModule(ExperienceDataModule):
    """Environments and evaluation of one run; an iteration is one rollout, learned from once and forgotten.

    All settings are of each process, but for `total_env_steps`, `eval_every` and `eval_episodes`, which count over all
    processes.

    Args:
        env_id: of a registered Gymnasium environment.
        total_env_steps: the budget; the last rollout is whole, so up to N·T − 1 steps more are made. Frames that only
            reset an environment take a part of it, and are not counted as steps.
        num_envs: environments that are stepped together, N.
        n_steps: steps of each environment in a rollout, T.
        gamma: discount of one step, in [0, 1).
        eval_episodes: episodes of one evaluation.
        eval_every: environment steps between two evaluations, rounded down to whole iterations, at least one.
        env_kwargs: arguments of the environment.
        vectorization: native where the environment has its own vector implementation, else sync or async; workers
            shares the environments of the training out to processes. Those of an evaluation are then chosen by auto.
        num_workers: processes of `workers`.
        double_buffering: with `workers`, the policy decides for one half of the environments while the other half
            steps. It changes the order of the policy's random numbers.
        resize: height and width to which pixels are reduced, next to the environment's step.
        frame_stack: frames of one observation; of a dict the image alone is stacked.
        seed: of the environments; None takes the seed that torch was given.

    Raises:
        ValueError: where a setting is outside its range, or the environment does not exist.
    """

    fixed_settings = ("num_envs", "gamma", "n_steps", "env_kwargs", "num_workers", "double_buffering")

    def __init__(
        self,
        env_id: str,
        total_env_steps: int,
        *,
        num_envs: int = 8,
        n_steps: int = 128,
        gamma: float = 0.99,
        eval_episodes: int = 10,
        eval_every: int = 5_000,
        env_kwargs: dict[str, Any] | None = None,
        vectorization: Literal["auto", "native", "sync", "async", "workers"] = "auto",
        num_workers: int | None = None,
        double_buffering: bool = False,
        resize: tuple[int, int] | None = None,
        frame_stack: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            env_id,
            total_env_steps,
            num_envs=num_envs,
            gamma=gamma,
            steps_per_iteration=num_envs * n_steps,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            env_kwargs=env_kwargs,
            vectorization="auto" if vectorization == "workers" else vectorization,
            resize=resize,
            grayscale=True,
            frame_stack=frame_stack,
            seed=seed,
        )
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        check_rollout_settings(self.hparams, self.spec.get("settings", {}).get("num_agents", 1))
        self.n_steps = n_steps
        self.num_workers = num_workers
        self.double_buffering = double_buffering
        self.collector: RolloutCollector | None = None

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 (or N, where more) training episodes of this process, by tag."""
        return {} if self.collector is None else self.collector.episodes.means()

    def collection_seconds(self) -> CollectionSeconds:
        """Where the time of the last rollout of this process went."""
        return self._fitting().seconds

    def begin_fit(self, trainer: Trainer) -> None:
        """Build the environments."""
        environments = training_environments(
            self, self.num_workers, double_buffering=self.double_buffering, reward_dtype=np.float64
        )
        self.collector = RolloutCollector(environments, gamma=self.gamma, seed=self.stream_seed(TRAINING))

    def iterate(self, trainer: Trainer) -> Rollout:
        """One rollout with the current policy."""
        collector = self._fitting()
        rollout = collector.collect(
            self.policy(trainer), self.n_steps, num_processes=trainer.world_size, device=trainer.strategy.root_device
        )
        self._env_steps = sum_over_processes(collector.env_steps, trainer)
        return rollout._replace(env_steps=self._env_steps, progress=self.progress)

    def probe_rollout(self, policies: Sequence[Policy], *, num_envs: int, num_steps: int, seed: int) -> list[Rollout]:
        """T steps in N fresh environments for each policy, all stepped at once, apart from the training.

        Args:
            policies: P of them; the rollouts come in their order.
            num_envs: N, of each policy.
            num_steps: T, of environments without a time limit of ours.
            seed: of the environments and of the actions.
        """
        trainer = self.attached_trainer()
        environments = make_envs(
            self.env_id,
            len(policies) * num_envs,
            env_kwargs=dict(self.env_kwargs or {}) | {"max_episode_steps": _NEVER},
            vectorization=self.vectorization,
            resize=self.resize,
            grayscale=self.grayscale,
            frame_stack=self.frame_stack,
            reward_dtype=np.float64,
        )
        collector = RolloutCollector(environments, gamma=self.gamma, seed=seed)
        with isolate_rng():
            torch.manual_seed(seed)
            rollout = collector.collect(
                _SideBySide(policies), num_steps, num_processes=1, device=trainer.strategy.root_device
            )
        environments.close()
        return [
            _of_environments(rollout, slice(first, first + num_envs))
            for first in range(0, len(policies) * num_envs, num_envs)
        ]

    def end_fit(self) -> None:
        """Close the environments."""
        if self.collector is not None:
            self.collector.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the workers: Lightning does not tear down after an exception."""
        if self.num_workers is not None:
            with suppress(WorkerError):  # what is on its way already says more
                self.end_fit()

    def process_state(self) -> dict[str, Any] | None:
        """The environments and the running episodes of this process."""
        return None if self.collector is None else {"collector": self.collector.state_dict(), "files": {}}

    def restore_process(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Go on with the environments."""
        if not self._fitting().load_state_dict(state["collector"]):
            rank_zero_warn(
                f"the state of {self.env_id} cannot be saved: the running episodes were abandoned at environment step "
                f"{self._env_steps}, and the run goes on with new ones"
            )

    def _fitting(self) -> RolloutCollector:
        if self.collector is None:
            raise RuntimeError("there is no collector yet: it is built when trainer.fit(model, datamodule=data) begins")
        return self.collector


class _SideBySide:
    """Several policies, each in its own share of the environments."""

    def __init__(self, policies: Sequence[Policy]) -> None:
        self.policies = policies

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Actions `[P·N, …]` for observations `[P·N, *shape]`."""
        shares = [_chunks(observation, len(self.policies), part) for part in range(len(self.policies))]
        return torch.cat(
            [policy.act(share, env_steps=env_steps) for policy, share in zip(self.policies, shares, strict=True)]
        )


def _chunks(observation: Observation, count: int, part: int) -> Observation:
    return map_observation(lambda column: column.chunk(count)[part], observation)


def _of_environments(rollout: Rollout, environments: slice) -> Rollout:
    columns: dict[str, Any] = {
        name: map_observation(lambda column: column[:, environments], field)
        for name, field in zip(Rollout._fields[:8], rollout[:8], strict=True)
    }
    return rollout._replace(**columns)
