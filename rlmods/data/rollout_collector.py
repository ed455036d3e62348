"""From the environments to rollouts: who holds the environments, their observation and their clock."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlmods.data.episodes import EpisodeStatistics
from rlmods.data.observations import map_observation, stack_arrays, stack_observations, to_arrays, to_tensors
from rlmods.data.rollout_parts import (
    AnyEnvironments,
    RolloutPart,
    join_observations,
    join_results,
    join_states,
    stack_actions,
    stack_decisions,
    take_rows,
)
from rlmods.types import ArrayObservation, CollectionSeconds, Observation, Policy, Rollout, SeedsRollouts


class RolloutCollector:
    """Owns the training environments, the current observation and the count of environment steps of this process.

    Environments of several parts are stepped apart: while some step, the policy decides for the others. The parts take
    turns in a fixed order, so that how fast they are changes nothing.

    Args:
        environments: already built; reset here.
        gamma: discount of one step.
        seed: of the environments.

    Attributes:
        seconds: that the last rollout took by `policy`, by `environments` (waited for them), and in all.
    """

    def __init__(self, environments: AnyEnvironments, *, gamma: float, seed: int) -> None:
        self.environments = environments
        self.gamma = gamma
        self.seed = seed
        self.env_steps = 0
        self.rewards = environments.defer_rewards()
        self.seconds = CollectionSeconds(0.0, 0.0, 0.0)
        self.episodes = EpisodeStatistics(environments.num_envs)
        self._closed = False
        self._last_state: dict[str, Any] | None = None
        observation = environments.reset(seed)
        self._rows: list[slice] = []
        self._parts: list[RolloutPart] = []
        first = 0
        for part in environments.parts:
            self._rows.append(slice(first, first + part.num_envs))
            self._parts.append(RolloutPart(part, take_rows(observation, self._rows[-1])))
            first += part.num_envs

    @property
    def observation(self) -> ArrayObservation:
        """The current one, `[N, *shape]`."""
        return join_observations([part.observation for part in self._parts])

    @property
    def state(self) -> Tensor | None:
        """Of a policy that decides, before the next step, `[N, S]`; None before the first one."""
        return join_states(self._parts)

    def collect(
        self,
        policy: Policy,
        num_steps: int,
        *,
        num_processes: int,
        device: torch.device,
        rollout_device: torch.device | None = None,
    ) -> Rollout:
        """T steps of all N environments.

        A policy that seeds its rollouts resets the environments before.

        Args:
            policy: chooses the actions.
            num_steps: T.
            num_processes: multiplies the clock that the policy is given.
            device: of the policy.
            rollout_device: of the rollout, but for its actions and decisions; None takes that of the policy.

        Returns:
            Fields `[T, N, …]`; `env_steps` is that of this process, `progress` 0.
        """
        began = perf_counter()
        if isinstance(policy, SeedsRollouts):
            seeds = policy.begin_rollout(self.environments.num_envs, num_steps)
            if seeds is not None:
                self._continue_from(self.environments.reset(seeds))
                self.episodes.abandon()
        for part in self._parts:
            part.begin(policy)
        by_policy = by_environments = 0.0
        with torch.inference_mode():
            for step in range(num_steps + 1):
                for part in self._parts:
                    started = perf_counter()
                    if step:
                        self.env_steps += part.finish()
                    stepped = perf_counter()
                    if step < num_steps:
                        part.decide(env_steps=self.env_steps * num_processes, device=device)
                    by_environments += stepped - started
                    by_policy += perf_counter() - stepped
        if self.rewards is not None:
            self._fill_in_rewards()
        self.episodes.count(join_results(self._parts))
        rollout = self._rollout(rollout_device or device)
        for part in self._parts:
            part.forget()
        self.seconds = CollectionSeconds(by_policy, by_environments, perf_counter() - began)
        return rollout

    def _fill_in_rewards(self) -> None:
        assert self.rewards is not None  # noqa: S101, the caller has looked
        for part in self._parts:
            actions = torch.cat(part.actions).cpu().numpy()
            rewards = self.rewards(np.concatenate(part.observations), actions)  # type: ignore[arg-type]
            part.results = [
                result._replace(reward=reward)
                for result, reward in zip(part.results, rewards.reshape(len(part.results), -1), strict=True)
            ]

    def _rollout(self, device: torch.device) -> Rollout:
        parts = self._parts

        def stack(name: str) -> Tensor:
            return stack_arrays(*([getattr(result, name) for result in part.results] for part in parts)).to(device)

        def stack_all(observations: list[list[ArrayObservation]]) -> Observation:
            return map_observation(lambda column: column.to(device), stack_observations(*observations))

        reward, terminated = stack("reward"), stack("terminated")
        return Rollout(
            observation=stack_all([part.observations for part in parts]),
            action=stack_actions(parts),
            reward=reward,
            discount=self.gamma * (~terminated).to(reward.dtype),
            next_observation=stack_all([[result.next_observation for result in part.results] for part in parts]),
            terminated=terminated,
            truncated=stack("truncated"),
            valid=stack("valid"),
            env_steps=self.env_steps,
            progress=0.0,
            decisions=stack_decisions(parts),
        )

    def _continue_from(self, observation: ArrayObservation, state: Tensor | None = None) -> None:
        for part, rows in zip(self._parts, self._rows, strict=True):
            part.observation = take_rows(observation, rows)
            part.state = None if state is None else state[rows]

    def close(self) -> None:
        """Close the environments; their last state can still be saved."""
        if self._closed:
            return
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
            self._continue_from(self.environments.reset(int(sequence.generate_state(1)[0])))
            self.episodes.abandon()
            return False
        self.environments.load_state_dict(state["environments"])
        self._continue_from(to_arrays(state["observation"]), state["state"])
        return True
