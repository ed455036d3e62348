import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import ACT, WARN, fit_small
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from rlmods.callbacks.detectors import Severity
from rlmods.callbacks.inert_learning import InertiaDetector, InertiaWindow, judge_inertia, loss_change
from rlmods.callbacks.inert_learning_guard import InertLearningGuard
from rlmods.callbacks.safeguard import MissingInputError


def seed_run(rows: int = 200) -> tuple[list[float], list[float]]:
    """The norm of the weights and the loss of the seed run, spec 5.6: 2.5e-5 ± 4 %, falling by 1.9 %."""
    draw = random.Random(0)
    norms = [9.1634 - 2.52e-6 * row for row in range(rows)]
    losses = [2.5e-5 * (1.0 - 0.019 * row / rows + 0.044 * draw.gauss(0.0, 1.0)) for row in range(rows)]
    return norms, losses


# The judgement


def test_the_seed_run_learned_nothing() -> None:
    """199 steps of 2.52e-6 of 9.16 are 5.5e-5 of the norm."""
    verdict = judge_inertia(*seed_run())
    assert verdict is not None
    assert (verdict.cause, verdict.severity) == ("inert_learning", WARN)
    assert verdict.evidence["movement"] == pytest.approx(5.47e-5, rel=1e-2)
    assert verdict.evidence["movement_is"].startswith("lower bound")
    assert abs(verdict.evidence["loss_change"]) < 0.05


def test_measured_updates_bound_the_movement_and_may_be_acted_on() -> None:
    norms, losses = seed_run()
    verdict = judge_inertia(norms, losses, [2.5e-7] * 200)
    assert verdict is not None
    assert verdict.severity is ACT
    assert verdict.evidence["movement"] == pytest.approx(5e-5)


def test_what_remains_is_counted_at_the_largest_rate() -> None:
    """200 rows of 2.5e-7; another 39,000 make 0.98 %, 40,000 more than 1 %."""
    norms, losses = seed_run()
    assert judge_inertia(norms, losses, [2.5e-7] * 200, remaining=39_000) is not None
    assert judge_inertia(norms, losses, [2.5e-7] * 200, remaining=40_000) is None
    assert judge_inertia(norms, losses, [0.0] * 200, remaining=math.inf) is not None
    assert judge_inertia(norms, losses, [2.5e-7] * 200, remaining=math.inf) is None


def test_weights_that_moved_are_alive_whatever_the_loss() -> None:
    _, losses = seed_run()
    assert judge_inertia([9.0] * 200, losses, [1e-4] * 200) is None
    assert judge_inertia([9.0 + 1e-3 * row for row in range(200)], losses) is None


def test_a_run_that_has_converged_is_not_inert() -> None:
    """Everything happened in the first rows: by the weights, or by the loss alone."""
    still = [9.0 + 0.5 * 0.5**row for row in range(200)]
    _, losses = seed_run()
    fell = [loss * (1.0 + 9.0 * 0.5**row) for row, loss in enumerate(losses)]
    assert judge_inertia(still, losses) is None
    assert judge_inertia([9.0] * 200, fell, [1e-8] * 200) is None


def test_a_wide_network_that_learns_with_small_steps_is_not_inert() -> None:
    _, losses = seed_run()
    falls = [loss * (1.0 - 0.2 * row / 200) for row, loss in enumerate(losses)]
    assert judge_inertia([9.0] * 200, falls, [1e-6] * 200) is None


def test_a_phase_without_rewards_and_few_rows_say_nothing() -> None:
    assert judge_inertia([9.0] * 50, [0.0] * 50) is None
    assert judge_inertia([9.0] * 9, [1.0] * 9) is None
    assert judge_inertia([9.0] * 10, [1.0] * 10) is not None


def test_weights_that_begin_at_zero_move_by_all_of_their_norm() -> None:
    assert judge_inertia([0.01 * row for row in range(50)], [1.0] * 50) is None


def test_rows_that_are_not_finite_are_left_out() -> None:
    norms, losses = seed_run(40)
    whole = judge_inertia(norms, losses)
    holes = judge_inertia([math.nan, *norms], [1.0, *losses])
    assert whole == holes
    assert whole is not None


@given(st.floats(-1e3, 1e3).filter(lambda scale: abs(scale) > 1e-3))
def test_the_unit_and_the_sign_of_the_loss_do_not_matter(scale: float) -> None:
    _, losses = seed_run(60)
    change, scaled = loss_change(losses), loss_change([scale * loss for loss in losses])
    assert abs(scaled.relative) == pytest.approx(abs(change.relative))
    assert scaled.error == pytest.approx(change.error)


def test_the_change_of_a_loss() -> None:
    """First tenth 10, last half 8: −20 %, without noise, for no more than one row differs from its neighbour."""
    change = loss_change([10.0] * 5 + [8.0] * 15)
    assert change.relative == pytest.approx(-0.2)
    assert change.error == 0.0
    assert loss_change([0.0, 0.0]).is_significant is False


def test_different_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"judge_inertia got \[3, 2\]"):
        judge_inertia([1.0] * 3, [1.0] * 2)


# The detector

INERT = InertiaWindow(loss=1.0, weight_norm=9.0, relative_update=1e-8, learning_rate=1e-3, remaining=100.0)


def severities(*windows: InertiaWindow, needed: int = 5) -> list[list[Severity]]:
    detector = InertiaDetector(needed=needed)
    return [[verdict.severity for verdict in detector.update(window)] for window in windows]


def test_a_warning_after_ten_windows_is_sure_when_confirmed() -> None:
    assert severities(*[INERT] * 15) == [[]] * 9 + [[WARN]] * 4 + [[ACT]] * 2


def test_windows_without_an_update_do_not_count() -> None:
    warm_up = INERT._replace(relative_update=math.nan, loss=math.nan)
    assert severities(*[warm_up] * 50, *[INERT] * 10) == [[]] * 59 + [[WARN]]


def test_a_learning_rate_that_rises_or_has_ended_is_excused() -> None:
    rising = [INERT._replace(learning_rate=1e-3 * row) for row in range(1, 40)]
    assert severities(*rising, rising[-1]) == [[]] * 39 + [[WARN]]
    ended = INERT._replace(learning_rate=1e-9)
    assert severities(INERT, *[ended] * 30) == [[]] * 31


def test_a_run_that_has_moved_is_never_inert_again() -> None:
    """A hundred windows of 1e-4 are the 1 %; then nothing moves any more."""
    moving = INERT._replace(relative_update=1.01e-4)
    assert severities(*[moving] * 100, *[INERT._replace(remaining=0.0)] * 300) == [[]] * 400


def test_a_run_of_any_length_has_room() -> None:
    detector = InertiaDetector(needed=5)
    said = [detector.update(INERT._replace(remaining=0.0)) for _ in range(1100)]
    assert all(len(verdicts) == 1 for verdicts in said[9:])
    assert (len(detector.rows), detector.windows_per_row) == (137, 8)
    assert said[-1][0].evidence["movement"] == pytest.approx(137 * 8 * 1e-8)


@given(cut=st.integers(0, 20))
def test_a_reloaded_detector_goes_on(cut: int) -> None:
    whole, half, again = (InertiaDetector(needed=3) for _ in range(3))
    for _ in range(cut):
        whole.update(INERT)
        half.update(INERT)
    again.load_state_dict(half.state_dict())
    assert [whole.update(INERT) for _ in range(20)] == [again.update(INERT) for _ in range(20)]


# The hook


class Regression(BoringModel):
    def __init__(self, rate: float, *, automatic: bool = True, signal: str = "loss") -> None:
        super().__init__()
        self.automatic_optimization = automatic
        self.rate, self.signal = rate, signal

    def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
        loss = (self(batch) - batch[:, :2]).square().mean()
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return {self.signal: loss if self.automatic_optimization else loss.detach()}

    def configure_optimizers(self) -> Any:
        return SGD(self.parameters(), lr=self.rate)


def fit(folder: Path, model: BoringModel, *callbacks: Callback, iterations: int = 48, **options: Any) -> Trainer:
    torch.manual_seed(0)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        max_epochs=1,
        callbacks=[*callbacks, ModelCheckpoint(folder, "{step}", every_n_train_steps=27)],
    )
    batches: Any = [torch.randn(8, 32, generator=torch.Generator().manual_seed(3))] * iterations
    trainer.fit(model, DataLoader(batches, batch_size=None), weights_only=True, **options)
    return trainer


@pytest.mark.parametrize("automatic", [True, False])
def test_steps_that_are_nothing_are_named(tmp_path: Path, automatic: bool) -> None:
    guard = InertLearningGuard()
    fit(tmp_path, Regression(1e-7, automatic=automatic), guard)
    assert guard.raised == [("inert_learning", WARN), ("inert_learning", ACT)]


@pytest.mark.parametrize("automatic", [True, False])
def test_steps_that_learn_are_silent_and_measured_no_longer(tmp_path: Path, automatic: bool) -> None:
    guard = InertLearningGuard()
    fit(tmp_path, Regression(0.1, automatic=automatic), guard)
    assert guard.raised == []
    assert guard.detector.is_alive
    assert len(guard.detector.rows) < 24


@pytest.mark.parametrize("options", [{}, {"arguments": {"final_learning_rate": 0.0}}, {"learning_starts": 300}])
def test_a_healthy_dqn_is_silent(tmp_path: Path, options: dict[str, Any]) -> None:
    guard = InertLearningGuard()
    fit_small(tmp_path, guard, **options)
    assert guard.raised == []
    assert guard.detector.is_alive


def test_a_dqn_that_does_not_learn_is_named(tmp_path: Path) -> None:
    guard = InertLearningGuard()
    fit_small(tmp_path, guard, arguments={"learning_rate": 1e-9})
    assert guard.raised[:1] == [("inert_learning", WARN)]


def test_it_stops_a_run_only_when_told(tmp_path: Path) -> None:
    """Ten windows of two iterations, and sure when it is so for ten: 38."""
    for mode, steps in (("act", 48), ("stop", 38)):
        guard = InertLearningGuard(mode=mode)  # type: ignore[arg-type]
        trainer = fit(tmp_path / mode, Regression(1e-7), guard)
        assert (trainer.global_step, guard.stopped is not None) == (steps, mode == "stop")


def test_a_schedule_that_warms_up_is_silent(tmp_path: Path) -> None:
    class WarmUp(Regression):
        def configure_optimizers(self) -> Any:
            optimizer = SGD(self.parameters(), lr=0.1)
            schedule = LambdaLR(optimizer, lambda step: 1e-8 * 1.5**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    guard = InertLearningGuard()
    fit(tmp_path, WarmUp(0.1), guard)
    assert guard.raised == []


def test_a_resumed_guard_is_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Saved after 27 iterations, in the middle of a window, between the warning and the certainty."""
    whole, resumed = InertLearningGuard(every_n_iterations=2), InertLearningGuard(every_n_iterations=2)
    fit(tmp_path, Regression(1e-7), whole)
    fit(tmp_path / "resumed", Regression(1e-7), resumed, ckpt_path=tmp_path / "step=27.ckpt")
    assert whole.raised == resumed.raised == [("inert_learning", WARN), ("inert_learning", ACT)]
    assert whole.state_dict() == resumed.state_dict()


def test_it_takes_the_td_loss_and_asks_for_a_loss(tmp_path: Path) -> None:
    guard = InertLearningGuard()
    fit(tmp_path, Regression(1e-7, automatic=False, signal="td_loss"), guard)
    assert guard.raised[:1] == [("inert_learning", WARN)]
    with pytest.raises(MissingInputError, match=r"InertLearningGuard needs the signals \['loss'\]"):
        fit(tmp_path, Regression(1e-7, automatic=False, signal="cost"), InertLearningGuard())


def test_a_rearmed_guard_begins_anew(tmp_path: Path) -> None:
    guard = InertLearningGuard()
    fit(tmp_path, Regression(1e-7), guard, iterations=24)
    guard.rearm()
    assert guard.detector.state_dict() == InertLearningGuard().detector.state_dict()


def test_its_hooks_are_gone_afterwards(tmp_path: Path) -> None:
    (optimizer,) = fit(tmp_path, Regression(0.1, automatic=False), InertLearningGuard(), iterations=2).optimizers
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"patience": 0}, "patience = 0"), ({"every_n_iterations": 0}, "every_n_iterations = 0")],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InertLearningGuard(**arguments)
