"""What several seeds of one configuration scored, by our rule and by those of a paper's tables.

Fujimoto et al. 2018, "Addressing Function Approximation Error in Actor-Critic Methods", https://arxiv.org/abs/1802.09477:
the figures of its tables 1 and 2 follow from its published curves by the two rules below. The first takes the best of
the evaluations after the fact, which flatters every noisy curve; it is here to compare like with like.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rlmods.reports.document import Block, Grid, Items
from rlmods.reports.run_data import RunData
from rlmods.reports.summary import number

LAST_EVALUATIONS = 10
_CURVE = "eval/mean_reward"
# Settings that runs of one configuration may differ in: where they were written, and what they were drawn from.
_OF_A_RUN = ("seed_everything", "seed", "data.init_args.seed", "trainer.default_root_dir", "ckpt_path", "force_gates")


class Score(NamedTuple):
    """Over S seeds."""

    mean: float
    std: float  # population


class SeedScores(NamedTuple):
    """Of S curves of E evaluations.

    Attributes:
        last: at the last evaluation: the score of a run here.
        best: at the one evaluation where the mean over the seeds is largest (table 1 of the paper).
        best_position: of that evaluation, from 0; the first one of several that are equal.
        tail: of each seed's mean over its last ten evaluations (table 2), over all of them where there are fewer.
    """

    last: Score
    best: Score
    best_position: int
    tail: Score

    @property
    def flattery(self) -> float:
        """By how much the rule of table 1 exceeds the last evaluation; never negative."""
        return self.best.mean - self.last.mean


def seed_scores(curves: Sequence[Sequence[float]]) -> SeedScores:
    """The scores of curves `[S, E]`, S ≥ 1 seeds of E ≥ 1 evaluations.

    Raises:
        ValueError: where the seeds do not have equally many evaluations, or a value is not finite.
    """
    counts = sorted({len(curve) for curve in curves})
    if len(counts) != 1 or counts[0] == 0:
        raise ValueError(f"got seeds of {counts} evaluations, expected the same number of each, from 1 on")
    if not all(math.isfinite(value) for curve in curves for value in curve):
        raise ValueError("got evaluations that are not finite, expected numbers")
    evaluations = [_score(values) for values in zip(*curves, strict=True)]
    position = max(range(len(evaluations)), key=lambda at: evaluations[at].mean)
    tails = [statistics.fmean(curve[-LAST_EVALUATIONS:]) for curve in curves]
    return SeedScores(evaluations[-1], evaluations[position], position, _score(tails))


def _score(values: Sequence[float]) -> Score:
    return Score(statistics.fmean(values), statistics.pstdev(values))


def seed_groups(runs: Mapping[str, RunData], flat_configs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Labels of runs that are one configuration with different seeds, two or more together.

    Args:
        runs: by label.
        flat_configs: their settings by dotted name, in the same order.
    """
    groups: dict[str, list[str]] = {}
    for label, config in zip(runs, flat_configs, strict=True):
        settings = {name: value for name, value in config.items() if name not in _OF_A_RUN}
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(label)
    return [
        group
        for group in groups.values()
        if len(group) > 1
        and len({str(runs[label].seed) for label in group}) == len(group)
        and any(runs[label].curve(_CURVE).values for label in group)
    ]


def scores_json(runs: Mapping[str, RunData], groups: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """For each group its runs, seeds and scores, or the `reason` why there are none."""
    found: list[dict[str, Any]] = []
    for group in groups:
        entry: dict[str, Any] = {"runs": list(group), "seeds": [runs[label].seed for label in group]}
        try:
            scores = seed_scores([runs[label].curve(_CURVE).values for label in group])
        except ValueError as error:
            found.append(entry | {"reason": str(error)})
            continue
        times = runs[group[0]].curve(_CURVE).times
        found.append(
            entry
            | {
                "evaluations": len(times),
                "last": scores.last._asdict() | {"env_steps": times[-1]},
                "best_mean": scores.best._asdict() | {"env_steps": times[scores.best_position]},
                "last_ten": scores.tail._asdict() | {"env_steps": times[-LAST_EVALUATIONS:][0]},
                "flattery": scores.flattery,
            }
        )
    return found


def scores_blocks(found: Sequence[Mapping[str, Any]]) -> list[Block]:
    """For each group a table, our score first."""
    blocks: list[Block] = []
    for entry in found:
        title = f"seeds {', '.join(map(str, entry['seeds']))}: {', '.join(entry['runs'])}"
        if "reason" in entry:
            blocks.append(Items([f"{title}: no score: {entry['reason']}"]))
            continue
        rules = [
            ("last evaluation (the score)", "last"),
            ("evaluation with the best mean (table 1 rule)", "best_mean"),
            (f"mean of the last {LAST_EVALUATIONS} (table 2 rule), from", "last_ten"),
        ]
        rows = [[rule, *_cells(entry[name])] for rule, name in rules]
        blocks.append(Items([title, f"the table 1 rule flatters by {number(entry['flattery'])}"]))
        blocks.append(Grid(["rule", "env_steps", "mean", "std over seeds"], rows))
    return blocks


def _cells(score: Mapping[str, float]) -> list[str]:
    return [f"{score['env_steps']:.0f}", number(score["mean"]), number(score["std"])]
