"""Evaluation episodes: own environments, own seeds, no exploration, nothing of the training touched."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlmods.data.observations import map_observation, stack_observations, to_tensors
from rlmods.data.video import write_video
from rlmods.envs.environments import Environments
from rlmods.types import EpisodeBatch, Observation, Policy


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
        frames: list[Any] = []
        episodes, _ = self._play(policy, keep_steps=False, frames=None if self.video_folder is None else frames)
        if self.video_folder is not None:
            write_video(self.video_folder / f"env_steps={self.env_steps}.mp4", frames, self.environments.render_fps)
        return episodes

    def record(self, policy: Policy) -> dict[str, Tensor]:
        """Play the episodes of this process and return all their steps, in the order of time, `[M, ...]` each."""
        _, steps = self._play(policy, keep_steps=True, frames=None)
        playing = np.stack([step["playing"] for step in steps])
        columns: dict[str, Observation] = {
            name: stack_observations([step[name] for step in steps]) for name in steps[0] if name != "playing"
        }
        recorded: dict[str, Tensor] = {}
        for name, column in columns.items():
            flat = map_observation(lambda values: values[torch.from_numpy(playing)], column)
            recorded |= {name: flat} if isinstance(flat, Tensor) else {f"{name}.{key}": flat[key] for key in flat}
        return recorded

    def _play(
        self, policy: Policy, *, keep_steps: bool, frames: list[Any] | None
    ) -> tuple[EpisodeBatch, list[dict[str, Any]]]:
        num_episodes = self.environments.num_envs
        returns, discounted_returns = np.zeros(num_episodes), np.zeros(num_episodes)
        lengths = np.zeros(num_episodes, dtype=np.int64)
        successes = np.full(num_episodes, np.nan)
        playing = np.ones(num_episodes, dtype=np.bool_)
        steps: list[dict[str, Any]] = []
        with isolate_rng(), torch.inference_mode():
            observation = self.environments.reset(self.seed)
            start_observation = map_observation(torch.clone, to_tensors(observation, self.device))
            while playing.any():
                if frames is not None and playing[0]:
                    frames.append(self.environments.render()[0])
                action = (
                    policy.act(to_tensors(observation, self.device), env_steps=self.env_steps, deterministic=True)
                    .cpu()
                    .numpy()
                )
                result = self.environments.step(action)
                if keep_steps:
                    steps.append(
                        {
                            "episode": np.arange(num_episodes),
                            "observation": observation,
                            "action": action,
                            "reward": result.reward,
                            "terminated": result.terminated,
                            "truncated": result.truncated,
                            "playing": playing.copy(),
                        }
                    )
                returns += playing * result.reward
                discounted_returns += playing * self.gamma**lengths * result.reward
                lengths += playing
                ended = playing & (result.terminated | result.truncated)
                successes[ended] = result.success[ended]
                playing &= ~ended
                observation = result.observation
        tensors = (
            torch.from_numpy(array).to(self.device) for array in (returns, lengths, discounted_returns, successes)
        )
        return EpisodeBatch(*tensors, start_observation=start_observation), steps
