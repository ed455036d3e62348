"""Whether a run as a whole learns anything: weights that hardly move, and a loss that stands still."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict

_MIN_ROWS = 10
_MAX_ROWS = 256
_MOVEMENT = 0.01  # of the weights' norm, over a whole run
_LOSS_CHANGE = 0.05
_STANDARD_ERRORS = 3.0


class LossChange(NamedTuple):
    """How the loss of the last half of a run differs from that of its first tenth."""

    relative: float  # change over the larger of the two means
    error: float  # standard error of that, from the scatter between neighbouring rows

    @property
    def is_significant(self) -> bool:
        """Whether it is more than 5 %, and more than noise."""
        return abs(self.relative) > max(_LOSS_CHANGE, _STANDARD_ERRORS * self.error)


def loss_change(losses: Sequence[float]) -> LossChange:
    """The change of a loss from the beginning of a run to its end.

    Not a slope: a loss that fell in the first rows and stood still ever since has nearly none.

    Args:
        losses: one a row, at least 2, finite.
    """
    first, rest = losses[: max(len(losses) // 10, 1)], losses[len(losses) // 2 :]
    before, after = statistics.fmean(first), statistics.fmean(rest)
    scale = max(abs(before), abs(after))
    if scale == 0.0:
        return LossChange(0.0, 0.0)
    # Differences of neighbours carry the noise twice, and no trend.
    steps = [losses[row] - losses[row - 1] for row in range(1, len(losses))]
    noise = 1.4826 * statistics.median(abs(step) for step in steps) / math.sqrt(2.0)
    return LossChange((after - before) / scale, noise * math.sqrt(1.0 / len(first) + 1.0 / len(rest)) / scale)


def judge_inertia(
    weight_norms: Sequence[float],
    losses: Sequence[float],
    relative_updates: Sequence[float] | None = None,
    *,
    remaining: float = 0.0,
) -> Verdict | None:
    """Whether a run learned nothing from its beginning on (`inert_learning`).

    Both must hold: over all rows, and those that remain at the largest rate so far, the weights move by less than 1 %
    of their norm; and the loss changes by no more than 5 %, or by no more than its noise (3 standard errors). A run
    that has learned, and stands still now, moved its weights before.

    The rows' ‖Δθ‖/‖θ‖ add up to an upper bound of the movement, with the authority to act. From norms alone only a
    lower bound is to be seen, |Δ‖θ‖| ≤ ‖Δθ‖, so that the verdict is a warning.

    Args:
        weight_norms: ‖θ‖ after each row.
        losses: of each row, of any sign. Rows with a value that is not finite are left out.
        relative_updates: ‖Δθ‖/‖θ‖ of all updates of a row together, where that was measured.
        remaining: rows that are still to come.

    Returns:
        None where something is learned, where there are fewer than ten rows, or where all losses are 0.

    Raises:
        ValueError: where the lengths differ.
    """
    columns = [weight_norms, losses] if relative_updates is None else [weight_norms, losses, relative_updates]
    if len({len(column) for column in columns}) > 1:
        raise ValueError(
            f"judge_inertia got {[len(column) for column in columns]} weight norms, losses and relative updates, "
            "expected equal numbers: one of each for every row"
        )
    rows = [row for row in zip(*columns, strict=True) if all(math.isfinite(value) for value in row)]
    if len(rows) < _MIN_ROWS or not any(row[1] for row in rows):
        return None
    norms = [row[0] for row in rows]
    if relative_updates is None:
        largest = max(norms) or 1.0
        moves = [abs(norms[row] - norms[row - 1]) / largest for row in range(1, len(norms))]
    else:
        moves = [row[2] for row in rows]
    change = loss_change([row[1] for row in rows])
    total, rate = math.fsum(moves), max(moves)
    projected = total + (rate * remaining if rate else 0.0)  # 0 · ∞ is 0 here
    if projected >= _MOVEMENT or change.is_significant:
        return None
    is_measured = relative_updates is not None
    evidence = {
        "weight_norm": norms[-1],
        "movement": total,
        "movement_per_row": statistics.median(moves),
        "movement_projected": projected,
        "movement_is": "upper bound, Σ ‖Δθ‖/‖θ‖" if is_measured else "lower bound, Σ |Δ‖θ‖|/‖θ‖",
        "loss_change": change.relative,
        "loss_change_error": change.error,
        "rows": len(rows),
        "rows_remaining": remaining,
        "thresholds": {"movement": _MOVEMENT, "loss_change": _LOSS_CHANGE, "standard_errors": _STANDARD_ERRORS},
    }
    return Verdict("inert_learning", Severity.ACT if is_measured else Severity.WARN, _message(evidence), evidence)


def _message(evidence: Mapping[str, Any]) -> str:
    is_bound = str(evidence["movement_is"]).startswith("upper")
    return (
        f"nothing is learned: in {evidence['rows']} rows the weights moved by {'at most' if is_bound else 'about'} "
        f"{evidence['movement']:.2g} of their norm {evidence['weight_norm']:.4g}"
        f"{'' if is_bound else ' (from norms alone; a turn at constant norm is not to be seen)'}, "
        f"{evidence['movement_projected']:.2g} to the end of the run, and the loss changed by "
        f"{evidence['loss_change']:+.1%} ± {evidence['loss_change_error']:.1%}. Raise the learning rate, and look "
        "whether the gradient is divided twice, by a batch size or a width that the loss has in it already"
    )


class InertiaWindow(NamedTuple):
    """What one window measured."""

    loss: float  # mean of the window
    weight_norm: float  # ‖θ‖ of all optimisers
    relative_update: float  # ‖Δθ‖/‖θ‖ of one update times their number, of the optimiser that moves most; NaN for none
    learning_rate: float  # the largest that is in use
    remaining: float  # windows to the end of the run; ∞ where nobody knows


class InertiaDetector:
    """Judges a run from its beginning in each window, until its weights have moved: then it is never inert again.

    Rows of windows are joined in pairs when there are 256, so that a run of any length has room.

    Args:
        needed: windows in a row that must be inert before that is sure.
    """

    def __init__(self, *, needed: int) -> None:
        self.needed = needed
        self.reset()

    def reset(self) -> None:
        """Start anew: at the beginning, and after the weights have jumped."""
        self.rows: list[list[float]] = []  # loss, weight norm, relative update
        self.open: list[list[float]] = []  # windows of the row that is not full
        self.windows_per_row = 1
        self.is_alive = False
        self.peak_learning_rate = 0.0
        self.confirmation = Confirmation(self.needed, self.needed)

    def update(self, window: InertiaWindow) -> list[Verdict]:
        """Take in a window; one without an update says nothing."""
        if self.is_alive or math.isnan(window.relative_update):
            return []
        # A schedule that rises has not begun yet, one that has ended is no defect.
        is_rising = window.learning_rate > 1.001 * self.peak_learning_rate > 0.0
        self.peak_learning_rate = max(self.peak_learning_rate, window.learning_rate)
        is_over = window.learning_rate < 0.01 * self.peak_learning_rate
        self._add([window.loss, window.weight_norm, window.relative_update])
        self.is_alive = math.fsum(row[2] for row in [*self.rows, *self.open]) >= _MOVEMENT
        losses, norms, updates = zip(*self.rows, strict=True) if self.rows else ((), (), ())
        verdict = judge_inertia(norms, losses, updates, remaining=window.remaining / self.windows_per_row)
        is_inert = verdict is not None and not (is_rising or is_over or self.is_alive)
        is_sure = self.confirmation.update(is_inert)
        if verdict is None or not is_inert:
            return []
        return [verdict if is_sure else verdict._replace(severity=Severity.WARN)]

    def _add(self, window: list[float]) -> None:
        self.open.append(window)
        if len(self.open) == self.windows_per_row:
            self.rows.append(_join(self.open))
            self.open = []
        if len(self.rows) == _MAX_ROWS:
            self.rows = [_join(self.rows[row : row + 2]) for row in range(0, _MAX_ROWS, 2)]
            self.windows_per_row *= 2

    def state_dict(self) -> dict[str, Any]:
        """Everything that it remembers."""
        return {
            "rows": [list(row) for row in self.rows],
            "open": [list(row) for row in self.open],
            "windows_per_row": self.windows_per_row,
            "is_alive": self.is_alive,
            "peak_learning_rate": self.peak_learning_rate,
            "confirmation": self.confirmation.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on."""
        self.rows = [list(row) for row in state_dict["rows"]]
        self.open = [list(row) for row in state_dict["open"]]
        self.windows_per_row = state_dict["windows_per_row"]
        self.is_alive = state_dict["is_alive"]
        self.peak_learning_rate = state_dict["peak_learning_rate"]
        self.confirmation.load_state_dict(state_dict["confirmation"])


def _join(rows: Sequence[Sequence[float]]) -> list[float]:
    losses, norms, updates = zip(*rows, strict=True)
    return [statistics.fmean(losses), norms[-1], math.fsum(updates)]
