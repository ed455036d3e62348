import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, WARN, Stranger, as_lists, events, fit_stranger, transitions, warnings_of
from lightning.pytorch.core.optimizer import LightningOptimizer
from ppo_runs import fit_ppo
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.algorithms.segments import Segments
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.policy_update_detector import PolicyUpdateDetector, PolicyUpdateWindow
from rlmods.callbacks.policy_update_guard import PolicyUpdateGuard
from rlmods.callbacks.safeguard import MissingInputError

INFO = Severity.INFO
# 10 epochs on 256 steps in mini-batches of 64.
HEALTHY = PolicyUpdateWindow(
    ratio_error=1e-7,
    kl=0.01,
    clip_fraction=0.1,
    learning_rate=1e-3,
    std=0.6,
    updates=40,
    batch_size=64,
    steps=256,
    epochs=10,
    explained_variance=0.5,
)
STILL = HEALTHY._replace(kl=1e-9, clip_fraction=0.0)


def detector() -> PolicyUpdateDetector:
    return PolicyUpdateDetector(tolerance=1e-3, windows=4, min_updates=100)


def said(*windows: PolicyUpdateWindow) -> list[list[tuple[str, Severity]]]:
    watch = detector()
    return [[(verdict.cause, verdict.severity) for verdict in watch.update(window)] for window in windows]


# The pure detector


def test_a_policy_that_learns_is_silent() -> None:
    assert not any(said(*[HEALTHY] * 50))


def test_numbers_that_are_not_known_say_nothing() -> None:
    nothing = PolicyUpdateWindow(*[math.nan] * 10)
    assert not any(said(*[nothing._replace(updates=1.0, batch_size=256.0)] * 50))


def test_a_first_ratio_that_is_not_one_is_certain_at_once() -> None:
    assert said(HEALTHY, HEALTHY._replace(ratio_error=0.0011)) == [[], [("first_ratio_not_one", ACT)]]
    assert not any(said(HEALTHY._replace(ratio_error=0.0009)))


def test_golden_number_of_dropped_minibatches() -> None:
    """Nine whole epochs have 36 mini-batches; three quarters are 27. The tenth may have been ended by its KL."""
    assert said(*[HEALTHY._replace(updates=26)] * 3)[-1] == [("minibatches_dropped", WARN)]
    assert not any(said(*[HEALTHY._replace(updates=27)] * 9))
    assert not any(said(*[HEALTHY._replace(updates=1, epochs=1)] * 9))


def test_a_kl_that_is_too_large_in_three_of_five() -> None:
    far = HEALTHY._replace(kl=0.3)
    assert said(far, HEALTHY, far, HEALTHY, far) == [[], [], [], [], [("policy_moves_too_far", WARN)]]
    assert not any(said(far, HEALTHY, HEALTHY, far, HEALTHY, HEALTHY, far))
    assert said(HEALTHY._replace(kl=1.1)) == [[("policy_moves_too_far", WARN)]]


def test_the_clip_fraction_is_averaged_over_the_windows() -> None:
    """(0.1 + 0.6 + 0.65 + 0.7)/4 = 0.5125."""
    windows = [HEALTHY._replace(clip_fraction=share) for share in (0.1, 0.6, 0.65, 0.7)]
    assert said(*windows) == [[], [], [], [("clip_saturation", WARN)]]


def test_a_policy_that_stands_still_at_full_learning_rate_is_a_stall() -> None:
    assert said(*[STILL] * 4) == [[], [], [], [("policy_stall", WARN)]]


def test_the_same_with_an_annealed_learning_rate_is_the_schedule() -> None:
    annealed = STILL._replace(learning_rate=4e-5)
    assert said(HEALTHY, *[annealed] * 4)[-1] == [("schedule_exhausted", INFO)]
    assert said(HEALTHY, *[STILL._replace(learning_rate=6e-5)] * 4)[-1] == [("policy_stall", WARN)]


def test_the_expected_kl_goes_with_the_square_of_the_learning_rate() -> None:
    """At a tenth of the peak 2e-8 is 2e-6 at the peak: slow; 0.5e-8 is 0.5e-6, and still."""
    slow = STILL._replace(learning_rate=1e-4, kl=2e-8)
    assert not any(said(HEALTHY, *[slow] * 9))
    assert said(HEALTHY, *[slow._replace(kl=0.5e-8)] * 4)[-1] == [("policy_stall", WARN)]


def test_a_learning_rate_that_was_always_zero_is_a_stall() -> None:
    assert said(*[STILL._replace(learning_rate=0.0, kl=0.0)] * 4)[-1] == [("policy_stall", WARN)]


def test_where_sigma_has_left_the_box_a_small_kl_is_no_stall() -> None:
    assert not any(said(*[STILL._replace(std=90.0)] * 9))


def test_a_critic_that_explains_nothing_after_many_updates() -> None:
    """The hundredth update comes in the third window of 40, the fourth negative window is the fourth."""
    bad = HEALTHY._replace(explained_variance=-0.1)
    assert said(*[bad] * 4) == [[], [], [], [("critic_does_not_explain", WARN)]]
    assert not any(said(*[bad._replace(updates=1, epochs=1)] * 90))
    assert not any(said(*[bad, bad, HEALTHY] * 9))


def test_the_rollout_of_a_policy_that_is_gone_is_not_judged(tmp_path: Path) -> None:
    guard = PolicyUpdateGuard()
    bad = {"importance_ratio": torch.full((1, 4), 2.0), "approx_kl": torch.zeros(1), "clip_fraction": torch.zeros(1)}
    trainer = fit_ppo(tmp_path, guard, rollouts=1)
    guard.rearm()
    guard.on_train_batch_end(trainer, trainer.lightning_module, bad, None, 1)
    assert guard.raised == []
    guard.on_train_batch_end(trainer, trainer.lightning_module, bad, None, 2)
    assert guard.raised == [("first_ratio_not_one", ACT)]


def test_the_detector_goes_on_where_it_stopped() -> None:
    windows = [HEALTHY, STILL, STILL, STILL._replace(explained_variance=-1.0), STILL]
    first, second = detector(), detector()
    for window in windows[:3]:
        first.update(window)
    second.load_state_dict(first.state_dict())
    for window in windows[3:]:
        assert first.update(window) == second.update(window)
    assert first.state_dict() == second.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0.0}, r"got tolerance = 0\.0, expected one in \(0, 1\)"),
        ({"windows": 0}, r"got windows = 0, expected at least 1"),
        ({"min_updates": 0}, r"got min_updates = 0, expected at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolicyUpdateGuard(**arguments)


# On real runs


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"lstm_hidden_size": 8, "bptt_horizon": 16},
        {"prio_alpha": 0.8, "bptt_horizon": 8},
        {"n_epochs": 8, "target_kl": 1e-4},
        {"n_epochs": 1, "batch_size": 128},
    ],
)
def test_a_healthy_run_is_silent(tmp_path: Path, arguments: dict[str, Any]) -> None:
    guard = PolicyUpdateGuard(windows=3, min_updates=1_000)
    fit_ppo(tmp_path, guard, arguments=arguments)
    assert guard.raised == []


LSTM: dict[str, Any] = {"lstm_hidden_size": 8, "learning_rate": 0.01}


class MemoryNotReset(PPO):
    """In training the memory goes on from one episode into the next."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        return super().loss_signals(minibatch._replace(begins=torch.zeros_like(minibatch.begins)), clip_range)


def test_a_memory_that_is_not_reset_breaks_the_identity(tmp_path: Path) -> None:
    guard = PolicyUpdateGuard()
    trainer = fit_ppo(tmp_path, guard, model_class=MemoryNotReset, arguments=LSTM)
    assert guard.raised == [("first_ratio_not_one", ACT)]
    (event,) = events(trainer)
    assert event["evidence"]["ratio_error"] > event["evidence"]["threshold"] == 1e-3


class ActorDetached(PPO):
    """Only the critic learns."""

    def loss_signals(self, minibatch: Segments, clip_range: float) -> dict[str, Tensor]:
        signals = super().loss_signals(minibatch, clip_range)
        return signals | {"loss": signals["value_loss"] + 0.0 * signals["policy_loss"]}


def test_a_policy_without_gradient_stalls(tmp_path: Path) -> None:
    guard = PolicyUpdateGuard(windows=3)
    fit_ppo(tmp_path, guard, model_class=ActorDetached)
    assert warnings_of(guard) == ["policy_stall"]


class AnnealedAway(PPO):
    """After the first rollout there is next to nothing left of the learning rate."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        return super().set_learning_rate(optimizer, learning_rate * (1e-3 if self.update_steps else 1.0))


def test_the_end_of_a_schedule_is_no_stall(tmp_path: Path) -> None:
    guard = PolicyUpdateGuard(windows=3)
    trainer = fit_ppo(tmp_path, guard, model_class=AnnealedAway)
    assert guard.raised == [("schedule_exhausted", INFO)]
    assert events(trainer)[0]["evidence"]["peak"] == pytest.approx(3e-4)


def test_a_resumed_run_decides_as_one_that_was_never_stopped(tmp_path: Path) -> None:
    def guarded(folder: str, **options: Any) -> PolicyUpdateGuard:
        guard = PolicyUpdateGuard(windows=3)
        fit_ppo(tmp_path / folder, guard, model_class=ActorDetached, rollouts=4, eval_every=256, **options)
        return guard

    whole, half = guarded("whole"), guarded("half", max_steps=2)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = guarded("resumed", ckpt_path=checkpoint)
    assert (half.raised, whole.raised, resumed.raised) == ([], [("policy_stall", WARN)], [("policy_stall", WARN)])
    assert as_lists(whole.state_dict()["detector"]) == as_lists(resumed.state_dict()["detector"])


def test_the_precision_sets_the_tolerance(tmp_path: Path) -> None:
    guard = PolicyUpdateGuard(tolerance=1e-3)

    class Half:
        precision = "bf16-mixed"

    guard.on_train_start(Half(), PPO)  # type: ignore[arg-type]
    assert guard.detector.tolerance == pytest.approx(0.1)


class Talkative(Stranger):
    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        super().training_step(batch, batch_idx)
        return {"approx_kl": torch.zeros(1)}


def test_a_missing_signal_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"PolicyUpdateGuard needs the signals \['importance_ratio', 'clip_fra"):
        fit_stranger(tmp_path, Talkative(), [transitions()], PolicyUpdateGuard())
