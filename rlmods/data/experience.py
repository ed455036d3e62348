"""What every data module of ours does: the clocks, the rhythm of the evaluations, the loaders, the seeds."""

import json
import sys
from collections.abc import Callable, Iterator
from math import ceil
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from rlmods.data.episodes import EpisodeStatistics
from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.data.fingerprint import fingerprint_of
from rlmods.data.processes import gather_objects
from rlmods.envs.environments import Environments
from rlmods.envs.make import env_spec, make_envs
from rlmods.envs.worker_envs import WorkerEnvironments
from rlmods.types import EnvSpec, Evaluator, Observation, Policy

# Streams of randomness that are derived from one seed.
TRAINING, REPLAY, VALIDATION, TEST, EXPERT = range(5)


class _Collector(Protocol):
    """What collects, of this process."""

    episodes: EpisodeStatistics

    @property
    def environments(self) -> Environments | WorkerEnvironments:
        """Of the training."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """With `environments`, None where their state cannot be saved."""
        ...


class ExperienceDataModule(LightningDataModule):
    """Environments and evaluation of one run; a subclass collects.

    An iteration is one batch. A subclass defines `begin_fit`, `iterate`, `process_state`, `restore_process` and the
    names of the settings that a resume cannot change.

    Args:
        env_id: of a registered Gymnasium environment.
        total_env_steps: the budget, over all processes.
        num_envs: environments that are stepped together.
        gamma: discount of one step.
        steps_per_iteration: environment steps of a process between two batches.
        eval_episodes: episodes of one evaluation, over all processes.
        eval_every: environment steps between two evaluations, over all processes.
        env_kwargs: arguments of the environment.
        vectorization: native where the environment has its own vector implementation, else sync or async.
        resize: height and width to which pixels are reduced.
        grayscale: whether that makes them grey.
        frame_stack: frames of one observation; of a dict the image alone is stacked.
        seed: of all streams; None takes the seed that torch was given.
    """

    fixed_settings: tuple[str, ...] = ()
    collector: _Collector | None = None  # of a fit; a subclass makes it in `begin_fit`

    def __init__(
        self,
        env_id: str,
        total_env_steps: int,
        *,
        num_envs: int,
        gamma: float,
        steps_per_iteration: int,
        eval_episodes: int,
        eval_every: int,
        env_kwargs: dict[str, Any] | None,
        vectorization: Literal["auto", "native", "sync", "async"],
        resize: tuple[int, int] | None,
        grayscale: bool,
        frame_stack: int,
        seed: int | None,
    ) -> None:
        super().__init__()
        self.env_id = env_id
        self._total_env_steps = total_env_steps
        self.num_envs = num_envs
        self.gamma = gamma
        self.steps_per_iteration = steps_per_iteration
        self.eval_episodes = eval_episodes
        self.eval_every = eval_every
        self.env_kwargs = env_kwargs
        self.vectorization = vectorization
        self.resize = resize
        self.grayscale = grayscale
        self.frame_stack = frame_stack
        self.seed = seed
        self.spec = env_spec(
            env_id,
            env_kwargs,
            num_envs=max(num_envs, 1),
            resize=resize,
            grayscale=grayscale,
            frame_stack=frame_stack,
        )
        _check_episodes(self.spec, eval_episodes)
        self.iterations = 0
        self._env_steps = 0
        self.video_folder: Path | None = None
        self.observations: Observation | None = None
        self._evaluation_environments: dict[int, Environments] = {}

    # What a subclass does

    def begin_fit(self, trainer: Trainer) -> None:
        """Build what training needs."""
        raise NotImplementedError

    def iterate(self, trainer: Trainer) -> Any:
        """Collect with the current policy, advance `_env_steps`, and return the batch."""
        raise NotImplementedError

    def end_fit(self) -> None:
        """Close the training's environments."""
        raise NotImplementedError

    def process_state(self) -> dict[str, Any] | None:
        """The state of this process, with the `files` that it needs besides; None before there is one."""
        raise NotImplementedError

    def restore_process(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Go on from the state of this process."""
        raise NotImplementedError

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
        return ceil(self.total_env_steps / (self.steps_per_iteration * self.attached_trainer().world_size))

    @property
    def progress(self) -> float:
        """The part of the budget that is spent, 0 to 1."""
        return min(1.0, self._env_steps / self.total_env_steps)

    def fingerprint(self) -> str | None:
        """Of this process's training environments and collector; None where there are none, or none can be saved."""
        state = None if self.collector is None else self.collector.state_dict()
        if state is None or state["environments"] is None:
            return None
        return fingerprint_of({"iterations": self.iterations, "env_steps": self._env_steps, "collector": state})

    def episode_returns(self) -> list[float]:
        """Returns of the last 100 (or N, where more) ended training episodes of this process, oldest first."""
        return [] if self.collector is None else self.collector.episodes.returns.values().tolist()

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Build the environments, and give the trainer the rhythm of the evaluations."""
        configured: int | None = self.hparams["seed"]
        self.seed = torch.initial_seed() if configured is None else configured
        if stage != TrainerFn.FITTING:
            return
        trainer = self.attached_trainer()
        self.iterations = self._env_steps = 0
        self._schedule_evaluations(trainer)
        self.begin_fit(trainer)

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
            self.attached_trainer().fit_loop.epoch_loop.batch_progress.is_last_batch = False
        return Loader(self.num_iterations, self._remaining_iterations)

    def val_dataloader(self) -> "Loader":
        """One batch: an evaluator."""
        return Loader(1, lambda: iter([self._evaluator(VALIDATION)]))

    def test_dataloader(self) -> "Loader":
        """One batch: an evaluator with other seeds than those of the validation."""
        return Loader(1, lambda: iter([self._evaluator(TEST)]))

    def predict_dataloader(self) -> "Loader":
        """One batch: the given observations, else an evaluator that records its roll-out."""
        observations = self.observations
        if observations is not None:
            return Loader(1, lambda: iter([observations]))
        return self.test_dataloader()

    def teardown(self, stage: str) -> None:
        """Close the environments; what was collected stays."""
        if stage == TrainerFn.FITTING:
            self.end_fit()
            trainer = self.attached_trainer()
            trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
        for environments in self._evaluation_environments.values():
            environments.close()
        self._evaluation_environments.clear()

    def _remaining_iterations(self) -> Iterator[Any]:
        trainer = self.attached_trainer()
        while self.iterations < self.num_iterations:
            self.iterations += 1
            if self.collector is not None:
                self.collector.environments.set_progress(self.progress)
            batch = self.iterate(trainer)
            if self.iterations >= min(self.num_iterations, trainer.num_training_batches, _limit(trainer)):
                # Makes this iteration end with an evaluation, whatever the rhythm.
                trainer.should_stop = True
            yield batch

    # Stop and resume

    def state_dict(self) -> dict[str, Any]:
        """The state of every process."""
        process = self.process_state()
        if process is None:
            return {}
        trainer = self.attached_trainer()
        processes = gather_objects(process, trainer)
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
                "model": type(trainer.lightning_module).__name__,
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
        self.iterations = state_dict["iterations"]
        self.restore_process(state_dict["processes"][trainer.global_rank], trainer)

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
            before = state["settings"].get(name, now)  # absent where the setting is younger than the checkpoint
            if before != now:
                raise ValueError(
                    f"got {name} = {now}, but the checkpoint was written with {name} = {before}, which a resume cannot "
                    f"change: type --data.init_args.{name} {json.dumps(before)}, or start a new run without --ckpt_path"
                )
        if len(state["processes"]) != num_processes:
            raise ValueError(
                f"got {num_processes} processes, but the checkpoint was written by {len(state['processes'])}: "
                f"type --trainer.devices {len(state['processes'])}"
            )
        # Frames that only reset an environment are collected and not counted: iterations may end before the steps do.
        num_iterations = ceil(self.total_env_steps / (self.steps_per_iteration * num_processes))
        if state["env_steps"] >= self.total_env_steps or state["iterations"] >= num_iterations:
            raise ValueError(
                f"got a checkpoint at environment step {state['env_steps']} of {self.total_env_steps}: the budget is "
                "spent; type --data.init_args.total_env_steps N with a larger N to go on, or test instead of fit"
            )

    def _settings(self) -> dict[str, Any]:
        return {name: self.hparams[name] for name in self.fixed_settings}

    # Parts

    def attached_trainer(self) -> Trainer:
        """The trainer.

        Raises:
            RuntimeError: where there is none.
        """
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer: pass it to trainer.fit(model, datamodule=data)")
        return self.trainer

    def make_environments(
        self, num_envs: int, *, render: bool = False, reward_dtype: type[np.floating[Any]] = np.float32
    ) -> Environments:
        """N environments as configured."""
        return make_envs(
            self.env_id,
            num_envs,
            env_kwargs=self.env_kwargs,
            vectorization=self.vectorization,
            resize=self.resize,
            grayscale=self.grayscale,
            frame_stack=self.frame_stack,
            render=render,
            reward_dtype=reward_dtype,
        )

    def _evaluator(self, stream: int) -> Evaluator:
        trainer = self.attached_trainer()
        render = self.video_folder is not None
        if stream not in self._evaluation_environments:
            num_agents = self.spec.get("settings", {}).get("num_agents", 1)  # swarms are not divided
            share = ceil(self.eval_episodes / (trainer.world_size * num_agents)) * num_agents
            self._evaluation_environments[stream] = self.make_environments(share, render=render)
        return self.make_evaluator(self._evaluation_environments[stream], stream)

    def make_evaluator(self, environments: Environments, stream: int) -> Evaluator:
        """What plays the episodes of an evaluation."""
        return EpisodeEvaluator(
            environments,
            gamma=self.gamma,
            seed=self.stream_seed(stream),
            env_steps=self._env_steps,
            device=self.attached_trainer().strategy.root_device,
            video_folder=self.video_folder,
        )

    def stream_seed(self, stream: int) -> int:
        """A seed of this process for one stream of randomness."""
        if self.seed is None:
            raise RuntimeError("there is no seed yet: it is taken when trainer.fit, validate, test or predict begins")
        sequence = np.random.SeedSequence([self.seed, self.attached_trainer().global_rank, stream])
        return int(sequence.generate_state(1)[0])

    def policy(self, trainer: Trainer) -> Policy:
        """The module, as the one who acts.

        Raises:
            TypeError: where it cannot.
        """
        policy = trainer.lightning_module
        if not isinstance(policy, Policy):
            raise TypeError(
                f"got {type(policy).__name__} without a method act(observation, *, env_steps, deterministic=False) -> "
                "actions: add one, the data module collects with it"
            )
        return policy


def _check_episodes(spec: EnvSpec, eval_episodes: int) -> None:
    """Whether an environment of ours can be evaluated so, by what it says of itself."""
    settings = spec.get("settings", {})
    if settings.get("max_episode_steps", 1) is None:
        raise ValueError(
            f"got {spec['env_id']}, whose episodes never end, expected some that can be evaluated: type "
            "--data.init_args.env_kwargs.max_episode_steps 200"
        )
    num_agents = settings.get("num_agents", 1)
    if eval_episodes % num_agents:
        raise ValueError(
            f"got eval_episodes = {eval_episodes} with {spec['env_id']}, whose agents come in swarms of {num_agents}, "
            f"expected a multiple: type --data.init_args.eval_episodes {ceil(eval_episodes / num_agents) * num_agents}"
        )


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
