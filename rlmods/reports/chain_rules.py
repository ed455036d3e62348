"""The rules for the next run: each looks at the facts and says what it found, or None. All thresholds stand here.

The order is validity, liveness, numerics, policy, value, evaluation. `SUPPRESSES` says which finding explains which:
what is explained is no cause.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from rlmods.functional.schedules import scheduled
from rlmods.reports.facts import RunFacts, Score
from rlmods.reports.levels import has_fallen, has_gained, has_learned, is_improving, reference, standard_error
from rlmods.reports.proposal import Finding, Proposal, Start
from rlmods.reports.regression import regressed
from rlmods.reports.summary import number

_FEWEST_EPISODES = 5
_ENDED = 0.1  # of the peak: below it a learning rate moves nothing
_STILL_KL, _STILL_CLIP = 3e-4, 0.01
_NO_KL = 1e-6  # rounding
_FEW_EPOCHS, _TIGHT_TARGET = 1.5, 1e-3
_LARGE_KL, _LARGE_CLIP = 0.03, 0.35
_WIDE_STD = 3.0  # times half the action range: more than a quarter of the draws lie beyond either end
_LARGEST_EXPONENT = 700.0  # of a number that is finite
_RISE = 0.1  # nats of each action
_UNIFORM = 0.97  # of the entropy of a uniform policy
_DEFAULT_LEARNING_RATE = 3e-4
_EVALUATE = (
    "python -m rlmods validate --config {run}/config.yaml --ckpt_path {checkpoint} --data.init_args.eval_episodes 20"
)
_LR, _ENT = "model.init_args.learning_rate", "model.init_args.ent_coef"


def metric_out_of_range(facts: RunFacts) -> Finding | None:
    """F1. A rate above 1 is a count: the metric is wrong, the checkpoints are not."""
    if not facts.quarantined:
        return None
    evidence = tuple(f"{name} = {number(value)}" for name, value in facts.quarantined.items())
    reason = "a metric is not what its name says; nothing is ranked by it, and no checkpoint is distrusted for it"
    return Finding("metric_out_of_range", reason, evidence)


def no_evaluation(facts: RunFacts) -> Finding | None:
    """F2, F9. Without an evaluation there is no score."""
    if facts.scores or facts.exception is not None or facts.non_finite or facts.complete is False:
        return None
    return Finding("no_evaluation", "the run was never evaluated", ("0 evaluations",), probe=_EVALUATE)


def too_few_episodes(facts: RunFacts) -> Finding | None:
    """F6. A mean of one or two episodes is no evidence of anything."""
    last = facts.last
    if last is None or last.episodes is None or last.episodes >= _FEWEST_EPISODES:
        return None
    evidence = (f"{last.episodes} episodes, standard error {number(last.standard_error)}",)
    return Finding(
        "too_few_episodes", "the last evaluation has too few episodes to judge anything by", evidence, probe=_EVALUATE
    )


def broken_off(facts: RunFacts) -> Finding | None:
    """The run was stopped from outside: it says nothing of its settings yet."""
    grave = any(alarm.severity in ("act", "fatal") for alarm in facts.alarms)
    if facts.complete is not False or facts.exception is not None or facts.non_finite or grave:
        return None
    total = facts.setting("total_env_steps")
    return Finding(
        "broken_off",
        "the run did not come to its end, and nothing is wrong with it",
        (f"{facts.env_steps} of {total} environment steps", *([facts.outcome] if facts.outcome else [])),
        Proposal("", None, None, "last", "it comes to the end of its budget", "as planned for the run"),
    )


def schedule_exhausted(facts: RunFacts) -> Finding | None:
    """G3. At the end of an annealed learning rate KL and clip fraction are 0 whatever the settings are."""
    share = facts.learning_rate_share
    if share is None or share > _ENDED:
        return None
    evidence = (
        f"learning rate {number(facts.learning_rate_last)} at the end, {number(facts.learning_rate_peak)} at its peak",
        f"KL {number(facts.kl_last)} at the end, {number(facts.kl)} while the rate was above a tenth of its peak",
    )
    return Finding(
        "schedule_exhausted", "the learning rate had ended: KL and clip fraction at the end say nothing", evidence
    )


def warm_start_differs(facts: RunFacts) -> Finding | None:
    """G1. The policy that the run began with is not the one that its parent had evaluated."""
    start, before = facts.start, facts.started_from
    if start is None or before is None or start.episodes != before.episodes:
        return None
    difference = abs(start.mean - before.mean)
    if difference <= max(4.0 * standard_error(start, before), 1e-6 * abs(before.mean)):
        return None
    evidence = (f"{start.mean:.4g} at the start, {before.mean:.4g} when the parent evaluated the same checkpoint",)
    probe = "python -m rlmods validate --config {run}/config.yaml --ckpt_path {parent_checkpoint}"
    return Finding("warm_start_differs", "the run did not begin with the policy of its parent", evidence, probe=probe)


def setting_not_in_effect(facts: RunFacts) -> Finding | None:
    """G2. The learning rate at its peak was not the one that is configured, or a safeguard has named such a setting."""
    configured, peak = facts.setting("learning_rate"), facts.learning_rate_peak
    causes = ("setting_not_in_effect", "share_not_in_effect")  # of `EffectiveSettings`
    named = tuple(alarm.message for alarm in facts.alarms if alarm.cause in causes)
    if facts.continued == "full" or not isinstance(configured, int | float) or not peak:
        is_replaced = False
    else:
        is_replaced = not 0.5 * configured <= peak <= 1.01 * configured
    if is_replaced:
        evidence = (f"learning rate {peak:.4g} at its peak, {configured:.4g} configured", *named)
        return Finding("setting_not_in_effect", "a schedule or a safeguard had replaced the learning rate", evidence)
    return Finding("setting_not_in_effect", "what was configured was not in effect", named) if named else None


def non_finite(facts: RunFacts) -> Finding | None:
    """C1. The run ended in numbers that are none, or in an exception because of them."""
    alarms = [alarm for alarm in facts.alarms if "non_finite" in alarm.cause]
    words = (facts.exception or "").lower()
    if not (facts.non_finite or alarms or any(word in words for word in ("nan", "non-finite", "finite"))):
        return None
    rate = facts.setting("learning_rate")
    evidence = (
        *(f"{name} ended in NaN" for name in facts.non_finite),
        *(f"{a.cause} at {a.env_steps} environment steps" for a in alarms[:1]),
    )
    evidence += (facts.exception,) if facts.exception else ()
    reason = "the numbers left the finite ones"
    found = reference(facts)
    before = found[1].setting("learning_rate") if found else None
    if isinstance(rate, int | float):
        to = before if isinstance(before, int | float) and before < rate else _lower(rate)
        return Finding("non_finite", reason, evidence, _of_rate(facts, rate, to))
    return Finding("non_finite", reason, evidence, probe="python -m rlmods report {run}")


def no_updates(facts: RunFacts) -> Finding | None:
    """C5. No update was made: the weights are the initial ones."""
    if facts.updates is None or facts.updates > 0.0:
        return None
    total, starts = facts.setting("total_env_steps"), facts.setting("learning_starts") or 0
    to = 10 * max(int(total or 1), int(starts))
    return Finding(
        "no_updates",
        "the run ended before its first update",
        (f"0 updates in {facts.env_steps} environment steps, learning_starts {starts}",),
        Proposal(
            "data.init_args.total_env_steps", total, to, "fresh", "train/n_updates rises", "at the first evaluation"
        ),
    )


def policy_outside_box(facts: RunFacts) -> Finding | None:
    """B5. σ lies far outside the action box: most actions are its corners, KL is small because of σ.

    A good policy can live there while |μ| grows with σ, so that alone is no cause: it proposes something only where
    nothing was ever learned.
    """
    entropy, uniform = facts.entropy, facts.uniform_entropy
    std = facts.std if facts.std is not None else _std_of(facts)
    if facts.action != "continuous" or entropy is None or uniform is None or std is None or std < _WIDE_STD:
        return None
    if entropy <= uniform:
        return None
    evidence = (
        f"entropy {entropy:.4g} nats, a uniform policy has {uniform:.4g}",
        f"sigma {std:.4g} times half the action range, |mu|/sigma {number(facts.mean_over_std)}",
    )
    reason = "sigma has left the action box; KL and clip fraction are small because of it"
    return Finding("policy_outside_box", reason, evidence, _of_width(facts))


def _std_of(facts: RunFacts) -> float | None:
    """σ of a Gaussian with this entropy, the same in each dimension."""
    if facts.entropy is None or not facts.dimensions:
        return None
    log_std = facts.entropy / facts.dimensions - 0.5 * math.log(2.0 * math.pi * math.e)
    return math.exp(log_std) if log_std < _LARGEST_EXPONENT else math.inf


def _of_width(facts: RunFacts) -> Proposal | None:
    """Only where nothing else is known: no ancestor was better, and nothing was learned."""
    if reference(facts) is not None or has_learned(facts) is not False:
        return None
    expected = "entropy below that of a uniform policy, |mu|/sigma rises, the return above an untrained policy's"
    stop = "no evaluation above the untrained policy in the first half of the budget"
    coefficient = facts.setting("ent_coef")
    if isinstance(coefficient, int | float) and coefficient > 0.0:
        return Proposal(_ENT, coefficient, 0.0, "fresh", expected, stop)
    knob = "model.init_args.action_distribution"
    return Proposal(knob, facts.settings.get(knob), "bounded", "fresh", expected, stop)


def bonus_widens_policy(facts: RunFacts) -> Finding | None:
    """B5, early. The entropy bonus drives σ out of the box, |μ| does not follow, and nothing is gained by it.

    An entropy above that of a uniform policy is beyond what any policy in the box can have. Where |μ|/σ rises, the
    policy makes use of the corners, and nothing is said.
    """
    coefficient, first, last = facts.setting("ent_coef"), facts.entropy_first, facts.entropy
    before, now, uniform = facts.mean_over_std_first, facts.mean_over_std, facts.uniform_entropy
    if facts.action != "continuous" or not isinstance(coefficient, int | float) or coefficient <= 0.0:
        return None
    if first is None or last is None or uniform is None or before is None or now is None or has_gained(facts):
        return None
    if last <= uniform or last - first < _RISE * (facts.dimensions or 1) or now > before:
        return None
    evidence = (
        f"entropy {first:.4g} nats at the start, {last:.4g} at the end; a uniform policy has {uniform:.4g}",
        f"|mu|/sigma {before:.4g} at the start, {now:.4g} at the end; ent_coef {coefficient:g}",
        f"training episodes {number(facts.training)}, at best {number(facts.training_max)}",
    )
    found = reference(facts)
    others = found[1].setting("ent_coef") if found is not None else None
    to = others if isinstance(others, int | float) and others < coefficient else 0.0
    proposal = Proposal(
        _ENT, coefficient, to, "ancestor" if found is not None else _start(facts),
        "entropy below that of a uniform policy, or |mu|/sigma rises with it",
        "entropy still rises over the first third of the budget",
    )  # fmt: skip
    return Finding("bonus_widens_policy", "the entropy bonus drives the policy out of its box", evidence, proposal)


def entropy_at_uniform(facts: RunFacts) -> Finding | None:
    """The entropy bonus holds the policy at random actions."""
    entropy, uniform, coefficient = facts.entropy, facts.uniform_entropy, facts.setting("ent_coef")
    if entropy is None or not uniform or not isinstance(coefficient, int | float) or coefficient <= 0.0:
        return None
    if not _UNIFORM * uniform <= entropy <= 1.001 * uniform or has_learned(facts):
        return None
    evidence = (f"entropy {entropy:.4g} nats of {uniform:.4g}, ent_coef {coefficient:g}",)
    expected = "entropy falls below nine tenths of a uniform policy's, the return rises"
    return Finding(
        "entropy_at_uniform",
        "the policy is as random as it can be, and is paid for it",
        evidence,
        Proposal(_ENT, coefficient, 0.0, _start(facts), expected, "entropy as before at the second evaluation"),
    )


def clip_range_too_small(facts: RunFacts) -> Finding | None:
    """Most ratios are clipped although the policy hardly moves."""
    clip_range, clipped = facts.setting("clip_range"), facts.clip_fraction
    if clipped is None or not isinstance(clip_range, int | float) or clip_range >= 0.05 or clipped < _LARGE_CLIP:
        return None
    evidence = (f"clip fraction {clipped:.4g} with clip_range {clip_range:g}, KL {number(facts.kl)}",)
    proposal = Proposal(
        "model.init_args.clip_range", clip_range, 0.2, _start(facts), "clip fraction below 0.3, the return rises",
        "clip fraction above 0.35 at the second evaluation",
    )  # fmt: skip
    return Finding("clip_range_too_small", "the clip takes the gradient of most samples", evidence, proposal)


def target_kl_ends_epochs(facts: RunFacts) -> Finding | None:
    """`target_kl` is so small that it ends the first epoch of nearly every rollout."""
    target, planned = facts.setting("target_kl"), facts.setting("n_epochs")
    if not isinstance(target, int | float) or not isinstance(planned, int) or facts.epochs is None or planned < 2:
        return None
    if facts.epochs > _FEW_EPOCHS or target >= _TIGHT_TARGET:
        return None
    evidence = (f"{facts.epochs:.3g} of {planned} epochs, target_kl {target:g}, KL {number(facts.kl)}",)
    expected, stop = (
        "more than a third of the epochs are made, the return rises",
        "as few epochs at the second evaluation",
    )
    proposal = Proposal("model.init_args.target_kl", target, 0.02, _start(facts), expected, stop)
    return Finding("target_kl_ends_epochs", "target_kl ends nearly every epoch", evidence, proposal)


def policy_not_moving(facts: RunFacts) -> Finding | None:
    """B3. KL and clip fraction were small while the learning rate was not, and nothing was gained."""
    if facts.kl is None or facts.kl > _STILL_KL or (facts.clip_fraction or 0.0) > _STILL_CLIP:
        return None
    if facts.kl > _NO_KL and has_gained(facts):
        return None
    rate = facts.setting("learning_rate")
    if not isinstance(rate, int | float):
        return None
    evidence = (
        f"KL {facts.kl:.3g}, clip fraction {number(facts.clip_fraction)} while the learning rate was above a tenth of "
        f"its peak, {number(facts.learning_rate_peak)}",
    )
    before = max(
        (r for run in facts.lineage() if isinstance(r := run.setting("learning_rate"), int | float)), default=rate
    )
    to = before if before > rate else _DEFAULT_LEARNING_RATE if rate < 0.1 * _DEFAULT_LEARNING_RATE else 10.0 * rate
    proposal = Proposal(
        _LR, facts.learning_rate_peak, to, _start(facts), "KL between 0.001 and 0.02 at the first evaluations",
        "KL above 0.03, or as before",
    )  # fmt: skip
    return Finding("policy_not_moving", "the policy hardly moves", evidence, proposal)


def policy_moves_too_far(facts: RunFacts) -> Finding | None:
    """Updates leave the region in which the surrogate holds, and the return shows it."""
    kl, clipped, rate = facts.kl, facts.clip_fraction, facts.setting("learning_rate")
    is_far = (kl is not None and kl > _LARGE_KL) or (clipped is not None and clipped > _LARGE_CLIP)
    if not is_far or not isinstance(rate, int | float) or (has_learned(facts) and not _has_collapsed(facts)):
        return None
    evidence = (
        f"KL {number(kl)}, clip fraction {number(clipped)} while learning, rate {number(facts.learning_rate_peak)}",
    )
    return Finding(
        "policy_moves_too_far", "each rollout moves the policy too far", evidence, _of_rate(facts, rate, _lower(rate))
    )


def value_not_learned(facts: RunFacts) -> Finding | None:
    """The critic explains nothing of the returns because its loss has no weight."""
    explained, weight = facts.explained_variance_max, facts.setting("vf_coef")
    if explained is None or not isinstance(weight, int | float) or explained > 0.1 or weight >= 0.05:
        return None
    evidence = (f"explained variance at most {explained:.3g}, vf_coef {weight:g}",)
    proposal = Proposal(
        "model.init_args.vf_coef", weight, 0.5, _start(facts), "explained variance above 0.3 by half the budget",
        "explained variance below 0.1 by half the budget",
    )  # fmt: skip
    return Finding("value_not_learned", "the value function is not learned", evidence, proposal)


def collapsed_within_run(facts: RunFacts) -> Finding | None:
    """F5. The last evaluations lie far below the best one of the same run."""
    rate = facts.setting("learning_rate")
    if not _has_collapsed(facts) or not isinstance(rate, int | float):
        return None
    best, last = _peak(facts), facts.last
    if best is None or last is None:
        return None
    evidence = (
        f"{best.mean:.4g} at {best.env_steps} environment steps, {last.mean:.4g} at {last.env_steps}, standard error "
        f"of the difference {number(standard_error(best, last))}",
    )
    return Finding(
        "collapsed_within_run", "the run lost what it had learned", evidence, _of_rate(facts, rate, _lower(rate))
    )


def nothing_learned(facts: RunFacts) -> Finding | None:
    """F8. No better than an untrained policy, and no rule knows why."""
    if has_learned(facts) is not False or facts.parent is not None:
        return None
    last, untrained = facts.last, facts.untrained()
    evidence = (f"last evaluation {number(last.mean if last else None)}, untrained {number(untrained)}",)
    if is_improving(facts):
        return None
    probe = "python -m rlmods fit --config {run}/config.yaml --config safeguards/observe --seed_everything 1"
    return Finding("nothing_learned", "insufficient evidence of why nothing was learned", evidence, probe=probe)


def keep(facts: RunFacts) -> Finding | None:
    """Nothing is wrong: more of the same where it still improves, else another seed."""
    last = facts.last
    if last is None:
        return None
    evidence = (
        f"last evaluation {last.mean:.4g}, standard error {number(last.standard_error)}, {last.episodes} episodes",
    )
    total, seed = facts.setting("total_env_steps"), facts.settings.get("seed_everything")
    if is_improving(facts) and isinstance(total, int):
        to = facts.env_steps + max(total - facts.env_steps_at_start, 1)
        proposal = Proposal(
            "data.init_args.total_env_steps", total, to, "last", "the evaluations go on rising",
            "no rise over two thirds of the new budget",
        )  # fmt: skip
        reason = "nothing is wrong, and it still improves: the same settings for longer"
        return Finding("keep", reason, (*evidence, *_rises_again(facts, to)), proposal)
    proposal = Proposal(
        "seed_everything", seed, seed + 1 if isinstance(seed, int) else 1, "fresh" if facts.parent is None else "best",
        "a score within the interval of this one", "none: a seed tells how much of the score is luck",
    )  # fmt: skip
    return Finding("keep", "nothing is wrong: the same settings with another seed", evidence, proposal)


def _rises_again(facts: RunFacts, to: int) -> tuple[str, ...]:
    """What a larger budget does to an annealed learning rate whose clock goes on."""
    rate, end = facts.setting("learning_rate"), facts.setting("final_learning_rate")
    schedule: Any = facts.setting("learning_rate_schedule") or ("constant" if end is None else "linear")
    if schedule not in ("linear", "cosine") or not isinstance(rate, int | float) or to <= 0:
        return ()
    progress, warmup = min(facts.env_steps / to, 1.0), facts.setting("learning_rate_warmup") or 0.0
    begins = scheduled(progress, start=rate, end=end or 0.0, schedule=schedule, warmup=warmup)
    return (
        f"the learning rate ended at {number(facts.learning_rate_last)} and goes on at about {begins:.3g}: its "
        f"{schedule} schedule spans the new budget",
    )


def _peak(facts: RunFacts) -> Score | None:
    """The best evaluation that lies before the last two."""
    return max(facts.scores[:-2], key=lambda score: score.mean - 2.0 * (score.standard_error or 0.0), default=None)


def _has_collapsed(facts: RunFacts) -> bool:
    peak = _peak(facts)
    return peak is not None and has_fallen(facts, peak, facts.scores)


def _lower(rate: float) -> float:
    """A third; a rate above any that is in use goes back to the default."""
    return _DEFAULT_LEARNING_RATE if rate > 0.01 else rate / 3.0


def _of_rate(facts: RunFacts, rate: float, to: float) -> Proposal:
    return Proposal(
        _LR, facts.learning_rate_peak or rate, to, _start(facts), "KL below 0.02 while learning, no fall of the return",
        "KL above 0.03, or a fall as before",
    )  # fmt: skip


def _start(facts: RunFacts) -> Start:
    """From the best checkpoint where something was learned in the chain, else from nothing."""
    kept = [run for run in facts.lineage() if run.best is not None]
    return "best" if kept and (facts.parent is not None or has_learned(facts) or _has_collapsed(facts)) else "fresh"


Rule = Callable[[RunFacts], Finding | None]
RULES: tuple[Rule, ...] = (
    metric_out_of_range,
    no_evaluation,
    too_few_episodes,
    broken_off,
    schedule_exhausted,
    warm_start_differs,
    setting_not_in_effect,
    non_finite,
    no_updates,
    policy_outside_box,
    regressed,
    bonus_widens_policy,
    entropy_at_uniform,
    clip_range_too_small,
    target_kl_ends_epochs,
    policy_not_moving,
    policy_moves_too_far,
    value_not_learned,
    collapsed_within_run,
    nothing_learned,
    keep,
)
_BELOW = ("collapsed_within_run", "nothing_learned", "keep")
_UPDATES = ("policy_not_moving", "policy_moves_too_far", "clip_range_too_small", "target_kl_ends_epochs")
SUPPRESSES: dict[str, Sequence[str]] = {
    "no_evaluation": ("regressed", "bonus_widens_policy", "entropy_at_uniform", *_UPDATES, *_BELOW),
    "too_few_episodes": ("regressed", "bonus_widens_policy", "entropy_at_uniform", *_UPDATES, *_BELOW),
    "broken_off": ("regressed", "bonus_widens_policy", *_BELOW),
    "warm_start_differs": ("regressed", *_BELOW),
    "non_finite": (
        "regressed",
        "bonus_widens_policy",
        "policy_outside_box",
        "entropy_at_uniform",
        *_UPDATES,
        "value_not_learned",
        *_BELOW,
    ),
    "no_updates": ("entropy_at_uniform", *_UPDATES, "value_not_learned", *_BELOW),
    "policy_outside_box": ("policy_not_moving",),
    "regressed": ("bonus_widens_policy", "entropy_at_uniform", *_UPDATES, "value_not_learned", *_BELOW),
    "bonus_widens_policy": ("entropy_at_uniform", *_UPDATES, "value_not_learned", *_BELOW),
    "entropy_at_uniform": (*_UPDATES, *_BELOW),
    "clip_range_too_small": ("policy_moves_too_far", *_BELOW),
    "target_kl_ends_epochs": ("policy_not_moving", *_BELOW),
    "policy_not_moving": ("value_not_learned", *_BELOW),
    "policy_moves_too_far": ("value_not_learned", *_BELOW),
    "value_not_learned": _BELOW,
    "collapsed_within_run": ("keep",),
    "nothing_learned": ("keep",),
}
