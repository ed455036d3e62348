"""What one step of the optimiser is made of: batch, learning rate, clip. Thresholds stand here."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from rlmods.doctor.line import Line, fail, line_of, of_data, of_model, warn

_LARGE_BATCH = 0.25  # of the replay
_ENDED = 0.1  # of the peak: below it a learning rate moves nothing, as the rules for the next run have it
_LONG_END = 0.5  # of the run
_SAMPLES = 1000

RateAt: TypeAlias = Callable[[float], float]


class Rates(NamedTuple):
    """A learning rate over a run, as it is applied."""

    first: float
    middle: float
    last: float
    peak: float
    ended: float  # share of the updates with less than a tenth of the peak


def rates(rate_at: RateAt, first: float, last: float) -> Rates:
    """Sample what is applied at each progress, from that of the first to that of the last update."""
    samples = [rate_at(first + (last - first) * i / (_SAMPLES - 1)) for i in range(_SAMPLES)]
    peak = max(samples)
    ended = sum(rate < _ENDED * peak for rate in samples) / _SAMPLES
    return Rates(samples[0], samples[_SAMPLES // 2], samples[-1], peak, ended)


def learning_rate(configured: float, applied: Rates, spent: float = 0.0) -> Line:
    """What updates apply against what was configured.

    Args:
        configured: the setting.
        applied: over the run.
        spent: part of the budget that was spent before this run goes on.
    """
    constant = applied.first == applied.middle == applied.last
    arithmetic = f"{configured:.4g} configured; applied: " + (
        f"{applied.first:.4g} all the time"
        if constant
        else f"{applied.first:.4g} at the first update, {applied.middle:.4g} in the middle, {applied.last:.4g} at the "
        f"last; {applied.ended:.0%} of the updates have less than a tenth of the peak {applied.peak:.4g}"
    )
    differs = not 0.5 * configured <= applied.peak <= 1.01 * configured
    return line_of(
        "learning_rate",
        arithmetic,
        fail(applied.peak <= 0.0, "Nothing is learned", of_model("learning_rate", 3e-4)),
        fail(
            differs and spent == 0.0,
            "A schedule overrides the constant that was configured: what is typed for learning_rate is not in effect",
            of_model("learning_rate_schedule", "constant") + ", or configure the schedule",
        ),
        warn(
            differs,
            f"The schedule goes on where it stood, with {spent:.0%} of the budget spent: its peak is past",
            "type --weights_only_from true to begin it anew, or a larger --data.init_args.total_env_steps",
        ),
        warn(
            applied.ended > _LONG_END,
            "More than half of the updates move nothing: the schedule has ended long before the budget",
            of_model("learning_rate_schedule", "linear"),
        ),
    )


def effective_batch(batch_size: int, accumulated: int, processes: int, buffer_size: int) -> Line:
    """The transitions whose gradients one step of the optimiser averages."""
    effective = batch_size * accumulated * processes
    return line_of(
        "effective_batch",
        f"batch_size {batch_size:,} x {accumulated} accumulated x {processes} processes = {effective:,} transitions an "
        "update",
        warn(
            batch_size * accumulated > _LARGE_BATCH * buffer_size,
            f"An update sees more than a quarter of the replay of {buffer_size:,}: what it draws hardly differs from "
            "the last",
            of_data("batch_size", max(buffer_size // (100 * accumulated), 1)),
        ),
    )


def gradient_clip(max_grad_norm: float | None, optimizer: str = "q", *, is_squared: bool = False) -> Line:
    """The bound of the gradient's norm."""
    if max_grad_norm is None:
        return line_of(
            f"gradient_clip/{optimizer}",
            "none",
            warn(
                is_squared,
                "The gradient of a squared error grows with the error, and nothing bounds it",
                of_model("max_grad_norm", 10.0),
            ),
        )
    return line_of(
        f"gradient_clip/{optimizer}",
        f"norms above {max_grad_norm:g} are scaled down to it",
        warn(
            max_grad_norm < 1e-3,
            "Nearly every update is clipped: Adam divides a constant scale out again, so only directions are learned",
            of_model("max_grad_norm", 10.0),
        ),
        note="Adam does not feel a constant scale: a clip acts where the norm varies",
    )
