"""Rollouts for algorithms that learn from what the current policy has just done: T steps of N environments, once."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from rlmods.data.episodes import EpisodeStatistics
from rlmods.data.experience import TRAINING, ExperienceDataModule
from rlmods.data.observations import map_observation, stack_observations, to_arrays, to_tensors
from rlmods.data.processes import sum_over_processes
from rlmods.data.settings import check_settings
from rlmods.envs.environments import Environments
from rlmods.envs.make import make_envs
from rlmods.types import (
    ArrayObservation,
    DecidingPolicy,
    Decision,
    Decisions,
    Observation,
    Policy,
    Rollout,
    SeedsRollouts,
    StepResult,
)

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
        vectorization: native where the environment has its own vector implementation, else sync or async.
        resize: height and width to which pixels are reduced, next to the environment's step.
        frame_stack: frames of one observation; of a dict the image alone is stacked.
        seed: of the environments; None takes the seed that torch was given.

    Raises:
        ValueError: where a setting is outside its range, or the environment does not exist.
    """

    fixed_settings = ("num_envs", "gamma", "n_steps", "env_kwargs")

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
        vectorization: Literal["auto", "native", "sync", "async"] = "auto",
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
            vectorization=vectorization,
            resize=resize,
            frame_stack=frame_stack,
            seed=seed,
        )
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        self.n_steps = n_steps
        self.collector: RolloutCollector | None = None

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 training episodes of this process, by tag; empty before the first has ended."""
        return {} if self.collector is None else self.collector.episodes.means()

    def begin_fit(self, trainer: Trainer) -> None:
        """Build the environments."""
        environments = self.make_environments(self.num_envs, reward_dtype=np.float64)
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

    def _fitting(self) -> "RolloutCollector":
        if self.collector is None:
            raise RuntimeError("there is no collector yet: it is built when trainer.fit(model, datamodule=data) begins")
        return self.collector


class RolloutCollector:
    """Owns the training environments, the current observation and the count of environment steps of this process.

    Args:
        environments: already built; reset here.
        gamma: discount of one step.
        seed: of the environments.

    Attributes:
        state: of a policy that decides, before the next step, `[N, S]`; None before the first one.
    """

    def __init__(self, environments: Environments, *, gamma: float, seed: int) -> None:
        self.environments = environments
        self.gamma = gamma
        self.seed = seed
        self.env_steps = 0
        self.state: Tensor | None = None
        self.rewards = environments.defer_rewards()
        self.observation = environments.reset(seed)
        self.episodes = EpisodeStatistics(environments.num_envs)
        self._closed = False
        self._last_state: dict[str, Any] | None = None

    def collect(self, policy: Policy, num_steps: int, *, num_processes: int, device: torch.device) -> Rollout:
        """T steps of all N environments.

        A policy that seeds its rollouts resets the environments before.

        Args:
            policy: chooses the actions.
            num_steps: T.
            num_processes: multiplies the clock that the policy is given.
            device: of the policy and of the rollout.

        Returns:
            Fields `[T, N, …]`; `env_steps` is that of this process, `progress` 0.
        """
        if isinstance(policy, SeedsRollouts):
            seeds = policy.begin_rollout(self.environments.num_envs, num_steps)
            if seeds is not None:
                self.observation = self.environments.reset(seeds)
                self.episodes.abandon()
        observations: list[ArrayObservation] = []
        actions: list[Tensor] = []
        decisions: list[Decision] = []
        states: list[Tensor] = []
        results: list[StepResult] = []
        deciding = policy if isinstance(policy, DecidingPolicy) else None
        with torch.inference_mode():
            for _ in range(num_steps):
                observation = to_tensors(self.observation, device)
                if deciding is None:
                    actions.append(policy.act(observation, env_steps=self.env_steps * num_processes))
                else:
                    if self.state is None:
                        self.state = deciding.initial_state(self.environments.num_envs)
                    states.append(self.state)
                    decisions.append(deciding.decide(observation, self.state))
                    actions.append(decisions[-1].action)
                result = self.environments.step(actions[-1].cpu().numpy())
                observations.append(self.observation)
                results.append(result)
                self.observation = result.observation
                self.env_steps += int(np.count_nonzero(result.valid))
                if deciding is not None:
                    self.state = continued_state(decisions[-1].state, result)
        if self.rewards is not None:
            results = self._with_rewards(observations, actions, results)
        self.episodes.count(results)
        rollout = self._rollout(observations, actions, results, device)
        return rollout if deciding is None else rollout._replace(decisions=_stack_decisions(decisions, states))

    def _with_rewards(
        self, observations: list[ArrayObservation], actions: list[Tensor], results: list[StepResult]
    ) -> list[StepResult]:
        assert self.rewards is not None  # noqa: S101, the caller has looked
        flat = self.rewards(np.concatenate(observations), torch.cat(actions).cpu().numpy())  # type: ignore[arg-type]
        rewards = flat.reshape(len(results), -1)
        return [result._replace(reward=reward) for result, reward in zip(results, rewards, strict=True)]

    def _rollout(
        self,
        observations: list[ArrayObservation],
        actions: list[Tensor],
        results: list[StepResult],
        device: torch.device,
    ) -> Rollout:
        def stack(name: str) -> Tensor:
            return torch.from_numpy(np.stack([getattr(result, name) for result in results])).to(device)

        def move(column: Tensor) -> Tensor:
            return column.to(device)

        reward, terminated = stack("reward"), stack("terminated")
        return Rollout(
            observation=map_observation(move, stack_observations(observations)),
            action=torch.stack(actions),
            reward=reward,
            discount=self.gamma * (~terminated).to(reward.dtype),
            next_observation=map_observation(move, stack_observations([result.next_observation for result in results])),
            terminated=terminated,
            truncated=stack("truncated"),
            valid=stack("valid"),
            env_steps=self.env_steps,
            progress=0.0,
        )

    def close(self) -> None:
        """Close the environments; their last state can still be saved."""
        self._last_state = self.environments.state_dict()
        self._closed = True
        self.environments.close()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs; `environments` is None where they cannot be saved."""
        return {
            "env_steps": self.env_steps,
            "environments": self._last_state if self._closed else self.environments.state_dict(),
            "observation": to_tensors(self.observation, torch.device("cpu")),
            "episodes": self.episodes.state_dict(),
            "state": self.state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Restore; whether the environments could be. If not, they start new episodes."""
        self.env_steps = state["env_steps"]
        self.episodes.load_state_dict(state["episodes"])
        if state["environments"] is None:
            # Folded with the clock: the seed alone would play the run's first episodes again.
            sequence = np.random.SeedSequence([self.seed, self.env_steps])
            self.observation = self.environments.reset(int(sequence.generate_state(1)[0]))
            self.episodes.abandon()
            return False
        self.environments.load_state_dict(state["environments"])
        self.observation = to_arrays(state["observation"])
        self.state = state["state"]
        return True


def continued_state(state: Tensor, result: StepResult) -> Tensor:
    """The recurrent state `[N, S]` before the next step: zeros where that begins an episode."""
    if not state.shape[1]:
        return state
    begins = result.terminated | result.truncated | ~result.valid
    return state * torch.from_numpy(~begins).to(state).unsqueeze(1)


def _stack_decisions(decisions: list[Decision], states: list[Tensor]) -> Decisions:
    return Decisions(
        sample=torch.stack([decision.sample for decision in decisions]),
        log_prob=torch.stack([decision.log_prob for decision in decisions]),
        state=torch.stack(states),
        next_state=torch.stack([decision.state for decision in decisions]),
    )


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
