"""What the rules for the next run mean by better, worse, learned and unchanged."""

import math
from collections.abc import Sequence

from rlmods.reports.facts import RunFacts, Score

STANDARD_ERRORS = 3.0
# A fall by less than this share of what was learned is what runs of the same settings differ by.
SHARE = 0.3


def standard_error(*scores: Score) -> float:
    """Of a difference; what is not known counts as 0, and then the share alone decides."""
    return math.hypot(*(score.standard_error or 0.0 for score in scores))


def reference(facts: RunFacts) -> tuple[Score, RunFacts] | None:
    """The best healthy score among the sound ancestors, by its lower bound, and whose it is.

    An ancestor that fell below its own ones is not sound, and none of its checkpoints counts: what was wrong with its
    settings is in its weights, also where an evaluation looks well.
    """
    found: tuple[Score, RunFacts] | None = None
    for run in reversed([run for run in facts.lineage() if run is not facts]):
        is_sound = found is None or not fell_below(run, *found)
        if is_sound and run.best is not None and (found is None or lower_bound(run.best) > lower_bound(found[0])):
            found = run.best, run
    return found


def fell_below(facts: RunFacts, level: Score, run: RunFacts) -> bool:
    """Whether the evaluations, or the return of the training, lie far below those of a better run."""
    return has_fallen(facts, level, facts.scores) or training_has_fallen(facts, run)


def lower_bound(score: Score) -> float:
    """Two standard errors below the mean."""
    return score.mean - 2.0 * (score.standard_error or 0.0)


def learned(facts: RunFacts, score: Score) -> float:
    """How far a score lies above an untrained policy; above 0 where that is not known."""
    untrained = facts.untrained()
    return abs(score.mean) if untrained is None else score.mean - untrained


def has_fallen(facts: RunFacts, level: Score, scores: Sequence[Score]) -> bool:
    """Whether the last two scores (the last one, if there are no more) lie far below a level.

    Far is more than three standard errors of the difference, and more than 30 % of what was learned. Evaluations play
    the likeliest action, and their return jumps where that of the training rises: while it does, nothing has fallen.
    """
    recent = list(scores[-2:])
    gain = learned(facts, level)
    return (
        bool(recent)
        and not is_rising(facts)
        and all(
            level.mean - score.mean > max(STANDARD_ERRORS * standard_error(level, score), SHARE * max(gain, 0.0))
            for score in recent
        )
    )


def training_has_fallen(facts: RunFacts, run: RunFacts) -> bool:
    """Whether the return of the training lies below that of another run by more than 30 % of what that had learned."""
    untrained = facts.untrained()
    if facts.training is None or run.training is None or untrained is None:
        return False
    return run.training - facts.training > SHARE * max(run.training - untrained, 0.0) > 0.0


def is_rising(facts: RunFacts) -> bool:
    """Whether the return of the training ended within a tenth of its highest, above an untrained policy's."""
    untrained = facts.untrained()
    if facts.training is None or facts.training_max is None or untrained is None:
        return False
    gain = facts.training_max - untrained
    return gain > 0.0 and facts.training_max - facts.training < 0.1 * gain and bool(has_learned(facts))


def has_learned(facts: RunFacts) -> bool | None:
    """Whether the training return lies above an untrained policy's by a fifth of it; else whether the evaluation does.

    None where neither is known.
    """
    last, untrained = facts.last, facts.untrained()
    if facts.training is not None and untrained is not None:
        return facts.training - untrained > 0.2 * abs(untrained)
    if last is None or (untrained is None and facts.start is None):
        return None
    error = last.standard_error or 0.0
    floor = untrained if untrained is not None else facts.start.mean if facts.start is not None else math.nan
    return last.mean - floor > max(STANDARD_ERRORS * error, 0.1 * abs(floor))


def has_gained(facts: RunFacts) -> bool | None:
    """Whether the last score lies above the one that the run began with; of a fresh run, whether it has learned."""
    if facts.start is None or facts.last is None:
        return has_learned(facts)
    return facts.last.mean - facts.start.mean > STANDARD_ERRORS * standard_error(facts.start, facts.last)


def is_improving(facts: RunFacts) -> bool:
    """Whether the last third of the evaluations lies above the third before, by two standard errors."""
    third = len(facts.scores) // 3
    if third < 1:
        return False
    late, before = facts.scores[-third:], facts.scores[-2 * third : -third]
    rise = _mean(late) - _mean(before)
    error = math.hypot(_error(late), _error(before))
    return rise > 2.0 * error and rise > 0.0


def _mean(scores: Sequence[Score]) -> float:
    return math.fsum(score.mean for score in scores) / len(scores)


def _error(scores: Sequence[Score]) -> float:
    return math.hypot(*(score.standard_error or 0.0 for score in scores)) / len(scores)
