"""The scores of several seeds, by hand."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.tensorboard import SummaryWriter

from rlmods.reports.command import main
from rlmods.reports.seed_scores import Score, seed_scores

# Means over the seeds 5, 25, 35, 20; at the third the seeds have 30, 30, 45: population variance 50.
CURVES = [[0.0, 20.0, 30.0, 30.0], [5.0, 25.0, 30.0, 20.0], [10.0, 30.0, 45.0, 10.0]]


def test_the_three_rules() -> None:
    scores = seed_scores(CURVES)
    assert scores.best_position == 2
    assert scores.best == pytest.approx((35.0, math.sqrt(50.0)))
    # 30, 20, 10.
    assert scores.last == pytest.approx((20.0, math.sqrt(200.0 / 3.0)))
    assert scores.flattery == pytest.approx(15.0)
    # Fewer than ten: the means of the seeds are 20, 20, 23.75.
    assert scores.tail == pytest.approx((21.25, math.sqrt(2 * 1.25**2 / 3 + 2.5**2 / 3)))


def test_the_tail_is_of_the_last_ten() -> None:
    curves = [[1000.0, *range(10)], [1000.0, *range(2, 12)]]
    # 4.5 and 6.5; the first evaluation is none of the last ten, but the best.
    assert seed_scores(curves).tail == Score(5.5, 1.0)
    assert seed_scores(curves).best == Score(1000.0, 0.0)


def test_of_equal_means_the_first_counts() -> None:
    assert seed_scores([[1.0, 3.0, 3.0], [3.0, 1.0, 1.0]]).best_position == 0


def curves_of(size: int) -> st.SearchStrategy[list[list[float]]]:
    curve = st.lists(st.floats(-1e6, 1e6), min_size=size, max_size=size)
    return st.lists(curve, min_size=1, max_size=4)


@given(st.integers(1, 4).flatmap(curves_of))
def test_the_rule_of_table_1_never_flatters_downwards(curves: list[list[float]]) -> None:
    scores = seed_scores(curves)
    assert scores.flattery >= 0.0
    assert scores.best.mean >= scores.tail.mean - 1e-6 * (1.0 + abs(scores.tail.mean))


@pytest.mark.parametrize(
    ("curves", "said"),
    [
        ([[1.0], [1.0, 2.0]], r"got seeds of \[1, 2\] evaluations, expected the same number"),
        ([[], []], r"got seeds of \[0\] evaluations"),
        ([[1.0], [math.nan]], "not finite"),
    ],
)
def test_what_has_no_score_is_refused(curves: list[list[float]], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        seed_scores(curves)


def write_run(folder: Path, curve: list[float], *, seed: int, **model: Any) -> Path:
    config = {
        "seed_everything": seed,
        "trainer": {"default_root_dir": str(folder)},
        "model": {"class_path": "rlmods.algorithms.TD3", "init_args": {"tau": 0.005, **model}},
        "data": {"class_path": "rlmods.data.ReplayDataModule", "init_args": {"env_id": "Pendulum-v1"}},
    }
    with SummaryWriter(str(folder)) as writer:
        for position, value in enumerate(curve):
            writer.add_scalar("eval/mean_reward", value, 100 * (position + 1))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def compare(tmp_path: Path, *folders: Path) -> tuple[list[dict[str, Any]], str]:
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    content = json.loads((tmp_path / "out/report.json").read_text())
    return content["scores_over_seeds"], (tmp_path / "out/report.md").read_text()


def test_runs_that_differ_in_their_seed_alone_are_scored_together(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{seed}", curve, seed=seed) for seed, curve in enumerate(CURVES)]
    other = write_run(tmp_path / "other", CURVES[0], seed=3, tau=0.01)
    (entry,), text = compare(tmp_path, *runs, other)
    assert (entry["runs"], entry["seeds"], entry["evaluations"]) == (["s0", "s1", "s2"], [0, 1, 2], 4)
    assert entry["best_mean"] == {"mean": 35.0, "std": pytest.approx(math.sqrt(50.0)), "env_steps": 300.0}
    assert entry["last"]["mean"] == 20.0
    assert entry["last_ten"]["env_steps"] == 100.0
    assert "the table 1 rule flatters by 15" in text
    assert "| last evaluation (the score) | 400 | 20 | 8.165 |" in text
    assert "| evaluation with the best mean (table 1 rule) | 300 | 35 | 7.071 |" in text


def test_one_seed_twice_is_no_second_seed(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, CURVES[0], seed=0) for name in ("a", "b")]
    assert compare(tmp_path, *runs)[0] == []


def test_a_seed_that_is_not_finished_is_said(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / f"s{seed}", CURVES[seed][: 4 - seed], seed=seed) for seed in (0, 1)]
    (entry,), text = compare(tmp_path, *runs)
    assert entry["reason"] == "got seeds of [3, 4] evaluations, expected the same number of each, from 1 on"
    assert "no score: got seeds of [3, 4] evaluations" in text
