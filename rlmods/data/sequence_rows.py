"""From rollouts to the rows of a sequence replay: one row for each observation, with the reward with which it came."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlmods.data.observations import map_observation
from rlmods.types import ActionSpec, Observation, Rollout


class SequenceRows(NamedTuple):
    """M rows in the order of time; those of one stream are consecutive in it."""

    observation: Observation  # [M, *shape]
    action: Tensor  # [M] int64 or [M, A] float32, chosen at the observation; zeros at the last one of an episode
    reward: Tensor  # [M] float32, with which the observation came; 0 at the first one of an episode
    is_first: Tensor  # [M] bool
    is_last: Tensor  # [M] bool
    is_terminal: Tensor  # [M] bool
    stream: Tensor  # [M] int64, the environment
    state: Tensor  # [M, S] of the policy after the row, with the action; zeros at the last one of an episode


class RowJoiner:
    """Makes rows of rollouts that follow each other.

    An episode of n steps gives n + 1 rows: its final observation has one of its own. A reward belongs to the
    observation that comes after the step, which may be that of the next rollout: it waits here. Frames that only reset
    an environment give no row.
    """

    def __init__(self, spec: ActionSpec, num_envs: int, state_size: int) -> None:
        """All environments begin an episode.

        Args:
            spec: of the actions.
            num_envs: N.
            state_size: S, 0 for a policy without memory.
        """
        self._spec = spec
        self._state_size = state_size
        self.begins = torch.ones(num_envs, dtype=torch.bool)  # whether the next row of each is a first one
        self.reward = torch.zeros(num_envs)  # with which it comes otherwise

    def rows(self, rollout: Rollout) -> SequenceRows:
        """The rows of a rollout of a policy that decides, on the CPU.

        Raises:
            ValueError: the policy only acts.
        """
        if rollout.decisions is None:
            raise ValueError(
                "got a rollout without decisions, expected the recurrent states of a policy that has "
                "initial_state(num_envs) and decide(observation, state)"
            )
        valid, terminated = rollout.valid.cpu(), rollout.terminated.cpu()
        ended = (terminated | rollout.truncated.cpu()) & valid
        next_begins = ended | ~valid
        rewards = rollout.reward.cpu().float()
        begins = torch.cat([self.begins[None], next_begins[:-1]])
        came_with = torch.cat([self.reward[None], rewards[:-1]]) * ~begins
        self.begins, self.reward = next_begins[-1].clone(), rewards[-1].clone()

        steps, ends = valid.nonzero(as_tuple=True), ended.nonzero(as_tuple=True)
        time = torch.cat([2 * steps[0], 2 * ends[0] + 1])  # an episode's end comes after the step that led to it
        stream = torch.cat([steps[1], ends[1]])
        order = torch.argsort(time * len(self.begins) + stream)
        is_last = time[order] % 2 == 1

        def join(of_steps: Tensor, of_ends: Tensor) -> Tensor:
            return torch.cat([of_steps.cpu()[steps], of_ends])[order]

        def join_observations(of_steps: Tensor, of_ends: Tensor) -> Tensor:
            return join(of_steps, of_ends.cpu()[ends])

        num_ends = len(ends[0])
        nowhere = torch.zeros(num_ends, dtype=torch.bool)
        return SequenceRows(
            observation=map_observation(join_observations, rollout.observation, rollout.next_observation),
            action=join(rollout.action, no_action(self._spec, num_ends)),
            reward=join(came_with, rewards[ends]),
            is_first=join(begins, nowhere),
            is_last=is_last,
            is_terminal=join(torch.zeros_like(terminated), terminated[ends]),
            stream=stream[order],
            state=join(rollout.decisions.next_state.float(), torch.zeros(num_ends, self._state_size)),
        )

    def abandon(self, observation: Observation) -> SequenceRows:
        """End the running episodes at the current observations `[N, *shape]`, as a time limit would.

        An environment that is between two episodes gives no row.
        """
        running = ~self.begins
        stream = running.nonzero()[:, 0]
        self.begins = torch.ones_like(self.begins)
        return SequenceRows(
            observation=map_observation(lambda column: column[stream], observation),
            action=no_action(self._spec, len(stream)),
            reward=self.reward[stream],
            is_first=torch.zeros(len(stream), dtype=torch.bool),
            is_last=torch.ones(len(stream), dtype=torch.bool),
            is_terminal=torch.zeros(len(stream), dtype=torch.bool),
            stream=stream,
            state=torch.zeros(len(stream), self._state_size),
        )

    def state_dict(self) -> dict[str, Any]:
        """What waits for the next rollout."""
        return {"begins": self.begins, "reward": self.reward}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.begins, self.reward = state_dict["begins"], state_dict["reward"]


def no_action(spec: ActionSpec, num: int) -> Tensor:
    """Zeros `[num]` int64 where actions are discrete, `[num, A]` float32 where they are continuous."""
    return torch.zeros(num, *spec["shape"], dtype=torch.float32 if spec["kind"] == "continuous" else torch.int64)
