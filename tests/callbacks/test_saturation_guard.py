import math
from pathlib import Path
from typing import Any

import pytest
import torch
from actor_critics import ActorCritic, Wiring, replay_batches
from guarding import WARN, as_lists, events, fit_stranger, warnings_of
from lightning.pytorch import Callback, Trainer, seed_everything
from test_skeleton import make_trainer
from torch import Tensor

from rlmods.algorithms import TD3
from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.gradient_path_probe import GradientPathProbe
from rlmods.callbacks.policy_value_gap_guard import PolicyValueGapGuard
from rlmods.callbacks.saturation_detector import SaturationDetector, SaturationWindow
from rlmods.callbacks.saturation_guard import SaturationGuard
from rlmods.data import ReplayDataModule
from rlmods.types import Transition

DEAD, AT_ENDS = ("actor_is_dead", WARN), ("saturated_actions", Severity.INFO)
ALIVE = SaturationWindow([0.2, 0.3], actor_gradient=2.0, critic_gradient=1.0)
GONE = SaturationWindow([1.0, 0.97], actor_gradient=0.0, critic_gradient=1.0)


def said(windows: list[SaturationWindow]) -> list[list[tuple[str, Severity]]]:
    watch = SaturationDetector(vanished=1e-6, windows=3)
    return [[(verdict.cause, verdict.severity) for verdict in watch.update(window)] for window in windows]


# The pure detector


def test_an_actor_that_moves_is_silent() -> None:
    assert not any(said([ALIVE] * 50))


def test_a_dead_one_is_told_in_the_third_window() -> None:
    assert said([ALIVE, GONE, GONE, GONE]) == [[], [], [], [DEAD]]


def test_golden_share_of_its_largest_gradient() -> None:
    """A millionth of 2."""
    assert said([ALIVE, *[GONE._replace(actor_gradient=1.9e-6)] * 3])[-1] == [DEAD]
    assert said([ALIVE, *[GONE._replace(actor_gradient=2.1e-6)] * 3])[-1] == [AT_ENDS]


def test_a_policy_of_extremes_that_can_change_is_for_information() -> None:
    assert said([SaturationWindow([0.1, 0.96], 0.5, 1.0)] * 3)[-1] == [AT_ENDS]


@pytest.mark.parametrize(
    "window",
    [
        GONE._replace(shares=[0.94, 0.95]),  # not saturated: dead units, or a detach; LivenessGuard tells
        GONE._replace(shares=[]),
        GONE._replace(critic_gradient=0.0, shares=[0.9, 0.9]),  # nothing learns
        GONE._replace(critic_gradient=math.nan, shares=[0.9, 0.9]),
    ],
)
def test_what_is_no_dead_actor(window: SaturationWindow) -> None:
    assert not any(said([ALIVE, *[window] * 9]))


def test_a_training_that_stands_still_is_no_matter_of_the_actor() -> None:
    assert said([ALIVE, *[GONE._replace(critic_gradient=0.0)] * 3])[-1] == [AT_ENDS]


def test_it_lasts_until_it_is_gone() -> None:
    found = said([ALIVE, *[GONE] * 3, *[ALIVE] * 3])
    assert found[3:] == [[DEAD], [DEAD], [DEAD], []]


def test_a_reloaded_detector_goes_on() -> None:
    whole, half, again = (SaturationDetector(vanished=1e-6, windows=3) for _ in range(3))
    windows = [ALIVE, GONE, GONE, GONE, ALIVE]
    expected = [whole.update(window) for window in windows]
    for window in windows[:2]:
        half.update(window)
    again.load_state_dict(half.state_dict())
    assert [again.update(window) for window in windows[2:]] == expected[2:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"vanished": 0.0}, "vanished = 0.0, expected a share"),
        ({"windows": 0}, "windows = 0, expected at least 1"),
        ({"every_n_iterations": 0}, "every_n_iterations = 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SaturationGuard(**arguments)


# On a stranger's actor and critic


class Extreme(ActorCritic):
    """Its policy jumps to the ends after the third iteration, by `offset` before tanh."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.offset = offset

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            with torch.no_grad():
                list(self.head.parameters())[-1].fill_(self.offset)


@pytest.mark.parametrize(("offset", "expected"), [(50.0, [DEAD]), (4.0, [AT_ENDS])])
def test_an_actor_at_the_ends(offset: float, expected: list[tuple[str, Severity]], tmp_path: Path) -> None:
    """1 − tanh² is exactly 0 at 50 in single precision, 0.0013 at 4."""
    seed_everything(0)
    guard = SaturationGuard(every_n_iterations=1)
    trainer = fit_stranger(tmp_path, Extreme(offset), replay_batches(12), guard)
    assert guard.raised == expected
    (event,) = events(trainer)
    assert event["evidence"]["shares"] == [1.0, 1.0]
    assert (event["evidence"]["actor_gradient"] == 0.0) == (offset == 50.0)


@pytest.mark.parametrize("wiring", ["separate"])
def test_all_three_are_silent_for_a_thousand_updates_of_a_right_wiring(wiring: Wiring, tmp_path: Path) -> None:
    seed_everything(0)
    guards = [
        GradientPathProbe(),
        PolicyValueGapGuard(every_n_iterations=1),
        SaturationGuard(every_n_iterations=1),
    ]
    fit_stranger(tmp_path, ActorCritic(wiring), replay_batches(100, updates=10), *guards, logger=False)
    assert {guard.name: warnings_of(guard) for guard in guards} == {
        "gradient_path": [], "policy_value_gap": [], "saturation": []
    }  # fmt: skip


class Delayed(ActorCritic):
    """Its actor moves in every other iteration."""

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        self.is_due = batch_idx % 2 == 0
        return super().training_step(batch, batch_idx)

    def actor_signals(self, transition: Transition) -> dict[str, Tensor]:
        signals = super().actor_signals(transition)
        return signals if self.is_due else {"actor_loss": signals["actor_loss"]}

    def step(self, optimizer: Any, loss: Tensor, max_norm: float) -> None:
        if self.is_due or optimizer.param_groups[0]["name"] == "critic":
            super().step(optimizer, loss, max_norm)


def test_an_actor_that_never_moves_where_a_window_ends(tmp_path: Path) -> None:
    seed_everything(0)
    guard = SaturationGuard(every_n_iterations=2)
    fit_stranger(tmp_path, Delayed(), replay_batches(6), guard)
    assert guard.detector.largest > 0.0
    assert guard.detector.at_ends.recent == [False] * 3


def test_an_open_window_is_saved(tmp_path: Path) -> None:
    class Reload(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            again = SaturationGuard(every_n_iterations=2)
            again.load_state_dict(guard.state_dict())
            states.append((as_lists(guard.state_dict()), as_lists(again.state_dict())))

    states: list[Any] = []
    seed_everything(0)
    guard = SaturationGuard(every_n_iterations=2)
    fit_stranger(tmp_path, Delayed(), replay_batches(2), guard, Reload())
    assert states[0][0]["shares"] is not None
    assert states[0][0]["gradients"][0] > 0.0
    assert all(before == after for before, after in states)


def test_watching_changes_nothing(tmp_path: Path) -> None:
    results = []
    for guards in ([], [SaturationGuard(every_n_iterations=1), PolicyValueGapGuard(every_n_iterations=1)]):
        seed_everything(0)
        model = ActorCritic()
        fit_stranger(tmp_path, model, replay_batches(6), *guards)
        results.append(torch.cat([parameter.flatten() for parameter in model.parameters()]))
    assert torch.equal(*results)


def test_a_module_without_an_actor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"policy_group = 'policy'.*have groups \['critic', 'actor'\]"):
        fit_stranger(tmp_path, ActorCritic(), replay_batches(1), SaturationGuard(policy_group="policy"))


def test_a_module_that_never_says_it_is_told_at_the_end(tmp_path: Path) -> None:
    class Silent(ActorCritic):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
            super().training_step(batch, batch_idx)
            return {}

    guard = SaturationGuard()
    fit_stranger(tmp_path, Silent(), replay_batches(1), guard)
    assert guard.raised == [("no_signals", WARN)]


# On the real algorithm


def fit_td3(folder: Path, *guards: Callback, **options: Any) -> Trainer:
    seed_everything(0)
    data = ReplayDataModule(
        "Pendulum-v1",
        total_env_steps=320,
        learning_starts=32,
        steps_per_iteration=8,
        updates_per_iteration=1,
        batch_size=8,
        buffer_size=320,
        eval_episodes=1,
        eval_every=100,
    )
    trainer = make_trainer(folder, *guards, max_steps=options.pop("max_steps", -1))
    trainer.fit(TD3(data.spec, hidden_sizes=[8]), datamodule=data, **options)
    return trainer


def test_resumed_guards_are_those_that_were_never_stopped(tmp_path: Path) -> None:
    """With a delayed actor, at one update an iteration, in the middle of a window."""

    def guards() -> list[SaturationGuard | PolicyValueGapGuard]:
        return [SaturationGuard(every_n_iterations=3), PolicyValueGapGuard(every_n_iterations=3)]

    whole, half, resumed = guards(), guards(), guards()
    fit_td3(tmp_path / "whole", *whole)
    fit_td3(tmp_path / "half", *half, max_steps=13)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    fit_td3(tmp_path / "resumed", *resumed, ckpt_path=checkpoint)
    # As words, in which NaN equals NaN.
    assert [repr(guard.state_dict()) for guard in resumed] == [repr(guard.state_dict()) for guard in whole]
    assert all(warnings_of(guard) == [] for guard in whole)
