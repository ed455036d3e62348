"""What a run is asked at the gates of its stages, one function a question. Pure: numbers in, answers out.

The stages and the first form of their checks are those of a TD3 with CNNs that was trained on although its critic had
left every bound after 5,000 steps; thresholds in units of the return are made relative to what values can be.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.evaluations import Evaluation, interval_half_width

# Of M, the size of the interval of values: |Q| may reach 1.5 M; gaps and errors below this share are none.
_RANGE_SLACK = 1.5
_GAP_SHARE = 0.1
_ERROR_SHARE = 0.01
# Where nothing bounds the values, in units of the return: 0.1 M for rewards of 1 and a discount of 0.99.
_GAP_FLOOR = 10.0
_GAP_STDS = 3.0
_MOST_SATURATED = 0.5
_MOST_TERMINAL = 0.3
_STANDARD_ERRORS = 2.0
_DECLINES = 5  # evaluations in a row
_UNBOUNDED = 1e20  # a discount of 1 gives an interval of 10³⁰ times the reward
_CONFIDENCE = 0.95


class StageCheck(NamedTuple):
    """The answer of one check.

    Attributes:
        passed: None where it was not checked: what it needs is not there.
        severity: of a failure. `ACT` for an identity, `WARN` where somebody chose the threshold.
        reason: in words, with the numbers and what was expected; for what was not checked, what is missing.
        advice: what to do after a failure.
    """

    name: str
    passed: bool | None
    severity: Severity
    reason: str
    observed: Mapping[str, float]
    advice: str


class Baseline(NamedTuple):
    """What an untrained policy gets."""

    mean: float
    standard_error: float
    episodes: int  # 0 where the user gave the number


class StageEvidence(NamedTuple):
    """What is known when a gate is decided; None or an absent name where nobody gave it.

    Attributes:
        measured: statistics of the latest iteration that had the signal: `q_low`, `q_high`, `q_mean`, `q_std`,
            `squared_error`, `target_variance`, `q_policy_mean`, `saturated`, `terminated`; and of all batches so far
            `value_size`.
        evaluations: all so far.
        baseline: of an untrained policy.
        untouched: whether all evaluations left the training environments as they were.
        unreached: trainable parameters in optimisers that never got a finite gradient other than zero.
        alarms: of the other safeguards that may act; None where there is no other safeguard.
    """

    measured: Mapping[str, float] = {}
    evaluations: Sequence[Evaluation] = ()
    baseline: Baseline | None = None
    untouched: bool | None = None
    unreached: Sequence[str] | None = None
    alarms: Sequence[str] | None = None

    @property
    def value_size(self) -> float | None:
        """M: the size of the interval of values that the transitions so far allow; None where they give no bound."""
        size = self.measured.get("value_size")
        return size if size is not None and 0.0 < size < _UNBOUNDED else None


def gradients(evidence: StageEvidence) -> StageCheck:
    """Every trainable parameter in an optimiser got a finite gradient other than zero at least once."""
    unreached = evidence.unreached
    if unreached is None:
        return _not_checked("gradients", "no update was seen")
    shown = ", ".join(unreached[:5]) + (f" and {len(unreached) - 5} more" if len(unreached) > 5 else "")
    return StageCheck(
        "gradients",
        not unreached,
        Severity.WARN,
        f"{len(unreached)} parameters never got a finite gradient other than zero, expected 0"
        + (f": {shown}" if unreached else ""),
        {"unreached": float(len(unreached))},
        "take them out of the optimiser, or mend the loss that should reach them",
    )


def alarms(evidence: StageEvidence) -> StageCheck:
    """No other safeguard has an active alarm of severity act."""
    if evidence.alarms is None:
        return _not_checked("alarms", "there is no other safeguard")
    found = ", ".join(evidence.alarms)
    return StageCheck(
        "alarms",
        not evidence.alarms,
        Severity.ACT,
        f"{len(evidence.alarms)} alarms of severity act are active, expected 0" + (f": {found}" if found else ""),
        {"alarms": float(len(evidence.alarms))},
        "do what the alarms say",
    )


def q_range(evidence: StageEvidence) -> StageCheck:
    """|Q| ≤ 1.5 M."""
    measured, size = evidence.measured, evidence.value_size
    if "q_low" not in measured:
        return _not_checked("q_range", "training_step does not return q_value")
    if size is None:
        return _not_checked("q_range", "the transitions so far bound no value: no reward was seen, or discounts are 1")
    q_largest = _worst(abs(measured["q_low"]), abs(measured["q_high"]))
    return StageCheck(
        "q_range",
        q_largest <= _RANGE_SLACK * size,
        Severity.WARN,
        f"the largest |Q| is {q_largest:.4g}, expected at most {_RANGE_SLACK * size:.4g}: {_RANGE_SLACK:g} times "
        f"the size of the interval that the rewards and discounts allow",
        {"q_largest": q_largest, "value_size": size},
        "look for what drives Q up before training on: the critic's target, the actor's loss, the learning rates",
    )


def q_policy_gap(evidence: StageEvidence) -> StageCheck:
    """Q at the policy's own action is near Q at the data's: |difference of the means| ≤ max(0.1 M, 3 std of Q)."""
    measured, size = evidence.measured, evidence.value_size
    missing = [name for name, key in (("q_value", "q_mean"), ("q_policy", "q_policy_mean")) if key not in measured]
    if missing:
        return _not_checked("q_policy_gap", f"training_step does not return {' and '.join(missing)}")
    floor = _GAP_FLOOR if size is None else _GAP_SHARE * size
    gap, limit = measured["q_policy_mean"] - measured["q_mean"], max(floor, _GAP_STDS * measured["q_std"])
    return StageCheck(
        "q_policy_gap",
        abs(gap) <= limit,
        Severity.WARN,
        f"Q is {measured['q_policy_mean']:.4g} at the policy's actions and {measured['q_mean']:.4g} at the data's, "
        f"expected at most {limit:.4g} between them: {_GAP_STDS:g} standard deviations of Q, at least {floor:.4g}",
        {"gap": gap, "limit": limit},
        "the actor climbs an extrapolation of the critic: the actor's loss must not reach the critic's input but "
        "through the action",
    )


def saturation(evidence: StageEvidence) -> StageCheck:
    """Less than half of the actions lie at the ends of tanh."""
    saturated = evidence.measured.get("saturated")
    if saturated is None:
        return _not_checked("saturation", "training_step does not return pre_tanh")
    return StageCheck(
        "saturation",
        saturated < _MOST_SATURATED,
        Severity.WARN,
        f"{saturated:.1%} of the actions have |tanh| > 0.99, expected less than {_MOST_SATURATED:.0%}",
        {"saturated": saturated},
        "there the actor gets no gradient: lower its learning rate, or bound the features that it reads",
    )


def environments_untouched(evidence: StageEvidence) -> StageCheck:
    """The evaluations left the training environments bit for bit as they were."""
    if evidence.untouched is None:
        return _not_checked("environments_untouched", "the data module gives no fingerprint of its environments")
    said = "left the training environments as they were" if evidence.untouched else "changed the training environments"
    return StageCheck(
        "environments_untouched",
        evidence.untouched,
        Severity.ACT,
        f"the evaluations {said}, expected the same fingerprint before and after",
        {"untouched": float(evidence.untouched)},
        "give the evaluation environments of its own",
    )


def above_random(evidence: StageEvidence) -> StageCheck:
    """The evaluation lies above what an untrained policy gets by more than two standard errors."""
    name, baseline = "above_random", evidence.baseline
    if not evidence.evaluations or evidence.evaluations[-1].episodes < 2:
        return _not_checked(name, "there is no evaluation of two episodes or more (eval/mean_reward, std, episodes)")
    if baseline is None:
        return _not_checked(name, "fewer than two episodes had ended before the first update; type baseline: NUMBER")
    last = evidence.evaluations[-1]
    error = math.hypot(standard_error(last), baseline.standard_error)
    limit = baseline.mean + _STANDARD_ERRORS * error
    return StageCheck(
        name,
        last.mean > limit,
        Severity.WARN,
        f"the evaluation is {last.mean:.4g}, expected more than {limit:.4g}: {baseline.mean:.4g} of an untrained "
        f"policy and {_STANDARD_ERRORS:g} standard errors of the difference",
        {"evaluation": last.mean, "baseline": baseline.mean, "limit": limit},
        "the policy is no better than before training: a longer run of the same will not save it",
    )


def no_decline(evidence: StageEvidence) -> StageCheck:
    """The last five evaluations do not fall one after the other, by more than two standard errors in all."""
    recent = list(evidence.evaluations)[-_DECLINES:]
    if len(recent) < _DECLINES:
        return _not_checked("no_decline", f"there are {len(recent)} evaluations, {_DECLINES} are needed")
    means = [evaluation.mean for evaluation in recent]
    falls = all(later < earlier for earlier, later in itertools.pairwise(means))
    drop = means[0] - means[-1]
    noise = _STANDARD_ERRORS * math.hypot(standard_error(recent[0]), standard_error(recent[-1]))
    return StageCheck(
        "no_decline",
        all(map(math.isfinite, means)) and not (falls and drop > noise),
        Severity.WARN,
        f"the last {_DECLINES} evaluations are {', '.join(f'{mean:.4g}' for mean in means)}, expected no fall one "
        f"after the other by more than {noise:.4g} (two standard errors)",
        {"drop": drop, "noise": noise},
        "go back to the checkpoint before the decline, and lower the learning rate",
    )


def critic_error(evidence: StageEvidence) -> StageCheck:
    """The critic predicts its targets better than their mean does: E[(target − Q)²] / Var(target) < 1.

    An error below 1 % of M is none: where all values are equal, as of a solved task, nothing is left to explain.
    """
    measured = evidence.measured
    if "squared_error" not in measured:
        return _not_checked("critic_error", "training_step does not return q_value and td_target")
    squared_error, variance = measured["squared_error"], measured["target_variance"]
    if variance == 0.0:
        return _not_checked("critic_error", "all targets are equal")
    ratio, tolerated = squared_error / variance, _ERROR_SHARE * (evidence.value_size or 0.0)
    return StageCheck(
        "critic_error",
        ratio < 1.0 or squared_error <= tolerated**2,
        Severity.WARN,
        f"the critic's squared error is {ratio:.4g} of the variance of its targets, expected less than 1, or an error "
        f"of at most {tolerated:.4g} (it is {math.sqrt(max(squared_error, 0.0)):.4g})",
        {"ratio": ratio, "squared_error": squared_error, "target_variance": variance},
        "a constant would predict the targets better: look at the critic's learning rate and at its target network",
    )


def improving(evidence: StageEvidence) -> StageCheck:
    """The later half of the evaluations is not below the earlier half by more than two standard errors.

    A plateau passes: a solved task does not improve.
    """
    means = [evaluation.mean for evaluation in evidence.evaluations]
    if len(means) < 4:
        return _not_checked("improving", f"there are {len(means)} evaluations, 4 are needed")
    half = len(means) // 2
    earlier, later = means[:half], means[-half:]
    change = statistics.fmean(later) - statistics.fmean(earlier)
    noise = _STANDARD_ERRORS * math.sqrt((statistics.variance(earlier) + statistics.variance(later)) / half)
    return StageCheck(
        "improving",
        change >= -noise,
        Severity.WARN,
        f"the mean of the later {half} evaluations minus that of the earlier {half} is {change:.4g}, expected at least "
        f"{-noise:.4g} (two standard errors)",
        {"change": change, "noise": noise},
        "training makes the policy worse: go back to the best checkpoint, and lower the learning rate",
    )


def terminal_share(evidence: StageEvidence) -> StageCheck:
    """Less than 30 % of the transitions that are learned from end an episode."""
    terminated = evidence.measured.get("terminated")
    if terminated is None:
        return _not_checked("terminal_share", "the batches have no transitions with terminated")
    return StageCheck(
        "terminal_share",
        terminated < _MOST_TERMINAL,
        Severity.WARN,
        f"{terminated:.1%} of the transitions learned from end an episode, expected less than {_MOST_TERMINAL:.0%}",
        {"terminated": terminated},
        "the replay holds little but failures: explore longer, or look at what ends the episodes",
    )


def score(evidence: StageEvidence) -> StageCheck:
    """The last evaluation is a number, with its confidence interval: the score of the run, whatever its best."""
    if not evidence.evaluations or evidence.evaluations[-1].episodes < 2:
        return _not_checked("score", "there is no evaluation of two episodes or more")
    last = evidence.evaluations[-1]
    half_width = interval_half_width(last, _CONFIDENCE)
    low, high = last.mean - half_width, last.mean + half_width
    return StageCheck(
        "score",
        math.isfinite(last.mean),
        Severity.WARN,
        f"the last evaluation is {last.mean:.4g}, {_CONFIDENCE:.0%} interval [{low:.4g}, {high:.4g}] over "
        f"{last.episodes} episodes, expected a finite number",
        {"mean": last.mean, "low": low, "high": high, "episodes": float(last.episodes)},
        "find the first value that is not finite (NonFiniteGuard)",
    )


def standard_error(evaluation: Evaluation) -> float:
    """Of the mean of the episodes."""
    return evaluation.std / math.sqrt(evaluation.episodes - 1) if evaluation.episodes > 1 else math.inf


def baseline_of(returns: Sequence[float]) -> Baseline | None:
    """What the episodes of an untrained policy say; None for fewer than two."""
    if len(returns) < 2:
        return None
    mean = statistics.fmean(returns)
    return Baseline(mean, statistics.stdev(returns) / math.sqrt(len(returns)), len(returns))


def _not_checked(name: str, missing: str) -> StageCheck:
    return StageCheck(name, None, Severity.INFO, f"not checked: {missing}", {}, "")


def _worst(*values: float) -> float:
    """The largest; NaN where one is."""
    return math.nan if any(map(math.isnan, values)) else max(values)
