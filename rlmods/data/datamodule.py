"""Replay-backed data for off-policy algorithms: an iteration collects environment steps, then draws mini-batches."""

from math import ceil
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from rlmods.data.collector import Collected, Collector
from rlmods.data.experience import REPLAY, TRAINING, ExperienceDataModule
from rlmods.data.processes import sum_over_processes
from rlmods.data.replay import PrioritizedReplayBuffer, ReplayBuffer
from rlmods.data.replay_ratio import ReplayRatio
from rlmods.data.segments import ReplaySegments
from rlmods.data.settings import check_replay_settings, check_settings, with_reward_bounds
from rlmods.data.strata import StratifiedReplayBuffer, check_strata
from rlmods.envs.environments import Environments
from rlmods.types import CollectionSeconds, ReplayBatch


class ReplayDataModule(ExperienceDataModule):
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
        replay_strata: share of each mini-batch that is drawn from `recent`, `high_reward`, `before_end` and `uniform`
            (`StratifiedReplayBuffer`); None draws uniformly, or by priority.
        replay_strata_beta: exponent of the importance weights that take the strata back; 0 does not.
        max_replay_ratio: transitions drawn for each new one since learning began, at most: an iteration makes fewer
            than `updates_per_iteration` updates, or none, where it would be exceeded. None does not limit.
        reward_bounds: the lowest and highest reward of one step, a hard bound, where the environment does not say it
            itself; what may be known of a value follows from it.
        env_kwargs: arguments of the environment.
        vectorization: native where the environment has its own vector implementation, else sync or async.
        resize: height and width to which pixels are reduced, next to the environment's step.
        frame_stack: last frames that are stacked as the channels of the pixels, alone or one entry of a dict; replay
            stores each once.
        seed: of environments and replay; None takes the seed that torch was given.

    Raises:
        ValueError: where a setting is outside its range, or the environment does not exist.
    """

    fixed_settings = (
        "num_envs", "gamma", "n_steps", "buffer_size", "steps_per_iteration", "prioritized_replay", "replay_strata",
    )  # fmt: skip

    stores_expert = False  # whether the replay stores who chose the actions

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
        replay_strata: dict[str, float] | None = None,
        replay_strata_beta: float = 1.0,
        max_replay_ratio: float | None = None,
        reward_bounds: list[float] | None = None,
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
            steps_per_iteration=steps_per_iteration,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            env_kwargs=env_kwargs,
            vectorization=vectorization,
            resize=resize,
            grayscale=True,
            frame_stack=frame_stack,
            seed=seed,
        )
        self.save_hyperparameters(logger=False)
        check_settings(self.hparams)
        check_replay_settings(self.hparams)
        if replay_strata is not None:
            check_strata(replay_strata, replay_strata_beta)
        if reward_bounds is not None:
            self.spec = with_reward_bounds(self.spec, reward_bounds)
        self.n_steps = n_steps
        self.buffer_size = buffer_size
        self.batch_size = batch_size
        self.learning_starts = learning_starts
        self.updates_per_iteration = updates_per_iteration
        self.prioritized_replay = prioritized_replay
        self.prioritized_replay_alpha = prioritized_replay_alpha
        self.prioritized_replay_beta0 = prioritized_replay_beta0
        self.prioritized_replay_eps = prioritized_replay_eps
        self.replay_strata = replay_strata
        self.replay_strata_beta = replay_strata_beta
        self.max_replay_ratio = max_replay_ratio
        self.collector: Collector | None = None
        self.replay: ReplayBuffer | None = None
        self.segments: ReplaySegments | None = None
        self.drawing = ReplayRatio(max_replay_ratio)
        self.terminated_stored = 0

    # What is asked of it

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
        wanted = self.updates_per_iteration * self.batch_size / self.steps_per_iteration
        return wanted if self.max_replay_ratio is None else min(wanted, self.max_replay_ratio)

    @property
    def replay_ratio(self) -> float | None:
        """Transitions drawn for each new one since learning began, over all processes; None before the first draw."""
        return self.drawing.value

    @property
    def terminations(self) -> int:
        """Episodes that have terminated in the environments of this process; each stores a transition that says so."""
        return 0 if self.collector is None else self.collector.episodes.terminations

    @property
    def first_replay_size(self) -> int:
        """Transitions that the replay of this process holds at the first update; more where episodes end before."""
        of_all = self.steps_per_iteration * (1 if self.trainer is None else self.trainer.world_size)
        horizons = ceil((self.n_steps + 1) * self.num_envs / self.steps_per_iteration)
        collected = max(ceil(self.learning_starts / of_all), horizons) * self.steps_per_iteration
        lookahead = self.n_steps if self.collector is None else self.collector.lookahead
        return min(collected - lookahead * self.num_envs, self.buffer_size)

    def strata_sizes(self) -> dict[str, int] | None:
        """How many transitions each stratum of the replay of this process holds; None without strata."""
        return self.replay.sizes() if isinstance(self.replay, StratifiedReplayBuffer) else None

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 (or N, where more) training episodes of this process, by tag."""
        return {} if self.collector is None else self.collector.rollout_statistics()

    def collection_seconds(self) -> CollectionSeconds:
        """Where the time of the last iteration's collecting went, in this process."""
        collector, _, _ = self._fitting()
        return collector.seconds

    def feedback(self, index: Tensor, *, td_error: Tensor) -> None:
        """Give the TD errors `[K, B]` of slots `[K, B]` to the replay, as priorities."""
        _, replay, _ = self._fitting()
        replay.feedback(index.cpu(), td_error.cpu())

    # One iteration

    def begin_fit(self, trainer: Trainer) -> None:
        """Build environments and replay."""
        environments = self.make_environments(self.num_envs)
        self.collector = self.make_collector(environments)
        self.replay = self._make_replay()
        self.drawing = ReplayRatio(self.max_replay_ratio)
        self.terminated_stored = 0
        self.segments = ReplaySegments(Path(trainer.log_dir or trainer.default_root_dir) / self._replay_folder_name())

    def make_collector(self, environments: Environments) -> Collector:
        """What steps the environments of the training."""
        seed = self.stream_seed(TRAINING)
        return Collector(environments, gamma=self.gamma, n_steps=self.n_steps, seed=seed)

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        """Collect with the current policy, then draw."""
        collector, replay, _ = self._fitting()
        budget = ceil(self.total_env_steps / trainer.world_size)
        collected = collector.collect(
            self.policy(trainer),
            min(self.iterations * self.steps_per_iteration, budget),
            num_processes=trainer.world_size,
            device=trainer.strategy.root_device,
        )
        self._store(collected)
        self._env_steps = sum_over_processes(collector.env_steps, trainer)
        # The number of vector steps, not the size of the replay, which could differ between processes.
        vector_steps = self.iterations * self.steps_per_iteration // self.num_envs
        learns = self._env_steps >= self.learning_starts and vector_steps > self.n_steps
        num_updates = 0
        if learns:
            # Over all processes, which must make the same number of updates.
            inserted = sum_over_processes(len(collected.by_expert), trainer)
            num_updates = self.drawing.take(self.updates_per_iteration, self.batch_size * trainer.world_size, inserted)
        sample = replay.sample(num_updates, self.batch_size, self.progress)
        return ReplayBatch(
            *sample,
            env_steps=self._env_steps,
            progress=self.progress,
            by_expert=replay.expert_flags(sample.index),
        )

    def _store(self, collected: Collected) -> None:
        _, replay, _ = self._fitting()
        replay.extend(collected.transition, collected.by_expert if self.stores_expert else None)
        self.terminated_stored += int(collected.transition.terminated.count_nonzero())

    def end_fit(self) -> None:
        """Close the environments; what was collected stays."""
        if self.collector is not None:
            self.collector.close()

    # Stop and resume

    def process_state(self) -> dict[str, Any] | None:
        """The state of this process. New transitions are written to `replay/`; the state names the files."""
        if self.collector is None or self.replay is None or self.segments is None:
            return None
        folder = self._replay_folder_name()
        files = {f"{folder}/{name}": sha256 for name, sha256 in self.segments.append(self.replay).items()}
        return {
            "collector": self.collector.state_dict(),
            "replay": self.replay.state_dict(),
            "drawing": self.drawing.state_dict(),
            "terminated_stored": self.terminated_stored,
            "files": files,
        }

    def restore_process(self, state: dict[str, Any], trainer: Trainer) -> None:
        """Go on with the replay and the environments."""
        collector, replay, segments = self._fitting()
        replay.load_state_dict(state["replay"])
        self.drawing.load_state_dict(state.get("drawing", self.drawing.state_dict()))
        self.terminated_stored = state.get("terminated_stored", 0)
        run = Path(str(trainer.ckpt_path)).resolve().parent.parent
        segments.resume(replay, state["files"], run / self._replay_folder_name())
        truncated = collector.load_state_dict(state["collector"])
        if truncated is not None:
            rank_zero_warn(
                f"the state of {self.env_id} cannot be saved: the running episodes were truncated at environment step "
                f"{self._env_steps}, and the run goes on with new ones"
            )
            self._store(truncated)

    # Parts

    def _fitting(self) -> tuple[Collector, ReplayBuffer, ReplaySegments]:
        if self.collector is None or self.replay is None or self.segments is None:
            raise RuntimeError("there is no replay yet: it is built when trainer.fit(model, datamodule=data) begins")
        return self.collector, self.replay, self.segments

    def _make_replay(self) -> ReplayBuffer:
        seed, size, stores_expert = self.stream_seed(REPLAY), self.buffer_size, self.stores_expert
        if self.replay_strata is not None:
            rank_zero_info(StratifiedReplayBuffer.describe(self.spec, size))
            return StratifiedReplayBuffer(
                self.spec,
                size,
                seed=seed,
                replay_strata=self.replay_strata,
                replay_strata_beta=self.replay_strata_beta,
                stores_expert=stores_expert,
            )
        if not self.prioritized_replay:
            rank_zero_info(ReplayBuffer.describe(self.spec, size))
            return ReplayBuffer(self.spec, size, seed=seed, stores_expert=stores_expert)
        rank_zero_info(PrioritizedReplayBuffer.describe(self.spec, size))
        return PrioritizedReplayBuffer(
            self.spec,
            size,
            seed=seed,
            stores_expert=stores_expert,
            prioritized_replay_alpha=self.prioritized_replay_alpha,
            prioritized_replay_beta0=self.prioritized_replay_beta0,
            prioritized_replay_eps=self.prioritized_replay_eps,
        )

    def _replay_folder_name(self) -> str:
        return f"replay/rank{self.attached_trainer().global_rank}"
