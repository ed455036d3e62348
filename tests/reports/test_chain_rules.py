"""The rules for the next run: on labelled runs, one by one, and what they never say."""

import math
from dataclasses import replace
from typing import Any

import pytest
from chain_corpus import UNIFORM, Labelled, labelled_runs
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmods.reports.chain_rules import RULES, SUPPRESSES
from rlmods.reports.decision import Decision, decide
from rlmods.reports.facts import Alarm, RunFacts, Score
from rlmods.reports.regression import changed_settings, regressed

LABELLED = labelled_runs()
MODEL = "model.init_args."
LR, ENT, VF, CLIP = MODEL + "learning_rate", MODEL + "ent_coef", MODEL + "vf_coef", MODEL + "clip_range"
TARGET_KL = MODEL + "target_kl"


@pytest.mark.parametrize("labelled", LABELLED, ids=[labelled.facts.run for labelled in LABELLED])
def test_the_labelled_runs(labelled: Labelled) -> None:
    decision = decide(labelled.facts)
    assert decision.finding is not None
    assert decision.proposal is not None
    if not labelled.knob:
        assert decision.finding.rule == "keep"
        assert not decision.proposal.knob.startswith("model.")
        return
    assert (decision.finding.rule, decision.proposal.knob, decision.proposal.to) == (
        "regressed", labelled.knob, labelled.to,
    )  # fmt: skip
    assert decision.checkpoint is not None
    assert decision.checkpoint.checkpoint == f"{labelled.best}.ckpt"
    assert decision.settings[labelled.knob] == labelled.to


def seed_run() -> RunFacts:
    (found,) = [labelled.facts for labelled in LABELLED if labelled.facts.run == "1535"]
    return found


def test_what_must_be_said_of_the_seed_run() -> None:
    decision = decide(seed_run())
    observed = {finding.rule: finding for finding in decision.observed}
    assert {"schedule_exhausted", "policy_outside_box"} <= observed.keys()
    assert "metric_out_of_range" in {finding.rule for finding in decide(seed_run().parent or seed_run()).observed}
    # H = A (½ ln 2πe + ln σ): 32.73 nats in four dimensions are σ = 866 (865.7 of the rounded 32.73).
    assert any("sigma 865" in line or "sigma 866" in line for line in observed["policy_outside_box"].evidence)
    assert decision.finding is not None
    said = "\n".join(decision.finding.evidence)
    assert "7.4 after 535.2" in said
    assert "the run began with 535.2: the warm start itself was sound" in said
    assert f"{ENT}: 0.01 before, 0.12 now" in said
    assert f"{LR}: 0.0025 before, 0.003 now" in said
    assert decision.weights_only


def test_the_two_fatal_actions_are_never_recommended() -> None:
    for labelled in LABELLED:
        decision = decide(labelled.facts)
        assert decision.settings.get(ENT, 0.0) <= 0.02
        collapsed = ("1535.ckpt", "1541.ckpt", "1654.ckpt", "1626.ckpt", "1620.ckpt")
        assert decision.checkpoint is None or decision.checkpoint.checkpoint not in collapsed


def test_small_kl_at_the_end_of_a_schedule_and_a_count_have_no_say() -> None:
    for labelled in LABELLED:
        with_count = replace(labelled.facts, quarantined={"eval/success_rate": 894.5})
        without = replace(labelled.facts, quarantined={}, kl_last=None, learning_rate_last=None)
        assert decide(with_count).proposal == decide(without).proposal


# A run in which nothing is wrong; each rule sees it with one thing changed.


def scores(*means: float, error: float = 1.0, episodes: int | None = 20) -> tuple[Score, ...]:
    return tuple(Score(mean, error, episodes, 1000 * (i + 1), f"{i}.ckpt") for i, mean in enumerate(means))


def healthy(**changes: Any) -> RunFacts:
    own = {
        "seed_everything": 0, LR: 1e-3, ENT: 0.0, "model.init_args.n_epochs": 10, "model.init_args.clip_range": 0.2,
        "model.init_args.vf_coef": 0.5, "model.init_args.target_kl": None, "data.init_args.total_env_steps": 6000,
    }  # fmt: skip
    own |= changes.pop("settings", {})
    learned = scores(20.0, 60.0, 100.0, 101.0, 100.0, 101.0)
    defaults: dict[str, Any] = {
        "scores": learned, "best": learned[3], "baseline": 20.0, "env_steps": 6000, "updates": 240.0,
        "action": "continuous", "dimensions": 2, "entropy": 1.0, "entropy_first": 1.3,
        "uniform_entropy": 2.0 * math.log(2.0), "std": 0.4, "mean_over_std": 1.0, "kl": 0.008, "kl_last": 1e-5,
        "clip_fraction": 0.1, "epochs": 10.0, "explained_variance_max": 0.8, "learning_rate_peak": own[LR],
        "learning_rate_last": 1e-5,
    }  # fmt: skip
    return RunFacts(run="run", settings=own, **(defaults | changes))


def rule_and_knob(decision: Decision) -> tuple[str, str, Any]:
    assert decision.finding is not None
    proposal = decision.proposal
    return decision.finding.rule, proposal.knob if proposal else "", proposal.to if proposal else None


FLAT = {"scores": scores(20.0, 21.0, 20.0), "best": Score(21.0, 1.0, 20, 2000, "1.ckpt")}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("keep", "seed_everything", 1)),
        ({"scores": scores(20.0, 40.0, 60.0)}, ("keep", "data.init_args.total_env_steps", 12_000)),
        ({"scores": ()}, ("no_evaluation", "", None)),
        ({"scores": scores(20.0, 90.0, episodes=2)}, ("too_few_episodes", "", None)),
        ({"complete": False, "env_steps": 3000}, ("broken_off", "", None)),
        ({"non_finite": ("train/loss",)}, ("non_finite", LR, 1e-3 / 3.0)),
        ({"exception": "ValueError: nan in logits", "complete": False}, ("non_finite", LR, 1e-3 / 3.0)),
        ({"updates": 0.0}, ("no_updates", "data.init_args.total_env_steps", 60_000)),
        (FLAT | {"entropy": 1.38, "settings": {ENT: 1.0}}, ("entropy_at_uniform", ENT, 0.0)),
        (FLAT | {"kl": 1e-8, "clip_fraction": 0.0, "settings": {LR: 1e-6}}, ("policy_not_moving", LR, 3e-4)),
        (FLAT | {"kl": 0.2, "clip_fraction": 0.6, "settings": {LR: 0.1}}, ("policy_moves_too_far", LR, 3e-4)),
        ({"clip_fraction": 0.9, "settings": {CLIP: 1e-3}}, ("clip_range_too_small", CLIP, 0.2)),
        (
            FLAT | {"epochs": 1.0, "kl": 1e-4, "settings": {TARGET_KL: 1e-4}},
            ("target_kl_ends_epochs", TARGET_KL, 0.02),
        ),
        ({"explained_variance_max": 0.0, "settings": {VF: 0.0}}, ("value_not_learned", VF, 0.5)),
        ({"scores": scores(20.0, 100.0, 99.0, 50.0, 40.0)}, ("collapsed_within_run", LR, 1e-3 / 3.0)),
        (FLAT, ("nothing_learned", "", None)),
        (FLAT | {"std": 50.0, "entropy": 10.0, "settings": {ENT: 0.1}}, ("policy_outside_box", ENT, 0.0)),
    ],
)  # fmt: skip
def test_one_thing_is_wrong(changes: dict[str, Any], expected: tuple[str, str, Any]) -> None:
    assert rule_and_knob(decide(healthy(**changes))) == expected


def test_a_setting_that_a_safeguard_found_without_effect_is_told() -> None:
    alarm = Alarm("share_not_in_effect", "warn", 100, "the expert acted on 0.9 of the frames, expected 0.2")
    (found,) = [f for f in decide(healthy(alarms=(alarm,))).observed if f.rule == "setting_not_in_effect"]
    assert found.evidence == (alarm.message,)
    other = alarm._replace(cause="value_gap")
    assert not [f for f in decide(healthy(alarms=(other,))).observed if f.rule == "setting_not_in_effect"]


def test_a_warm_start_that_is_not_the_parents_policy() -> None:
    parent = healthy()
    child = healthy(parent=parent, start=Score(30.0, 1.0, 20, 0), started_from=Score(100.0, 1.0, 20, 6000))
    assert rule_and_knob(decide(child)) == ("warm_start_differs", "", None)
    same = replace(child, start=Score(100.0, 1.0, 20, 0))
    assert rule_and_knob(decide(same))[0] == "keep"


def test_another_seed_of_a_child_takes_the_weights_alone() -> None:
    parent = healthy()
    child = replace(
        healthy(parent=parent, continued="full", start=parent.best, settings={"data.init_args.total_env_steps": 9000}),
        env_steps_at_start=6000,
    )
    decision = decide(child)
    assert rule_and_knob(decision) == ("keep", "seed_everything", 1)
    # A full state would bring the old random numbers back; the clock of the weights alone begins at 0.
    assert (decision.weights_only, decision.settings["data.init_args.total_env_steps"]) == (True, 3000)


def test_more_of_an_annealed_rate_rises_again() -> None:
    rising = healthy(scores=scores(20.0, 40.0, 60.0), settings={MODEL + "learning_rate_schedule": "linear"})
    decision = decide(rising)
    assert decision.finding is not None
    assert any("goes on at about 0.0005: its linear schedule" in line for line in decision.finding.evidence)


def test_a_checkpoint_that_is_gone_tells_of_settings_and_begins_nothing() -> None:
    gone = replace(healthy(), best=Score(100.0, 1.0, 20, 4000))
    decision = decide(child_of(gone, 20.0, 20.0, entropy=5.0, settings={ENT: 0.5}))
    assert rule_and_knob(decision) == ("regressed", ENT, 0.0)
    assert decision.checkpoint is None
    assert decision.proposal is not None
    assert decision.proposal.start == "fresh"


def test_a_learning_rate_that_was_not_in_effect_is_said() -> None:
    decision = decide(healthy(learning_rate_peak=5e-5))
    assert [f.rule for f in decision.observed if f.rule == "setting_not_in_effect"]


def child_of(parent: RunFacts, *means: float, **changes: Any) -> RunFacts:
    return healthy(parent=parent, continued="full", start=parent.best, scores=scores(*means), best=None, **changes)


def test_of_two_evaluations_one_that_is_down_is_noise() -> None:
    parent = healthy()
    assert rule_and_knob(decide(child_of(parent, 100.0, 20.0, 100.0, settings={ENT: 0.1})))[0] != "regressed"
    assert rule_and_knob(decide(child_of(parent, 100.0, 20.0, 20.0, settings={ENT: 0.1}))) == ("regressed", ENT, 0.0)


def test_the_return_of_the_training_is_a_second_witness() -> None:
    # The likeliest action is as good as ever, and the policy that explores, and learns, is that of the beginning.
    parent = healthy(training=80.0, training_max=80.0)
    lost = child_of(parent, 100.0, 100.0, training=25.0, training_max=80.0, entropy=3.0, settings={ENT: 1.0})
    assert rule_and_knob(decide(lost)) == ("regressed", ENT, 0.0)
    # Its own checkpoint evaluates higher, and is not where to begin: what was wrong is in its weights.
    tempting = replace(lost, best=Score(500.0, 0.0, 20, 1000, "own.ckpt"))
    assert decide(tempting).checkpoint == parent.best
    grandchild = child_of(tempting, 20.0, 20.0, training=25.0, training_max=80.0, entropy=3.0, settings={ENT: 0.9})
    assert decide(grandchild).checkpoint == parent.best
    alone = replace(lost, parent=None, start=None, best=lost.scores[0], baseline=20.0)
    assert rule_and_knob(decide(alone))[0] == "keep"
    # The evaluation jumps while the training rises: that is no fall.
    means = (20.0, 100.0, 99.0, 50.0, 40.0)
    assert rule_and_knob(decide(healthy(scores=scores(*means), training=60.0, training_max=60.0)))[0] == "keep"
    fallen = healthy(scores=scores(*means), training=30.0, training_max=60.0)
    assert rule_and_knob(decide(fallen))[0] == "collapsed_within_run"
    # A lucky likeliest action is nothing learned.
    lucky = healthy(training=21.0, training_max=22.0, entropy=1.38, settings={ENT: 5.0})
    assert rule_and_knob(decide(lucky)) == ("entropy_at_uniform", ENT, 0.0)


def test_a_bonus_that_drives_the_policy_out_of_its_box_before_anything_falls() -> None:
    parent = healthy(training=80.0, training_max=80.0)
    wide: dict[str, Any] = {"entropy_first": 1.1, "entropy": 2.0, "mean_over_std_first": 0.58, "mean_over_std": 0.54}
    drifting = child_of(parent, 100.0, 101.0, training=75.0, training_max=80.0, settings={ENT: 1.0}, **wide)
    decision = decide(drifting)
    assert rule_and_knob(decision) == ("bonus_widens_policy", ENT, 0.0)
    assert decision.checkpoint == parent.best
    # Where |mu| grows with sigma the corners are made use of; within the box a wider policy is explored with.
    assert rule_and_knob(decide(replace(drifting, mean_over_std=0.8)))[0] == "keep"
    assert rule_and_knob(decide(replace(drifting, entropy=1.3)))[0] == "keep"


def test_which_change_goes_back() -> None:
    parent = healthy()
    both = {LR: 1e-2, "model.init_args.n_epochs": 12}
    assert rule_and_knob(decide(child_of(parent, 20.0, 20.0, kl=0.2, settings=both))) == ("regressed", LR, 1e-3)
    # The entropy coefficient rose, but the entropy did not.
    three = both | {ENT: 0.01}
    narrow = child_of(parent, 20.0, 20.0, kl=0.2, entropy=0.5, settings=three)
    assert rule_and_knob(decide(narrow)) == ("regressed", LR, 1e-3)
    wide = child_of(parent, 20.0, 20.0, kl=0.2, entropy=3.0, settings=three)
    assert rule_and_knob(decide(wide)) == ("regressed", ENT, 0.0)
    # One hypothesis: the other changes stay.
    assert decide(wide).settings[LR] == 1e-2
    unchanged = child_of(parent, 20.0, 20.0)
    assert rule_and_knob(decide(unchanged)) == ("regressed", LR, 1e-3 / 3.0)


def test_a_grandparent_is_better_than_a_broken_parent() -> None:
    best = healthy()
    broken = child_of(best, 20.0, 20.0, entropy=5.0, settings={ENT: 0.5})
    child = child_of(broken, 21.0, 20.0, entropy=6.0, settings={ENT: 0.4})
    decision = decide(replace(child, start=broken.last))
    assert rule_and_knob(decision) == ("regressed", ENT, 0.0)
    assert decision.base is best
    assert decision.checkpoint == best.best


def test_settings_that_decide_only_how_long_are_no_change() -> None:
    now = {"data.init_args.total_env_steps": 2, "data.init_args.eval_every": 3, LR: 1.0, "trainer.max_steps": 1}
    assert [d.knob for d in changed_settings(now, {LR: 0.5})] == [LR]


FINITE = st.floats(-1e6, 1e6)
SHARE = st.floats(0.0, 1.0)
ERROR, EPISODES = st.none() | st.floats(0.0, 1e3), st.none() | st.integers(1, 200)
SCORES = st.lists(st.builds(Score, FINITE, ERROR, EPISODES, st.just(1)), max_size=4)
SETTINGS = {LR: st.floats(1e-8, 1.0), ENT: SHARE, TARGET_KL: st.none() | st.floats(1e-6, 1.0)}
FACTS = st.builds(
    RunFacts,
    run=st.just("run"),
    settings=st.fixed_dictionaries({}, optional=SETTINGS),
    scores=SCORES.map(tuple),
    best=st.none() | st.builds(Score, FINITE, st.just(1.0), st.just(10), st.just(1), st.just("best.ckpt")),
    baseline=st.none() | FINITE,
    complete=st.booleans(),
    entropy=st.none() | FINITE,
    std=st.none() | st.floats(1e-9, 1e9),
    action=st.sampled_from([None, "continuous", "discrete"]),
    dimensions=st.just(4),
    uniform_entropy=st.just(UNIFORM),
    kl=st.none() | SHARE,
    clip_fraction=st.none() | SHARE,
    updates=st.none() | SHARE,
    alarms=st.sampled_from([(), (Alarm("x", "act", 1, "x"),)]),
)


@settings(max_examples=30)
@given(FACTS, FACTS)
def test_whatever_the_facts_there_is_one_hypothesis_with_evidence(facts: RunFacts, parent: RunFacts) -> None:
    decision = decide(replace(facts, parent=parent, continued="full"))
    proposal = decision.proposal
    if decision.finding is not None:
        assert all(decision.finding.evidence)
        assert (proposal is None) == bool(decision.finding.probe)
    if proposal is not None:
        assert proposal.expected
        assert proposal.stop
        assert not proposal.knob or proposal.effective != proposal.to or proposal.to is None
    if decision.checkpoint is not None:
        assert decision.checkpoint in (facts.best, parent.best)


def test_the_graph_names_rules() -> None:
    names = {rule.__name__ for rule in RULES}
    assert SUPPRESSES.keys() <= names
    assert {name for explained in SUPPRESSES.values() for name in explained} <= names


def test_nothing_regresses_without_a_better_ancestor() -> None:
    assert regressed(healthy()) is None
