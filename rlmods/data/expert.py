"""Replay-backed data of which an expert collects a part: frame by frame either it acts, or the network."""

from typing import Any, Literal

import torch
from torch import Tensor

from rlmods.data.collector import Collector
from rlmods.data.datamodule import ReplayDataModule
from rlmods.data.experience import EXPERT, TRAINING
from rlmods.data.mixture import ExpertMixture, ExpertSchedule
from rlmods.data.settings import check_expert_settings
from rlmods.envs.environments import Environments
from rlmods.functional.expert_share import expert_floor_reached
from rlmods.types import EpisodeBatch, Evaluator, MixtureTotals, Observation, Policy


class ExpertDataModule(ReplayDataModule):
    """A `ReplayDataModule` with an expert curriculum.

    In each frame and environment a coin decides whether the environment's own expert acts, with probability
    max(`expert_share_floor`, `expert_share` · `expert_share_decay`^⌊env_steps / `expert_share_decay_steps`⌋). The
    replay knows who chose the first action of each transition. Evaluations are without the expert; its own score on the
    same episodes stands beside them.

    Args:
        env_id: of an environment with an expert; this and the other arguments without explanation are those of
            `ReplayDataModule`.
        total_env_steps: the budget.
        expert_share: probability at the beginning, in [0, 1].
        expert_share_decay: factor of one step of the schedule, in (0, 1].
        expert_share_decay_steps: environment steps, over all processes, between two steps of the schedule.
        expert_share_floor: what the share falls to, in [0, `expert_share`].
        expert_care_scale: factor on the share where the environment needs care; the product is cut at 1.
        n_step_through_expert: whether an n-step return goes on where somebody else than its first actor acts; else it
            ends before that action, and bootstraps there.
        num_envs: environments that are stepped together.
        gamma: discount.
        n_steps: horizon.
        buffer_size: transitions that replay holds.
        batch_size: transitions of one update.
        learning_starts: environment steps before the first update.
        steps_per_iteration: environment steps of an iteration.
        updates_per_iteration: updates of an iteration.
        eval_episodes: episodes of one evaluation.
        eval_every: environment steps between two evaluations.
        prioritized_replay: draw by TD error.
        prioritized_replay_alpha: exponent of the priority.
        prioritized_replay_beta0: exponent of the importance weight.
        prioritized_replay_eps: added to the TD error.
        replay_strata: shares of the strata.
        replay_strata_beta: exponent of their importance weights.
        max_replay_ratio: limit of the replay ratio.
        reward_bounds: of one step.
        env_kwargs: arguments of the environment.
        vectorization: native, sync or async.
        resize: of pixels.
        frame_stack: of pixels.
        seed: of environments, replay and coins.

    Raises:
        ValueError: as in `ReplayDataModule`, or a share is outside its range, or actions are not discrete; at the start
            of a fit where the environment has no expert.
    """

    stores_expert = True

    def __init__(
        self,
        env_id: str,
        total_env_steps: int,
        *,
        expert_share: float = 0.95,
        expert_share_decay: float = 0.996,
        expert_share_decay_steps: int = 10_000,
        expert_share_floor: float = 0.1,
        expert_care_scale: float = 1.0,
        n_step_through_expert: bool = True,
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
        vectorization: Literal["auto", "native", "sync", "async"] = "native",
        resize: tuple[int, int] | None = None,
        frame_stack: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            env_id,
            total_env_steps,
            num_envs=num_envs,
            gamma=gamma,
            n_steps=n_steps,
            buffer_size=buffer_size,
            batch_size=batch_size,
            learning_starts=learning_starts,
            steps_per_iteration=steps_per_iteration,
            updates_per_iteration=updates_per_iteration,
            eval_episodes=eval_episodes,
            eval_every=eval_every,
            prioritized_replay=prioritized_replay,
            prioritized_replay_alpha=prioritized_replay_alpha,
            prioritized_replay_beta0=prioritized_replay_beta0,
            prioritized_replay_eps=prioritized_replay_eps,
            replay_strata=replay_strata,
            replay_strata_beta=replay_strata_beta,
            max_replay_ratio=max_replay_ratio,
            reward_bounds=reward_bounds,
            env_kwargs=env_kwargs,
            vectorization=vectorization,
            resize=resize,
            frame_stack=frame_stack,
            seed=seed,
        )
        check_expert_settings(self.hparams, self.spec)
        self.schedule = ExpertSchedule(
            expert_share, expert_share_decay, expert_share_decay_steps, expert_share_floor, expert_care_scale
        )
        self.n_step_through_expert = n_step_through_expert
        self.mixture: ExpertMixture | None = None
        self._expert_returns: dict[int, Tensor] = {}  # of the evaluation's episodes, by their stream

    # What is asked of it

    @property
    def expert_floor_reached(self) -> float:
        """The environment step at which the share reaches its floor; infinite where it never does."""
        start, decay, decay_steps, floor, _ = self.schedule
        return expert_floor_reached(start=start, decay=decay, decay_steps=decay_steps, floor=floor)

    @property
    def expert_share_override(self) -> float | None:
        """A share in [0, 1] in the place of the schedule's, which goes on counting; None is the schedule."""
        return None if self.mixture is None else self.mixture.override

    @expert_share_override.setter
    def expert_share_override(self, share: float | None) -> None:
        if self.mixture is None:
            raise RuntimeError("there is no expert yet: it is there when trainer.fit(model, datamodule=data) begins")
        if share is not None and not 0.0 <= share <= 1.0:
            raise ValueError(f"got expert_share_override = {share}, expected a probability in [0, 1], or None")
        self.mixture.override = share

    def mixture_totals(self) -> MixtureTotals:
        """Frames and rewards by network and by expert since the beginning of the run, of this process."""
        return MixtureTotals(0, 0, 0.0, 0.0) if self.mixture is None else self.mixture.totals

    @property
    def frames_with_care(self) -> int:
        """Frames since the beginning of the run in which an environment needed care, of this process."""
        return 0 if self.mixture is None else self.mixture.frames_with_care

    def rollout_statistics(self) -> dict[str, float]:
        """As in `ReplayDataModule`, with the rewards on the frames of network and expert apart."""
        return super().rollout_statistics() | ({} if self.mixture is None else self.mixture.means())

    # One iteration

    def make_collector(self, environments: Environments) -> Collector:
        """A collector in whose environments the expert acts now and then."""
        self.mixture = ExpertMixture(self.schedule, self.num_envs, seed=self.stream_seed(EXPERT))
        collector = Collector(
            environments,
            gamma=self.gamma,
            n_steps=self.n_steps,
            seed=self.stream_seed(TRAINING),
            mixture=self.mixture,
            n_step_through_expert=self.n_step_through_expert,
        )
        _expert_action(environments)  # refuses environments without an expert
        return collector

    # Evaluation

    def make_evaluator(self, environments: Environments, stream: int) -> Evaluator:
        """An evaluator that also says what the expert gets in the same episodes, which it plays once in a run."""
        return _EvaluatorWithExpert(
            super().make_evaluator(environments, stream), _Expert(environments), self._expert_returns, stream
        )

    # Stop and resume

    def process_state(self) -> dict[str, Any] | None:
        """As in `ReplayDataModule`, with the expert's score."""
        state = super().process_state()
        if state is None:
            return None
        return {**state, "expert_returns": dict(self._expert_returns), "expert_games": self._expert_games}

    def restore_process(self, state: dict[str, Any], trainer: Any) -> None:
        """As in `ReplayDataModule`, with the expert's score, unless a resume changes the games that it is of."""
        super().restore_process(state, trainer)
        if state["expert_games"] == self._expert_games:
            self._expert_returns.update(state["expert_returns"])

    @property
    def _expert_games(self) -> str:
        """What tells the games of one evaluation from those of another."""
        return repr((self.env_kwargs, self.eval_episodes))


class _Expert:
    """The environments' own expert as a policy, which needs no observation."""

    def __init__(self, environments: Environments) -> None:
        self.environments = environments

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """`[N]`."""
        return torch.from_numpy(_expert_action(self.environments))


class _EvaluatorWithExpert:
    """An evaluator whose episodes are also played by the expert, once.

    Args:
        evaluator: of the policy.
        expert: in the same environments.
        returns: of the expert, by stream, kept over all evaluations.
        stream: of the seeds.
    """

    def __init__(self, evaluator: Evaluator, expert: _Expert, returns: dict[int, Tensor], stream: int) -> None:
        self.env_steps = evaluator.env_steps
        self.evaluator = evaluator
        self.expert = expert
        self.returns = returns
        self.stream = stream

    def run(self, policy: Policy) -> EpisodeBatch:
        """Play the episodes of this process."""
        if self.stream not in self.returns:  # before the policy, whose video is to stay
            self.returns[self.stream] = self.evaluator.run(self.expert).returns
        return self.evaluator.run(policy)._replace(expert_returns=self.returns[self.stream])

    def record(self, policy: Policy) -> dict[str, Tensor]:
        """Those of the policy."""
        return self.evaluator.record(policy)


def _expert_action(environments: Environments) -> Any:
    action = environments.expert_action()
    if action is None:
        env_id = environments.spec["env_id"]
        raise ValueError(
            f"got {env_id}, which has no expert, expected a vector environment with expert_action() -> actions [N]: "
            "type --data.init_args.env_id rlmods/LaneShooter-v0, or --data.class_path rlmods.data.ReplayDataModule"
        )
    return action
