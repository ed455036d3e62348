import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, Stranger, as_lists, causes, events, fit_small, fit_stranger, transitions, warnings_of
from lightning.pytorch import Trainer
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.callbacks.value_bound_guard import ValueBoundGuard
from rlmods.callbacks.value_detector import LEARNING, Gap, ValueDetector, ValueWindow
from rlmods.data import ReplayDataModule
from rlmods.functional.td import td_target
from rlmods.types import Minibatch, ReplayBatch, Transition

# Of a CartPole run in good health.
HEALTHY = ValueWindow(
    low=1.0,
    high=100.0,
    size=99.0,
    reward_low=1.0,
    reward_high=1.0,
    q_low=5.0,
    q_high=40.0,
    q_outside=0.0,
    target_low=1.0,
    target_mean=20.0,
    target_high=41.0,
    target_outside=0.0,
    start_low=0.8,
    start_mean=1.0,
    start_high=1.2,
    explained_variance=0.8,
    error=1.0,
    updates=10_000.0,
    discount=0.99,
    terminal_discount=0.0,
    terminal_error=0.0,
    identity_error=0.0,
    terminated=0.05,
    truncated=0.0,
    unchanged=0.0,
    transitions=64.0,
    requires_grad=0.0,
    episode_length=20.0,
    terminations_lost=0.0,
    discount_ignored=math.nan,
    bootstrap_outside=math.nan,
    entropy=math.nan,
    largest_entropy=math.nan,
)


def test_an_entropy_above_that_of_the_cube_is_another_density() -> None:
    """Two dimensions: 2 ln 2 = 1.386. A normal with std 1 has 1.419 in each, were the tanh's slope forgotten."""
    for entropy, expected in ((1.4, [[], [], []]), (2.838, [[], [], ["entropy_above_cube"]])):
        watch = detector()
        window = HEALTHY._replace(entropy=entropy, largest_entropy=2.0 * math.log(2.0))
        assert [causes(watch.update(window)) for _ in range(3)] == expected


def detector() -> ValueDetector:
    return ValueDetector(slack=0.05, gap=0.5)


def means(values: list[float], low: float = 0.0, high: float = 1.0) -> list[list[str]]:
    """What is said of targets that all equal these values, window by window, from ACT on."""
    watch = detector()
    first = values[0]
    start = HEALTHY._replace(low=low, high=high, size=high - low, start_low=first, start_mean=first, start_high=first)
    windows = [start._replace(q_low=v, q_high=v, target_low=v, target_mean=v, target_high=v) for v in values]
    return [causes(watch.update(window), ACT) for window in windows]


# The pure detector


def test_a_healthy_run_is_silent() -> None:
    watch = detector()
    assert not any(watch.update(HEALTHY) for _ in range(50))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"discount": 1.0}, "discount_not_below_one"),
        ({"terminal_discount": 0.99}, "bootstraps_through_termination"),
        ({"terminal_error": 0.5}, "bootstraps_through_termination"),
        ({"identity_error": 0.5}, "td_error_mismatch"),
        ({"discount_ignored": 0.5}, "discount_ignored"),
    ],
)
def test_an_identity_acts_at_once(change: dict[str, float], cause: str) -> None:
    assert causes(detector().update(HEALTHY._replace(**change)), ACT) == [cause]


def test_rounding_is_no_breach() -> None:
    """Targets of size 41: 0.041 is the tolerance."""
    near = {"terminal_error": 0.04, "identity_error": 0.04, "discount_ignored": 0.04}
    assert detector().update(HEALTHY._replace(**near)) == []


def test_what_is_not_known_is_no_breach() -> None:
    watch = detector()
    nothing = ValueWindow(*[math.nan] * len(ValueWindow._fields))
    assert not any(watch.update(nothing) for _ in range(10))


def test_what_a_probe_found_lasts_until_the_next_probe() -> None:
    watch = detector()
    found = [causes(watch.update(HEALTHY._replace(discount_ignored=value))) for value in (5.0, math.nan, math.nan, 0.0)]
    assert found == [["discount_ignored"]] * 3 + [[]]


@pytest.mark.parametrize(
    "values",
    [
        [50.0 * 0.99**n for n in range(100)],  # far outside, comes closer
        [50.0] * 100,  # far outside, the target network is not yet due
        [50.0 + math.sin(n) for n in range(100)],  # the same, with the noise of the draws
        [3.0 + 0.3 * math.sin(0.3 * n) for n in range(100)],
        [1.2] * 100,  # outside by less than a quarter of the interval
    ],
)
def test_values_that_begin_outside_are_not_acted_on(values: list[float]) -> None:
    assert not any(means(values))


@pytest.mark.parametrize("start", [0.5, 1.4, 20.0])
def test_a_divergence_is_acted_on_and_goes_on_being_wrong(start: float) -> None:
    said = means([start] * 10 + [start * 1.3**n for n in range(30)] + [start * 1.3**30] * 10)
    assert not any(said[:10])
    first = said.index(["target_out_of_bounds"])
    assert all(causes_now == ["target_out_of_bounds"] for causes_now in said[first:])
    assert first < 10 + 20


def test_a_tenth_of_the_values_outside_is_a_warning_after_three_windows() -> None:
    watch = detector()
    few = HEALTHY._replace(q_high=140.0, q_outside=0.09)
    assert not any(causes(watch.update(few)) for _ in range(10))
    windows = [HEALTHY._replace(q_high=106.0, q_outside=0.11)] * 4  # 5 % of the size 100, and 1 % more
    said = [causes(watch.update(window)) for window in windows]
    assert said == [[], [], ["value_out_of_bounds"], ["value_out_of_bounds"]]
    assert not any(causes(watch.update(window), ACT) for window in windows)


def test_a_long_phase_without_rewards_is_silent() -> None:
    """The interval is a point, rewards do not vary, targets hardly do; then the goal is reached, worth 1."""
    watch = detector()
    zero = HEALTHY._replace(low=0.0, high=0.0, size=0.0, reward_low=0.0, reward_high=0.0, q_low=-0.02, q_high=0.03)
    zero = zero._replace(target_low=-0.02, target_mean=0.0, target_high=0.03, explained_variance=math.nan)
    assert not any(watch.update(zero) for _ in range(200))
    found = zero._replace(high=1.0, size=1.0, target_high=1.0)
    assert not any(watch.update(found) for _ in range(50))


def test_a_changed_scale_of_the_rewards_is_seen_and_remembered() -> None:
    watch = detector()
    for _ in range(25):
        assert not watch.update(HEALTHY)
    larger = HEALTHY._replace(reward_high=10.0, high=1_000.0)
    assert [causes(watch.update(larger)) for _ in range(2)] == [["reward_range_changed"]] * 2


def test_a_changed_sign_of_the_rewards_is_seen() -> None:
    watch = detector()
    for _ in range(25):
        watch.update(HEALTHY)
    assert causes(watch.update(HEALTHY._replace(reward_low=-1.0, low=-100.0))) == ["reward_range_changed"]


def test_rewards_that_are_still_being_explored_are_no_change() -> None:
    watch = detector()
    for n in range(10):
        assert not watch.update(HEALTHY._replace(reward_high=4.0**n, high=100.0 * 4.0**n))


def test_ends_that_are_never_stored_act_when_a_hundred_were_due() -> None:
    """64 transitions of episodes of 20 steps: 3.2 ends a window, so more than 100 after 32 windows."""
    watch = detector()
    said = [causes(watch.update(HEALTHY._replace(terminated=0.0)), ACT) for _ in range(33)]
    assert [bool(verdicts) for verdicts in said] == [False] * 31 + [True] * 2
    assert said[-1] == ["episode_ends_not_stored"]


def test_a_task_that_only_a_time_limit_ends_is_no_defect() -> None:
    watch = detector()
    verdicts = [watch.update(HEALTHY._replace(terminated=0.0, truncated=0.05)) for _ in range(50)]
    assert not any(causes(found) for found in verdicts)
    assert verdicts[-1][0].cause == "no_termination_seen"


@pytest.mark.parametrize(
    ("change", "speaks"),
    [
        ({"explained_variance": -0.5, "error": 5.0}, True),
        ({"explained_variance": 0.01, "error": 5.0}, False),
        ({"explained_variance": -0.5, "error": 5.0, "updates": LEARNING - 1.0}, False),  # it has hardly begun
        ({"explained_variance": -0.5, "error": 0.5}, False),  # solved: targets hardly vary
    ],
)
def test_a_critic_that_explains_nothing(change: dict[str, float], speaks: bool) -> None:
    watch = detector()
    said = [causes(watch.update(HEALTHY._replace(**change))) for _ in range(4)]
    assert said == [[], [], [], ["critic_does_not_explain"] if speaks else []]


def test_q_above_the_return_in_three_evaluations() -> None:
    watch = detector()
    watch.update_gap(Gap(mean=-5.0, sem=2.0, discounted_return=40.0), 1.0, 100.0)
    for _ in range(2):
        watch.update_gap(Gap(mean=30.0, sem=2.0, discounted_return=40.0), 1.0, 100.0)
        assert watch.update(HEALTHY) == []
    watch.update_gap(Gap(mean=30.0, sem=2.0, discounted_return=40.0), 1.0, 100.0)
    assert causes(watch.update(HEALTHY)) == causes(watch.update(HEALTHY)) == ["value_gap"]
    for _ in range(3):
        watch.update_gap(Gap(mean=1.0, sem=2.0, discounted_return=40.0), 1.0, 100.0)
    assert watch.update(HEALTHY) == []


@pytest.mark.parametrize(
    "gap", [Gap(-30.0, 1.0, 40.0), Gap(30.0, 15.0, 40.0), Gap(10.0, 1.0, 40.0), Gap(2.0, 0.1, 0.0)]
)
def test_gaps_that_mean_nothing(gap: Gap) -> None:
    """Below the return, within the noise, small against the return, small against the interval."""
    watch = detector()
    watch.update_gap(Gap(-5.0, 1.0, 40.0), 1.0, 100.0)
    for _ in range(4):
        watch.update_gap(gap, 1.0, 100.0)
    assert watch.update(HEALTHY) == []


def test_a_network_that_begins_at_zero_overestimates_costs_and_comes_closer() -> None:
    """Each step costs 1: the return is −99, Q starts at 0."""
    watch = detector()
    for mean in (99.0, 80.0, 70.0, 61.0, 55.0):
        watch.update_gap(Gap(mean, sem=0.01, discounted_return=-99.0), -100.0, -1.0)
    assert watch.update(HEALTHY) == []


def test_a_reloaded_detector_goes_on() -> None:
    bad = HEALTHY._replace(q_high=200.0, target_mean=150.0, explained_variance=-1.0, error=50.0, terminated=0.0)
    whole, half = detector(), detector()
    for n in range(40):
        window = bad._replace(target_mean=150.0 * 1.2**n, discount_ignored=5.0 if n == 0 else math.nan)
        if n == 20:
            state, half = half.state_dict(), detector()
            half.load_state_dict(state)
        assert whole.update(window) == half.update(window)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2.0, "high": 1.0}, "expected low < high"),
        ({"slack": -0.1}, "slack = -0.1"),
        ({"gap": 0.0}, "gap = 0.0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ValueBoundGuard(**arguments)


# The real DQN, whole


@pytest.mark.parametrize(
    "options", [{}, {"n_steps": 3, "prioritized_replay": True, "num_envs": 8, "arguments": {"dueling": True}}]
)
def test_a_healthy_dqn_is_silent(tmp_path: Path, options: dict[str, Any]) -> None:
    guard = ValueBoundGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, **options)
    assert guard.raised == []


def test_watching_changes_no_weight(tmp_path: Path) -> None:
    plain = fit_small(tmp_path / "plain", total_env_steps=320)
    watched = fit_small(tmp_path / "watched", ValueBoundGuard(every_n_iterations=1), total_env_steps=320)
    states = plain.lightning_module.state_dict(), watched.lightning_module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    model = watched.lightning_module
    assert isinstance(model, DQN)
    assert model.target_transforms == []


# The real DQN, one line broken


class IgnoredTerminals(DQN):
    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        return super().td_target(transition._replace(discount=torch.full_like(transition.discount, 0.99)), bootstrap)


class OneStepDiscount(DQN):
    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        return super().td_target(transition._replace(discount=0.99 * (transition.discount > 0)), bootstrap)


class SecondGamma(DQN):
    @torch.no_grad()
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        return super().td_target(transition._replace(discount=1.01 * transition.discount), bootstrap)


class NoStopGradient(DQN):
    def td_target(self, transition: Transition, bootstrap: Tensor | None = None) -> Tensor:
        value = self.q_network(transition.next_observation).amax(-1)
        target = td_target(transition.reward, transition.discount, value)
        for transform in self.target_transforms:
            target = transform(target)
        return target


class WrongSign(DQN):
    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        signals = super().signals(minibatch)
        return signals | {"td_error": -signals["td_error"]}


class Edited(ReplayDataModule):
    def edit(self, transition: Transition) -> Transition:
        raise NotImplementedError

    def iterate(self, trainer: Trainer) -> ReplayBatch:
        batch = super().iterate(trainer)
        return batch._replace(transition=self.edit(batch.transition))


class NeverTerminated(Edited):
    def edit(self, transition: Transition) -> Transition:
        discount = torch.full_like(transition.discount, 0.99)
        return transition._replace(terminated=torch.zeros_like(transition.terminated), discount=discount)


class DiscountAboveOne(Edited):
    def edit(self, transition: Transition) -> Transition:
        return transition._replace(discount=1.01 * (transition.discount > 0))


class SameObservation(Edited):
    def edit(self, transition: Transition) -> Transition:
        return transition._replace(next_observation=transition.observation)


class RewardJump(Edited):
    def edit(self, transition: Transition) -> Transition:
        return transition._replace(reward=transition.reward * (10.0 if self.env_steps > 900 else 1.0))


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("bootstraps_through_termination", {"model_class": IgnoredTerminals}),
        ("discount_ignored", {"model_class": OneStepDiscount, "n_steps": 3}),
        ("discount_mismatch", {"model_class": SecondGamma}),
        ("no_stop_gradient", {"model_class": NoStopGradient}),
        ("td_error_mismatch", {"model_class": WrongSign}),
        ("discount_not_below_one", {"data_class": DiscountAboveOne}),
        ("next_observation_equals_observation", {"data_class": SameObservation}),
        ("episode_ends_not_stored", {"data_class": NeverTerminated, "batch_size": 64, "total_env_steps": 640}),
        ("reward_range_changed", {"data_class": RewardJump, "total_env_steps": 1_000}),
    ],
)
def test_the_first_cause_is_the_right_one(tmp_path: Path, cause: str, options: dict[str, Any]) -> None:
    guard = ValueBoundGuard(every_n_iterations=2)
    trainer = fit_small(tmp_path, guard, **({"total_env_steps": 320} | options))
    assert warnings_of(guard)[:1] == [cause]
    evidence = events(trainer)[0]["evidence"]
    assert evidence["cause"] == cause
    assert evidence["learning_rate"]["q"] == 1e-3


def test_a_goal_at_the_end_is_no_change_of_the_rewards(tmp_path: Path) -> None:
    """A cost of 0.01 a step, then, for the first time after 40 windows, a goal worth 1."""
    steps = transitions(-0.01, 0.9)
    goal = steps._replace(reward=torch.full((8,), 1.0), discount=torch.zeros(8), terminated=torch.ones(8) > 0)
    guard = ValueBoundGuard(every_n_iterations=1)
    fit_stranger(tmp_path, Talkative(), [steps] * 40 + [goal] * 4, guard)
    assert "reward_range_changed" not in warnings_of(guard)


def test_a_resumed_guard_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of a window."""

    def guarded_run(folder: str, **options: Any) -> ValueBoundGuard:
        guard = ValueBoundGuard(every_n_iterations=2)
        fit_small(tmp_path / folder, guard, data_class=SameObservation, eval_every=112, total_env_steps=320, **options)
        return guard

    whole = guarded_run("whole")
    half = guarded_run("half", max_steps=7)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = guarded_run("resumed", ckpt_path=checkpoint)
    assert whole.raised
    assert not half.raised
    assert repr(as_lists(whole.state_dict())) == repr(as_lists(resumed.state_dict()))


# Strangers


class Talkative(Stranger):
    """Publishes what it computes."""

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        super().training_step(batch, batch_idx)
        return {"q_value": self.critic(batch.observation).squeeze(-1).detach(), "td_target": self.targets[-1]}


def test_a_strangers_batch_may_be_the_transitions(tmp_path: Path) -> None:
    ended = transitions()._replace(terminated=torch.ones(8) > 0)
    guard = ValueBoundGuard(every_n_iterations=1)
    fit_stranger(tmp_path, Talkative(), [ended], guard)
    assert warnings_of(guard) == ["bootstraps_through_termination"]


def test_a_stranger_without_the_signals_is_told(tmp_path: Path) -> None:
    class Silent(Stranger):
        def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
            super().training_step(batch, batch_idx)
            return {"q": torch.zeros(8)}

    with pytest.raises(MissingInputError, match=r"needs the signals \['q_value', 'td_target'\].*returned \['q'\]"):
        fit_stranger(tmp_path, Silent(), [transitions()], ValueBoundGuard())


def test_a_stranger_that_never_returns_anything_is_told_at_the_end(tmp_path: Path) -> None:
    guard = ValueBoundGuard()
    fit_stranger(tmp_path, Stranger(), [transitions()], guard)
    assert warnings_of(guard) == ["no_signals"]


def test_a_stranger_without_transitions_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"transitions with reward and discount.*ValueBoundGuard\(low=\.\.\."):
        fit_stranger(tmp_path, Stranger(), [torch.randn(2, 2)], ValueBoundGuard())


# Two processes

DDP = """
import sys, torch, torch.distributed
from pathlib import Path
sys.path.insert(0, sys.argv[1])
sys.path.insert(0, sys.argv[1] + "/callbacks")
from guarding import small_data
from lightning.pytorch import seed_everything
from rlmods.algorithms import DQN
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.callbacks.value_bound_guard import ValueBoundGuard
from test_skeleton import make_trainer
from test_value_bound_guard import Edited
torch.set_num_threads(1)

class BadSecondRank(Edited):
    def edit(self, transition):
        bad = self.trainer.global_rank == 1 and self.env_steps > 200
        return transition._replace(discount=transition.discount * (1.02 if bad else 1.0))

seed_everything(0)
data = small_data(BadSecondRank, total_env_steps=1280)
guards = [ValueBoundGuard(every_n_iterations=2, mode="stop"), LivenessGuard(every_n_iterations=2)]
trainer = make_trainer(Path(sys.argv[2]), *guards, strategy="ddp", devices=2)
trainer.fit(DQN(spec=data.spec, hidden_sizes=[32], target_update_interval=20), datamodule=data)
gathered = [None, None]
mine = ([guard.raised for guard in guards], trainer.global_step, guards[0].stopped)
torch.distributed.all_gather_object(gathered, mine)
if trainer.is_global_zero:
    torch.save([repr(rank) for rank in gathered], Path(sys.argv[2]) / "ranks.pt")
"""


def test_what_one_process_sees_all_announce(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DDP)
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert completed.returncode == 0, completed.stderr
    first, second = torch.load(tmp_path / "ranks.pt", weights_only=True)
    assert first == second
    assert "discount_not_below_one" in first
    (events_file,) = tmp_path.glob("lightning_logs/*/events.jsonl")
    assert events_file.read_text().count('"kind": "alarm"') == 1
