"""The protocols by which data modules are known to algorithms and callbacks."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from rlmods.types.nouns import CollectionSeconds, EpisodeBatch, MixtureTotals, Rollout
from rlmods.types.policies import Policy


class Evaluator(Protocol):
    """The one batch of a validation, test or predict loop: plays episodes with a policy."""

    env_steps: int  # of training so far

    def run(self, policy: Policy) -> EpisodeBatch:
        """Play the episodes of this process, without exploration and without touching the training's randomness."""
        ...

    def record(self, policy: Policy) -> dict[str, Tensor]:
        """Play the same episodes and return every step of them, by field, `[M, ...]`; `episode` numbers them."""
        ...


@runtime_checkable
class ExperienceSource(Protocol):
    """What the curves and the progress bar ask of a data module."""

    @property
    def env_steps(self) -> int:
        """Environment steps of the run so far, over all processes."""
        ...

    @property
    def total_env_steps(self) -> int:
        """The budget."""
        ...

    def rollout_statistics(self) -> dict[str, float]:
        """Means over the last 100 (or N, where more) training episodes, by tag; empty before the first has ended."""
        ...


@runtime_checkable
class TimesCollection(Protocol):
    """A data module that knows where the time of its collecting goes, of this process."""

    def collection_seconds(self) -> CollectionSeconds:
        """Of the last iteration."""
        ...


@runtime_checkable
class ReplaySource(Protocol):
    """What a module and a safeguard ask of a data module that has a replay, of this process."""

    learning_starts: int  # environment steps before the first update, over all processes

    @property
    def transitions_added(self) -> int:
        """Transitions ever put into the replay."""
        ...

    @property
    def replay_size(self) -> int:
        """Transitions that are in it."""
        ...

    @property
    def uses_per_transition(self) -> float:
        """How often a transition is drawn on average, as configured: updates · batch size / transitions collected."""
        ...


@runtime_checkable
class UpdateSettings(Protocol):
    """What an algorithm's own settings must fit, of a data module with a replay."""

    gamma: float  # discount of one step
    updates_per_iteration: int  # mini-batches of an iteration, K


@runtime_checkable
class MeasuresReplay(Protocol):
    """A data module that counts what it draws from its replay, over all processes."""

    @property
    def replay_ratio(self) -> float | None:
        """Transitions drawn for each new one, since learning began; None before the first draw."""
        ...

    @property
    def first_replay_size(self) -> int:
        """Transitions that the replay of this process holds at least when learning begins."""
        ...


@runtime_checkable
class StoresTerminations(Protocol):
    """A data module that counts terminations on both sides of its replay, of this process."""

    terminated_stored: int  # transitions ever put into the replay whose horizon ends with a termination

    @property
    def terminations(self) -> int:
        """Episodes that have terminated in the environments of the training."""
        ...


@runtime_checkable
class MixtureSource(Protocol):
    """A data module in whose environments either the network or an expert acts, frame by frame."""

    def mixture_totals(self) -> MixtureTotals:
        """Since the beginning of the run."""
        ...


@runtime_checkable
class CountsCare(Protocol):
    """A data module whose environments say where care is needed, and which counts that."""

    @property
    def frames_with_care(self) -> int:
        """Of all frames in which network or expert acted so far, of this process."""
        ...


@runtime_checkable
class DrawsStrata(Protocol):
    """A data module with a replay that may be drawn from in strata."""

    @property
    def transitions_added(self) -> int:
        """Transitions ever put into the replay."""
        ...

    def strata_sizes(self) -> dict[str, int] | None:
        """How many transitions each stratum holds now, of this process; None where there are no strata."""
        ...


@runtime_checkable
class ExpertShareControl(Protocol):
    """A data module whose expert share somebody may override; the schedule goes on counting."""

    expert_share_override: float | None  # in [0, 1]; None is the schedule


@runtime_checkable
class TrainingEnvironments(Protocol):
    """What a stage gate asks of a data module, of this process."""

    def fingerprint(self) -> str | None:
        """Of the training environments' whole state, their clocks and current observations; None if it has none.

        Two are equal where the environments go on alike, bit for bit.
        """
        ...

    def episode_returns(self) -> list[float]:
        """Of the last 100 (or N, where more) training episodes that have ended, oldest first."""
        ...


@runtime_checkable
class Feedback(Protocol):
    """The way back to the replay, called once per iteration."""

    def feedback(self, index: Tensor, *, td_error: Tensor) -> None:
        """Tell the replay the signed TD errors `[K, B]` of the slots `[K, B]` just learned from."""
        ...


@runtime_checkable
class LatentFeedback(Protocol):
    """The way back to a sequence replay, called once per iteration."""

    def write_states(self, index: Tensor, state: Tensor) -> None:
        """Put states `[K, T, B, S]` into the rows `[K, T, B]` just learned from; of one row the later update wins."""
        ...


@runtime_checkable
class SequenceSource(Protocol):
    """What an algorithm asks of a data module that replays sequences, of this process."""

    batch_size: int  # sequences of an update, B
    batch_length: int  # steps of a sequence, T
    train_ratio: float  # steps replayed for each environment step
    learning_starts: int  # environment steps before the first update, over all processes

    @property
    def updates_per_policy_step(self) -> float:
        """train_ratio / (B · T): updates for each environment step."""
        ...


@runtime_checkable
class RolloutSource(Protocol):
    """What a probe asks of a data module: experience that the training never sees."""

    num_envs: int  # of this process
    n_steps: int  # of each environment in a rollout of the training

    def probe_rollout(self, policies: Sequence[Policy], *, num_envs: int, num_steps: int, seed: int) -> list[Rollout]:
        """T steps in N fresh environments for each policy, without touching the training's environments.

        All are stepped at once. The environments do not end their episodes.
        """
        ...
