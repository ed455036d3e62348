"""The learning benchmark: it goes on where it stopped, and its table says the right numbers."""

import argparse
import json
import math
import sys
from pathlib import Path
from subprocess import CalledProcessError

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from learning import SettingsDifferError, Task, make_job, parse_seeds, run
from scores import (
    Evaluation,
    Result,
    Score,
    held_from,
    interquartile_mean,
    read_results,
    summarise,
    table,
    time_to_solve,
)

PROTOCOL = argparse.Namespace(eval_every=1_024, eval_episodes=10, score_episodes=100, threshold=475.0)

# Stands for the training: notes that it was called, and scores a hundred times the seed.
TRAIN = """
import json, sys
from pathlib import Path
job, out = json.loads(sys.argv[1]), Path(sys.argv[2])
seed = int(out.stem.removeprefix("seed_"))
with (out.parent / "calls").open("a") as calls:
    calls.write(f"{seed}\\n")
if (out.parent / "broken").exists():
    raise SystemExit(3)
out.write_text(json.dumps({"seed": seed, "settings": job, "score": {"mean": 100.0 * seed}}))
"""


def make_tasks(folder: Path, seeds: list[int], config: str = "dqn_cartpole") -> list[Task]:
    job = make_job(PROTOCOL, config=config)
    return [Task(job, seed, folder) for seed in seeds]


def run_fake(tasks: list[Task]) -> list[int]:
    """The seeds that were trained, in their order."""
    calls = tasks[0].folder / "calls"
    calls.unlink(missing_ok=True)
    run(tasks, jobs=1, train=[sys.executable, "-c", TRAIN])
    return [int(line) for line in calls.read_text().split()] if calls.exists() else []


def test_the_runner_goes_on_where_it_stopped(tmp_path: Path) -> None:
    assert run_fake(make_tasks(tmp_path, [3, 4])) == [3, 4]
    assert run_fake(make_tasks(tmp_path, [2, 3, 4, 5])) == [2, 5]
    assert run_fake(make_tasks(tmp_path, [2, 3, 4, 5])) == []
    assert [result["seed"] for result in read_results(tmp_path)] == [2, 3, 4, 5]


def test_a_failed_seed_is_trained_again_by_the_next_call(tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(CalledProcessError):
        run_fake(make_tasks(tmp_path, [3]))
    (tmp_path / "broken").unlink()
    assert run_fake(make_tasks(tmp_path, [3])) == [3]


def test_results_of_other_settings_are_an_error_and_nothing_is_trained(tmp_path: Path) -> None:
    run_fake(make_tasks(tmp_path, [3]))
    with pytest.raises(SettingsDifferError, match=r"seed_3\.json was made with other settings \(config\)"):
        run_fake(make_tasks(tmp_path, [2, 3], config="another"))
    assert not (tmp_path / "seed_2.json").exists()


def make_result(seed: int, score: float, time: float | None) -> Result:
    return Result(
        seed=seed,
        settings={},
        versions={},
        training_seconds=10.0,
        total_seconds=12.0,
        evaluations=[],
        score=Score(mean=score, std=0.0, episodes=100),
        time_to_solve=time,
    )


def test_the_summary_counts_and_averages() -> None:
    scores = [500.0, 500.0, 475.0, 474.9, 100.0, 400.0, 490.0, 480.0]
    times = [1.0, 2.0, None, 4.0, None, 5.0, 3.0, 6.0]
    results = [make_result(*row) for row in zip(range(8), scores, times, strict=True)]
    summary = summarise(results, 475.0)
    assert summary.at_threshold == 5
    assert summary.median == pytest.approx((475.0 + 480.0) / 2)
    assert summary.interquartile_mean == pytest.approx((474.9 + 475.0 + 480.0 + 490.0) / 4)
    assert summary.minimum == 100.0
    assert summary.median_time_to_solve == pytest.approx(4.5)
    assert summary.censored == 2
    assert "2 of 8 never solved" in table(results, 475.0)


def test_the_median_time_is_unknown_where_half_of_the_seeds_are_censored() -> None:
    results = [make_result(0, 500.0, 1.0), make_result(1, 10.0, None)]
    assert math.isinf(summarise(results, 475.0).median_time_to_solve)


def test_the_interquartile_mean_of_ten_leaves_out_two_at_each_end() -> None:
    assert interquartile_mean([1000.0, 1, 2, 3, 4, 5, 6, 7, 8, -1000.0]) == pytest.approx((2 + 3 + 4 + 5 + 6 + 7) / 6)


def make_evaluations(means: list[float]) -> list[Evaluation]:
    return [
        Evaluation(env_steps=1_000 * number, wall_seconds=float(number), mean=mean, std=0.0)
        for number, mean in enumerate(means)
    ]


def test_solved_is_the_first_of_three_evaluations_in_a_row() -> None:
    assert time_to_solve(make_evaluations([475, 475, 0, 476, 475, 500, 0]), 475.0) == 3.0
    assert time_to_solve(make_evaluations([475, 475, 0, 475, 475]), 475.0) is None


def test_seeds_are_ranges_or_lists() -> None:
    assert parse_seeds("0-9") == list(range(10))
    assert parse_seeds("100,103-104") == [100, 103, 104]


def test_the_job_is_what_a_result_holds_after_json() -> None:
    job = make_job(PROTOCOL, zoo=True)
    assert json.loads(json.dumps(job)) == job
    assert "model.init_args.double_q=false" in job["overrides"]


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([9.0, 475.0, 500.0], 1_000),
        ([500.0, 9.0, 480.0], 2_000),
        ([500.0, 500.0], 0),
        ([500.0, 474.9], None),
        ([], None),
    ],
)
def test_golden_held_from(means: list[float], expected: int | None) -> None:
    assert held_from(make_evaluations(means), 475.0) == expected
