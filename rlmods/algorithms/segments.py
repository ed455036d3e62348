"""A rollout cut into segments of some steps, of which mini-batches are made."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from rlmods.types import Observation


class Segments(NamedTuple):
    """S segments of L steps, time first; a mini-batch has some of them."""

    observation: Observation  # [L, S, *shape]
    sample: Tensor  # [L, S] or [L, S, A]
    log_prob: Tensor  # [L, S], of the policy that acted
    begins: Tensor  # [L, S] bool, whether an episode begins with the step
    advantage: Tensor  # [L, S]
    value: Tensor  # [L, S]
    value_target: Tensor  # [L, S]
    weight: Tensor | None  # [L, S], of the step in all means; None where all are 1
    state: Tensor  # [S, size], recurrent, before the first step


def cut_segments(rollout: Segments, length: int, valid: Tensor | None) -> Segments:
    """Columns `[T, N]`, with states of every step `[T, N, size]`, to segments of L steps.

    Args:
        rollout: of T steps of N environments.
        length: L, a divisor of T.
        valid: `[T, N]` bool, the steps that count; None where all do. Segments of one step are left out where they do
            not, others keep the weight that they have.
    """
    if length == 1:
        if valid is None:
            return _map(lambda column: column.flatten(0, 1).unsqueeze(0), rollout, rollout.state.flatten(0, 1))
        kept = _map(lambda column: column[valid].unsqueeze(0), rollout, rollout.state[valid])
        return kept._replace(weight=None)
    count = rollout.begins.shape[0] // length

    def cut(column: Tensor) -> Tensor:
        return column.view(count, length, *column.shape[1:]).transpose(0, 1).flatten(1, 2)

    segments = _map(cut, rollout, rollout.state[::length].flatten(0, 1))
    # The state before a segment is that after the reset already.
    segments.begins[0] = False
    return segments


def take_segments(segments: Segments, index: Tensor) -> Segments:
    """Those of an index `[M]`."""
    return _map(lambda column: column.index_select(1, index), segments, segments.state.index_select(0, index))


def flat(observation: Observation) -> Observation:
    """`[L, S, *shape]` to `[L·S, *shape]`."""
    if isinstance(observation, dict):
        return {key: column.flatten(0, 1) for key, column in observation.items()}
    return observation.flatten(0, 1)


def _map(function: Callable[[Tensor], Tensor], segments: Segments, state: Tensor) -> Segments:
    columns: list[Any] = []
    for column in segments[:-1]:
        if isinstance(column, dict):
            columns.append({key: function(value) for key, value in column.items()})
        else:
            columns.append(None if column is None else function(column))
    return Segments._make([*columns, state])
