"""What a learning run leaves behind, and the table of many."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple, TypedDict


class Evaluation(TypedDict):
    """One evaluation during training."""

    env_steps: int
    wall_seconds: float  # of training up to here, without the evaluations
    mean: float
    std: float


class Score(TypedDict):
    """The last evaluation of the final weights, on fresh environment seeds."""

    mean: float
    std: float
    episodes: int


class Result(TypedDict):
    """One seed, as its JSON file holds it."""

    seed: int
    settings: dict[str, Any]
    versions: dict[str, str | None]
    training_seconds: float  # without the evaluations
    total_seconds: float  # with them
    evaluations: list[Evaluation]
    score: Score
    time_to_solve: float | None  # None: never solved, censored


class Summary(NamedTuple):
    """A table's last lines."""

    seeds: int
    at_threshold: int
    median: float
    interquartile_mean: float
    minimum: float
    median_time_to_solve: float  # infinite where half of the seeds are censored
    censored: int


def time_to_solve(evaluations: Sequence[Evaluation], threshold: float, hold: int = 3) -> float | None:
    """Seconds of training before the first of `hold` evaluations in a row at or above the threshold."""
    held = 0
    for position, evaluation in enumerate(evaluations):
        held = held + 1 if evaluation["mean"] >= threshold else 0
        if held == hold:
            return evaluations[position - hold + 1]["wall_seconds"]
    return None


def held_from(evaluations: Sequence[Evaluation], threshold: float) -> int | None:
    """Environment steps of the first evaluation from which on all are at or above the threshold; None without one."""
    held: int | None = None
    for evaluation in reversed(evaluations):
        if evaluation["mean"] < threshold:
            break
        held = evaluation["env_steps"]
    return held


def interquartile_mean(scores: Sequence[float]) -> float:
    """Mean without the lowest and the highest quarter, each rounded down to whole scores."""
    cut = len(scores) // 4
    return mean(sorted(scores)[cut : len(scores) - cut])


def summarise(results: Sequence[Result], threshold: float) -> Summary:
    scores = [result["score"]["mean"] for result in results]
    times = [result["time_to_solve"] for result in results]
    return Summary(
        seeds=len(results),
        at_threshold=sum(score >= threshold for score in scores),
        median=median(scores),
        interquartile_mean=interquartile_mean(scores),
        minimum=min(scores),
        median_time_to_solve=median(math.inf if time is None else time for time in times),
        censored=times.count(None),
    )


def table(results: Sequence[Result], threshold: float) -> str:
    """One line a seed, then the summary."""
    lines = [
        f"{'seed':>6s}{'score':>9s}{'std':>8s}{'held from step':>16s}{'solved after s':>16s}{'training s':>12s}"
        f"{'with evaluations':>18s}"
    ]
    for result in sorted(results, key=lambda each: each["seed"]):
        held = held_from(result["evaluations"], threshold)
        lines.append(
            f"{result['seed']:6d}{result['score']['mean']:9.1f}{result['score']['std']:8.1f}"
            f"{'never' if held is None else f'{held:,}':>16s}{seconds(result['time_to_solve']):>16s}"
            f"{result['training_seconds']:12.1f}{result['total_seconds']:18.1f}"
        )
    summary = summarise(results, threshold)
    lines += [
        f"score, the last evaluation: {summary.at_threshold} of {summary.seeds} at or above {threshold:g}, "
        f"median {summary.median:.1f}, IQM {summary.interquartile_mean:.1f}, min {summary.minimum:.1f}",
        f"time to solve, evaluations left out: median {seconds(summary.median_time_to_solve)} s, "
        f"{summary.censored} of {summary.seeds} never solved (censored, counted as infinite)",
    ]
    return "\n".join(lines)


def seconds(time: float | None) -> str:
    return "never" if time is None or math.isinf(time) else f"{time:.1f}"


def read_result(path: Path) -> Result:
    result: Result = json.loads(path.read_text())
    return result


def read_results(folder: Path) -> list[Result]:
    return [read_result(path) for path in sorted(folder.glob("seed_*.json"))]


def write_result(path: Path, result: Result) -> None:
    """Whole, or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(path)
