"""The nouns that travel between the packages, and the protocols by which the packages know each other.

Shape letters: `N` environments, `T` time steps of a rollout, `K` mini-batches of one iteration, `B` transitions of a
mini-batch, `A` action dimensions, `E` episodes, `M` any number of transitions, `D` features.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NotRequired, Protocol, TypeAlias, TypedDict, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import Tensor
from typing_extensions import TypeIs

Observation: TypeAlias = Tensor | dict[str, Tensor]
ArrayObservation: TypeAlias = npt.NDArray[Any] | dict[str, npt.NDArray[Any]]


class ArraySpec(TypedDict):
    """One array of an observation. A plain dict, because a checkpoint must load with `weights_only`."""

    shape: list[int]
    dtype: str  # numpy's name: "float32", "uint8"; uint8 [C, H, W] are pixels
    frame_stack: NotRequired[int]  # frames that the C channels of pixels are made of; absent where it is one


class ActionSpec(TypedDict):
    """The action of one environment."""

    kind: Literal["discrete", "multi_discrete", "continuous"]
    n: int  # number of discrete actions; 0 elsewhere
    nvec: NotRequired[list[int]]  # of multi_discrete actions: how many choices each has
    shape: list[int]  # [] where discrete
    low: list[float]  # flat, empty where discrete
    high: list[float]


class EnvSpec(TypedDict):
    """What an algorithm must know of an environment to build its networks."""

    env_id: str
    observation: ArraySpec | dict[str, ArraySpec]
    action: ActionSpec
    settings: NotRequired[dict[str, Any]]  # what an environment of ours says of itself: numbers and words


def is_array_spec(observation: ArraySpec | dict[str, ArraySpec]) -> TypeIs[ArraySpec]:
    """Whether an observation is one array, and not a dict of arrays."""
    return isinstance(observation.get("dtype"), str)


class Transition(NamedTuple):
    """Transitions of one or of n steps. Leading shape `[...]` is `[M]` when stored and `[K, B]` when sampled."""

    observation: Observation  # [..., *shape]
    action: Tensor  # [...] int64 or [..., A] float32
    reward: Tensor  # [...] float32, Σ γⁱ rᵢ over the horizon
    discount: Tensor  # [...] float32, γ^horizon · (1 − terminated)
    next_observation: Observation  # [..., *shape], at the end of the horizon, never that of a next episode
    terminated: Tensor  # [...] bool
    truncated: Tensor  # [...] bool


class ReplaySample(NamedTuple):
    """What a replay buffer draws."""

    transition: Transition  # [K, B, ...]
    index: Tensor  # type: ignore[assignment]  # [K, B] int64, slots of the ring
    importance_weight: Tensor  # [K, B] float32 in (0, 1], ones where replay is uniform


def _unbind(field: Observation) -> Sequence[Observation]:
    if isinstance(field, Tensor):
        return field.unbind()
    columns = [column.unbind() for column in field.values()]
    return [dict(zip(field, row, strict=True)) for row in zip(*columns, strict=True)]


class Minibatch(NamedTuple):
    """What one update learns from."""

    transition: Transition  # [B, ...]
    importance_weight: Tensor  # [B] float32
    by_expert: Tensor | None = None  # [B] bool, whether the expert chose the action; None where there is no expert


class ReplayBatch(NamedTuple):
    """One iteration's stack of K mini-batches. During warm-up K is 0: a loop over the updates makes none."""

    transition: Transition  # [K, B, ...]
    index: Tensor  # type: ignore[assignment]  # [K, B] int64
    importance_weight: Tensor  # [K, B] float32
    env_steps: int  # environment steps of the whole run, over all processes
    progress: float  # env_steps as a fraction of the budget, 0 to 1
    by_expert: Tensor | None = None  # [K, B] bool, whether the expert chose the action; None where there is no expert

    @property
    def num_updates(self) -> int:
        """K."""
        return self.index.shape[0]

    def minibatches(self) -> list[Minibatch]:
        """The K mini-batches, as views."""
        # unbind makes all K views of a field in one call: a tenth of the cost of indexing each.
        fields = [_unbind(field) for field in self.transition]
        weights = self.importance_weight.unbind()
        flags = [None] * self.num_updates if self.by_expert is None else self.by_expert.unbind()
        return [
            Minibatch(Transition(*fields_of_one), weight, flag)
            for fields_of_one, weight, flag in zip(zip(*fields, strict=True), weights, flags, strict=True)
        ]


class Decision(NamedTuple):
    """What a stochastic policy chose, and with which probability."""

    action: Tensor  # [N], [N, D] or [N, *shape], as the environment gets it
    sample: Tensor  # [N], [N, D] or [N, A], as it was drawn, before it was brought into the environment's box
    log_prob: Tensor  # [N], of `sample`
    state: Tensor  # [N, S], the recurrent state after it; S is 0 without one


class Decisions(NamedTuple):
    """The decisions of a rollout."""

    sample: Tensor  # [T, N] or [T, N, A]
    log_prob: Tensor  # [T, N]
    state: Tensor  # [T, N, S], before each step; zeros where an episode begins
    next_state: Tensor  # [T, N, S], after each step, that of an ended episode where one ended


class Rollout(NamedTuple):
    """T steps of N environments with one policy: what an on-policy algorithm learns from in one iteration."""

    observation: Observation  # [T, N, *shape]
    action: Tensor  # [T, N] int64 or [T, N, A], as the policy chose it
    reward: Tensor  # [T, N]
    discount: Tensor  # [T, N], γ · (1 − terminated)
    next_observation: Observation  # [T, N, *shape], never that of a next episode
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool
    valid: Tensor  # [T, N] bool, False where a step only reset the environment
    env_steps: int  # environment steps of the whole run, over all processes
    progress: float  # env_steps as a fraction of the budget, 0 to 1
    decisions: Decisions | None = None  # of a policy that decides


class CollectionSeconds(NamedTuple):
    """Wall time of one rollout."""

    policy: float  # until the actions were chosen, and the steps started
    environments: float  # waited for their steps
    total: float  # with the statistics and the stacking


class LinearTransitions(NamedTuple):
    """Transitions as a linear critic w·φ/√D sees them, in the order of time within each of C chains."""

    feature: Tensor  # [M, D], φ(s, a)
    bootstrap_feature: Tensor  # [M, D], E[φ(s′, a′)] for a′ ~ π
    importance_ratio: Tensor  # [M]
    reward: Tensor  # [M]
    discount: float


class EpisodeBatch(NamedTuple):
    """Finished evaluation episodes, E of them."""

    returns: Tensor  # [E] float64, undiscounted
    lengths: Tensor  # [E] int64, environment steps
    discounted_returns: Tensor  # [E] float64
    events: dict[str, Tensor]  # [E] float64 each, 0 or 1, by name; NaN where the environment does not report it
    start_observation: Observation  # [E, *shape]
    final_observation: Observation  # [E, *shape], the successor of the last step
    final_discount: Tensor  # [E] float32, γ^length where the episode was truncated, 0 where it terminated
    expert_returns: Tensor | None = None  # [E] float64, of the environment's expert in the same episodes
    sums: dict[str, Tensor] | None = None  # [E] float64 each, what the environment has summed over the episode, by name


class StepResult(NamedTuple):
    """One step of N environments, whatever their way to reset themselves."""

    observation: ArrayObservation  # [N, *shape], what the policy sees next (of the next episode, after an end)
    reward: npt.NDArray[np.floating[Any]]  # [N]
    terminated: npt.NDArray[np.bool_]  # [N]
    truncated: npt.NDArray[np.bool_]  # [N], False where terminated
    next_observation: ArrayObservation  # [N, *shape], the true successor: the final one where an episode ended
    valid: npt.NDArray[np.bool_]  # [N], False where this frame only reset: not stored, not counted
    events: dict[str, npt.NDArray[np.float32]]  # [N] each, 0 or 1 at an episode's end, NaN elsewhere
    reported_rates: dict[str, npt.NDArray[np.float32]]  # [N] each, as the environment computes them itself
    sums: dict[str, npt.NDArray[np.float32]] = {}  # noqa: RUF012  # [N] each, over the episodes that ended, NaN elsewhere


@runtime_checkable
class Policy(Protocol):
    """Who chooses actions. `deterministic` asks for the action without exploration."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Observations `[N, *shape]` to actions `[N]` int64 or `[N, A]` float32."""
        ...


@runtime_checkable
class CarefulPolicy(Policy, Protocol):
    """A policy that explores less where the environment says that exploration is lethal."""

    def act_with_care(self, observation: Observation, care: Tensor, *, env_steps: int) -> Tensor:
        """As `act` with exploration, but less of it in the environments `[N]` bool that need care."""
        ...


@runtime_checkable
class DecidingPolicy(Policy, Protocol):
    """A policy that also says how probable its choice was, and may remember."""

    def initial_state(self, num_envs: int) -> Tensor:
        """The recurrent state at the beginning of an episode, zeros `[N, S]`; S is 0 without one."""
        ...

    def decide(self, observation: Observation, state: Tensor, *, deterministic: bool = False) -> Decision:
        """Choose for observations `[N, *shape]` and states `[N, S]`."""
        ...


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


class MixtureTotals(NamedTuple):
    """What network and expert have done in a training so far, of this process."""

    frames_by_network: int
    frames_by_expert: int
    reward_by_network: float  # on the frames where the network acted
    reward_by_expert: float


@runtime_checkable
class MixtureSource(Protocol):
    """A data module in whose environments either the network or an expert acts, frame by frame."""

    def mixture_totals(self) -> MixtureTotals:
        """Since the beginning of the run."""
        ...


@runtime_checkable
class ActionValues(Protocol):
    """A module that has a value for each of n discrete actions."""

    def action_values(self, observation: Observation) -> Tensor:
        """Q of observations `[M, *shape]`, without exploration: `[M, n]`."""
        ...


@runtime_checkable
class ExpertShareControl(Protocol):
    """A data module whose expert share somebody may override; the schedule goes on counting."""

    expert_share_override: float | None  # in [0, 1]; None is the schedule


@runtime_checkable
class ExplorationControl(Protocol):
    """A module whose exploration somebody may override; the schedule goes on counting."""

    exploration_override: float | None  # in [0, 1]; None is the schedule


@runtime_checkable
class LearningRateControl(Protocol):
    """A module whose learning rates somebody may scale; the schedule goes on counting."""

    learning_rate_scale: float  # at least 0; 1 is the schedule


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
class SeedsRollouts(Protocol):
    """A policy that also owns the seeds of the environments: their streams are derived from its own."""

    def begin_rollout(self, num_envs: int, num_steps: int) -> list[int] | None:
        """The seeds with which the N environments are reset before a rollout of T steps; None leaves them alone."""
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


@runtime_checkable
class SoftValues(Protocol):
    """A module whose values contain the entropy of its policy, as those of SAC do."""

    @property
    def entropy_coefficient(self) -> Tensor:
        """α, a scalar, as the next update uses it; the entropy is that of actions in [−1, 1]."""
        ...


@runtime_checkable
class OffPolicyLinear(Protocol):
    """A linear critic trained off-policy with Gaussian policies: what the probes of its dynamics ask of a module."""

    behaviour_std: float
    target_std: float

    @property
    def has_exact_bootstrap(self) -> bool:
        """Whether E[φ(s′, a′)] has a closed form."""
        ...

    @property
    def critic_weight(self) -> Tensor:
        """w, `[D]`."""
        ...

    @property
    def critic_learning_rate(self) -> float:
        """α_w as it is used."""
        ...

    @property
    def train_step_scale(self) -> float:
        """α_w c: what an iteration multiplies the sum of ρδφ with."""
        ...

    @property
    def mean_step(self) -> float:
        """α_w c N T: what an iteration multiplies the mean of ρδφ with."""
        ...

    def behaviour_policy(self) -> Policy:
        """μ, with randomness from torch's global generator."""
        ...

    def target_policy(self) -> Policy:
        """π, likewise."""
        ...

    def policy_means(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means of μ and of π, `[..., A]` each, for observations `[..., O]`."""
        ...

    def linear_transitions(self, rollout: Rollout, num_bootstrap_samples: int | None) -> LinearTransitions:
        """What the critic sees of a rollout; None takes the exact expectation where there is one."""
        ...
