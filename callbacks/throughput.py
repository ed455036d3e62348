"""Frames per second of training, of evaluation and end to end, and where the time of the training goes."""

import time
from collections.abc import Callable
from typing import NamedTuple

from lightning.pytorch import Trainer

from rlmods.types import ExperienceSource, TimesCollection


class Totals(NamedTuple):
    """Of a run since it was started or resumed, or of a part of it. Seconds are those of the wall.

    Frames of an evaluation are never frames of the training, nor are its seconds.
    """

    frames: int = 0  # of the training
    training: float = 0.0  # seconds of all that is no evaluation
    evaluation_frames: float = 0.0  # of episodes, until each has ended
    evaluation: float = 0.0
    learning: float = 0.0  # within training: from a batch's arrival to the end of its updates
    collection: float = 0.0  # within training, as the data module has measured it
    policy: float = 0.0  # within collection: choosing actions
    environments: float = 0.0  # within collection: waiting for their steps
    sampling: float = 0.0  # within training, drawing from the replay, where the data module has measured it

    def since(self, earlier: "Totals") -> "Totals":
        """What came after an earlier time of the same run."""
        differences = (later - before for later, before in zip(self, earlier, strict=True))
        return Totals(*differences)  # type: ignore[arg-type]

    def rates(self) -> dict[str, float]:
        """Frames per second: `train` without evaluations, `eval` of evaluations, `end_to_end` of all the time.

        Without a time, or without an evaluation that says its frames, the rate is missing.
        """
        measured = {
            "train": (self.frames, self.training),
            "eval": (self.evaluation_frames, self.evaluation),
            "end_to_end": (self.frames, self.training + self.evaluation),
        }
        known = {name: (frames, seconds) for name, (frames, seconds) in measured.items() if seconds > 0.0}
        if self.evaluation_frames == 0.0:
            known.pop("eval", None)
        return {name: frames / seconds for name, (frames, seconds) in known.items()}

    def shares(self) -> dict[str, float]:
        """Parts of the training's time, in [0, 1]: `learn`, where they are known `collect` and its two parts, `sample`.

        What is left is Lightning, callbacks, curves and checkpoints.
        """
        parts = {"learn": self.learning}
        if self.collection > 0.0:
            parts |= {"collect": self.collection, "policy": self.policy, "environments": self.environments}
        if self.sampling > 0.0:
            parts["sample"] = self.sampling
        return {name: seconds / self.training for name, seconds in parts.items()} if self.training > 0.0 else {}


class TrainingClock:
    """Takes the time of a training; its methods are called from the hooks that they are named after.

    Args:
        now: seconds of any clock.
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._totals = Totals()
        self._first_frame = 0
        self._since = 0.0
        self._learning_since: float | None = None
        self._is_training = False

    def train_start(self, source: ExperienceSource) -> None:
        """Begin."""
        self._totals = Totals()
        self._first_frame = source.env_steps
        self._since = self._now()
        self._learning_since = None
        self._is_training = True

    def train_batch_start(self, source: object) -> None:
        """The data module has collected; learning begins."""
        self._learning_since = self._now()
        if isinstance(source, TimesCollection):
            seconds, totals = source.collection_seconds(), self._totals
            self._totals = totals._replace(
                collection=totals.collection + seconds.total,
                policy=totals.policy + seconds.policy,
                environments=totals.environments + seconds.environments,
                sampling=totals.sampling + seconds.sampling,
            )

    def train_batch_end(self) -> None:
        """The updates are made."""
        if self._learning_since is not None:
            learning = self._totals.learning + self._now() - self._learning_since
            self._totals = self._totals._replace(learning=learning)
            self._learning_since = None

    def validation_start(self) -> None:
        """An evaluation begins."""
        now = self._now()
        self._totals = self._totals._replace(training=self._totals.training + now - self._since)
        self._since = now
        self._is_training = False

    def validation_end(self, trainer: Trainer) -> None:
        """An evaluation has ended; its frames are those of the episodes that it has logged."""
        now, totals = self._now(), self._totals
        length, episodes = (trainer.callback_metrics.get(f"eval/{name}") for name in ("mean_ep_length", "episodes"))
        if length is not None and episodes is not None:
            self._totals = totals._replace(
                evaluation_frames=totals.evaluation_frames + float(length) * float(episodes),
                evaluation=totals.evaluation + now - self._since,
            )
        else:
            self._totals = totals._replace(evaluation=totals.evaluation + now - self._since)
        self._since = now
        self._is_training = True

    def totals(self, source: ExperienceSource) -> Totals:
        """Until now."""
        running = self._now() - self._since if self._is_training else 0.0
        totals = self._totals
        return totals._replace(frames=source.env_steps - self._first_frame, training=totals.training + running)


def describe_rates(totals: Totals) -> str:
    """The three rates, such as "train 3,200/s, eval 12,000/s, end to end 2,900/s"."""
    return ", ".join(f"{name.replace('_', ' ')} {rate:,.0f}/s" for name, rate in totals.rates().items())


def describe_shares(totals: Totals) -> str:
    """Where the time of the training goes, such as "collect 30 % (policy 20 %, environments 8 %), learn 65 %"."""
    percent = {name: f"{name} {100 * share:.0f} %" for name, share in totals.shares().items()}
    if "collect" in percent:
        percent["collect"] += f" ({percent.pop('policy')}, {percent.pop('environments')})"
    return ", ".join(percent[name] for name in ("collect", "sample", "learn") if name in percent)
