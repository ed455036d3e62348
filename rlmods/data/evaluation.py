"""Evaluation episodes: own environments, own seeds, no exploration, nothing of the training touched."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlmods.data.observations import map_observation, stack_observations, to_tensors
from rlmods.data.video import write_video
from rlmods.envs.environments import Environments
from rlmods.envs.events import EVENTS
from rlmods.types import ArrayObservation, DecidingPolicy, EpisodeBatch, Policy, StepResult


class EpisodeEvaluator:
    """Plays E episodes at once, one an environment, so that short episodes are not counted more often than long ones.

    Every run starts from the same seed: evaluations of one run are paired, and the last one can be repeated.

    Args:
        environments: E of them.
        gamma: for the discounted return.
        seed: of the environments.
        env_steps: environment steps of training so far.
        device: of the policy.
        video_folder: where the first episode is written as a video; the environments must have been made with `render`.
    """

    def __init__(
        self,
        environments: Environments,
        *,
        gamma: float,
        seed: int,
        env_steps: int,
        device: torch.device,
        video_folder: Path | None = None,
    ) -> None:
        self.environments = environments
        self.gamma = gamma
        self.seed = seed
        self.env_steps = env_steps
        self.device = device
        self.video_folder = video_folder

    def run(self, policy: Policy) -> EpisodeBatch:
        """Play the episodes of this process."""
        num_episodes = self.environments.num_envs
        returns, discounted_returns = np.zeros(num_episodes), np.zeros(num_episodes)
        lengths = np.zeros(num_episodes, dtype=np.int64)
        events = {name: np.full(num_episodes, np.nan) for name in EVENTS}
        sums: dict[str, npt.NDArray[np.float64]] = {}
        final_discounts = np.zeros(num_episodes, dtype=np.float32)
        start: ArrayObservation | None = None
        final: ArrayObservation | None = None
        frames: list[Any] = []
        for step in self._steps(policy, frames):
            start = step.observation if start is None else start
            reward = step.playing * step.result.reward
            returns += reward
            discounted_returns += self.gamma**lengths * reward
            lengths += step.playing
            for name, happened in events.items():
                happened[step.ended] = step.result.events[name][step.ended]
            for name, summed in step.result.sums.items():
                sums.setdefault(name, np.full(num_episodes, np.nan))[step.ended] = summed[step.ended]
            final_discounts = np.where(step.truncated, self.gamma**lengths, final_discounts)
            final = _where(step.ended, step.result.next_observation, final)
        if start is None or final is None:
            raise RuntimeError("got 0 episodes, expected at least one: type --data.init_args.eval_episodes 1")
        if self.video_folder is not None:
            write_video(self.video_folder / f"env_steps={self.env_steps}.mp4", frames, self.environments.render_fps)
        return EpisodeBatch(
            returns=torch.from_numpy(returns),
            lengths=torch.from_numpy(lengths),
            discounted_returns=torch.from_numpy(discounted_returns),
            events={name: torch.from_numpy(happened) for name, happened in events.items()},
            start_observation=to_tensors(start, self.device),
            final_observation=to_tensors(final, self.device),
            final_discount=torch.from_numpy(final_discounts.astype(np.float32)).to(self.device),
            sums={name: torch.from_numpy(summed) for name, summed in sums.items()},
        )

    def record(self, policy: Policy) -> dict[str, Tensor]:
        """Play the episodes of this process and return all their steps, in the order of time, `[M, ...]` each."""
        steps = list(self._steps(policy, frames=[]))
        playing = torch.from_numpy(np.stack([step.playing for step in steps]))
        episode = np.arange(self.environments.num_envs)
        columns: dict[str, Sequence[ArrayObservation]] = {
            "episode": [episode for _ in steps],
            "observation": [step.observation for step in steps],
            "action": [step.action for step in steps],
            "reward": [step.result.reward for step in steps],
            "terminated": [step.result.terminated for step in steps],
            "truncated": [step.result.truncated for step in steps],
        }
        recorded: dict[str, Tensor] = {}
        for name, column in columns.items():
            rows = map_observation(lambda values: values[playing], stack_observations(column))
            recorded |= {name: rows} if isinstance(rows, Tensor) else {f"{name}.{key}": rows[key] for key in rows}
        return recorded

    def _steps(self, policy: Policy, frames: list[Any]) -> Iterator["_Step"]:
        """Every step until the last episode ends; frames of the first one are appended where a video is wanted."""
        playing = np.ones(self.environments.num_envs, dtype=np.bool_)
        with isolate_rng(), torch.inference_mode():
            observation = self.environments.reset(self.seed)
            deciding = policy if isinstance(policy, DecidingPolicy) else None
            state = None if deciding is None else deciding.initial_state(self.environments.num_envs)
            while playing.any():
                if self.video_folder is not None and playing[0]:
                    frames.append(self.environments.render()[0])
                tensors = to_tensors(observation, self.device)
                if deciding is None or state is None:
                    action = policy.act(tensors, env_steps=self.env_steps, deterministic=True).cpu().numpy()
                else:
                    # The state goes on over an episode's end: what comes after is not counted.
                    decision = deciding.decide(tensors, state, deterministic=True)
                    action, state = decision.action.cpu().numpy(), decision.state
                step = _Step(observation, action, self.environments.step(action), playing)
                yield step
                playing = playing & ~step.ended
                observation = step.result.observation


class _Step(NamedTuple):
    observation: ArrayObservation
    action: npt.NDArray[Any]
    result: StepResult
    playing: npt.NDArray[np.bool_]  # [E], whether the episode had not ended before this step

    @property
    def ended(self) -> npt.NDArray[np.bool_]:
        """[E], whether the episode ends with this step."""
        return self.playing & (self.result.terminated | self.result.truncated)

    @property
    def truncated(self) -> npt.NDArray[np.bool_]:
        """[E], whether the episode ends with this step by a truncation."""
        return self.playing & self.result.truncated


def _where(
    chosen: npt.NDArray[np.bool_], observation: ArrayObservation, other: ArrayObservation | None
) -> ArrayObservation:
    """The observations `[E, *shape]` of the chosen environments, for the rest those of `other`."""
    if isinstance(observation, dict):
        others = other if isinstance(other, dict) else observation
        return {key: _where_array(chosen, value, others[key]) for key, value in observation.items()}
    return _where_array(chosen, observation, observation if other is None or isinstance(other, dict) else other)


def _where_array(chosen: npt.NDArray[np.bool_], array: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.where(chosen.reshape(-1, *[1] * (array.ndim - 1)), array, other)
