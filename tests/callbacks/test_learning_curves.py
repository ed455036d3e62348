from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guarding import fit_small, fit_stranger
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from test_probes import SEED_STDS, Lab, Regression, rows, small_probes

from rlmods.callbacks.distribution_probe import DistributionProbe
from rlmods.callbacks.fixed_point_probe import FixedPointProbe
from rlmods.callbacks.learning_curves import LearningCurves
from rlmods.callbacks.probe import IterationTable

PUBLISHED = [
    "iter", "td_loss", "critic_teacher_error", "tracking_gap", "mean_rho", "mean_rho2", "p95_rho2", "p99_rho2",
    "max_rho2", "delta_mean", "delta_std", "delta_p95", "delta_p99", "delta_max", "w_norm", "fixed_point_gap",
    "fixed_point_drift", "fixed_point_drift_defined", "stability_proxy", "dist_mmd2", "dist_mean_l2",
    "dist_action_kl", "dist_action_tv",
]  # fmt: skip


@settings(max_examples=30)
@given(st.lists(st.floats(), min_size=1, max_size=4))
def test_a_table_reads_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    path = tmp_path_factory.mktemp("table") / "a.csv"
    table = IterationTable(path, 0)
    for iteration, value in enumerate(values):
        table.append({"iter": iteration, "value": value})
    read = [float(row["value"]) for row in rows(path)]
    assert all(np.float64(a).tobytes() == np.float64(b).tobytes() for a, b in zip(read, values, strict=True) if b == b)
    assert [a != a for a in read] == [b != b for b in values]


def test_a_resume_cuts_what_never_happened(tmp_path: Path) -> None:
    path = tmp_path / "folder/a.csv"
    table = IterationTable(path, 0)
    for iteration in range(4):
        table.append({"iter": iteration, "value": 0.5})
    with path.open("a") as file:
        file.write("4,0.")
    resumed = IterationTable(path, 3)
    resumed.append({"iter": 3, "value": 1.0, "new": True})
    assert path.read_text() == "iter,value,new\n0,0.5,nan\n1,0.5,nan\n2,0.5,nan\n3,1.0,True\n"
    IterationTable(path, 4)
    assert len(rows(path)) == 4
    IterationTable(path, 0)
    assert not path.exists()


class Save(Callback):
    """Writes a checkpoint after an iteration."""

    def __init__(self, iteration: int, path: Path) -> None:
        self.iteration = iteration
        self.path = path

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.iteration:
            trainer.save_checkpoint(self.path)


class Kill(Callback):
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 6:
            raise InterruptedError


def everything(folder: Path, *callbacks: Callback) -> Lab:
    """9 iterations with all probes, by the clock and by the plateau."""
    logger = TensorBoardLogger(folder, name="lightning_logs", version=0)
    return Lab(
        folder,
        *small_probes(every=3, plateau="absolute"),
        LearningCurves(),
        *callbacks,
        iterations=9,
        trainer={"logger": logger},
        **SEED_STDS,
    )


def tables(folder: Path) -> dict[str, str]:
    run = folder / "lightning_logs/version_0"
    return {str(path.relative_to(run)): path.read_text() for path in sorted(run.rglob("*.csv"))}


def test_a_resumed_run_leaves_the_tables_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    """Killed after iteration 6, with rows in every table beyond the checkpoint of iteration 4 and a line cut short."""
    whole = everything(tmp_path / "whole").fit()
    checkpoint = tmp_path / "4.ckpt"
    with pytest.raises(InterruptedError):
        everything(tmp_path / "half", Save(4, checkpoint), Kill()).fit()
    run = tmp_path / "half/lightning_logs/version_0"
    for path in run.rglob("*.csv"):
        assert int(path.read_text().splitlines()[-1].split(",")[0]) > 4
        with path.open("a") as file:
            file.write("7,0.12")
    torch.load(checkpoint, weights_only=True)
    resumed = everything(tmp_path / "half").fit(checkpoint)
    assert torch.equal(resumed.model.critic_weight, whole.model.critic_weight)
    found = tables(tmp_path / "half")
    assert found == tables(tmp_path / "whole")
    assert len(found) == 5
    table = rows(run / "learning_curves.csv")
    assert [row["iter"] for row in table] == [str(iteration) for iteration in range(9)]
    assert [row["iter"] for row in rows(run / "probes/stability_probe.csv")] == ["2", "5", "6", "8"]


def test_the_published_columns_come_first_and_the_numbers_are_exact(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    class Witness(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            seen.append({name: float(value) for name, value in outputs.items() if value.ndim == 0})

    probes = small_probes(every=2)
    lab = Lab(tmp_path, *probes, LearningCurves(), Witness(), iterations=3, trainer={"logger": True}, **SEED_STDS)
    run = Path(str(lab.fit().trainer.log_dir))
    table = rows(run / "learning_curves.csv")
    header = list(table[0])
    assert header[: len(PUBLISHED)] == PUBLISHED
    assert header[len(PUBLISHED) :] == sorted(header[len(PUBLISHED) :])
    for row, scalars in zip(table, seen, strict=True):
        assert {name: float(row[name]) for name in scalars} == scalars
    assert [row["fixed_point_drift_defined"] for row in table] == ["0.0"] * 3
    assert [row["stability_proxy"] == "nan" for row in table] == [True, False, True]
    (of_distribution,) = rows(run / "probes/distribution_probe.csv")
    (of_kernel,) = rows(run / "probes/td_error_kernel_probe.csv")
    assert (table[1]["dist_mmd2"], table[1]["dist_mean_l2"]) == (of_distribution["mmd2"], of_distribution["mean_l2"])
    assert table[1]["td_loss_from_Q"] == of_kernel["td_loss_from_Q"]
    assert float(table[1]["td_loss_from_Q_rel_diff"]) == pytest.approx(0.5)
    assert float(of_kernel["kernel_loss_rel_diff"]) == pytest.approx(0.0, abs=1e-12)


def test_of_two_probes_of_a_class_the_first_one_counts(tmp_path: Path) -> None:
    first, second = (
        DistributionProbe(num_samples=16, num_chains=chains, every_n_iterations=1, name=f"chains_{chains}")
        for chains in (2, 1)
    )
    lab = Lab(tmp_path, first, second, LearningCurves(), trainer={"logger": True}).fit()
    (row,) = rows(Path(str(lab.trainer.log_dir)) / "learning_curves.csv")
    assert first.latest is not None
    assert second.latest is not None
    assert float(row["dist_mmd2"]) == first.latest[1]["mmd2"] != second.latest[1]["mmd2"]


def test_any_module_has_learning_curves(tmp_path: Path) -> None:
    """Automatic optimisation: loss = w², w ← 0.8 w."""
    trainer = fit_stranger(tmp_path, Regression(), [torch.zeros(1)] * 3, LearningCurves())
    table = rows(Path(str(trainer.log_dir)) / "learning_curves.csv")
    assert [list(row) for row in table] == [["iter", "loss"]] * 3
    assert [float(row["loss"]) for row in table] == pytest.approx([1.0, 0.64, 0.4096])


def test_a_warm_up_has_no_rows(tmp_path: Path) -> None:
    """64 of 96 environment steps, 16 an iteration."""
    trainer = fit_small(tmp_path, LearningCurves(), total_env_steps=96)
    table = rows(Path(str(trainer.log_dir)) / "learning_curves.csv")
    assert [row["iter"] for row in table] == ["3", "4", "5"]
    assert "update_steps" in table[0]


def test_a_trial_run_leaves_nothing(tmp_path: Path) -> None:
    fit_stranger(tmp_path, Regression(), [torch.zeros(1)] * 3, LearningCurves(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.csv"))


def test_learning_curves_come_last(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got LearningCurves before FixedPointProbe in the callbacks"):
        Lab(tmp_path, LearningCurves(), FixedPointProbe()).fit()
