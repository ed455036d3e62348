"""The parts of a rollout: environments that step together while the policy decides for the others."""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.observations import to_tensors
from rlmods.envs.environments import Environments
from rlmods.envs.worker_envs import WorkerEnvironments, WorkerGroup
from rlmods.types import ArrayObservation, DecidingPolicy, Decision, Decisions, Policy, StepResult

AnyEnvironments: TypeAlias = Environments | WorkerEnvironments


class RolloutPart:
    """Some of the environments, and what they have done in the rollout that is being collected.

    Args:
        environments: n of them.
        observation: their current one, `[n, *shape]`.

    Attributes:
        state: of a policy that decides, before the next step, `[n, S]`; None before the first one.
    """

    def __init__(self, environments: Environments | WorkerGroup, observation: ArrayObservation) -> None:
        self.environments = environments
        self.observation = observation
        self.state: Tensor | None = None
        self.forget()

    def begin(self, policy: Policy) -> None:
        """Begin a rollout with a policy."""
        self.forget()
        self._policy = policy
        self._deciding = policy if isinstance(policy, DecidingPolicy) else None  # once: it is slow

    def forget(self) -> None:
        """Let go of the steps of the rollout, which are as large as itself."""
        self.observations: list[ArrayObservation] = []
        self.actions: list[Tensor] = []
        self.decisions: list[Decision] = []
        self.states: list[Tensor] = []
        self.results: list[StepResult] = []

    def decide(self, *, env_steps: int, device: torch.device) -> None:
        """Let the policy choose, and start the step."""
        observation = to_tensors(self.observation, device)
        self.observations.append(self.observation)
        if self._deciding is None:
            self.actions.append(self._policy.act(observation, env_steps=env_steps))
        else:
            if self.state is None:
                self.state = self._deciding.initial_state(self.environments.num_envs)
            self.state = self.state.to(device)  # that of a checkpoint comes on the CPU
            decision = self._deciding.decide(observation, self.state)
            self.states.append(self.state)
            self.decisions.append(decision)
            self.actions.append(decision.action)
        self.environments.start(self.actions[-1].cpu().numpy())

    def finish(self) -> int:
        """Wait for the step; returns how many of its frames count."""
        result = self.environments.finish()
        self.results.append(result)
        self.observation = result.observation
        if self.decisions:
            self.state = continued_state(self.decisions[-1].state, result)
        return int(np.count_nonzero(result.valid))


def continued_state(state: Tensor, result: StepResult) -> Tensor:
    """The recurrent state `[N, S]` before the next step: zeros where that begins an episode."""
    if not state.shape[1]:
        return state
    begins = result.terminated | result.truncated | ~result.valid
    return state * torch.from_numpy(~begins).to(state).unsqueeze(1)


def stack_actions(parts: Sequence[RolloutPart]) -> Tensor:
    """`[T, N]` or `[T, N, A]`."""
    return _side_by_side([torch.stack(part.actions) for part in parts])


def stack_decisions(parts: Sequence[RolloutPart]) -> Decisions | None:
    """Those of a rollout; None of a policy that only acts."""
    if not parts[0].decisions:
        return None
    return Decisions(
        sample=_side_by_side([torch.stack([one.sample for one in part.decisions]) for part in parts]),
        log_prob=_side_by_side([torch.stack([one.log_prob for one in part.decisions]) for part in parts]),
        state=_side_by_side([torch.stack(part.states) for part in parts]),
        next_state=_side_by_side([torch.stack([one.state for one in part.decisions]) for part in parts]),
    )


def _side_by_side(columns: list[Tensor]) -> Tensor:
    """`[T, n, …]` of each part to `[T, N, …]`."""
    return columns[0] if len(columns) == 1 else torch.cat(columns, 1)


def join_states(parts: Sequence[RolloutPart]) -> Tensor | None:
    """The recurrent states `[N, S]`; None before the first step."""
    states = [part.state for part in parts if part.state is not None]
    return torch.cat(states) if states else None


def join_observations(parts: Sequence[ArrayObservation]) -> ArrayObservation:
    """Observations `[n, *shape]` of each part to `[N, *shape]`."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, dict):
        return {key: np.concatenate([part[key] for part in parts]) for key in first}
    return np.concatenate(parts)  # type: ignore[arg-type]


def take_rows(observation: ArrayObservation, rows: slice) -> ArrayObservation:
    """Those of some environments."""
    if isinstance(observation, dict):
        return {key: array[rows] for key, array in observation.items()}
    return observation[rows]


def join_results(parts: Sequence[RolloutPart]) -> list[StepResult]:
    """The T steps of all environments, for the statistics of the episodes: the observations are those of the first."""
    if len(parts) == 1:
        return parts[0].results
    return [_join(results) for results in zip(*(part.results for part in parts), strict=True)]


def _join(results: tuple[StepResult, ...]) -> StepResult:
    sizes = [len(result.valid) for result in results]
    return results[0]._replace(
        reward=np.concatenate([result.reward for result in results]),
        terminated=np.concatenate([result.terminated for result in results]),
        truncated=np.concatenate([result.truncated for result in results]),
        valid=np.concatenate([result.valid for result in results]),
        events=_join_rows([result.events for result in results], sizes),
        reported_rates=_join_rows([result.reported_rates for result in results], sizes),
        sums=_join_rows([result.sums for result in results], sizes),
    )


def _join_rows(
    parts: Sequence[Mapping[str, npt.NDArray[np.float32]]], sizes: Sequence[int]
) -> dict[str, npt.NDArray[np.float32]]:
    """By name; NaN where a part does not have it."""
    names = dict.fromkeys(name for part in parts for name in part)
    nothing = [np.full(size, np.nan, np.float32) for size in sizes]
    return {
        name: np.concatenate([part.get(name, rows) for part, rows in zip(parts, nothing, strict=True)])
        for name in names
    }
