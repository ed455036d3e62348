import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, Stranger, as_lists, causes, fit_small, fit_stranger, transitions, warnings_of
from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from rlmods.algorithms import DQN
from rlmods.callbacks.liveness_detector import LivenessDetector, LivenessWindow
from rlmods.callbacks.liveness_guard import LivenessGuard
from rlmods.data import ReplayDataModule
from rlmods.networks.q_network import q_network
from rlmods.types import Minibatch, ReplayBatch, Transition

# Of a DQN in good health: 8 updates a window on 16 transitions each, 32 steps collected.
HEALTHY = LivenessWindow(
    updates=8.0,
    update_ratio={"q": 1e-3},
    learning_rate={"q": 1e-3},
    weight_norm={"q": 12.0},
    grad_norm={"q": {"trunk": 1.0, "head": 2.0}},
    target_distance={"target": 0.01},
    target_moved={"target": 1.0},
    losses={"loss": (0.1, 0.125)},
    collected=32.0,
    added=32.0,
    uses=128.0,
    uses_per_transition=4.0,
    progress=0.5,
)


def said_of(*windows: LivenessWindow) -> list[list[str]]:
    detector = LivenessDetector(inert_below=1e-5, violent_above=0.1, target_patience=60)
    return [causes(detector.update(window)) for window in windows]


def silent(*windows: LivenessWindow) -> bool:
    return not any(said_of(*windows))


# The pure detector


def test_a_healthy_run_is_silent() -> None:
    assert silent(*[HEALTHY] * 50)


def test_a_warm_up_is_silent() -> None:
    warm_up = HEALTHY._replace(
        updates=0.0, update_ratio={}, learning_rate={}, grad_norm={}, losses={}, uses=0.0, target_moved={"target": 0.0}
    )
    assert silent(*[warm_up] * 50, *[HEALTHY] * 20)


@pytest.mark.parametrize(
    ("change", "cause", "windows"),
    [
        ({"grad_norm": {"q": {"trunk": 0.0, "head": 2.0}}}, "no_gradient", 3),
        ({"update_ratio": {"q": 1e-6}}, "inert_update", 2),
        ({"update_ratio": {"q": 0.5}}, "violent_update", 6),  # the first four are excused
        ({"target_distance": {"target": 0.0}}, "target_never_lags", 2),
        ({"target_moved": {"target": 0.0}}, "target_never_moves", 8),  # 8 updates a window, patience 60
        ({"losses": {"loss": (0.5, 1.0)}}, "pinned_loss", 25),  # 200 updates
        ({"collected": 0.0}, "no_new_experience", 2),
        ({"added": 0.0}, "no_new_experience", 2),
        ({"uses": 300.0}, "replay_overused", 3),
        ({"uses": 60.0}, "replay_underused", 3),
    ],
)
def test_what_is_dead_is_said_in_this_window(change: dict[str, Any], cause: str, windows: int) -> None:
    said = said_of(*[HEALTHY._replace(**change)] * windows)
    assert said == [[]] * (windows - 1) + [[cause]]


def test_only_a_dead_collector_has_the_authority_to_act() -> None:
    detector = LivenessDetector(inert_below=1e-5, violent_above=0.1, target_patience=60)
    bad = HEALTHY._replace(
        grad_norm={"q": {"trunk": 0.0, "head": 2.0}}, update_ratio={"q": 1e-6}, losses={"loss": (0.5, 1.0)}, added=0.0
    )
    found = [verdict for _ in range(30) for verdict in detector.update(bad)]
    assert set(causes(found, ACT)) == {"no_new_experience"}


def test_twice_the_configured_uses_are_tolerated() -> None:
    """128 uses of 32 transitions are the 4 that were configured; 256 and 64 are the limits."""
    assert silent(*[HEALTHY._replace(uses=256.0)] * 10)
    assert silent(*[HEALTHY._replace(uses=64.0)] * 10)


def test_one_bad_window_is_none() -> None:
    dead = HEALTHY._replace(collected=0.0, added=0.0, uses=1e4, update_ratio={"q": 0.5})
    assert silent(*[HEALTHY] * 8, dead, *[HEALTHY] * 8)


def test_a_learning_rate_annealed_to_nothing_at_the_end_is_silent() -> None:
    """The updates become as small as the learning rate, the target network arrives and stands still."""
    windows = []
    for n in range(1, 101):
        rate = 1e-3 * (1.0 - n / 100)
        still = n == 100
        windows.append(
            HEALTHY._replace(
                update_ratio={"q": rate},
                learning_rate={"q": rate},
                target_distance={"target": 10.0 * rate},
                target_moved={"target": 0.0 if still else 1.0},
                progress=n / 100,
            )
        )
    assert silent(*windows)


def test_weights_may_stand_still_where_no_error_is_left() -> None:
    still = HEALTHY._replace(update_ratio={"q": 1e-6})
    assert said_of(*[still._replace(error_ratio=0.002)] * 4)[-1] == []
    assert said_of(*[still._replace(error_ratio=0.003)] * 4)[-1] == ["inert_update"]


def test_a_learning_rate_that_ends_too_early_is_no_inert_update() -> None:
    """10 % of the budget, then nothing: the schedule was made for a shorter run."""
    alive = HEALTHY._replace(progress=0.05)
    over = HEALTHY._replace(progress=0.2, learning_rate={"q": 1e-9}, update_ratio={"q": 1e-9})
    assert said_of(*[alive] * 5, *[over] * 5) == [[]] * 5 + [["learning_rate_exhausted"]] * 5


def test_where_nobody_knows_the_budget_no_schedule_ends_too_early() -> None:
    over = HEALTHY._replace(progress=math.nan, learning_rate={"q": 0.0}, update_ratio={"q": 0.0})
    assert silent(HEALTHY, *[over] * 5)


def test_a_group_whose_rate_is_always_zero_is_fixed_on_purpose_beside_others() -> None:
    still = {"update_ratio": 0.0, "learning_rate": 0.0, "weight_norm": 1.0}
    beside: dict[str, Any] = {name: {**getattr(HEALTHY, name), "actor": value} for name, value in still.items()}
    assert silent(*[HEALTHY._replace(**beside)] * 5)
    alone: dict[str, Any] = {name: {"actor": value} for name, value in still.items()}
    assert said_of(*[HEALTHY._replace(**alone)] * 3)[-1] == ["inert_update"]


def test_a_phase_without_rewards_is_silent() -> None:
    """Zero-initialised: no loss, no gradient, nothing moves, and the target network equals the online one."""
    zero = HEALTHY._replace(
        losses={"loss": (0.0, 1.0)},
        grad_norm={"q": {"trunk": 0.0, "head": 0.0}},
        update_ratio={"q": 0.0},
        target_distance={"target": 0.0},
        target_moved={"target": 0.0},
    )
    assert silent(*[zero] * 50, *[HEALTHY] * 20)


def test_a_task_that_is_learned_gives_small_steps_and_is_silent() -> None:
    """Plain gradient descent: the steps shrink with the gradient."""
    shares = [0.5**n for n in range(40)]
    assert silent(
        *[
            HEALTHY._replace(
                grad_norm={"q": {"trunk": 1.0 * share, "head": 2.0 * share}},
                update_ratio={"q": 1e-3 * share},
                losses={"loss": (0.1 * share**2, 0.125)},
                target_distance={"target": 0.01},
            )
            for share in shares
        ]
    )


def test_losses_pinned_at_two_values_are_not_one() -> None:
    windows = [HEALTHY._replace(losses={"loss": (0.5, 1.0) if n // 20 % 2 else (0.6, 0.6)}) for n in range(100)]
    assert silent(*windows)


def test_without_a_replay_nothing_is_said_of_it() -> None:
    nobody: dict[str, Any] = {"collected": math.nan, "added": math.nan, "uses": 0.0, "uses_per_transition": math.nan}
    assert silent(*[HEALTHY._replace(**nobody)] * 20)


def test_a_reloaded_detector_goes_on() -> None:
    bad = HEALTHY._replace(
        target_moved={"target": 0.0}, losses={"loss": (0.5, 1.0)}, update_ratio={"q": 1e-6}, uses=1e4, collected=32.0
    )

    def detector() -> LivenessDetector:
        return LivenessDetector(inert_below=1e-5, violent_above=0.1, target_patience=60)

    for cut in (1, 5, 24):
        whole, half = detector(), detector()
        for n in range(30):
            if n == cut:
                state, half = half.state_dict(), detector()
                half.load_state_dict(state)
            assert whole.update(bad) == half.update(bad)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inert_below": 0.2}, "inert_below = 0.2 and violent_above = 0.1"),
        ({"inert_below": -1.0}, "inert_below = -1.0"),
        ({"target_patience": -1}, "target_patience = -1"),
        ({"target_patience": 0}, "target_patience = 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LivenessGuard(**arguments)


# The real DQN, whole


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"n_steps": 3, "prioritized_replay": True, "num_envs": 8, "arguments": {"dueling": True}},
        {"arguments": {"tau": 0.01, "target_update_interval": 1}},
        {"arguments": {"target_update_interval": 2}},
        {"arguments": {"final_learning_rate": 0.0}, "buffer_size": 64},
        {"arguments": {"accumulate_grad_batches": 4}},
    ],
)
def test_a_healthy_dqn_is_silent(tmp_path: Path, options: dict[str, Any]) -> None:
    guard = LivenessGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, **options)
    assert guard.raised == []


def test_watching_changes_no_weight(tmp_path: Path) -> None:
    plain = fit_small(tmp_path / "plain", total_env_steps=320)
    watched = fit_small(tmp_path / "watched", LivenessGuard(every_n_iterations=1), total_env_steps=320)
    states = plain.lightning_module.state_dict(), watched.lightning_module.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


# The real DQN, one line broken


class FrozenTarget(DQN):
    def update(
        self, optimizer: LightningOptimizer, minibatches: Sequence[Minibatch], *, counts: bool
    ) -> list[dict[str, Tensor]]:
        self.target_update_interval = 10**9  # what is declared, in the hyper-parameters, stays
        return super().update(optimizer, minibatches, counts=counts)


class OneObject(DQN):
    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.target_network = self.q_network


class Rebuilt(DQN):
    def on_train_start(self) -> None:
        self.q_network = q_network(self.spec, [32], dueling=False)


class Detach(nn.Module):
    def forward(self, features: Tensor) -> Tensor:
        return features.detach()


class DetachedTrunk(DQN):
    def __init__(self, *args: Any, **arguments: Any) -> None:
        super().__init__(*args, **arguments)
        self.q_network.insert(len(self.q_network) - 1, Detach())


class Pinned(DQN):
    def signals(self, minibatch: Minibatch) -> dict[str, Tensor]:
        signals = super().signals(minibatch)
        return signals | {"loss": signals["loss"].clamp(min=1e4)}


class Repeated(DQN):
    def training_step(self, batch: ReplayBatch, batch_idx: int) -> dict[str, Tensor]:
        super().training_step(batch, batch_idx)
        super().training_step(batch, batch_idx)
        return super().training_step(batch, batch_idx)


class StopsAdding(ReplayDataModule):
    def iterate(self, trainer: Trainer) -> ReplayBatch:
        if self.env_steps >= 160 and self.replay is not None:
            self.replay.extend = lambda *_: None  # type: ignore[method-assign]
        return super().iterate(trainer)


class FrozenClock(ReplayDataModule):
    @property
    def env_steps(self) -> int:
        return min(self._env_steps, 160)


@pytest.mark.parametrize(
    ("cause", "options"),
    [
        ("target_never_moves", {"model_class": FrozenTarget, "total_env_steps": 480}),
        ("target_never_lags", {"model_class": OneObject}),
        ("target_never_lags", {"arguments": {"target_update_interval": 1}}),
        ("stale_parameters", {"model_class": Rebuilt}),
        ("no_gradient", {"model_class": DetachedTrunk}),
        ("inert_update", {"arguments": {"learning_rate": 1e-7}}),
        ("no_new_experience", {"data_class": StopsAdding}),
        ("no_new_experience", {"data_class": FrozenClock}),
        ("replay_overused", {"model_class": Repeated}),
        ("pinned_loss", {"model_class": Pinned, "updates_per_iteration": 16}),
    ],
)
def test_the_first_cause_is_the_right_one(tmp_path: Path, cause: str, options: dict[str, Any]) -> None:
    guard = LivenessGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, **({"total_env_steps": 320} | options))
    assert warnings_of(guard)[:1] == [cause]


def test_a_network_rebuilt_after_its_optimiser_may_be_acted_on(tmp_path: Path) -> None:
    guard = LivenessGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, model_class=Rebuilt, total_env_steps=160)
    assert {cause for cause, severity in guard.raised if severity is ACT} == {
        "stale_parameters",
        "parameter_not_optimised",
    }


def test_a_resumed_guard_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of a window, in the middle of the patience with a target network."""

    def guarded_run(folder: str, **options: Any) -> LivenessGuard:
        guard = LivenessGuard(every_n_iterations=2)
        fit_small(tmp_path / folder, guard, model_class=FrozenTarget, eval_every=144, total_env_steps=480, **options)
        return guard

    whole = guarded_run("whole")
    half = guarded_run("half", max_steps=9)
    (checkpoint,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = guarded_run("resumed", ckpt_path=checkpoint)
    assert warnings_of(whole) == ["target_never_moves"]
    assert not half.raised
    assert repr(as_lists(whole.state_dict())) == repr(as_lists(resumed.state_dict()))


def test_a_stop_in_the_middle_of_a_window_loses_no_update(tmp_path: Path) -> None:
    """4 updates an iteration, 16 uses each, 16 transitions added: a lost iteration would halve the first window."""
    guard = LivenessGuard(every_n_iterations=2)
    fit_small(tmp_path, guard, max_steps=9, eval_every=144)
    assert guard.state_dict()["updates"] == 4
    again = LivenessGuard(every_n_iterations=2)
    again.load_state_dict(guard.state_dict())
    assert again.state_dict()["updates"] == 4


# Strangers


class AutomaticStranger(BoringModel):
    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}, {"accumulate_grad_batches": 2}])
def test_a_stranger_in_automatic_mode_is_watched(tmp_path: Path, options: dict[str, Any]) -> None:
    guard = LivenessGuard(every_n_iterations=2)
    model = AutomaticStranger()
    fit_stranger(tmp_path, model, [torch.randn(4, 32) for _ in range(24)], guard, **options)
    assert guard.raised == []
    (confirmation,) = [key for key in guard.detector.confirmations if key.startswith("inert/")]
    assert len(guard.detector.confirmations[confirmation].recent) == 2


def test_a_stranger_whose_steps_are_nothing_is_told(tmp_path: Path) -> None:
    class Slow(BoringModel):
        def configure_optimizers(self) -> Any:
            return SGD(self.parameters(), lr=1e-9)

    guard = LivenessGuard(every_n_iterations=2)
    fit_stranger(tmp_path, Slow(), [torch.randn(4, 32)] * 8, guard)
    assert warnings_of(guard) == ["inert_update"]


@pytest.mark.parametrize(("size", "expected"), [(1, []), (4, []), (64, ["violent_update"])])
def test_a_few_numbers_that_pass_through_zero_have_no_size(size: int, expected: list[str], tmp_path: Path) -> None:
    """As the logarithms of a temperature or of σ do, by steps of 0.01 from 0.2 on."""

    class Tempered(AutomaticStranger):
        def __init__(self) -> None:
            super().__init__()
            self.log_temperature = nn.Parameter(torch.full((size,), 0.2))

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            outputs: Any = super().training_step(batch, batch_idx)
            return {"loss": outputs["loss"] + self.log_temperature.sum()}

        def configure_optimizers(self) -> Any:
            groups = {"layer": list(self.layer.parameters()), "temperature": [self.log_temperature]}
            return SGD([{"params": weights, "name": name} for name, weights in groups.items()], lr=0.01)

    guard = LivenessGuard(every_n_iterations=2)
    fit_stranger(tmp_path, Tempered(), [torch.randn(4, 32) for _ in range(40)], guard)
    assert warnings_of(guard) == expected


def test_a_strangers_schedule_over_its_epochs_is_no_early_end(tmp_path: Path) -> None:
    class Annealed(BoringModel):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.01)
            return [optimizer], [LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 19 else 1e-3)]

    guard = LivenessGuard(every_n_iterations=1)
    fit_stranger(tmp_path, Annealed(), [torch.randn(4, 32)] * 2, guard, max_epochs=20)
    assert guard.raised == []


def test_a_stranger_that_forgets_its_target_network_is_told(tmp_path: Path) -> None:
    guard = LivenessGuard(every_n_iterations=2, target_patience=10)
    fit_stranger(tmp_path, Stranger(), [transitions()] * 20, guard)
    assert warnings_of(guard) == ["target_never_moves"]


def test_a_stranger_that_forgets_a_network_is_told(tmp_path: Path) -> None:
    class Forgetful(Stranger):
        def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
            trunk(batch.observation).sum().backward()
            return super().training_step(batch, batch_idx)

    stranger = Forgetful()
    stranger.trunk = trunk = nn.Linear(2, 1)
    guard = LivenessGuard(every_n_iterations=1)
    fit_stranger(tmp_path, stranger, [transitions()] * 2, guard)
    assert warnings_of(guard) == ["parameter_not_optimised"]


def test_its_hooks_are_gone_afterwards(tmp_path: Path) -> None:
    trainer = fit_stranger(tmp_path, Stranger(), [transitions()], LivenessGuard())
    (optimizer,) = trainer.optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
