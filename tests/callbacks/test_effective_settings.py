from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expert_cart_pole import ENV_ID
from guarding import WARN, as_lists, events, fit_small, warnings_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.core.optimizer import LightningOptimizer
from test_skeleton import make_trainer

from rlmods.algorithms import DQN
from rlmods.callbacks import EffectiveSettings
from rlmods.callbacks.applied_settings import (
    Applied,
    Frames,
    high_replay_ratio,
    never_in_effect,
    ratio_not_in_effect,
    rows_as_text,
    share_not_in_effect,
)
from rlmods.callbacks.detectors import Severity
from rlmods.data import ExpertDataModule


def rate(*values: float) -> Applied:
    row = Applied("learning_rate", 3e-3, *[values[0]] * 4)
    for value in values[1:]:
        row = row.with_value(value)
    return row


def test_a_row_keeps_first_last_lowest_and_highest() -> None:
    assert rate(2.0, 5.0, 1.0, 3.0) == ("learning_rate", 3e-3, 2.0, 3.0, 1.0, 5.0)


@pytest.mark.parametrize("values", [[3e-3], [2.9e-3, 1e-6], [1e-6, 3e-3, 0.0], [1.6e-3, 0.0]])
def test_a_schedule_from_the_configured_rate_or_up_to_it_is_in_effect(values: list[float]) -> None:
    assert never_in_effect(rate(*values)) is None


@pytest.mark.parametrize("values", [[5e-5], [1e-3, 5e-5], [6e-3, 4e-3]])
def test_a_rate_that_another_has_replaced_is_named(values: list[float]) -> None:
    """The published run: 0.003 configured, 5e-5 applied, and the remedy 0.001 as idle as the cause."""
    verdict = never_in_effect(rate(*values))
    assert verdict is not None
    assert (verdict.cause, verdict.severity) == ("setting_not_in_effect", WARN)
    assert f"{values[-1]:.4g} last" in verdict.message


@pytest.mark.parametrize(
    ("drawn", "configured", "limit", "speaks"),
    [
        (8.0, 8.0, None, False),
        (8.0, 128.0, 8.0, False),
        (128.0, 128.0, 8.0, True),  # the limit is ignored
        (8.5, 128.0, 8.0, True),
        (20.0, 8.0, None, True),
        (3.0, 8.0, None, True),
        (2.0, 4.0, 8.0, True),
    ],
)
def test_the_replay_ratio_is_that_of_the_settings(
    drawn: float, configured: float, limit: float | None, speaks: bool
) -> None:
    assert (ratio_not_in_effect(drawn, configured, limit) is not None) is speaks


def test_a_high_replay_ratio_is_for_information_unless_values_have_left_their_bound() -> None:
    assert high_replay_ratio(100.0, values_beyond=True) is None
    calm, grave = high_replay_ratio(390.0, values_beyond=False), high_replay_ratio(390.0, values_beyond=True)
    assert calm is not None
    assert grave is not None
    assert (calm.severity, grave.severity) == (Severity.INFO, WARN)
    assert "likely cause" in grave.message
    assert "likely cause" not in calm.message


SCHEDULE = {
    "expert_share": 0.8,
    "expert_share_decay": 0.5,
    "expert_share_decay_steps": 1_000,
    "expert_share_floor": 0.1,
    "expert_care_scale": 1.0,
}


def frames(share_at: Any, seed: int = 0) -> list[Frames]:
    """Sixteen stretches of 1,000 frames, in which the expert acts with this probability."""
    generator = np.random.default_rng(seed)
    counts = [int(generator.binomial(1_000, share_at(1_000 * n))) for n in range(16)]
    return [Frames(1_000 * n, 1_000 * (n + 1), 1_000.0 - count, float(count)) for n, count in enumerate(counts)]


def test_coins_of_the_schedule_are_in_effect() -> None:
    for seed in range(200):
        assert share_not_in_effect(frames(lambda step: max(0.1, 0.8 * 0.5 ** (step // 1_000)), seed), SCHEDULE) is None


@pytest.mark.parametrize(
    "share_at",
    [
        lambda step: 0.8,  # never decays
        lambda step: 0.8 * 0.5 ** (step // 1_000),  # no floor
        lambda step: 0.1,  # begins at the floor
    ],
)
def test_another_schedule_than_the_configured_is_named(share_at: Any) -> None:
    verdict = share_not_in_effect(frames(share_at), SCHEDULE)
    assert verdict is not None
    assert (verdict.cause, verdict.severity) == ("share_not_in_effect", WARN)


def test_where_care_scales_the_share_all_in_between_is_right() -> None:
    settings = {**SCHEDULE, "expert_care_scale": 2.0}
    double = frames(lambda step: min(1.0, 2.0 * max(0.1, 0.8 * 0.5 ** (step // 1_000))))
    assert share_not_in_effect(double, settings) is None
    assert share_not_in_effect(double, SCHEDULE) is not None


@pytest.mark.parametrize(("scale", "speaks"), [(1.0, True), (2.0, False)])
def test_where_care_is_counted_the_scale_itself_is_in_question(scale: float, speaks: bool) -> None:
    """Half of the frames need care: the expert acts on 0.4 and 0.8 of them, together on 0.6."""
    settings = {**SCHEDULE, "expert_share": 0.4, "expert_share_floor": 0.4, "expert_care_scale": 2.0}
    stretches = [stretch._replace(with_care=500.0) for stretch in frames(lambda step: 0.2 * (1.0 + scale))]
    assert (share_not_in_effect(stretches, settings) is not None) is speaks
    assert share_not_in_effect(frames(lambda step: 0.2 * (1.0 + scale)), settings) is None


def test_the_table() -> None:
    assert rows_as_text([rate(5e-5)]).splitlines() == [
        "setting        configured  first  last   lowest  highest",
        "learning_rate  0.003       5e-05  5e-05  5e-05   5e-05",
    ]


class Overrides(DQN):
    """A schedule of its own, which nobody sees."""

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        return super().set_learning_rate(optimizer, 5e-5)


SMALL: dict[str, Any] = {"updates_per_iteration": 1, "eval_episodes": 2, "total_env_steps": 320}


def test_a_learning_rate_that_is_silently_replaced_is_named_at_the_end(tmp_path: Path) -> None:
    guard = EffectiveSettings()
    trainer = fit_small(tmp_path, guard, model_class=Overrides, arguments={"learning_rate": 3e-3}, **SMALL)
    assert guard.raised == [("setting_not_in_effect", WARN)]
    first, last = events(trainer, "settings")
    (row,) = [row for row in last["evidence"]["rows"] if row["name"] == "learning_rate"]
    assert (row["configured"], row["high"]) == (3e-3, pytest.approx(5e-5))
    assert first["iteration"] < last["iteration"]


def test_a_healthy_run_is_silent(tmp_path: Path) -> None:
    guard = EffectiveSettings()
    trainer = fit_small(tmp_path, guard, arguments={"final_learning_rate": 1e-6}, **SMALL)
    assert guard.raised == []
    names = [row["name"] for row in events(trainer, "settings")[-1]["evidence"]["rows"]]
    assert names == ["learning_rate", "exploration_initial_eps", "max_grad_norm", "replay_ratio"]


class Operator(Callback):
    """A scale of the learning rate and an override of the share, between iterations, as a control file sets them."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DQN)
        pl_module.learning_rate_scale = 0.1 if 40 <= batch_idx < 60 else 1.0
        # A row has five iterations: it ends without the override that was set in its first and released in its fourth.
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        data.expert_share_override = 1.0 if 100 <= batch_idx < 103 else None


def test_what_an_operator_does_between_two_iterations_is_no_fault(tmp_path: Path) -> None:
    seed_everything(0)
    data = ExpertDataModule(
        ENV_ID,
        16_000,
        num_envs=4,
        expert_share=0.02,
        expert_share_decay=1.0,
        expert_share_floor=0.02,
        learning_starts=400,
        steps_per_iteration=20,
        updates_per_iteration=1,
        batch_size=8,
        eval_episodes=1,
        eval_every=16_000,
    )
    guard = EffectiveSettings()
    trainer = make_trainer(tmp_path, Operator(), guard, logger=False, enable_checkpointing=False, max_steps=200)
    trainer.fit(DQN(data.spec, hidden_sizes=[8]), datamodule=data)
    assert warnings_of(guard) == []
    rates = guard.rows["learning_rate"]
    assert [rates.low, rates.high] == pytest.approx([rates.configured] * 2)


def test_the_table_is_shown_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fit_small(tmp_path, EffectiveSettings(), **SMALL)
    (message,) = [record.message for record in caplog.records if "configured and applied" in record.message]
    assert "learning_rate" in message


class NeverDecays(ExpertDataModule):
    """The share stays what it was at the beginning."""

    def make_collector(self, environments: Any) -> Any:
        collector = super().make_collector(environments)
        assert self.mixture is not None
        self.mixture.schedule = self.schedule._replace(decay=1.0)
        return collector


@pytest.mark.parametrize(("data_class", "expected"), [(ExpertDataModule, []), (NeverDecays, ["share_not_in_effect"])])
def test_the_share_of_a_real_run(data_class: type[ExpertDataModule], expected: list[str], tmp_path: Path) -> None:
    seed_everything(0)
    data = data_class(
        ENV_ID,
        1_600,
        num_envs=4,
        expert_share=0.9,
        expert_share_decay=0.1,
        expert_share_decay_steps=400,
        expert_share_floor=0.0,
        learning_starts=1_500,
        steps_per_iteration=20,
        updates_per_iteration=1,
        eval_episodes=2,
        eval_every=1_600,
        env_kwargs={"max_episode_steps": 60},
    )
    guard = EffectiveSettings()
    make_trainer(tmp_path, guard, logger=False, enable_checkpointing=False).fit(DQN(data.spec), datamodule=data)
    assert warnings_of(guard) == expected
    share = guard.rows["expert_share"]
    assert share.configured == 0.9
    assert share.first == pytest.approx(0.9, abs=0.25)
    assert (share.last < 0.1) is not bool(expected)
    torch.save(guard.state_dict(), tmp_path / "state.pt")
    other = EffectiveSettings()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert as_lists(other.state_dict()) == as_lists(guard.state_dict())
