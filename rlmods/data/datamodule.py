"""Replay-backed data for off-policy algorithms: an iteration collects environment steps, then draws mini-batches."""

import sys
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from rlmods.data.collector import Collector
from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.data.processes import gather_objects, sum_over_processes
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.segments import ReplaySegments
from rlmods.data.settings import check_settings
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs
from rlmods.types import Observation, Policy, ReplayBatch

# Streams of randomness that are derived from one seed.
_TRAINING, _REPLAY, _VALIDATION, _TEST = range(4)


class ReplayDataModule(LightningDataModule):
    """Environments, replay and evaluation of one run.

    All settings are of each process, but for `total_env_steps`, `learning_starts`, `eval_every` and `eval_episodes`,
    which count over all processes.

    Args:
        env_id: of a registered Gymnasium environment.
        total_env_steps: the budget.
        num_envs: environments that are stepped together.
        gamma: discount of one step, in [0, 1).
        n_steps: horizon of the returns.
        buffer_size: transitions that replay holds.
        batch_size: transitions of one update.
        learning_starts: environment steps before the first update.
        steps_per_iteration: environment steps between two blocks of updates, a multiple of `num_envs`.
        updates_per_iteration: updates of a block.
        eval_episodes: episodes of one evaluation.
        eval_every: environment steps between two evaluations, rounded down to whole iterations, at least one.
        prioritized_replay: draw transitions by their TD error (Schaul et al. 2016).
        prioritized_replay_alpha: exponent of the priority; 0 is uniform.
        prioritized_replay_beta0: exponent of the importance weight at the start; it ends at 1.
        prioritized_replay_eps: added to the absolute TD error.
        env_kwargs: arguments of the environment.
        vectorization: native where the environment has its own vector implementation, else sync or async.
        resize: height and width to which pixels are reduced, next to the environment's step.
        frame_stack: frames of one observation.
        seed: of environments and replay; None takes the seed that torch was given.

    Raises:
        ValueError: where a setting is outside its range, or the environment does not exist.
    """

    def __init__(
        self,
        env_id: str,
        total_env_steps: int,
        *,
        num_envs: int = 1,
        gamma: float = 0.99,
        n_steps: int = 1,
        buffer_size: int = 100_000,
        batch_size: int = 64,
        learning_starts: int = 1_000,
        steps_per_iteration: int = 256,
        updates_per_iteration: int = 128,
        eval_episodes: int = 10,
        eval_every: int = 5_000,
        prioritized_replay: bool = False,
        prioritized_replay_alpha: float = 0.6,
        prioritized_replay_beta0: float = 0.4,
        prioritized_replay_eps: float = 1e-6,
        env_kwargs: dict[str, Any] | None = None,
        vectorization: Literal["auto", "native", "sync", "async"] = "auto",
        resize: tuple[int, int] | None = None,
        frame_stack: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        self.env_id = env_id
        self._total_env_steps = total_env_steps
        self.num_envs = num_envs
        self.gamma = gamma
        self.n_steps = n_steps
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.steps_per_iteration = steps_per_iteration
        self.updates_per_iteration = updates_per_iteration
        self.eval_episodes = eval_episodes
        self.eval_every = eval_every
        self.prioritized_replay = prioritized_replay
        self.prioritized_replay_alpha = prioritized_replay_alpha
        self.prioritized_replay_beta0 = prioritized_replay_beta0
        self.prioritized_replay_eps = prioritized_replay_eps
        self.env_kwargs = env_kwargs
        self.vectorization = vectorization
        self.resize = resize
        self.frame_stack = frame_stack
        self.seed = seed
        self.spec = env_spec(env_id, env_kwargs, resize=resize, frame_stack=frame_stack)
        self.iterations = 0
        self._env_steps = 0
        self.collector: Collector | None = None
        self.replay: ReplayBuffer | None = None
        self.segments: ReplaySegments | None = None
        self.video_folder: Path | None = None
        self.observations: Observation | None = None
        self._evaluation_environments: dict[int, Environments] = {}

    # The clocks

    @property
    def env_steps(self) -> int:
        """Environment steps so far, over all processes."""
        return self._env_steps

    @property
    def total_env_steps(self) -> int:
        """The budget, over all processes."""
        return self._total_env_steps

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run."""
        return ceil(self.total_env_steps / (self.steps_per_iteration * self._attached_trainer().world_size))

    @property
    def transitions_added(self) -> int:
        """Transitions that this process ever put into its replay."""
        return 0 if self.replay is None else self.replay.inserted

    @property
    def replay_size(self) -> int:
        """Transitions in the replay of this process."""
        return 0 if self.replay is None else len(self.replay)

    @property
    def uses_per_transition(self) -> float:
        """How often a transition is drawn on average, as configured."""
        return self.updates_per_iteration * self.batch_size / self.steps_per_iteration

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 training episodes of this process, by tag; empty before the first has ended."""
        return {} if self.collector is None else self.collector.rollout_statistics()

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Build environments and replay, and give the trainer the rhythm of the evaluations."""
        configured: int | None = self.hparams["seed"]
        self.seed = torch.initial_seed() if configured is None else configured
        if stage != TrainerFn.FITTING:
            return
        trainer = self._attached_trainer()
        self.iterations = self._env_steps = 0
        self._schedule_evaluations(trainer)
        environments = self._make_envs(self.num_envs)
        self.collector = Collector(
            environments, gamma=self.gamma, n_steps=self.n_steps, seed=self._stream_seed(_TRAINING)
        )
        replay_class = PrioritizedReplayBuffer if self.prioritized_replay else ReplayBuffer
        rank_zero_info(replay_class.describe(self.spec, self.buffer_size))
        self.replay = self._make_replay()
        self.segments = ReplaySegments(Path(trainer.log_dir or trainer.default_root_dir) / self._replay_folder_name())

    def _schedule_evaluations(self, trainer: Trainer) -> None:
        if trainer.val_check_interval != 1.0 or trainer.check_val_every_n_epoch != 1:
            raise ValueError(
                f"got Trainer(val_check_interval={trainer.val_check_interval}, "
                f"check_val_every_n_epoch={trainer.check_val_every_n_epoch}), expected neither: the data module owns "
                "the rhythm of the evaluations; type --data.init_args.eval_every ENV_STEPS"
            )
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.val_check_interval = max(1, self.eval_every // (self.steps_per_iteration * trainer.world_size))
            trainer.check_val_every_n_epoch = None

    def train_dataloader(self) -> "Loader":
        """One batch an iteration."""
        if self.iterations < self.num_iterations:
            # Lightning restores from the end of a run that it is over, also where the budget has grown since.
            self._attached_trainer().fit_loop.epoch_loop.batch_progress.is_last_batch = False
        return Loader(self.num_iterations, self._remaining_iterations)

    def val_dataloader(self) -> "Loader":
        """One batch: an evaluator."""
        return Loader(1, lambda: iter([self._evaluator(_VALIDATION)]))

    def test_dataloader(self) -> "Loader":
        """One batch: an evaluator with other seeds than those of the validation."""
        return Loader(1, lambda: iter([self._evaluator(_TEST)]))

    def predict_dataloader(self) -> "Loader":
        """One batch: the given observations, else an evaluator that records its roll-out."""
        observations = self.observations
        if observations is not None:
            return Loader(1, lambda: iter([observations]))
        return self.test_dataloader()

    def teardown(self, stage: str) -> None:
        """Close the environments; what was collected stays."""
        if stage == TrainerFn.FITTING and self.collector is not None:
            self.collector.close()
            trainer = self._attached_trainer()
            trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
        for environments in self._evaluation_environments.values():
            environments.close()
        self._evaluation_environments.clear()

    # One iteration

    def _remaining_iterations(self) -> Iterator[ReplayBatch]:
        while self.iterations < self.num_iterations:
            yield self._iterate()

    def _iterate(self) -> ReplayBatch:
        """Collect with the current policy, then draw."""
        collector, replay, _ = self._fitting()
        trainer = self._attached_trainer()
        self.iterations += 1
        budget = ceil(self.total_env_steps / trainer.world_size)
        transitions = collector.collect(
            self._policy(trainer),
            min(self.iterations * self.steps_per_iteration, budget),
            num_processes=trainer.world_size,
            device=trainer.strategy.root_device,
        )
        replay.extend(transitions)
        self._env_steps = sum_over_processes(collector.env_steps, trainer)
        if self.iterations >= min(self.num_iterations, trainer.num_training_batches, _limit(trainer)):
            # Makes this iteration end with an evaluation, whatever the rhythm.
            trainer.should_stop = True
        # The number of vector steps, not the size of the replay, which could differ between processes.
        vector_steps = self.iterations * self.steps_per_iteration // self.num_envs
        learns = self._env_steps >= self.learning_starts and vector_steps > self.n_steps
        progress = min(1.0, self._env_steps / self.total_env_steps)
        num_updates = self.updates_per_iteration if learns else 0
        sample = replay.sample(num_updates, self.batch_size, progress)
        return ReplayBatch(*sample, env_steps=self._env_steps, progress=progress)

    def feedback(self, index: Tensor, *, td_error: Tensor) -> None:
        """Give the TD errors `[K, B]` of slots `[K, B]` to the replay, as priorities."""
        _, replay, _ = self._fitting()
        replay.feedback(index.cpu(), td_error.cpu())

    # Stop and resume

    def state_dict(self) -> dict[str, Any]:
        """The state of every process. New transitions are written to `replay/`; the state names the files."""
        if self.collector is None or self.replay is None or self.segments is None:
            return {}
        folder = self._replay_folder_name()
        files = {f"{folder}/{name}": sha256 for name, sha256 in self.segments.append(self.replay).items()}
        process = {"collector": self.collector.state_dict(), "replay": self.replay.state_dict(), "files": files}
        processes = gather_objects(process, self._attached_trainer())
        return {
            "spec": self.spec,
            "seed": self.seed,
            "settings": self._settings(),
            "iterations": self.iterations,
            "env_steps": self._env_steps,
            "processes": processes,
            "manifest": {
                "env_id": self.env_id,
                "data": type(self).__name__,
                "model": type(self._attached_trainer().lightning_module).__name__,
                "env_steps": self._env_steps,
                "files": {name: sha256 for state in processes for name, sha256 in state["files"].items()},
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore; outside `fit` only the clock and the seed.

        Raises:
            ValueError: where the checkpoint was written with settings that a resume cannot change.
        """
        self._env_steps = state_dict["env_steps"]
        self.seed = state_dict["seed"]
        if self.trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        trainer = self.trainer
        self.check_checkpoint(state_dict, trainer.world_size)
        collector, replay, _ = self._fitting()
        self.iterations = state_dict["iterations"]
        process = state_dict["processes"][trainer.global_rank]
        replay.load_state_dict(process["replay"])
        self._load_transitions(process["files"], trainer)
        truncated = collector.load_state_dict(process["collector"])
        if truncated is not None:
            rank_zero_warn(
                f"the state of {self.env_id} cannot be saved: the running episodes were truncated at environment step "
                f"{self._env_steps}, and the run goes on with new ones"
            )
            replay.extend(truncated)

    def check_checkpoint(self, state: dict[str, Any], num_processes: int) -> None:
        """Whether training can go on from a `state_dict` with the settings of this data module.

        Raises:
            ValueError: where it cannot, with what to type.
        """
        for part in ("observation", "action"):
            if state["spec"][part] != self.spec[part]:
                raise ValueError(
                    f"got a checkpoint with {part} {state['spec'][part]} ({state['spec']['env_id']}), expected "
                    f"{self.spec[part]} ({self.env_id}): type the --config that the checkpoint was trained with"
                )
        for name, now in self._settings().items():
            before = state["settings"][name]
            if before != now:
                raise ValueError(
                    f"got {name} = {now}, but the checkpoint was written with {name} = {before}, which a resume cannot "
                    f"change: type --data.init_args.{name} {before}, or start a new run without --ckpt_path"
                )
        if len(state["processes"]) != num_processes:
            raise ValueError(
                f"got {num_processes} processes, but the checkpoint was written by {len(state['processes'])}: "
                f"type --trainer.devices {len(state['processes'])}"
            )
        if state["env_steps"] >= self.total_env_steps:
            raise ValueError(
                f"got a checkpoint at environment step {state['env_steps']} of {self.total_env_steps}: the budget is "
                "spent; type --data.init_args.total_env_steps N with a larger N to go on, or test instead of fit"
            )

    def _settings(self) -> dict[str, Any]:
        names = ("num_envs", "gamma", "n_steps", "buffer_size", "steps_per_iteration", "prioritized_replay")
        return {name: self.hparams[name] for name in names}

    def _load_transitions(self, files: dict[str, str], trainer: Trainer) -> None:
        _, replay, segments = self._fitting()
        by_name = {Path(name).name: sha256 for name, sha256 in files.items()}
        source = Path(str(trainer.ckpt_path)).resolve().parent.parent / self._replay_folder_name()
        if source == segments.folder.resolve():
            segments.load(replay, by_name)
        else:
            # The run goes on in another folder: everything is written again there.
            ReplaySegments(source).load(replay, by_name)

    # Parts

    def _attached_trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer: pass it to trainer.fit(model, datamodule=data)")
        return self.trainer

    def _fitting(self) -> tuple[Collector, ReplayBuffer, ReplaySegments]:
        if self.collector is None or self.replay is None or self.segments is None:
            raise RuntimeError("there is no replay yet: it is built when trainer.fit(model, datamodule=data) begins")
        return self.collector, self.replay, self.segments

    def _make_envs(self, num_envs: int, *, render: bool = False) -> Environments:
        return make_envs(
            self.env_id,
            num_envs,
            env_kwargs=self.env_kwargs,
            vectorization=self.vectorization,
            resize=self.resize,
            frame_stack=self.frame_stack,
            render=render,
        )

    def _make_replay(self) -> ReplayBuffer:
        seed = self._stream_seed(_REPLAY)
        if not self.prioritized_replay:
            return ReplayBuffer(self.spec, self.buffer_size, seed=seed)
        return PrioritizedReplayBuffer(
            self.spec,
            self.buffer_size,
            seed=seed,
            prioritized_replay_alpha=self.prioritized_replay_alpha,
            prioritized_replay_beta0=self.prioritized_replay_beta0,
            prioritized_replay_eps=self.prioritized_replay_eps,
        )

    def _evaluator(self, stream: int) -> EpisodeEvaluator:
        trainer = self._attached_trainer()
        render = self.video_folder is not None
        if stream not in self._evaluation_environments:
            self._evaluation_environments[stream] = self._make_envs(
                ceil(self.eval_episodes / trainer.world_size), render=render
            )
        return EpisodeEvaluator(
            self._evaluation_environments[stream],
            gamma=self.gamma,
            seed=self._stream_seed(stream),
            env_steps=self._env_steps,
            device=trainer.strategy.root_device,
            video_folder=self.video_folder,
        )

    def _stream_seed(self, stream: int) -> int:
        """A seed of this process for one stream of randomness."""
        if self.seed is None:
            raise RuntimeError("there is no seed yet: it is taken when trainer.fit, validate, test or predict begins")
        sequence = np.random.SeedSequence([self.seed, self._attached_trainer().global_rank, stream])
        return int(sequence.generate_state(1)[0])

    def _replay_folder_name(self) -> str:
        return f"replay/rank{self._attached_trainer().global_rank}"

    def _policy(self, trainer: Trainer) -> Policy:
        policy = trainer.lightning_module
        if not isinstance(policy, Policy):
            raise TypeError(
                f"got {type(policy).__name__} without a method act(observation, *, env_steps, deterministic=False) -> "
                "actions: add one, the data module collects with it"
            )
        return policy


class Loader:
    """A sized iterable: without a length Lightning holds one batch in reserve, of a policy one update older.

    Args:
        length: number of batches.
        batches: makes the iterator.
    """

    def __init__(self, length: int, batches: Callable[[], Iterator[Any]]) -> None:
        self.length = length
        self.batches = batches

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module saves the state, because Lightning does not always restore that of a loader."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing; that it is there tells Lightning that the loader resumes."""


def _limit(trainer: Trainer) -> int:
    """`max_steps`, which Lightning gives as -1 where there is none."""
    return sys.maxsize if trainer.max_steps == -1 else trainer.max_steps
