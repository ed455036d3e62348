"""From the environments to transitions: steps the environments with a policy and sums rewards over n steps."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlmods.data.episodes import EpisodeStatistics
from rlmods.data.mixture import ExpertMixture
from rlmods.data.observations import map_observation, stack_observations, to_arrays, to_tensors
from rlmods.envs.environments import Environments
from rlmods.functional.returns import n_step_return
from rlmods.types import (
    ArrayObservation,
    CarefulPolicy,
    CollectionSeconds,
    Observation,
    Policy,
    StepResult,
    Transition,
)


class Collected(NamedTuple):
    """Transitions `[M]` whose horizon is complete, the oldest first."""

    transition: Transition  # [M, ...]
    by_expert: Tensor  # [M] bool, whether the expert chose the action


class _Step(NamedTuple):
    observation: ArrayObservation
    action: Any
    by_expert: npt.NDArray[np.bool_]  # [N]
    result: StepResult


class _Rows(NamedTuple):
    """T steps of N environments."""

    observation: Observation  # [T, N, *shape]
    action: Tensor  # [T, N] or [T, N, A]
    by_expert: Tensor  # [T, N]
    reward: Tensor  # [T, N]
    next_observation: Observation  # [T, N, *shape]
    terminated: Tensor  # [T, N]
    truncated: Tensor  # [T, N]
    waiting: Tensor  # [T, N], whether the transition that starts here is still to be returned


class Collector:
    """Owns the training environments, the current observation and the count of environment steps of this process.

    Args:
        environments: already built; reset here.
        gamma: discount of one step.
        n_steps: horizon of a stored transition.
        seed: of the environments.
        mixture: who acts in a frame; without one it is always the policy.
        n_step_through_expert: whether a horizon goes on where somebody else than its first actor acts.

    Attributes:
        seconds: that the last `collect` took.
    """

    def __init__(
        self,
        environments: Environments,
        *,
        gamma: float,
        n_steps: int,
        seed: int,
        mixture: ExpertMixture | None = None,
        n_step_through_expert: bool = True,
    ) -> None:
        self.environments = environments
        self.gamma = gamma
        self.n_steps = n_steps
        self.seed = seed
        self.mixture = mixture
        self.n_step_through_expert = n_step_through_expert
        self.env_steps = 0
        self.observation = environments.reset(seed)
        self._knows_care = environments.needs_care() is not None
        self._nobody = np.zeros(environments.num_envs, dtype=np.bool_)
        self.episodes = EpisodeStatistics(environments.num_envs)
        self.rows: _Rows | None = None
        self.seconds = CollectionSeconds(0.0, 0.0, 0.0)
        self._closed = False
        self._last_state: dict[str, Any] | None = None
        # Where a resume must truncate the running episodes, their last step stays open until the next one.
        self.lookahead = n_steps - 1 if environments.can_save else n_steps

    def collect(self, policy: Policy, until: int, *, num_processes: int, device: torch.device) -> Collected:
        """Step until `env_steps` reaches `until`; return the transitions whose horizon is complete, oldest first.

        A vector step adds up to N steps, so `env_steps` may pass `until` by at most N − 1. Frames that only reset an
        environment are neither stored nor counted.

        Args:
            policy: chooses the actions.
            until: environment steps of this process; at least one vector step is made.
            num_processes: multiplies the clock that the policy is given.
            device: of the policy.

        Returns:
            `[M, ...]`; M is not the number of steps taken where horizons are still open.
        """
        began = perf_counter()
        by_policy = by_environments = 0.0
        steps: list[_Step] = []
        careful = policy if self._knows_care and isinstance(policy, CarefulPolicy) else None
        with torch.inference_mode():
            while not steps or self.env_steps < until:
                started = perf_counter()
                env_steps = self.env_steps * num_processes
                action, by_expert = self._decide(policy, careful, env_steps, device)
                decided = perf_counter()
                result = self.environments.step(action)
                by_policy += decided - started
                by_environments += perf_counter() - decided
                steps.append(_Step(self.observation, action, by_expert, result))
                self.observation = result.observation
                self.env_steps += int(np.count_nonzero(result.valid))
        results = [step.result for step in steps]
        self.episodes.count(results)
        if self.mixture is not None:
            self.mixture.count(results, [step.by_expert for step in steps])
        rows = _stack_steps(steps)
        collected = self._complete(rows if self.rows is None else _concatenate(self.rows, rows))
        self.seconds = CollectionSeconds(by_policy, by_environments, perf_counter() - began)
        return collected

    def _decide(
        self, policy: Policy, careful: CarefulPolicy | None, env_steps: int, device: torch.device
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
        """What is done in each environment, and whether the expert chose it."""
        observation = to_tensors(self.observation, device)
        care = self.environments.needs_care() if self._knows_care else None
        if careful is None or care is None:
            action = policy.act(observation, env_steps=env_steps)
        else:
            action = careful.act_with_care(observation, torch.from_numpy(care).to(device), env_steps=env_steps)
        if self.mixture is None:
            return action.cpu().numpy(), self._nobody
        return self.mixture.choose(action.cpu().numpy(), self.environments.expert_action, care, env_steps)

    def _complete(self, rows: _Rows) -> Collected:
        """Split off the transitions whose horizon is closed; the others stay in `self.rows`."""
        actor = None if self.n_step_through_expert else rows.by_expert
        returns = n_step_return(rows.reward, rows.terminated, rows.truncated, self.gamma, self.n_steps, actor=actor)
        num_rows = rows.reward.shape[0]
        num_closed = num_rows - self.lookahead
        closed = returns.ended
        closed[: max(num_closed, 0)] = True
        ready = closed & rows.waiting
        kept = rows._replace(waiting=rows.waiting & ~closed)
        self.rows = _map_rows(lambda column: column[max(num_closed, 0) :].clone(), kept) if self.lookahead else None
        environment = torch.arange(ready.shape[1]).expand_as(ready)
        last = (returns.last[ready], environment[ready])
        transition = Transition(
            observation=map_observation(lambda column: column[ready], rows.observation),
            action=rows.action[ready],
            reward=returns.reward[ready],
            discount=returns.discount[ready],
            next_observation=map_observation(lambda column: column[last], rows.next_observation),
            terminated=rows.terminated[last],
            truncated=rows.truncated[last],
        )
        return Collected(transition, rows.by_expert[ready])

    def close(self) -> None:
        """Close the environments; their last state can still be saved."""
        self._last_state = self.environments.state_dict()
        self._closed = True
        self.environments.close()

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 (or N, where more) finished episodes, by tag; empty before the first."""
        return self.episodes.means()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs; `environments` is None where they cannot be saved."""
        return {
            "env_steps": self.env_steps,
            "environments": self._last_state if self._closed else self.environments.state_dict(),
            "observation": map_observation(torch.clone, to_tensors(self.observation, torch.device("cpu"))),
            "episodes": self.episodes.state_dict(),
            "rows": None if self.rows is None else self.rows._asdict(),
            "mixture": None if self.mixture is None else self.mixture.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> Collected | None:
        """Restore.

        Returns:
            None where the environments could be restored. Else the open transitions, closed by a truncation, for the
            replay: the environments then start new episodes.
        """
        self.env_steps = state["env_steps"]
        self.episodes.load_state_dict(state["episodes"])
        self.rows = None if state["rows"] is None else _rows_of(state["rows"])
        if self.mixture is not None:
            self.mixture.load_state_dict(state["mixture"])
        if state["environments"] is None:
            # Folded with the clock: the seed alone would play the run's first episodes again.
            sequence = np.random.SeedSequence([self.seed, self.env_steps])
            self.episodes.abandon()
            if self.mixture is not None:
                self.mixture.abandon()
            self.observation = self.environments.reset(int(sequence.generate_state(1)[0]))
            return self._truncate_open_rows()
        self.environments.load_state_dict(state["environments"])
        self.observation = to_arrays(state["observation"])
        return None

    def _truncate_open_rows(self) -> Collected | None:
        if self.rows is None:
            return None
        self.rows.truncated[-1] = ~self.rows.terminated[-1]
        collected = self._complete(self.rows)
        self.rows = None
        return collected


def _stack_steps(steps: list[_Step]) -> _Rows:
    results = [step.result for step in steps]
    return _Rows(
        observation=stack_observations([step.observation for step in steps]),
        action=torch.from_numpy(np.stack([step.action for step in steps])),
        by_expert=torch.from_numpy(np.stack([step.by_expert for step in steps])),
        reward=torch.from_numpy(np.stack([result.reward for result in results])),
        next_observation=stack_observations([result.next_observation for result in results]),
        terminated=torch.from_numpy(np.stack([result.terminated for result in results])),
        truncated=torch.from_numpy(np.stack([result.truncated for result in results])),
        waiting=torch.from_numpy(np.stack([result.valid for result in results])),
    )


def _rows_of(saved: dict[str, Any]) -> _Rows:
    # Before there were experts nobody asked who acted.
    return _Rows(**{"by_expert": torch.zeros_like(saved["waiting"]), **saved})


def _map_rows(function: Callable[..., Tensor], *rows: _Rows) -> _Rows:
    columns: list[Any] = [map_observation(function, *column) for column in zip(*rows, strict=True)]
    return _Rows(*columns)


def _concatenate(first: _Rows, second: _Rows) -> _Rows:
    return _map_rows(lambda *columns: torch.cat(columns), first, second)
