import json
import os
from pathlib import Path
from typing import Any

import pytest
from expert_cart_pole import ENV_ID
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer

from rlmods.algorithms import DQN
from rlmods.callbacks import ControlFile
from rlmods.callbacks.control_settings import parse_control
from rlmods.data import ExpertDataModule, ReplayDataModule

CALM: dict[str, Any] = {
    "total_env_steps": 480,
    "num_envs": 4,
    "learning_starts": 40,
    "steps_per_iteration": 20,
    "updates_per_iteration": 1,
    "batch_size": 8,
    "eval_episodes": 1,
    "eval_every": 10_000,
    "seed": 5,
}


class Operator(Callback):
    """Writes the file after given iterations, and notes what holds in each."""

    def __init__(self, writes: dict[int, str]) -> None:
        self.writes = writes
        self.noted: list[tuple[float, float, float]] = []  # expert share, exploration rate, learning rate

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.writes:
            path = Path(str(trainer.log_dir)) / "control.yaml"
            path.write_text(self.writes[batch_idx])
            os.utime(path, ns=(batch_idx, batch_idx))  # one that differs, however fast the iterations are

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DQN)
        data = trainer.datamodule  # type: ignore[attr-defined]
        mixture = data.mixture if isinstance(data, ExpertDataModule) else None
        share = -1.0 if mixture is None else mixture.share(batch.env_steps)
        rate = pl_module.exploration_rate(batch.env_steps)
        self.noted.append((share, rate, trainer.optimizers[0].param_groups[0]["lr"]))


def fit(
    folder: Path,
    operator: Operator,
    *more: Callback,
    expert: bool = True,
    max_steps: int = -1,
    ckpt_path: Path | None = None,
    logger: bool = True,
) -> tuple[ControlFile, Trainer]:
    """24 iterations; without overrides the share is 0.4, ε 0.1 and the learning rate 0.01."""
    seed_everything(0)
    data: ReplayDataModule
    if expert:
        data = ExpertDataModule(ENV_ID, **CALM, expert_share=0.4, expert_share_decay=1.0)
    else:
        data = ReplayDataModule(ENV_ID, **CALM)
    model = DQN(data.spec, hidden_sizes=[8], learning_rate=0.01, exploration_fraction=0.0, exploration_final_eps=0.1)
    control = ControlFile()
    trainer = make_trainer(folder, operator, *more, control, max_steps=max_steps, logger=logger)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return control, trainer


def control_events(trainer: Trainer) -> list[dict[str, Any]]:
    lines = (Path(str(trainer.log_dir)) / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "control"]


def test_overrides_hold_from_the_next_iteration_on_until_null_gives_the_schedule_back(tmp_path: Path) -> None:
    operator = Operator(
        {
            5: "expert_share: 1.0\nexploration_rate: 0.5\n",
            9: "learning_rate_scale: 1e-1\n",
            13: "expert_share: null\nexploration_rate: 0.5\nlearning_rate_scale: null\n",
        }
    )
    control, trainer = fit(tmp_path, operator)
    # The file is written at the beginning of an iteration, read at its end, and noted before that.
    assert [round(share, 6) for share, _, _ in operator.noted] == [0.4] * 6 + [1.0] * 8 + [0.4] * 10
    assert [rate for _, rate, _ in operator.noted] == [0.1] * 6 + [0.5] * 18
    assert [rate for _, _, rate in operator.noted] == pytest.approx([0.01] * 10 + [0.001] * 4 + [0.01] * 10)
    changes = [(event["iteration"], event["message"]) for event in control_events(trainer)]
    assert changes == [
        (6, "expert_share: schedule -> 1"),
        (6, "exploration_rate: schedule -> 0.5"),
        (10, "learning_rate_scale: schedule -> 0.1"),
        (14, "expert_share: 1 -> schedule"),
        (14, "learning_rate_scale: 0.1 -> schedule"),
    ]
    assert [event["env_steps"] for event in control_events(trainer)][:1] == [120]
    assert control.overrides == {"exploration_rate": 0.5}


class Halves(Callback):
    """Scales the learning rate after given iterations, as a rollback does."""

    def __init__(self, *iterations: int) -> None:
        self.iterations = iterations

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DQN)
        if batch_idx in self.iterations:
            pl_module.learning_rate_scale *= 0.5


def test_what_is_written_last_replaces_what_a_rollback_has_made_of_the_scale(tmp_path: Path) -> None:
    writes = {6: "learning_rate_scale: null\n", 9: "learning_rate_scale: 0.8\n", 15: "learning_rate_scale: 0.8 # yes\n"}
    operator = Operator(writes)
    _, trainer = fit(tmp_path, operator, Halves(3, 12))
    rates = [rate / 0.01 for _, _, rate in operator.noted]
    assert rates == pytest.approx([1.0] * 4 + [0.5] * 3 + [1.0] * 3 + [0.8] * 3 + [0.4] * 3 + [0.8] * 8)
    assert [event["message"] for event in control_events(trainer)] == [
        "learning_rate_scale: 0.5 -> schedule",
        "learning_rate_scale: schedule -> 0.8",
        "learning_rate_scale: 0.4 -> 0.8",
    ]


def test_a_file_that_cannot_be_used_changes_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    operator = Operator(
        {
            3: "expert_share: 0.9\n",
            6: "expert_share: [0.5",
            9: "expert_share: 0.5\nexpert_shares: 0.2\n",
            12: "exploration_rate: 0.3\nexpert_share: 1.5\n",
        }
    )
    _, trainer = fit(tmp_path, operator)
    assert [(share, rate) for share, rate, _ in operator.noted] == [(0.4, 0.1)] * 4 + [(0.9, 0.1)] * 20
    _, broken, unknown, outside = control_events(trainer)
    assert "control.yaml is not used: it is no YAML" in broken["message"]
    assert "keys ['expert_shares'], expected some of ['expert_share', 'exploration_rate'," in unknown["message"]
    assert "expert_share: 1.5, expected a number from 0 to 1, or null" in outside["message"]
    assert {event["evidence"]["severity"] for event in (broken, unknown, outside)} == {"warn"}
    assert trainer.global_step == 24


def test_a_key_that_nobody_hears_is_said(tmp_path: Path) -> None:
    operator = Operator({3: "expert_share: 0.9\nexploration_rate: 0.5\n"})
    _, trainer = fit(tmp_path, operator, expert=False)
    (event,) = control_events(trainer)
    assert "keys ['expert_share'], to which neither DQN nor ReplayDataModule listens" in event["message"]
    assert {rate for _, rate, _ in operator.noted} == {0.1}


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    _, trainer = fit(tmp_path, Operator({}), max_steps=3)
    assert control_events_or_none(trainer) == []


def control_events_or_none(trainer: Trainer) -> list[dict[str, Any]]:
    return control_events(trainer) if (Path(str(trainer.log_dir)) / "events.jsonl").exists() else []


def test_overrides_are_part_of_a_checkpoint(tmp_path: Path) -> None:
    writes = {5: "expert_share: 0.7\nexploration_rate: 0.2\nlearning_rate_scale: 0.5\n"}
    whole = Operator(writes)
    fit(tmp_path / "whole", whole)
    fit(tmp_path / "half", Operator(writes), max_steps=12)
    (half,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = Operator({})
    control, trainer = fit(tmp_path / "resumed", resumed, ckpt_path=half)
    assert control_events_or_none(trainer) == []
    assert resumed.noted == whole.noted[12:]
    assert control.overrides == {"expert_share": 0.7, "exploration_rate": 0.2, "learning_rate_scale": 0.5}


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("", {}),
        ("# nothing yet\n", {}),
        ("expert_share: 1", {"expert_share": 1.0}),
        ("expert_share: null\nexploration_rate: 0.0", {"expert_share": None, "exploration_rate": 0.0}),
        ("learning_rate_scale: 5e-2", {"learning_rate_scale": 0.05}),  # a word to YAML
    ],
)
def test_what_a_file_says(text: str, settings: dict[str, float | None]) -> None:
    assert parse_control(text) == settings


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- expert_share", r"\['expert_share'\], expected lines of key: value, such as expert_share: 0.5"),
        ("expert_share: true", "expert_share: True, expected a number from 0 to 1"),
        ("expert_share: half", "expert_share: 'half', expected a number from 0 to 1"),
        ("exploration_rate: -0.1", "expected a number from 0 to 1"),
        ("learning_rate_scale: .inf", "expected a number from 0 on"),
        ("learning_rate_scale: .nan", "expected a number from 0 on"),
        ("learning_rate_scale: -1", "expected a number from 0 on"),
        ("expert_share: {a: 1}", "expected a number from 0 to 1"),
        (f"learning_rate_scale: {10**400}", "expected a number from 0 on"),
        ("expert_share: 2026-13-01", "it is no YAML .*: type expert_share: 0.5"),
        ("[" * 2000, "it is no YAML .*: type expert_share: 0.5"),
        ("1: 2", r"keys \[1\], expected some of"),
    ],
)
def test_what_a_file_may_not_say(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_control(text)
