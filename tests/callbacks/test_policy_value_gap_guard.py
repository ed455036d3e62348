import math
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_critics import ActorCritic, replay_batches
from guarding import ACT, WARN, as_lists, events, fit_small, fit_stranger, transitions, warnings_of
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.policy_value_detector import PolicyValueDetector, PolicyValueWindow, gap_limit
from rlmods.callbacks.policy_value_gap_guard import PolicyValueGapGuard
from rlmods.callbacks.safeguard import MissingInputError

# Of a run in good health; Q can be 100 at most.
HEALTHY = PolicyValueWindow(
    q_data_mean=20.0, q_data_std=4.0, q_policy_mean=26.0, high=100.0, size=100.0, twin_gap=0.4, feature_norm=8.0
)


def detector() -> PolicyValueDetector:
    return PolicyValueDetector(threshold=5.0, slack=0.05, feature_growth=100.0, twin_growth=5.0)


def said(windows: list[PolicyValueWindow], num_actions: int = 1) -> list[list[tuple[str, Severity]]]:
    watch = detector()
    return [[(v.cause, v.severity) for v in watch.update(window, num_actions)] for window in windows]


def of(field: str, values: list[float]) -> list[PolicyValueWindow]:
    return [HEALTHY._replace(**{field: value}) for value in values]


GAP, BEYOND = ("policy_value_gap", WARN), ("policy_value_out_of_bounds", ACT)

# The pure detector


def test_a_healthy_run_is_silent() -> None:
    assert not any(said([HEALTHY] * 50))


def test_what_is_not_known_is_silent() -> None:
    nothing = PolicyValueWindow(*[math.nan] * len(PolicyValueWindow._fields))
    assert not any(said([nothing] * 50))


def test_a_gap_that_grows_for_three_windows() -> None:
    """Five spreads of 4 above 20 are 40."""
    assert said(of("q_policy_mean", [41.0, 42.0, 43.0])) == [[], [], [GAP]]
    assert not any(said(of("q_policy_mean", [37.0, 38.0, 39.0, 39.9])))


def test_a_gap_that_does_not_grow_may_be_what_the_policy_is_better_by() -> None:
    assert not any(said(of("q_policy_mean", [60.0, 59.0, 58.0, 59.0, 58.5, 58.6])))


def test_a_gap_lasts_until_it_is_gone() -> None:
    found = said(of("q_policy_mean", [41.0, 42.0, 43.0, 42.5, 30.0, 30.0, 30.0]))
    assert found == [[], [], [GAP], [GAP], [GAP], [GAP], []]


def test_golden_limit_of_many_actions() -> None:
    """2√(3 · 12) = 12 spreads of 4: up to 68."""
    assert gap_limit(5.0, 12) == 12.0
    assert gap_limit(5.0, 1) == 5.0
    assert not any(said(of("q_policy_mean", [65.0, 66.0, 67.0]), num_actions=12))
    assert said(of("q_policy_mean", [69.0, 70.0, 71.0]), num_actions=12)[-1] == [GAP]


def test_a_linear_value_has_the_gap_of_the_limit() -> None:
    """Uniform data, the best action: √(3A) spreads, half the limit."""
    action = 2.0 * torch.rand(200_000, 12, generator=torch.Generator().manual_seed(0)) - 1.0
    assert 12.0 / float(action.sum(-1).std()) == pytest.approx(math.sqrt(36.0), rel=0.01)


def test_an_impossible_value_is_sure_in_the_third_window() -> None:
    """5 % of 100 above 100."""
    assert said(of("q_policy_mean", [26.0, 106.0, 106.0, 106.0])) == [[], [], [], [BEYOND]]
    assert not any(said(of("q_policy_mean", [26.0, *[104.9] * 9])))


@pytest.mark.parametrize(
    "change",
    [
        {"q_data_mean": 101.0},  # the data's Q is outside as well: that is told by others
        {"size": math.inf, "high": math.inf},
        {"size": 0.0, "high": 0.0},  # no reward yet
    ],
)
def test_what_is_not_impossible(change: dict[str, float]) -> None:
    window = HEALTHY._replace(q_policy_mean=107.0, q_data_std=50.0)._replace(**change)
    assert not any(said([window] * 9))


def test_values_that_begin_outside_are_not_acted_on() -> None:
    """Excess of 1 at first, then 1.5."""
    start = HEALTHY._replace(high=1.0, size=1.0, q_data_mean=0.9, q_policy_mean=2.0)
    assert not any(said([start, *[start._replace(q_policy_mean=2.5)] * 9]))


def test_a_feature_norm_a_hundred_times_its_start() -> None:
    norms = [8.0] * 8 + [801.0, 802.0, 803.0, 804.0, 805.0]
    assert said(of("feature_norm", norms))[-2:] == [[], [("feature_norm_grows", WARN)]]
    assert not any(said(of("feature_norm", [8.0] * 8 + [790.0] * 9)))
    assert not any(said(of("feature_norm", [8.0] * 8 + [900.0] * 9)))  # and stays there


def test_twins_that_are_one() -> None:
    assert said(of("twin_gap", [0.4, 0.0, 1e-30]))[1:] == [[("twins_equal", WARN)], []]


def test_twins_that_part() -> None:
    """0.1 spreads in the median; five times that is no matter below half a spread."""
    assert said(of("twin_gap", [0.4] * 20 + [2.1] * 5))[-2:] == [[], [("twin_disagreement", WARN)]]
    assert not any(said(of("twin_gap", [0.4] * 20 + [1.9] * 9)))
    assert not any(said(of("twin_gap", [1.0] * 20 + [4.9] * 9)))
    assert not any(said(of("twin_gap", [0.1] * 5 + [2.1] * 14)))  # too early to judge


def test_a_reloaded_detector_goes_on() -> None:
    windows = [HEALTHY._replace(q_policy_mean=41.0 + n, feature_norm=8.0 + 100.0 * n) for n in range(30)]
    whole, half, again = detector(), detector(), detector()
    expected = [whole.update(window, 1) for window in windows]
    for window in windows[:15]:
        half.update(window, 1)
    again.load_state_dict(half.state_dict())
    assert [again.update(window, 1) for window in windows[15:]] == expected[15:]
    assert again.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold": 0.0}, "threshold = 0.0, expected a number above 0"),
        ({"slack": -0.1}, "slack = -0.1"),
        ({"feature_growth": 1.0}, "feature_growth = 1.0"),
        ({"twin_growth": 0.5}, "twin_growth = 0.5"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyValueGapGuard(**arguments)


# On a stranger's actor and critic


@pytest.mark.parametrize("updates", [1, 4])
def test_the_published_wiring_is_told_within_a_hundred_updates(updates: int, tmp_path: Path) -> None:
    """In windows of eight updates."""
    seed_everything(0)
    guard = PolicyValueGapGuard(every_n_iterations=8 // updates)
    trainer = fit_stranger(
        tmp_path, ActorCritic("through_state"), replay_batches(96 // updates, updates=updates), guard
    )
    assert warnings_of(guard) == ["policy_value_gap"]
    (event,) = events(trainer)
    assert event["evidence"]["spreads"] > 5.0
    assert event["evidence"]["size"] > event["evidence"]["high"] > 9.0


class Told(LightningModule):
    """Publishes what it is given, in the unit of its rewards of 1 at a discount of 0.9: 10 at most."""

    def __init__(self, *, q_policy: list[float], delay: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.q_policy, self.delay = q_policy, delay

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        q_value = torch.linspace(0.0, 2.0, 8).unsqueeze(0)
        signals = {"loss": self.layer(torch.ones(1, 1)).sum(), "q_value": q_value}
        if self.q_policy and batch_idx % self.delay == 0:
            signals["q_policy"] = torch.full((1, 8), self.q_policy[batch_idx])
        return signals

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.parameters(), lr=0.1)


def fit_told(folder: Path, guard: PolicyValueGapGuard, model: LightningModule, batches: int = 12) -> None:
    batch = transitions(1.0, 0.9)._replace(action=torch.zeros(8, 1))
    fit_stranger(folder, model, [batch] * batches, guard)


def test_an_impossible_value_acts(tmp_path: Path) -> None:
    guard = PolicyValueGapGuard(every_n_iterations=1, mode="stop")
    fit_told(tmp_path, guard, Told(q_policy=[1.5, *[12.0] * 11]))
    assert guard.raised == [BEYOND]
    assert guard.stopped is not None


def test_an_actor_that_never_moves_where_a_window_ends(tmp_path: Path) -> None:
    guard = PolicyValueGapGuard(every_n_iterations=2)
    fit_told(tmp_path, guard, Told(q_policy=[1.5, 1.5, *[12.0] * 10], delay=2))
    assert guard.raised == [BEYOND]


def test_an_entropy_raises_the_bound(tmp_path: Path) -> None:
    """γ/(1 − γ) · ln 2 = 6.2 above 10."""

    class Soft(Told):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {**super().training_step(batch, batch_idx), "ent_coef": torch.ones(1)}

    guard = PolicyValueGapGuard(every_n_iterations=1)
    fit_told(tmp_path, guard, Soft(q_policy=[1.5, *[12.0] * 11]))
    assert guard.raised == []


def test_a_module_that_never_says_it_is_told_at_the_end(tmp_path: Path) -> None:
    guard = PolicyValueGapGuard()
    fit_told(tmp_path, guard, Told(q_policy=[]))
    assert guard.raised == [("no_signals", WARN)]


def test_the_signals_are_required(tmp_path: Path) -> None:
    class Silent(Told):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss: Tensor = super().training_step(batch, batch_idx)["loss"]
            return {"loss": loss}

    with pytest.raises(MissingInputError, match=r"needs the signals \['q_value'\]"):
        fit_told(tmp_path, PolicyValueGapGuard(), Silent(q_policy=[]))


def test_an_open_window_is_saved() -> None:
    guard, again = PolicyValueGapGuard(), PolicyValueGapGuard()
    guard._latest = (torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0]]))
    again.load_state_dict(guard.state_dict())
    assert again._policy_and_data({}).tolist() == [1.0, 1.0, 5.0]
    assert as_lists(again.state_dict()) == as_lists(guard.state_dict())


def test_a_dqn_has_no_policy_value(tmp_path: Path) -> None:
    guard = PolicyValueGapGuard()
    fit_small(tmp_path, guard, total_env_steps=256)
    assert guard.raised == [("no_signals", WARN)]
