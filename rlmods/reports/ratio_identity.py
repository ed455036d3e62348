"""E_μ[ρ] = 1: the identity that every density ratio keeps, judged on logged means."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlmods.callbacks.ratio_detector import mean_ratio_interval
from rlmods.functional.gaussian_policy import expected_ratio_of_ball_clip, ratio_tail_index
from rlmods.reports.check import Check, not_applicable
from rlmods.reports.lab_rules import column
from rlmods.reports.lab_settings import LabSettings
from rlmods.reports.run_data import RunData

_NAME = "ratio_identity"
# Deviation that is never spoken of: the logged means are of parameters that move.
_TOLERANCE = 0.01
_STANDARD_ERRORS = 4.5
_FEWEST_ROWS = 3
_UNCAPPED = "stability/importance_ratio"
_ADVICE = (
    "evaluate both densities at the action as it was drawn: raw (no clip), or tanh with the ratio taken before the "
    "squashing; a clip of the executed action belongs into the environment"
)


class _Finding(NamedTuple):
    passed: bool | None
    reason: str
    observed: dict[str, Any]


def ratio_identity(run: RunData) -> Check:
    """E_μ[ρ] = 1 and E_μ[ρ²] ≥ 1 (Jensen) hold for every ratio of densities, whatever the policies.

    The mean over all iterations that have data of their own is compared with 1; the interval allows for the tail that
    a sample of a heavy-tailed ratio has not seen. Where the settings clip the action and the stds differ, the identity
    is broken by construction, and the closed form (means 0, two dimensions) says how far.
    """
    findings = [finding for finding in (_mean(run), _second_moment(run), _settings(run.lab)) if finding is not None]
    decided = [finding for finding in findings if finding.passed is not None]
    observed = {name: value for finding in findings for name, value in finding.observed.items()}
    if not decided:
        return not_applicable(_NAME, "; ".join(f.reason for f in findings) or "there is no column of the ratio")
    failed = [finding for finding in decided if not finding.passed]
    reason = "; ".join(finding.reason for finding in failed or decided)
    return Check(_NAME, not failed, "fail", reason, observed, _ADVICE)


def _own_rows(run: RunData, name: str) -> list[float]:
    """Values of the rows that repeat no others: repetitions are no further evidence."""
    if name not in run.curves:
        return []
    repeated = run.repeated_rows
    return [v for row, v in enumerate(run.curves[name].values) if row not in repeated and math.isfinite(v)]


def _mean(run: RunData) -> _Finding | None:
    # What the update used is capped where a cap is set; the executed ratio never is.
    capped = run.lab is not None and run.lab.rho_clip is not None
    means, squares = (_own_rows(run, name + ("_exec" if capped else "")) for name in ("mean_rho", "mean_rho2"))
    if not means:
        return _uncapped_curve(run) if capped else None
    mean = statistics.fmean(means)
    samples = run.lab.samples if run.lab is not None else None
    if samples is not None and len(squares) == len(means):
        # About 1, not about the mean of the sample.
        mean_square = max(statistics.fmean(squares) - 2.0 * mean + 1.0, 0.0)
        largest, tail_index = _tail(run, samples * len(means))
        low, high = mean_ratio_interval(samples * len(means), mean_square, largest, tail_index)
    elif len(means) >= _FEWEST_ROWS:
        error = _STANDARD_ERRORS * statistics.stdev(means) / math.sqrt(len(means))
        low, high = 1.0 - error, 1.0 + error
    else:
        return _Finding(None, f"{len(means)} rows of mean_rho, too few to know their error", {"mean_rho": mean})
    count = f"{samples * len(means)} samples" if samples is not None else f"{len(means)} rows"
    return _verdict(mean, (low, high), count, {"rows": len(means), "samples_per_row": samples})


def _uncapped_curve(run: RunData) -> _Finding:
    """Of the curve of the ratio before its cap, each point of which is the mean of one iteration or of several."""
    points = [value for value in run.curve(_UNCAPPED).values if math.isfinite(value)]
    if len(points) < _FEWEST_ROWS:
        return _Finding(
            None, f"mean_rho is capped, so that its mean is below 1, and {_UNCAPPED} has too few points", {}
        )
    samples = run.lab.samples if run.lab is not None else None
    rows = len(run.rows) if run.rows is not None else 0
    count = max((samples or 1) * rows, len(points))
    mean_square = statistics.variance(points) * count / len(points)  # of one sample
    low, high = mean_ratio_interval(count, mean_square, *_tail(run, count))
    observed = {"curve": _UNCAPPED, "rows": len(points)}
    return _verdict(statistics.fmean(points), (low, high), f"{len(points)} points of {_UNCAPPED}", observed)


def _verdict(mean: float, interval: tuple[float, float], count: str, observed: dict[str, Any]) -> _Finding:
    low, high = min(interval[0], 1.0 - _TOLERANCE), max(interval[1], 1.0 + _TOLERANCE)
    reason = f"the mean of rho is {mean:.4g} over {count}, it must be 1 (such samples lie in [{low:.4g}, {high:.4g}])"
    return _Finding(low <= mean <= high, reason, {"mean_rho": mean, "interval": [low, high], **observed})


def _tail(run: RunData, count: int) -> tuple[float, float]:
    """The largest ratio, logged or else its bound, and the tail index; the benefit of the doubt where unknown."""
    lab = run.lab
    capped = lab is not None and lab.rho_clip is not None
    squares = [] if capped else column(run, "max_rho2")
    if lab is None or lab.sigma_mu is None or lab.sigma_pi is None:
        return math.sqrt(max(squares, default=1.0)), math.inf
    tail_index = ratio_tail_index(lab.sigma_mu, lab.sigma_pi)
    if squares:
        return math.sqrt(max(squares)), tail_index
    # At the centre of both densities; beyond it, the level that one of n samples exceeds.
    peak = (lab.sigma_mu / lab.sigma_pi) ** 2
    return (peak if math.isinf(tail_index) else peak * count ** (1.0 / tail_index)), tail_index


def _second_moment(run: RunData) -> _Finding | None:
    if run.lab is not None and run.lab.rho_clip is not None:
        return None
    squares = _own_rows(run, "mean_rho2")
    if len(squares) < _FEWEST_ROWS:
        return None
    mean = statistics.fmean(squares)
    error = _standard_error(squares)
    passed = mean >= 1.0 - _TOLERANCE - _STANDARD_ERRORS * error
    reason = f"the mean of rho² is {mean:.4g} ± {error:.2g}, it is at least 1 for every density ratio"
    # At least 1 is no evidence for the identity: only a violation decides.
    return _Finding(None if passed else False, reason, {"mean_rho2": mean, "standard_error": error})


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def _settings(lab: LabSettings | None) -> _Finding | None:
    if lab is None or lab.sigma_mu is None or lab.sigma_pi is None or lab.action_mode not in ("ball_clip", "box_clip"):
        return None
    observed: dict[str, Any] = {"action_mode": lab.action_mode, "action_mode_source": lab.action_mode_source}
    if lab.sigma_mu == lab.sigma_pi:
        return None
    reason = f"the ratio is taken at the clipped action ({lab.action_mode}, {lab.action_mode_source})"
    if lab.action_mode == "ball_clip" and lab.v_max is not None:
        expected = expected_ratio_of_ball_clip(lab.sigma_mu, lab.sigma_pi, lab.v_max)
        observed["expected_mean_rho"] = expected
        if abs(expected - 1.0) <= _TOLERANCE:
            return _Finding(None, f"{reason}, which moves its mean to {expected:.4g} only", observed)
        reason += f", which moves its mean to {expected:.4g}"
    return _Finding(False, f"{reason}: it is not a ratio of densities", observed)
