"""What the rules for the next run know of a run and of those that it comes from: a few numbers, no files."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rlmods.reports.comparison import flatten
from rlmods.reports.kept_checkpoints import best_kept
from rlmods.reports.run_data import read_mapping
from rlmods.reports.run_summary import read_summary
from rlmods.reports.tables import RunFolderError

_DEEPEST = 30  # ancestors that are read
# NaN in others may mean that there was nothing to measure.
_ALWAYS_FINITE = ("eval/mean_reward", "train/loss", "train/approx_kl", "train/entropy")


class Score(NamedTuple):
    """An evaluation."""

    mean: float
    standard_error: float | None  # None where it is not known
    episodes: int | None
    env_steps: int
    checkpoint: str | None = None  # path of the healthy checkpoint that was evaluated


class Alarm(NamedTuple):
    """A cause that a safeguard has announced."""

    cause: str
    severity: str
    env_steps: int | None
    message: str


@dataclass(frozen=True)
class RunFacts:
    """A run, as the rules see it. What is not known is None.

    Attributes:
        run: folder, or a name.
        settings: by dotted name, as `model.init_args.ent_coef`.
        scores: all evaluations in order, without that of the warm start.
        start: evaluation of the policy that the run began with.
        started_from: the parent's evaluation of the same checkpoint.
        best: the evaluation with the highest lower bound, of a checkpoint that is there, intact and healthy; where none
            is left, the best one without its checkpoint.
        unusable: checkpoints that the summary names and that are gone or damaged, and why.
        continued: "fresh", "full" or "weights".
        parent: the run that it continues.
        baseline: return of an untrained policy.
        training: mean return of the last training episodes, with the policy that explores and learns; evaluations play
            the likeliest action, and may hide for long what becomes of it.
        training_max: the highest that it was.
        entropy: at the end, in nats; of continuous actions in units of half their range.
        uniform_entropy: of a policy that draws from the whole box.
        kl: mean over the iterations in which the learning rate was above a tenth of its peak.
        kl_last: at the end, whatever the learning rate was then.
        clip_fraction: mean over the same iterations as `kl`.
        quarantined: metrics outside the bounds of their definition, and their values.
        outcome: how the run ended, in words.
    """

    run: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    scores: tuple[Score, ...] = ()
    start: Score | None = None
    started_from: Score | None = None
    best: Score | None = None
    continued: str = "fresh"
    parent: "RunFacts | None" = None
    baseline: float | None = None
    training: float | None = None
    training_max: float | None = None
    env_steps: int = 0
    env_steps_at_start: int = 0
    complete: bool | None = True
    exception: str | None = None
    outcome: str = ""
    updates: float | None = None
    non_finite: tuple[str, ...] = ()
    action: str | None = None
    dimensions: int | None = None
    entropy: float | None = None
    entropy_first: float | None = None
    uniform_entropy: float | None = None
    std: float | None = None
    mean_over_std: float | None = None
    mean_over_std_first: float | None = None
    kl: float | None = None
    kl_last: float | None = None
    clip_fraction: float | None = None
    epochs: float | None = None
    explained_variance_max: float | None = None
    learning_rate_peak: float | None = None
    learning_rate_last: float | None = None
    alarms: tuple[Alarm, ...] = ()
    quarantined: Mapping[str, float | None] = field(default_factory=dict)
    unusable: Mapping[str, str] = field(default_factory=dict)

    @property
    def last(self) -> Score | None:
        """The score of the run."""
        return self.scores[-1] if self.scores else None

    @property
    def learning_rate_share(self) -> float | None:
        """Of its peak, at the end."""
        if self.learning_rate_last is None or not self.learning_rate_peak:
            return None
        return self.learning_rate_last / self.learning_rate_peak

    def setting(self, name: str) -> Any:
        """An argument of the model, else of the data module; None where there is none."""
        key = f"model.init_args.{name}"
        return self.settings[key] if key in self.settings else self.settings.get(f"data.init_args.{name}")

    def lineage(self) -> "Iterator[RunFacts]":
        """The run, its parent, and so on."""
        run: RunFacts | None = self
        while run is not None:
            yield run
            run = run.parent

    def untrained(self) -> float | None:
        """The return of an untrained policy, of the first run in the chain that knows it."""
        return next((run.baseline for run in self.lineage() if run.baseline is not None), None)


def read_facts(folder: Path, depth: int = 0) -> RunFacts:
    """The facts of a run folder and of its ancestors, as far as their folders are there.

    Raises:
        RunFolderError: where a folder cannot be read, or a file in it does not match its schema.
    """
    summary = read_summary(folder)
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise RunFolderError(f"got {folder} without config.yaml, expected the folder of a run of rlmods")
    parent_folder = None if summary["parent"] is None else Path(summary["parent"])
    has_parent = parent_folder is not None and (parent_folder / "config.yaml").is_file() and depth < _DEEPEST
    parent = read_facts(parent_folder, depth + 1) if has_parent and parent_folder is not None else None
    found = summary["evaluation"]
    begins = found["warm_start"] is not None
    kept, refused = best_kept(folder, summary)
    return RunFacts(
        run=str(folder),
        settings=flatten(read_mapping(config_file)),
        scores=tuple(s for e in found["all"][int(begins) :] if (s := _score(e)) is not None),
        start=_score(found["warm_start"]),
        started_from=_started_from(parent_folder, summary.get("checkpoint_of_parent")) if has_parent else None,
        best=_score(found["best"]) if kept is None else _score(kept, folder),
        continued=summary["continued"],
        parent=parent,
        baseline=summary["untrained_baseline"],
        env_steps=summary["env_steps"],
        env_steps_at_start=summary["env_steps_at_start"],
        complete=summary["outcome"]["complete"],
        exception=summary["outcome"]["exception"],
        outcome=summary["outcome"]["reason"],
        non_finite=_non_finite(summary),
        alarms=tuple(Alarm(a["cause"], a["severity"], a["first_env_steps"], a["message"]) for a in summary["alarms"]),
        quarantined=summary["quarantined"],
        unusable={str(path): reason for path, reason in refused.items()},
        **_measured(summary),
    )


def _measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    curves, policy, rate = summary["curves"], summary["policy"], summary["learning_rate"]

    def of(tag: str, what: str) -> Any:
        return curves.get(tag, {}).get(what)

    def learning(tag: str) -> Any:
        return ((of(tag, "while_learning")) or {}).get("mean")

    entropy = policy["entropy"] or {}
    return {
        "training": of("rollout/ep_rew_mean", "last"),
        "training_max": of("rollout/ep_rew_mean", "max"),
        "updates": of("train/n_updates", "last"),
        "action": policy["action"],
        "dimensions": policy["dimensions"],
        "entropy": entropy.get("last"),
        "entropy_first": entropy.get("first"),
        "uniform_entropy": policy["uniform_entropy"],
        "std": (policy["std"] or {}).get("last"),
        "mean_over_std": (policy["mean_over_std"] or {}).get("last"),
        "mean_over_std_first": (policy["mean_over_std"] or {}).get("first"),
        "kl": learning("train/approx_kl"),
        "kl_last": of("train/approx_kl", "last"),
        "clip_fraction": learning("train/clip_fraction"),
        "epochs": of("train/epochs", "mean"),
        "explained_variance_max": of("train/explained_variance", "max"),
        "learning_rate_peak": rate["peak"],
        "learning_rate_last": rate["last"],
    }


def _non_finite(summary: Mapping[str, Any]) -> tuple[str, ...]:
    """Curves that ended in a value that is no number."""
    curves = summary["curves"]
    return tuple(
        tag for tag in _ALWAYS_FINITE if tag in curves and curves[tag]["count"] and curves[tag]["last"] is None
    )


def _score(evaluation: Mapping[str, Any] | None, folder: Path | None = None) -> Score | None:
    if evaluation is None or evaluation["mean"] is None or not math.isfinite(evaluation["mean"]):
        return None
    checkpoint = None if folder is None else str(folder / evaluation["checkpoint"])
    return Score(
        evaluation["mean"], evaluation["standard_error"], evaluation["episodes"], evaluation["env_steps"], checkpoint
    )


def _started_from(parent: Path | None, checkpoint: str | None) -> Score | None:
    """The parent's evaluation at the environment step of a checkpoint of its."""
    if parent is None or checkpoint is None:
        return None
    summary = read_summary(parent)
    steps = {c["env_steps"] for c in summary["checkpoints"] if Path(c["file"]).name == Path(checkpoint).name}
    return next((_score(e) for e in summary["evaluation"]["all"] if e["env_steps"] in steps), None)
