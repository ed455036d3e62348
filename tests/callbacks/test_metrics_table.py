from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from test_curves import fit, make_data, read_curves
from torch import Tensor

from rlmods.algorithms import DQN
from rlmods.callbacks import MetricsTable
from rlmods.callbacks.clip_delta import ClipDelta
from rlmods.callbacks.metrics_table import Column, short, title_line, value_line
from rlmods.callbacks.probe_states import ProbeStates
from rlmods.data import ExpertDataModule
from rlmods.types import MixtureTotals, Observation, ReplayBatch, Transition


def batch_of(*states: float) -> ReplayBatch:
    """Two mini-batches, of one number each state."""
    column = torch.tensor(states).view(2, -1)
    flags = torch.zeros_like(column, dtype=torch.bool)
    observation = column.unsqueeze(-1)
    transition = Transition(observation, column, column, column, observation, flags, flags)
    return ReplayBatch(transition, column.long(), column, 0, 0.0)


class Doubles:
    """Q(s, ·) = (2s, −2s)."""

    def action_values(self, observation: Observation) -> Tensor:
        assert isinstance(observation, Tensor)
        return 2.0 * torch.cat([observation, -observation], 1)


def test_probe_states_are_the_first_and_stay() -> None:
    probe = ProbeStates(3)
    probe.collect(batch_of(1.0, 2.0))
    assert probe.percentiles(Doubles()) == {}
    probe.collect(batch_of(3.0, 4.0))
    probe.collect(batch_of(50.0, 60.0))
    # −6, −4, −2, 2, 4, 6
    found = probe.percentiles(Doubles())
    assert found == pytest.approx({"min": -6.0, "p01": -5.9, "p50": 0.0, "p99": 5.9, "max": 6.0})
    other = ProbeStates(3)
    other.load_state_dict(probe.state_dict())
    assert other.percentiles(Doubles()) == found


def test_probe_states_of_a_checkpoint_go_to_the_device_of_the_module(tmp_path: Path) -> None:
    data, table = make_data(), MetricsTable(num_probe_states=32)
    model = DQN(data.spec)
    fit(tmp_path, model, data, table)
    elsewhere = torch.device("meta")
    table.on_train_start(model.trainer, model.to(elsewhere))
    assert {column.device for column in table.probe.columns.values()} == {elsewhere}


def test_probe_states_of_dicts() -> None:
    plain = batch_of(1.0, 2.0)
    observation = plain.transition.observation
    assert isinstance(observation, Tensor)
    probe = ProbeStates(2)
    probe.collect(plain._replace(transition=plain.transition._replace(observation={"a": observation})))

    class OfDicts(Doubles):
        def action_values(self, observation: Observation) -> Tensor:
            assert isinstance(observation, dict)
            return super().action_values(observation["a"])

    assert probe.percentiles(OfDicts())["max"] == 4.0


class Clips(Callback):
    def __init__(self) -> None:
        self.measure = ClipDelta()
        self.ratios: list[Tensor] = []
        self.norms: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measure.begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.ratios.append(self.measure.take(outputs))
            self.norms.append(outputs["grad_norm/q"])


def test_clip_delta_is_the_bound_over_the_norm(tmp_path: Path) -> None:
    data, clips = make_data(), Clips()
    fit(tmp_path, DQN(data.spec, max_grad_norm=0.05), data, clips)
    ratios, norms = torch.cat(clips.ratios), torch.cat(clips.norms)
    assert ratios.numel() == 2 * len(clips.ratios) > 4
    torch.testing.assert_close(ratios, (0.05 / norms).clamp(max=1.0), rtol=1e-5, atol=1e-5)
    assert float(ratios.min()) < 1.0


def test_a_table_and_its_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data()
    fit(tmp_path, DQN(data.spec), data, MetricsTable(every_seconds=0.0, num_probe_states=32))
    titles, *rows = capsys.readouterr().out.splitlines()
    assert titles.split()[:2] == ["frames", "fps"]
    assert len(rows) == 5  # ten iterations, a point every two
    assert [row.split()[0] for row in rows] == ["100", "200", "300", "400", "500"]
    curves = read_curves(tmp_path)
    assert [step for step, _ in curves["stability/q_probe_p50"]] == [100, 200, 300, 400, 500]
    assert all(0.0 < value <= 1.0 for _, value in curves["stability/clip_delta_max"])


def cells_of(line: str) -> list[str]:
    return [line[start : start + 10].strip() for start in range(0, len(line), 10)]


def number(cell: str) -> float:
    return float(cell.replace(",", ""))


def test_parts_of_the_reward_overrides_and_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Points, death and levels are the environment's own; two updates on 64 transitions an iteration of 64 frames."""

    class Overrides(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, DQN)
            pl_module.exploration_override = 0.25 if batch_idx in (2, 3) else None
            trainer.datamodule.expert_share_override = 0.5 if batch_idx in (4, 5) else None  # type: ignore[attr-defined]

    data = ExpertDataModule(
        "rlmods/LaneShooter-v0",
        512,
        num_envs=16,
        learning_starts=64,
        steps_per_iteration=64,
        updates_per_iteration=2,
        eval_episodes=1,
        env_kwargs={"max_episode_steps": 8},
    )
    table = MetricsTable(every_seconds=0.0, num_probe_states=32)
    fit(tmp_path, DQN(data.spec), data, Overrides(), table)
    titles, *rows = capsys.readouterr().out.splitlines()
    cells = [dict(zip(cells_of(titles), cells_of(row), strict=True)) for row in rows]
    assert {"points", "death", "shaping", "bonus", "levels", "updates/s", "samples/s"} <= cells[0].keys()
    assert ["OVR" in row["ε"] for row in cells] == [False, True, False, False]
    assert ["OVR" in row["expert"] for row in cells] == [False, False, True, False]
    assert [row["levels"] for row in cells] == ["0"] * 4
    # Samples of two mini-batches of 64 for two updates.
    for row in cells[1:]:
        assert number(row["samples/s"]) == pytest.approx(64 * number(row["updates/s"]), abs=64)
        assert number(row["updates/s"]) == pytest.approx(number(row["fps"]) / 32, abs=1.0)


class Mixed:
    """What a data module with an expert says, after so many points: the expert leaves, and both stay as they are."""

    totals = (MixtureTotals(10, 90, 1.0, 90.0), MixtureTotals(100, 100, 10.0, 100.0))


def test_the_networks_own_reward_does_not_rise_because_an_expert_leaves() -> None:
    """Of 90 frames each; the network collects 0.1 a frame, the expert 1."""
    table = MetricsTable(windows=[100, 1000])
    first = table._windows(100, Mixed.totals[0])
    second = table._windows(200, Mixed.totals[1])
    assert first["rollout/reward_per_frame_100"] == pytest.approx(0.91)
    assert second["rollout/reward_per_frame_100"] == pytest.approx((90 * 0.1 + 10) / 100)
    assert first["rollout/network_reward_per_frame_100"] == second["rollout/network_reward_per_frame_100"] == 0.1
    assert second["rollout/reward_slope"] < -1.0
    assert second["rollout/network_reward_slope"] == pytest.approx(0.0, abs=1e-9)


def test_lines() -> None:
    columns = [Column("a", "x", ".1f"), Column("b", "y", ",.0f")]
    assert title_line(columns) == "        a         b"
    assert value_line(columns, {"x": 1.25, "y": 12345.0}) == "      1.2    12,345"
    assert value_line(columns, {}) == "        –         –"
    assert value_line(columns, {"x": 1.25, "y": 5.0}, ["x"]) == "  1.2 OVR         5"
    assert [short(frames) for frames in (100_000, 5_000_000, 1_500, 2_000)] == ["100k", "5M", "1500", "2k"]


def test_probe_states_that_are_there_after_whole_iterations_are_not_refused(tmp_path: Path) -> None:
    data = make_data(learning_starts=1)
    fit(tmp_path, DQN(data.spec), data, MetricsTable(num_probe_states=50))


def test_what_is_refused(tmp_path: Path) -> None:
    data = make_data(learning_starts=100)
    with pytest.raises(ValueError, match=r"num_probe_states = 101, but the replay holds 100 transitions when"):
        fit(tmp_path, DQN(data.spec), data, MetricsTable(num_probe_states=101))
    data = make_data(learning_starts=100, buffer_size=64)
    with pytest.raises(ValueError, match=r"num_probe_states = 65, but the replay holds 64 transitions when"):
        fit(tmp_path, DQN(data.spec), data, MetricsTable(num_probe_states=65))
    with pytest.raises(ValueError, match="expected 1 or more"):
        MetricsTable(num_probe_states=0)
    with pytest.raises(ValueError, match="expected 0 or more"):
        MetricsTable(every_seconds=-1.0)
