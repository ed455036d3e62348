"""The callbacks of an expert curriculum, stopped in the middle of their windows: as if never stopped."""

from pathlib import Path
from typing import Any

import pytest
from expert_cart_pole import ENV_ID
from guarding import as_lists, fit_small, warnings_of
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from running import curves
from test_loss_return_guard import SETTINGS, Forgets
from test_skeleton import make_trainer

from rlmods.algorithms import DQN
from rlmods.callbacks import CurriculumGuard, EffectiveSettings, LossReturnGuard, MetricsTable
from rlmods.data import ExpertDataModule

STOP = 7  # iterations of 16 environment steps, and the first evaluation


def watched_run(folder: Path, **options: Any) -> dict[type[Callback], Any]:
    """30 iterations; the share falls to its floor after 100 environment steps, episodes end after 10 of them."""
    seed_everything(0)
    callbacks: list[Any] = [
        CurriculumGuard(window_frames=128, watch_frames=400),
        LossReturnGuard(episodes=3, every_n_iterations=2),
        EffectiveSettings(),
        MetricsTable(every_seconds=0.0, windows=(100, 1_000), num_probe_states=40),
    ]
    data = ExpertDataModule(
        ENV_ID,
        480,
        num_envs=4,
        learning_starts=48,
        steps_per_iteration=16,
        updates_per_iteration=2,
        batch_size=8,
        buffer_size=200,
        eval_episodes=2,
        eval_every=16 * STOP,
        expert_share=0.9,
        expert_share_decay=0.1,
        expert_share_decay_steps=100,
        expert_share_floor=0.1,
        env_kwargs={"max_episode_steps": 10},
    )
    ckpt_path = options.pop("ckpt_path", None)
    logger = TensorBoardLogger(folder, name="", version="")
    trainer = make_trainer(folder, *callbacks, logger=logger, log_every_n_steps=4, **options)
    targets = {"tau": 0.1, "target_update_interval": 1, "target_hard_update_interval": 7}
    model = DQN(data.spec, hidden_sizes=[16], max_grad_norm=0.5, **targets)  # type: ignore[arg-type]
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return {type(callback): callback for callback in callbacks}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[type[Callback], Any]]]:
    """The run that was never stopped, the one that was, and what went on from it."""
    folder = tmp_path_factory.mktemp("runs")
    whole, half = watched_run(folder / "whole"), watched_run(folder / "half", max_steps=STOP)
    (checkpoint,) = (folder / "half").glob("**/*.ckpt")
    return folder, [whole, half, watched_run(folder / "resumed", ckpt_path=checkpoint)]


@pytest.mark.parametrize("callback", [CurriculumGuard, LossReturnGuard, EffectiveSettings, MetricsTable])
def test_a_resumed_callback_is_one_that_was_never_stopped(
    runs: tuple[Path, list[dict[type[Callback], Any]]], callback: type[Callback]
) -> None:
    whole, half, resumed = (repr(as_lists(run[callback].state_dict())) for run in runs[1])
    assert whole == resumed
    assert whole != half


def test_the_stop_lies_within_windows_and_blocks(runs: tuple[Path, list[dict[type[Callback], Any]]]) -> None:
    """A row of the curriculum is 16 steps, eight make a window, and six of seven are there."""
    _, half, resumed = runs[1]
    assert half[CurriculumGuard].shares.rows
    assert half[CurriculumGuard].shares.last is None
    assert resumed[CurriculumGuard].shares.last is not None
    assert half[LossReturnGuard].state_dict()["block"]
    assert half[LossReturnGuard].state_dict()["seen"]
    assert resumed[EffectiveSettings].rows["target_hard_update_interval"].low == 7.0


def test_curves_go_on_as_if_never_stopped(runs: tuple[Path, list[dict[type[Callback], Any]]]) -> None:
    """The stop lies between two points, at iterations 4 and 8: what was taken in before it belongs to the second."""
    whole, resumed = (curves(runs[0] / name) for name in ("whole", "resumed"))
    groups = ("rollout/reward", "rollout/network", "stability/q_probe", "stability/clip_delta", "stability/curriculum")
    names = [name for name in whole if name.startswith(groups)]
    assert {"stability/clip_delta_mean", "stability/q_probe_p50", "rollout/reward_per_frame_100"} <= set(names)
    for name in names:
        assert [point for point in whole[name] if point[0] > 16 * STOP] == resumed[name], name


def test_an_alarm_of_before_the_stop_is_not_raised_again(tmp_path: Path) -> None:
    """It comes with the evaluation at 864 environment steps, where the run is stopped; 960 confirms it."""

    def forgetful_run(name: str, **options: Any) -> LossReturnGuard:
        guard = LossReturnGuard()
        fit_small(tmp_path / name, guard, model_class=Forgets, **SETTINGS, **options)
        return guard

    whole, half = forgetful_run("whole"), forgetful_run("half", max_steps=864 // 16)
    checkpoint = max((tmp_path / "half").glob("**/*.ckpt"), key=lambda path: path.stat().st_mtime)
    resumed = forgetful_run("resumed", ckpt_path=checkpoint)
    assert [warnings_of(guard) for guard in (whole, half, resumed)] == [["loss_falls_with_return"]] * 3
    assert repr(as_lists(whole.state_dict())) == repr(as_lists(resumed.state_dict()))
