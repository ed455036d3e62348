"""The nouns that travel between the packages.

Shape letters: `N` environments, `T` time steps of a rollout or of a sequence, `K` mini-batches of one iteration, `B`
transitions or sequences of a mini-batch, `A` action dimensions, `E` episodes, `M` any number of transitions, `D`
features, `S` numbers of a recurrent state.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, NotRequired, TypeAlias, TypedDict

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


class Sequences(NamedTuple):
    """What one update of a sequence model learns from, time before batch. Sequences cross the ends of episodes."""

    observation: Observation  # [T, B, *shape]
    action: Tensor  # [T, B] int64 or [T, B, A] float32, chosen at the observation; zeros at the last one of an episode
    reward: Tensor  # [T, B] float32, with which the observation came; 0 at the first one of an episode
    is_first: Tensor  # [T, B] bool, the observation begins an episode
    is_last: Tensor  # [T, B] bool, the observation ends an episode, also by a time limit
    is_terminal: Tensor  # [T, B] bool, the observation ends an episode for good
    discount: Tensor  # [T, B] float32, γ · (1 − is_terminal), of what follows the observation
    state: Tensor  # [B, S] of the policy after the row before the first one; of no use where that one is_first
    index: Tensor  # type: ignore[assignment]  # [T, B] int64, rows of the replay


class SequenceBatch(NamedTuple):
    """One iteration's stack of K mini-batches of sequences, time before batch. During warm-up K is 0."""

    observation: Observation  # [K, T, B, *shape]
    action: Tensor  # [K, T, B] int64 or [K, T, B, A] float32
    reward: Tensor  # [K, T, B] float32
    is_first: Tensor  # [K, T, B] bool
    is_last: Tensor  # [K, T, B] bool
    is_terminal: Tensor  # [K, T, B] bool
    discount: Tensor  # [K, T, B] float32
    state: Tensor  # [K, B, S]
    index: Tensor  # type: ignore[assignment]  # [K, T, B] int64
    env_steps: int  # environment steps of the whole run, over all processes
    progress: float  # env_steps as a fraction of the budget, 0 to 1

    @property
    def num_updates(self) -> int:
        """K."""
        return self.index.shape[0]

    def minibatches(self) -> list[Sequences]:
        """The K mini-batches, as views."""
        columns: list[Any] = [_unbind(field) for field in self[:-2]]
        return [Sequences(*fields) for fields in zip(*columns, strict=True)]


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
    sampling: float = 0.0  # drew from the replay, after the total


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


class MixtureTotals(NamedTuple):
    """What network and expert have done in a training so far, of this process."""

    frames_by_network: int
    frames_by_expert: int
    reward_by_network: float  # on the frames where the network acted
    reward_by_expert: float
