import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, WARN, Stranger, as_lists, events, fit_stranger, transitions, warnings_of
from hypothesis import given
from hypothesis import strategies as st
from ppo_runs import PENDULUM, fit_ppo
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.algorithms.segments import Segments
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.entropy_detector import EntropyDetector, EntropyWindow
from rlmods.callbacks.entropy_guard import EntropyGuard, largest_entropy
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.networks.action_heads import GaussianHead
from rlmods.types import EnvSpec, Rollout

INFO = Severity.INFO
BEYOND, OUTRUNS = ("sigma_beyond_box", INFO), ("sigma_outruns_mean", WARN)
COSTLY = ("sigma_costs_return", WARN)
DISCRETE = EntropyWindow(0.5, math.log(2.0), [], [], [], 10.0)
BOUNDED = EntropyWindow(0.6, math.log(2.0), [0.6], [0.2], [0.1], 10.0)


def gaussian(std: float, mean: float, actions: int = 1) -> EntropyWindow:
    """Of a Gaussian before the clip."""
    entropy = actions * (0.5 * (1.0 + math.log(2.0 * math.pi)) + math.log(std))
    largest = actions * math.log(2.0)
    return EntropyWindow(entropy, largest, [std] * actions, [mean] * actions, [0.5] * actions, 10.0)


def detector() -> EntropyDetector:
    return EntropyDetector(collapsed=0.05, windows=3)


def said(*windows: EntropyWindow) -> list[list[tuple[str, Severity]]]:
    watch = detector()
    return [[(verdict.cause, verdict.severity) for verdict in watch.update(window)] for window in windows]


# Upper end


def test_healthy_policies_are_silent() -> None:
    for window in (DISCRETE, BOUNDED, gaussian(1.0, 0.1), gaussian(1.9, 0.0, 4)):
        assert not any(said(*[window] * 20))


def test_golden_bound_of_two_actions() -> None:
    """ln 2 = 0.6931 and a thousandth of rounding, in two iterations."""
    above = DISCRETE._replace(entropy=0.695)
    assert said(above, above) == [[], [("entropy_above_bound", ACT)]]
    assert not any(said(*[DISCRETE._replace(entropy=0.694)] * 9))


def test_an_entropy_in_the_cube_is_an_estimate() -> None:
    """0.6931 and 0.1 for one action."""
    assert said(*[BOUNDED._replace(entropy=0.8)] * 2)[-1] == [("entropy_above_bound", ACT)]
    assert not any(said(*[BOUNDED._replace(entropy=0.79)] * 9))


def test_golden_entropy_of_the_published_run() -> None:
    """32.73 nats of four actions: σ = 866, where the box has 2.77."""
    window = gaussian(865.7, 1.0, 4)
    assert [window.entropy, window.largest] == pytest.approx([32.73, 2.7726], abs=0.005)
    assert window.is_gaussian


def test_sigma_beyond_the_box_is_no_fault_while_the_mean_keeps_up() -> None:
    """σ 99 with means of its size scored 438 to 535."""
    assert said(*[gaussian(99.0 + step, 60.0 + step, 4) for step in range(9)]) == [[BEYOND]] * 9


def test_sigma_that_outruns_the_mean() -> None:
    """From |μ|/σ = 0.6 to below half of it: 60/201 = 0.2985 in the third iteration, 60/202 in the next two."""
    windows = [gaussian(std, 60.0, 4) for std in (100.0, 150.0, 201.0, 202.0, 203.0)]
    assert said(*windows) == [[BEYOND], [BEYOND], [BEYOND], [BEYOND], [OUTRUNS]]


def test_sigma_that_grows_while_the_return_falls() -> None:
    """|μ|/σ stays 0.8 throughout; a quarter of 1.6 is lost below 1.2."""
    stds = (1.5, 2.1, 2.5, 2.9, 3.3, 3.7)
    evaluations = (1.6, 1.6, 1.19, 1.19, 1.19, 1.19)
    windows = [gaussian(*pair)._replace(mean_reward=mean) for pair, mean in zip(_pairs(stds), evaluations, strict=True)]
    # 2.25 is half as large again as 1.5: from the third iteration on it is wide, grown and fallen.
    assert said(*windows) == [[], [BEYOND], [BEYOND], [BEYOND], [COSTLY], [COSTLY]]
    steady = [window._replace(mean_reward=1.21) for window in windows]
    assert said(windows[0], *steady[1:]) == [[], *[[BEYOND]] * 5]


def _pairs(stds: tuple[float, ...]) -> list[tuple[float, float]]:
    return [(std, 0.8 * std) for std in stds]


def test_a_wide_start_that_does_not_grow_is_left_alone() -> None:
    assert said(*[gaussian(7.0, 0.01)] * 9) == [[BEYOND]] * 9
    assert said(*[gaussian(7.0 - 0.1 * step, 0.01) for step in range(9)]) == [[BEYOND]] * 9
    assert said(*[gaussian(7.0 + 0.4 * step, 0.01) for step in range(9)]) == [[BEYOND]] * 9
    # 10.6 is half as large again as 7; 11 and 11.4 go on.
    assert said(*[gaussian(7.0 + 0.4 * step, 0.01) for step in range(12)])[-2:] == [[BEYOND], [OUTRUNS]]


def test_actions_without_a_box_have_none_to_leave() -> None:
    assert not any(said(*[gaussian(9.0 + step, 0.0)._replace(largest=math.inf) for step in range(9)]))


@given(st.lists(st.floats(0.0, math.log(2.0)), min_size=1, max_size=30))
def test_no_entropy_within_its_bounds_acts(entropies: list[float]) -> None:
    found = said(*[DISCRETE._replace(entropy=entropy) for entropy in entropies])
    assert not any(severity >= ACT for verdicts in found for _, severity in verdicts)


# Lower end


def test_a_collapse_that_helps_nobody() -> None:
    """A twentieth of 0.5 is 0.025; the return went from 10 to 50 and back to 29, below (10 + 50)/2."""
    low = DISCRETE._replace(entropy=0.024, mean_reward=29.0)
    windows = [DISCRETE, DISCRETE._replace(mean_reward=50.0), *[low] * 3]
    assert said(*windows) == [[], [], [], [], [("entropy_collapse", WARN)]]
    assert not any(said(*windows[:2], *[low._replace(entropy=0.026)] * 9))
    assert not any(said(*windows[:2], *[low._replace(mean_reward=31.0)] * 9))
    assert not any(said(DISCRETE, *[low._replace(mean_reward=math.nan)] * 9))


def test_a_policy_that_solves_its_task_may_be_deterministic() -> None:
    assert not any(said(DISCRETE, *[DISCRETE._replace(entropy=0.0, mean_reward=500.0)] * 9))


def test_a_continuous_collapse_is_three_nats_an_action() -> None:
    lower = BOUNDED._replace(entropy=0.6 - 3.01, mean_reward=9.0)
    assert said(BOUNDED, *[lower] * 3)[-1] == [("entropy_collapse", WARN)]
    assert not any(said(BOUNDED, *[lower._replace(entropy=0.6 - 2.99)] * 9))


def test_actions_at_their_ends_are_for_information() -> None:
    assert said(*[BOUNDED._replace(saturation=[0.96])] * 3) == [[], [], [("saturated_actions", INFO)]]


def test_numbers_that_are_not_finite_say_nothing() -> None:
    assert not any(said(*[DISCRETE._replace(entropy=math.nan)] * 9))


def test_the_detector_goes_on_where_it_stopped() -> None:
    windows = [gaussian(std, 60.0, 2) for std in (50.0, 100.0, 300.0, 400.0, 500.0)]
    first, second = detector(), detector()
    for window in windows[:3]:
        first.update(window)
    second.load_state_dict(first.state_dict())
    for window in windows[3:]:
        assert first.update(window) == second.update(window)
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"collapsed": 1.0}, r"got collapsed = 1\.0, expected a share"), ({"windows": 0}, "got windows = 0, expected at")],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EntropyGuard(**arguments)


def test_the_largest_entropy_of_actions() -> None:
    def of(**action: Any) -> float:
        spec: Any = {"action": {"low": [], "high": [], "shape": [], "n": 0} | action}
        return largest_entropy(spec)

    assert of(kind="discrete", n=4) == pytest.approx(math.log(4.0))
    assert of(kind="multi_discrete", nvec=[2, 3]) == pytest.approx(math.log(6.0))
    assert of(kind="continuous", shape=[2], low=[0.0, 0.0], high=[5.0, 1.0]) == pytest.approx(math.log(4.0))
    assert of(kind="continuous", shape=[1], low=[-math.inf], high=[math.inf]) == math.inf


# On real runs


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        ({}, {}),
        ({}, PENDULUM),
        ({"action_distribution": "unbounded", "log_std_init": 0.0}, PENDULUM),
    ],
)
@pytest.mark.filterwarnings("ignore:action_distribution is unbounded")
def test_a_healthy_run_is_silent(tmp_path: Path, arguments: dict[str, Any], settings: dict[str, Any]) -> None:
    guard = EntropyGuard(windows=3)
    fit_ppo(tmp_path, guard, arguments=arguments, **settings)
    assert guard.raised == []


class InBits(PPO):
    """The logarithm has the base 2."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"entropy": signals["entropy"] / math.log(2.0)}


def test_an_entropy_in_bits_is_above_the_bound(tmp_path: Path) -> None:
    guard = EntropyGuard()
    trainer = fit_ppo(tmp_path, guard, model_class=InBits, rollouts=2)
    assert guard.raised == [("entropy_above_bound", ACT)]
    evidence = events(trainer)[0]["evidence"]
    assert (evidence["entropy"], evidence["largest"]) == pytest.approx((1.0, math.log(2.0)), abs=0.01)


class SigmaPump(PPO):
    """Something adds to log σ after each rollout."""

    def __init__(self, spec: EnvSpec, **settings: Any) -> None:
        super().__init__(spec, action_distribution="unbounded", log_std_init=0.5, **settings)

    def training_step(self, batch: Rollout, batch_idx: int) -> dict[str, Tensor]:
        signals = super().training_step(batch, batch_idx)
        assert isinstance(self.head, GaussianHead)
        with torch.no_grad():
            self.head.log_std.add_(0.5)
        return signals


@pytest.mark.filterwarnings("ignore:action_distribution is unbounded")
def test_a_pumped_sigma_outruns_the_mean(tmp_path: Path) -> None:
    """σ = e^0.5, e, e^1.5, …: beyond 2 in the second iteration, growing there for three in the fourth."""
    guard = EntropyGuard()
    trainer = fit_ppo(tmp_path, guard, model_class=SigmaPump, rollouts=5, **PENDULUM)
    assert guard.raised == [BEYOND, OUTRUNS]
    first, second = events(trainer)
    assert (first["iteration"], second["iteration"]) == (2, 4)
    assert second["evidence"]["std"] == pytest.approx([math.exp(2.0)], rel=0.05)


@pytest.mark.filterwarnings("ignore:action_distribution is unbounded")
def test_a_resumed_run_decides_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    def guarded(folder: str, **options: Any) -> EntropyGuard:
        guard = EntropyGuard()
        settings = PENDULUM | {"rollouts": 5, "eval_every": 64, **options}
        fit_ppo(tmp_path / folder, guard, model_class=SigmaPump, **settings)
        return guard

    whole, half = guarded("whole"), guarded("half", max_steps=3)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = guarded("resumed", ckpt_path=checkpoint)
    assert warnings_of(half) == []
    assert warnings_of(whole) == ["sigma_outruns_mean"]
    assert as_lists(whole.state_dict()["detector"]) == as_lists(resumed.state_dict()["detector"])
    assert whole.raised == resumed.raised


class Talkative(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        super().training_step(batch, batch_idx)
        return {"entropy": torch.tensor([2.0])}


def test_a_stranger_gives_its_bound(tmp_path: Path) -> None:
    unknown, known = EntropyGuard(name="unknown"), EntropyGuard(largest=1.0, name="known")
    fit_stranger(tmp_path, Talkative(), [transitions()] * 3, unknown, known)
    assert unknown.raised == []
    assert known.raised == [("entropy_above_bound", ACT)]


def test_a_missing_signal_is_named(tmp_path: Path) -> None:
    class Silent(Stranger):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            super().training_step(batch, batch_idx)
            return {"loss_of_mine": torch.zeros(1)}

    with pytest.raises(MissingInputError, match=r"EntropyGuard needs the signals \['entropy'\]"):
        fit_stranger(tmp_path, Silent(), [transitions()], EntropyGuard())
