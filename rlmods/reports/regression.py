"""A run that fell below the best of its ancestors: which change goes back first."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from rlmods.reports.facts import RunFacts, Score
from rlmods.reports.levels import fell_below, reference, standard_error
from rlmods.reports.proposal import Finding, Proposal
from rlmods.reports.summary import number

# What decides how long, how often and where, not what is learned.
_BOOKKEEPING = (
    *("total_env_steps", "eval_episodes", "eval_every", "seed", "seed_everything", "video_folder", "vectorization"),
    *("log_every_n_steps", "default_root_dir", "torch_threads", "resize", "enable_progress_bar"),
)
_SETTINGS = ("model.init_args.", "data.init_args.")
_WIDER = 0.02  # nats: by which the entropy must have risen
_LARGE_KL = 0.03
_STEPS = ("learning_rate", "n_epochs", "clip_range", "target_kl", "max_grad_norm", "batch_size")


class Difference(NamedTuple):
    """A setting of a run and of the better run before it."""

    knob: str
    before: Any
    now: Any

    @property
    def name(self) -> str:
        """Without its section."""
        return self.knob.rpartition(".")[2]

    @property
    def size(self) -> float:
        """|ln| of the ratio; infinite for what has none."""
        numbers = [v for v in (self.before, self.now) if isinstance(v, int | float) and not isinstance(v, bool)]
        if len(numbers) < 2 or min(numbers) <= 0.0:
            return math.inf
        return abs(math.log(numbers[1] / numbers[0]))


def regressed(facts: RunFacts) -> Finding | None:
    """F5 on a chain. A warm-started run lies far below the best of its ancestors: the last change goes back.

    Far is more than three standard errors and 30 % of what was learned, in the last two evaluations where there are
    two; or the return of the training lies as far below. One change goes back: the entropy coefficient where it rose
    and the entropy with it, else a step size where the policy moved too far, else the one that differs most.
    """
    found = reference(facts)
    if found is None:
        return None
    best, run = found
    if not fell_below(facts, best, run):
        return None
    last = facts.last
    if last is None:
        return None
    differences = changed_settings(facts.settings, run.settings)
    culprit = choose(facts, run, differences)
    evidence = _evidence(facts, run, best, last, differences)
    expected = f"the first evaluation is {best.mean:.4g} as the checkpoint's, and no later one falls far below it"
    stop = f"two evaluations in a row more than 30 % below {best.mean:.4g}"
    if culprit is None:
        rate = facts.setting("learning_rate")
        if not isinstance(rate, int | float):
            return Finding(
                "regressed", "the run lost what its parent had learned", evidence, probe="python -m rlmods report {run}"
            )
        reason = "no setting was changed, and the run lost what its parent had learned: its learning rate began anew"
        knob = "model.init_args.learning_rate"
        return Finding("regressed", reason, evidence, Proposal(knob, rate, rate / 3.0, "ancestor", expected, stop))
    proposal = Proposal(culprit.knob, culprit.now, culprit.before, "ancestor", expected, stop)
    reason = (
        f"the run lost what its parent had learned, after {culprit.name} went from {culprit.before} to {culprit.now}"
    )
    return Finding("regressed", reason, evidence, proposal)


def changed_settings(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[Difference]:
    """What differs and may change what is learned."""
    names = [name for name in sorted(now.keys() | before.keys()) if name.startswith(_SETTINGS)]
    return [
        Difference(name, before.get(name), now.get(name))
        for name in names
        if now.get(name) != before.get(name) and name.rpartition(".")[2] not in _BOOKKEEPING
    ]


def choose(facts: RunFacts, best: RunFacts, differences: list[Difference]) -> Difference | None:
    """The change that goes back first; None where nothing was changed."""
    by_name = {difference.name: difference for difference in differences}
    bonus = by_name.get("ent_coef")
    if bonus is not None and (bonus.now or 0.0) > (bonus.before or 0.0) and _has_widened(facts, best):
        return bonus
    steps = [by_name[name] for name in _STEPS if name in by_name]
    if steps and facts.kl is not None and facts.kl > _LARGE_KL:
        return max(steps, key=lambda difference: difference.size)
    return max(differences, key=lambda difference: difference.size, default=None)


def _has_widened(facts: RunFacts, best: RunFacts) -> bool:
    """Whether the entropy rose, in the run or against the better one; True where it was not measured."""
    if facts.entropy is None:
        return True
    before = [value for value in (facts.entropy_first, best.entropy) if value is not None]
    return not before or any(facts.entropy > value + _WIDER for value in before)


def _evidence(
    facts: RunFacts, run: RunFacts, best: Score, last: Score, differences: list[Difference]
) -> tuple[str, ...]:
    lines = [
        f"{last.mean:.4g} after {best.mean:.4g}, standard error of the difference {number(standard_error(best, last))}",
        f"untrained policy {number(facts.untrained())}",
    ]
    if facts.training is not None:
        before = number(run.training)
        lines.append(f"training episodes {facts.training:.4g}, those of the better run {before} at its end")
    if facts.start is not None:
        lines.append(f"the run began with {facts.start.mean:.4g}: the warm start itself was sound")
    lines += [f"{d.knob}: {d.before} before, {d.now} now" for d in differences]
    if facts.entropy is not None:
        uniform = number(facts.uniform_entropy)
        lines.append(
            f"entropy {number(facts.entropy_first)} at the start, {facts.entropy:.4g} at the end; a uniform policy has "
            f"{uniform} nats"
        )
    return tuple(lines)
