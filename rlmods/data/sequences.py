"""Replayed sequences for algorithms that learn a model: an iteration collects a rollout, then draws mini-batches."""

from contextlib import suppress
from math import ceil
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from rlmods.data.experience import REPLAY, TRAINING, ExperienceDataModule
from rlmods.data.processes import sum_over_processes
from rlmods.data.rollout_collector import RolloutCollector
from rlmods.data.segments import ReplaySegments
from rlmods.data.sequence_replay import SequenceReplay
from rlmods.data.sequence_rows import RowJoiner
from rlmods.data.settings import (
    check_sequence_budget,
    check_sequence_settings,
    check_settings,
    steps_before_sequences,
    with_reward_bounds,
)
from rlmods.data.train_ratio import TrainRatio
from rlmods.data.training_environments import training_environments
from rlmods.envs.worker_pool import WorkerError
from rlmods.types import CollectionSeconds, DecidingPolicy, SequenceBatch


class _Parts(NamedTuple):
    """What a training needs besides its environments, of this process."""

    replay: SequenceReplay
    joiner: RowJoiner
    ratio: TrainRatio
    segments: ReplaySegments


class SequenceDataModule(ExperienceDataModule):
    """Environments, sequence replay and evaluation of one run.

    An iteration is a rollout of `steps_per_iteration` steps with the current policy, put into the replay, and then the
    sequences of as many updates as `train_ratio` asks for. The two take turns, so that neither can run ahead of the
    other: that is all the back-pressure there is, and all that is needed.

    The policy decides with a recurrent state (`DecidingPolicy`), which the replay stores beside the observations.
    `write_states` replaces it by a newer one, which is up to an iteration old when it is drawn.

    All settings are of each process, but for `total_env_steps`, `learning_starts`, `eval_every` and `eval_episodes`,
    which count over all processes.

    Args:
        env_id: of a registered Gymnasium environment.
        total_env_steps: the budget; the last iteration is whole. Frames that only reset an environment take a part of
            it, and are not counted as steps.
        num_envs: environments that are stepped together, N.
        gamma: discount of one step, in [0, 1).
        buffer_size: rows that the replay holds; an episode of n steps has n + 1.
        batch_size: sequences of one update, B.
        batch_length: rows of a sequence, T; the one before them gives the state.
        train_ratio: steps replayed for each environment step, so that there are train_ratio / (B · T) updates for each.
            An action that is repeated over several frames is one step.
        learning_starts: environment steps before the first update, which waits for B · T rows in any case.
        steps_per_iteration: environment steps between two blocks of updates, a multiple of `num_envs`; so many that
            `train_ratio` asks for an update at least.
        online_queue: draw each new window of T rows once, before all others.
        eval_episodes: episodes of one evaluation.
        eval_every: environment steps between two evaluations, rounded down to whole iterations, at least one.
        reward_bounds: the lowest and highest reward of one step, a hard bound, where the environment does not say it
            itself; what may be known of a value follows from it.
        env_kwargs: arguments of the environment.
        vectorization: native where the environment has its own vector implementation, else sync or async; workers
            shares the environments of the training out to processes. Those of an evaluation are then chosen by auto.
        num_workers: processes of `workers`.
        double_buffering: with `workers`, the policy decides for one half of the environments while the other half
            steps. It changes the order of the policy's random numbers.
        resize: height and width to which pixels are reduced, next to the environment's step.
        grayscale: whether `resize` makes them grey.
        frame_stack: frames of one observation; of a dict the image alone is stacked.
        seed: of environments and replay; None takes the seed that torch was given.

    Raises:
        ValueError: where a setting is outside its range, or the environment does not exist.
    """

    fixed_settings = (
        "num_envs", "gamma", "buffer_size", "batch_length", "steps_per_iteration", "online_queue", "num_workers",
        "double_buffering",
    )  # fmt: skip

    def __init__(
        self,
        env_id: str,
        total_env_steps: int,
        *,
        num_envs: int = 1,
        gamma: float = 1.0 - 1.0 / 333.0,
        buffer_size: int = 1_000_000,
        batch_size: int = 16,
        batch_length: int = 64,
        train_ratio: float = 256.0,
        learning_starts: int = 0,
        steps_per_iteration: int = 16,
        online_queue: bool = True,
        eval_episodes: int = 10,
        eval_every: int = 5_000,
        reward_bounds: list[float] | None = None,
        env_kwargs: dict[str, Any] | None = None,
        vectorization: Literal["auto", "native", "sync", "async", "workers"] = "auto",
        num_workers: int | None = None,
        double_buffering: bool = False,
        resize: tuple[int, int] | None = None,
        grayscale: bool = False,
        frame_stack: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            env_id,
            total_env_steps,
            num_envs=num_envs,
            gamma=gamma,
            steps_per_iteration=steps_per_iteration,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            env_kwargs=env_kwargs,
            vectorization="auto" if vectorization == "workers" else vectorization,
            resize=resize,
            grayscale=grayscale,
            frame_stack=frame_stack,
            seed=seed,
        )
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        check_sequence_settings(self.hparams, self.spec.get("settings", {}).get("num_agents", 1))
        if reward_bounds is not None:
            self.spec = with_reward_bounds(self.spec, reward_bounds)
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.batch_length = batch_length
        self.train_ratio = train_ratio
        self.learning_starts = learning_starts
        self.online_queue = online_queue
        self.num_workers = num_workers
        self.double_buffering = double_buffering
        self.collector: RolloutCollector | None = None
        self._parts: _Parts | None = None
        self._sampling_seconds = 0.0

    # What is asked of it

    @property
    def replay(self) -> SequenceReplay | None:
        """Of this process; None before a training begins."""
        return None if self._parts is None else self._parts.replay

    @property
    def updates_per_policy_step(self) -> float:
        """Updates for each environment step, as configured."""
        return self.train_ratio / (self.batch_size * self.batch_length)

    @property
    def transitions_added(self) -> int:
        """Rows that this process ever put into its replay."""
        return 0 if self.replay is None else self.replay.inserted

    @property
    def replay_size(self) -> int:
        """Rows in the replay of this process."""
        return 0 if self.replay is None else len(self.replay)

    @property
    def uses_per_transition(self) -> float:
        """How often a step is replayed on average, as configured."""
        return self.train_ratio

    @property
    def replay_ratio(self) -> float | None:
        """Steps replayed for each environment step since learning began, over all processes; None before that."""
        return None if self._parts is None else self._parts.ratio.value

    @property
    def first_replay_size(self) -> int:
        """Rows that the replay of this process holds at least at the first update."""
        num_processes = 1 if self.trainer is None else self.trainer.world_size
        needed = steps_before_sequences(self.num_envs, self.batch_size, self.batch_length)
        steps = max(ceil(self.learning_starts / num_processes), needed)
        return min(ceil(steps / self.steps_per_iteration) * self.steps_per_iteration, self.buffer_size)

    def replay_bytes(self, state_size: int) -> int:
        """What the replay of this process takes, with states of so many numbers beside the observations."""
        return SequenceReplay.memory_bytes(self.spec, self.buffer_size, state_size)

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 (or N, where more) training episodes of this process, by tag."""
        return {} if self.collector is None else self.collector.episodes.means()

    def collection_seconds(self) -> CollectionSeconds:
        """Where the time of the last iteration's collecting went, in this process."""
        collector, _ = self._fitting()
        return collector.seconds._replace(sampling=self._sampling_seconds)

    def write_states(self, index: Tensor, state: Tensor) -> None:
        """Put states `[K, T, B, S]` into the rows `[K, T, B]` just learned from; of one row the later update wins."""
        _, parts = self._fitting()
        parts.replay.write_states(index, state)

    # One iteration

    def begin_fit(self, trainer: Trainer) -> None:
        """Build environments and replay, and say what they cost.

        Raises:
            ValueError: where so many processes do not come to an update.
        """
        check_sequence_budget(self.hparams, trainer.world_size)
        state_size = self._deciding_policy(trainer).initial_state(1).shape[1]
        rank_zero_info(
            f"train_ratio {self.train_ratio:g}: {self.updates_per_policy_step:g} updates for each environment step "
            f"({self.train_ratio:g} / ({self.batch_size} sequences x {self.batch_length} steps)), "
            f"{self.updates_per_policy_step * self.steps_per_iteration:g} for each iteration of "
            f"{self.steps_per_iteration} steps, the first after {self.first_replay_size:,} steps of each process"
        )
        rank_zero_info(SequenceReplay.describe(self.spec, self.buffer_size, state_size))
        replay = SequenceReplay(
            self.spec,
            self.buffer_size,
            num_streams=self.num_envs,
            batch_length=self.batch_length,
            state_size=state_size,
            gamma=self.gamma,
            seed=self.stream_seed(REPLAY),
            online_queue=self.online_queue,
        )
        self._parts = _Parts(
            replay,
            RowJoiner(self.spec["action"], self.num_envs, state_size),
            TrainRatio(self.train_ratio, self.batch_size * self.batch_length * trainer.world_size),
            ReplaySegments(Path(trainer.log_dir or trainer.default_root_dir) / self._replay_folder_name()),
        )
        environments = training_environments(
            self, self.num_workers, double_buffering=self.double_buffering, reward_dtype=np.float32
        )
        self.collector = RolloutCollector(environments, gamma=self.gamma, seed=self.stream_seed(TRAINING))

    def iterate(self, trainer: Trainer) -> SequenceBatch:
        """Collect with the current policy, then draw."""
        collector, (replay, joiner, ratio, _) = self._fitting()
        rollout = collector.collect(
            self.policy(trainer),
            self.steps_per_iteration // self.num_envs,
            num_processes=trainer.world_size,
            device=trainer.strategy.root_device,
            rollout_device=torch.device("cpu"),  # where the replay is
        )
        replay.extend(joiner.rows(rollout))
        before, self._env_steps = self._env_steps, sum_over_processes(collector.env_steps, trainer)
        num_updates = ratio.take(self._env_steps - before) if self._learns() else 0
        began = perf_counter()
        batch = replay.sample(num_updates, self.batch_size, env_steps=self._env_steps, progress=self.progress)
        self._sampling_seconds = perf_counter() - began
        return batch

    def _learns(self) -> bool:
        # By the number of frames, of which the replay has at least as many rows: its size differs between processes.
        frames = self.iterations * self.steps_per_iteration
        needed = steps_before_sequences(self.num_envs, self.batch_size, self.batch_length)
        return self._env_steps >= self.learning_starts and frames >= needed

    def end_fit(self) -> None:
        """Close the environments; what was collected stays."""
        if self.collector is not None:
            self.collector.close()

    def on_exception(self, exception: BaseException) -> None:
        """End the workers: Lightning does not tear down after an exception."""
        if self.num_workers is not None:
            with suppress(WorkerError):  # what is on its way already says more
                self.end_fit()

    # Stop and resume

    def process_state(self) -> dict[str, Any] | None:
        """The state of this process. New rows are written to `replay/`; the state names the files."""
        if self.collector is None:
            return None
        collector, (replay, joiner, ratio, segments) = self._fitting()
        folder = self._replay_folder_name()
        return {
            "collector": collector.state_dict(),
            "replay": replay.state_dict(),
            "joiner": joiner.state_dict(),
            "ratio": ratio.state_dict(),
            "files": {f"{folder}/{name}": sha256 for name, sha256 in segments.append(replay).items()},
        }

    def restore_process(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Go on with the replay and the environments."""
        collector, (replay, joiner, ratio, segments) = self._fitting()
        replay.load_state_dict(state["replay"])
        joiner.load_state_dict(state["joiner"])
        ratio.load_state_dict(state["ratio"])
        run = Path(str(trainer.ckpt_path)).resolve().parent.parent
        segments.resume(replay, state["files"], run / self._replay_folder_name())
        if not collector.load_state_dict(state["collector"]):
            rank_zero_warn(
                f"the state of {self.env_id} cannot be saved: the running episodes were truncated at environment step "
                f"{self._env_steps}, and the run goes on with new ones"
            )
            replay.extend(joiner.abandon(state["collector"]["observation"]))

    # Parts

    def _fitting(self) -> tuple[RolloutCollector, _Parts]:
        if self.collector is None or self._parts is None:
            raise RuntimeError("there is no replay yet: it is built when trainer.fit(model, datamodule=data) begins")
        return self.collector, self._parts

    def _deciding_policy(self, trainer: Trainer) -> DecidingPolicy:
        policy = self.policy(trainer)
        if not isinstance(policy, DecidingPolicy):
            raise TypeError(
                f"got {type(policy).__name__} without the methods initial_state(num_envs) and decide(observation, "
                "state), expected a policy that remembers: its states are replayed; for another one type --data "
                "rlmods.data.ReplayDataModule"
            )
        return policy

    def _replay_folder_name(self) -> str:
        return f"replay/rank{self.attached_trainer().global_rank}"
