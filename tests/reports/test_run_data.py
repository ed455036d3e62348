"""What is read of a run folder, and what is refused."""

import math
from pathlib import Path

import pytest
from lab_folder import event, healthy_rows, write_events, write_lab, write_table
from torch.utils.tensorboard import SummaryWriter

from rlmods.reports.run_data import Series, read_run
from rlmods.reports.tables import RunFolderError, read_table


def write_curve(folder: Path, tag: str, points: dict[int, float], purge_step: int | None = None) -> None:
    with SummaryWriter(str(folder), purge_step=purge_step) as writer:
        for step, value in points.items():
            writer.add_scalar(tag, value, step)


def test_curves_beyond_the_checkpoint_of_a_resume_are_gone(tmp_path: Path) -> None:
    write_curve(tmp_path, "train/loss", {10: 1.0, 20: 2.0, 30: 3.0})
    write_curve(tmp_path, "train/loss", {20: 5.0, 40: 6.0}, purge_step=20)
    assert len(list(tmp_path.glob("events.out.*"))) == 2
    assert read_run(tmp_path).curves == {"train/loss": Series([10.0, 20.0, 40.0], [1.0, 5.0, 6.0])}


def test_a_column_of_the_csv_file_wins_over_the_same_curve_in_float32(tmp_path: Path) -> None:
    write_lab(tmp_path, [{"iter": 0, "td_loss": 1 / 3}, {"iter": 1, "td_loss": 0.1}])
    write_curve(tmp_path, "train/td_loss", {200: 1 / 3})
    write_curve(tmp_path, "eval/mean_reward", {200: 2.0})
    run = read_run(tmp_path)
    assert run.curves["td_loss"] == Series([0.0, 1.0], [1 / 3, 0.1])
    assert "train/td_loss" not in run.curves
    assert run.curves["eval/mean_reward"].values == [2.0]


def test_only_numeric_columns_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("iter,converged,w_gap,empty\n3,False,nan,\n5,True,2.5,\n")
    table = read_table(tmp_path / "t.csv")
    assert (table.times, sorted(table.columns)) == ([3.0, 5.0], ["empty", "iter", "w_gap"])
    assert math.isnan(table.columns["w_gap"][0])


def test_a_text_cell_is_told_and_its_column_keeps_its_numbers(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("iter,loss,converged\n3,0.5,False\n5,o.25,True\n7,0.125,False\n9,,False\n")
    table = read_table(tmp_path / "t.csv")
    assert str(table.columns) == "{'iter': [3.0, 5.0, 7.0, 9.0], 'loss': [0.5, nan, 0.125, nan]}"
    assert table.notes == ["t.csv: column loss, row 1: 'o.25' is no number, read as NaN"]


@pytest.mark.parametrize("end", ["2,0.", "2,0.25", "2"])
def test_a_last_line_that_a_crash_cut_short_is_left_out_with_a_note(tmp_path: Path, end: str) -> None:
    (tmp_path / "t.csv").write_text(f"iter,loss\n0,1.0\n1,0.5\n{end}")
    table = read_table(tmp_path / "t.csv")
    assert table.columns["loss"] == [1.0, 0.5]
    assert table.notes == ["t.csv: the last line was cut short and is left out"]


def test_damaged_lines_of_events_are_left_out_with_a_note(tmp_path: Path) -> None:
    write_lab(tmp_path, healthy_rows(2))
    write_events(tmp_path, event("start"))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"damaged": "{"}\n{"kind": "start", "time": "yesterday"}\n{"kind": "alarm", "evidence": [1]}\n')
        file.write('{"kind": "stop", "time": "2026-01-01T00:00:00"}\n{"kind": "st')
    run = read_run(tmp_path)
    assert [line["kind"] for line in run.events] == ["start"]
    assert run.notes == [f"events.jsonl: line {line} is damaged and left out" for line in range(2, 7)]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("learning_curves.csv", "", "which is empty, expected a header"),
        ("learning_curves.csv", "iter,a\n0\n1,2\n", "with 1 cells in line 2, expected 2 as in its header"),
        ("config.json", "{", "config.json, which cannot be read"),
        ("config.yaml", "a: [", "config.yaml, which cannot be read"),
        ("config.yaml", "- a\n", "config.yaml with a list, expected a mapping"),
        ("run.json", "[1]", "run.json with a list, expected a mapping"),
    ],
)
def test_what_cannot_be_understood_is_named(tmp_path: Path, name: str, text: str, said: str) -> None:
    write_lab(tmp_path, healthy_rows(2))
    (tmp_path / name).write_text(text)
    with pytest.raises(RunFolderError, match=r"^got .*") as error:
        read_run(tmp_path)
    assert said in str(error.value)


def test_a_folder_that_is_none_and_one_without_curves(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"which is no folder, expected .* type python -m rlmods report"):
        read_run(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"without learning_curves.csv or events.out.\*, expected a run folder"):
        read_run(tmp_path)


START, END = event("start"), event("stop", 90, "training ends")
SIGNAL = event("stop", 50, "SIGTERM received, saved interrupted.ckpt", signal=15)
EXCEPTION = event("stop", 60, "ValueError: no", exception="ValueError: no")
SAFEGUARD = event("stop", 40, "EvalEarlyStopping: solved", safeguard="eval_early_stopping")


@pytest.mark.parametrize(
    ("events", "complete", "reason"),
    [
        ([START, END], True, "the training came to its end"),
        ([START], False, "no end is on record"),
        ([START, SIGNAL], False, "SIGTERM received"),
        ([START, SIGNAL, event("resume", 50), END], True, "the training came to its end"),
        ([START, EXCEPTION], False, "ended by an exception: ValueError: no"),
        ([START, SAFEGUARD, END], False, "ended by a safeguard: EvalEarlyStopping: solved"),
        ([START, END, event("resume", 50)], False, "no end is on record"),
        ([START, END | {"superseded": True}], False, "no end is on record"),
    ],
)
def test_how_a_run_ended(tmp_path: Path, events: list[dict[str, object]], complete: bool, reason: str) -> None:
    write_lab(tmp_path, healthy_rows(2))
    write_events(tmp_path, *events)
    outcome = read_run(tmp_path).outcome()
    assert outcome.complete is complete
    assert reason in outcome.reason
    assert outcome.exception == ("ValueError: no" if EXCEPTION in events else None)


@pytest.mark.parametrize(("steps", "complete"), [(99, False), (100, True)])
def test_a_safeguard_that_stops_before_the_budget_leaves_a_run_incomplete(
    tmp_path: Path, steps: int, complete: bool
) -> None:
    write_lab(tmp_path, healthy_rows(2))
    (tmp_path / "config.yaml").write_text("data: {init_args: {total_env_steps: 100}}\n")
    write_events(tmp_path, START, event("stop", steps, "NonFiniteGuard: NaN", safeguard="non_finite"), END)
    outcome = read_run(tmp_path).outcome()
    assert (outcome.complete, outcome.early_stop) == (complete, False)
    assert ("at 99 of 100 environment steps: NonFiniteGuard: NaN" in outcome.reason) is not complete


def test_a_folder_of_the_original_tells_by_its_rows(tmp_path: Path) -> None:
    assert read_run(write_lab(tmp_path, healthy_rows(20))).outcome().complete is False
    assert read_run(write_lab(tmp_path, healthy_rows(24))).outcome().complete is True


def test_our_settings_in_the_vocabulary_of_the_original(tmp_path: Path) -> None:
    write_table(tmp_path / "learning_curves.csv", healthy_rows(2))
    (tmp_path / "config.yaml").write_text(
        "seed_everything: 7\n"
        "model: {class_path: rlmods.algorithms.LinearTD, init_args: {learning_rate: 0.2, actor_learning_rate: 0.1, "
        "beta: 0.01, behaviour_std: 0.25, target_std: 0.4, num_bootstrap_samples: 4, scale_mode: sqrtB_T}}\n"
        "data: {class_path: d, init_args: {env_id: rlmods/TorusGobletGhost-v0, num_envs: 16, n_steps: 200, "
        "gamma: 0.99, total_env_steps: 640000, env_kwargs: {action_mode: tanh, p_mix: 0.01}}}\n"
    )
    lab = read_run(tmp_path).lab
    assert lab is not None
    assert list(lab.key_hparams.items()) == [
        *(("outer_iters", 200), ("horizon", 200), ("gamma", 0.99), ("alpha_w", 0.2), ("alpha_pi", 0.1), ("beta", 0.01)),
        *(("sigma_mu", 0.25), ("sigma_pi", 0.4), ("p_mix", 0.01)),
    ]
    assert (lab.seed, lab.samples, lab.action_mode, lab.bootstrap_samples) == (7, 3200, "tanh", 4)
    assert lab.train_step_scale == pytest.approx(0.2 / (4 * 200))  # √16 · 200
