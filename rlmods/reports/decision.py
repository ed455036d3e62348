"""One hypothesis for the next run: the first finding that no other explains and that has something to propose."""

from typing import Any, NamedTuple

from rlmods.reports.chain_rules import RULES, SUPPRESSES
from rlmods.reports.facts import RunFacts, Score
from rlmods.reports.levels import lower_bound, reference
from rlmods.reports.proposal import Finding, Proposal
from rlmods.reports.regression import changed_settings

# A full training state holds random numbers and the state of its optimiser: it would revert them, or does not fit.
_OF_FULL_STATE = ("seed_everything", "model.init_args.optimizer", "model.init_args.muon_parameters")
_TOTAL = "data.init_args.total_env_steps"


class Decision(NamedTuple):
    """What to do next.

    Attributes:
        finding: that decided; None where no rule has anything to say.
        proposal: None where evidence is missing first.
        checkpoint: healthy, to begin from; None for a run that begins anew, or goes on in its own folder.
        base: the run whose configuration is the base of the next one.
        settings: of the next run, where they differ from the base, by dotted name.
        weights_only: whether the checkpoint's optimiser or its random numbers do not fit, or its clocks are to begin
            anew.
        observed: findings besides it, which guard against wrong conclusions.
        explained: findings that another one explains, by rule → the one that explains it.
    """

    finding: Finding | None
    proposal: Proposal | None
    checkpoint: Score | None
    base: RunFacts
    settings: dict[str, Any]
    weights_only: bool
    observed: list[Finding]
    explained: dict[str, str]


def decide(facts: RunFacts) -> Decision:
    """Ask all rules, leave out what is explained, and take the first that proposes something or asks for a probe."""
    findings = [finding for rule in RULES if (finding := rule(facts)) is not None]
    explained: dict[str, str] = {}
    for finding in findings:
        if finding.rule not in explained:
            explained |= {rule: finding.rule for rule in SUPPRESSES.get(finding.rule, ()) if rule not in explained}
    live = [finding for finding in findings if finding.rule not in explained]
    chosen = next((finding for finding in live if finding.proposal is not None or finding.probe), None)
    observed = [finding for finding in live if finding is not chosen]
    said = {finding.rule: explained[finding.rule] for finding in findings if finding.rule in explained}
    if chosen is None or chosen.proposal is None:
        return Decision(chosen, None, None, facts, {}, False, observed, said)
    score, base = _begin(facts, chosen.proposal)
    proposal = chosen.proposal
    if proposal.start in ("best", "ancestor") and score is None:
        proposal, base = proposal._replace(start="fresh"), facts
    changed = {difference.knob for difference in changed_settings(facts.settings, base.settings)} | {proposal.knob}
    weights_only = score is not None and (facts.continued == "weights" or not changed.isdisjoint(_OF_FULL_STATE))
    settings = _settings(facts, base, score, proposal, weights_only=weights_only)
    return Decision(chosen, proposal, score, base, settings, weights_only, observed, said)


def _begin(facts: RunFacts, proposal: Proposal) -> tuple[Score | None, RunFacts]:
    """The best healthy checkpoint of the chain with its run, or the run alone where it begins anew or goes on.

    A score whose checkpoint is gone tells how good the settings were, and cannot be begun from.
    """
    of_ancestors = reference(facts)
    if proposal.start not in ("best", "ancestor"):
        return None, facts
    if of_ancestors is not None and of_ancestors[0].checkpoint is None:
        of_ancestors = None
    if proposal.start == "best" and facts.best is not None and facts.best.checkpoint is not None:
        own = facts.best, facts
        return own if of_ancestors is None else max(own, of_ancestors, key=lambda pair: lower_bound(pair[0]))
    return (None, facts) if of_ancestors is None else of_ancestors


def _settings(
    facts: RunFacts, base: RunFacts, score: Score | None, proposal: Proposal, *, weights_only: bool
) -> dict[str, Any]:
    """The settings of the run that was read, with the knob turned, as far as the base has others."""
    settings = {d.knob: d.now for d in changed_settings(facts.settings, base.settings)}
    total = facts.settings.get(_TOTAL)
    if score is not None and isinstance(total, int):
        # The run's own share; the clock of weights alone begins at 0.
        budget = max(total - facts.env_steps_at_start, 1)
        settings[_TOTAL] = budget if weights_only else max(total, score.env_steps + budget)
    if proposal.knob:
        settings[proposal.knob] = proposal.to
    return settings
