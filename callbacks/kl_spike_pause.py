"""Pause parameter groups for some updates when a KL signal spikes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Confirmation, RobustScore, Severity, Verdict
from rlmods.callbacks.group_pause import find_groups
from rlmods.callbacks.ledger import DutyCycle, Ledger
from rlmods.callbacks.safeguard import Mode, Readings, StepSafeguard, is_window, require_signals

# Signals at or below it are no measurement: the policy did not move at all.
FLOOR = 1e-8
# In units of the logarithm: with the default threshold a spike is at least 2.5 times the median.
_SPREAD_FLOOR = 0.15
_OF_A_POLICY = (
    "the policy moves in jumps. Lower the learning rate, make fewer updates per batch, or stop the epochs at a target "
    "KL"
)
_OF_A_MODEL = (
    "the world is not as its model foresees it, and what is learned in dreams now is learned of another world. Where "
    "that does not pass by itself, lower the learning rate, or replay more for each step"
)


class KLSpikeDetector:
    """Scores the logarithm of a signal against its past; a spike is confirmed by 2 of the last 3 windows.

    Outliers stay out of the baseline, until as many have come in a row as the baseline needs: then they are the new
    level, and no spike.

    Args:
        threshold: standard deviations above the median that count as an outlier.
        minimum: windows before anything is scored.
        meaning: of a spike, and what to do.

    Attributes:
        score: of the last window; None where there was none.
    """

    def __init__(self, *, threshold: float, minimum: int, meaning: str = _OF_A_POLICY) -> None:
        self.threshold = threshold
        self.meaning = meaning
        self.baseline = RobustScore(window=max(50, minimum), minimum=minimum, floor=_SPREAD_FLOOR)
        self.confirmation = Confirmation(2, 3)
        self.score: float | None = None
        self._outliers: list[float] = []

    @property
    def is_calm(self) -> bool:
        """Whether the last window lay below half the threshold."""
        return self.score is None or self.score < self.threshold / 2.0

    @property
    def is_spiking(self) -> bool:
        """Whether a spike is confirmed, and the last window was still part of it."""
        return self.confirmation.is_on and self.score is not None and self.score > self.threshold

    def update(self, mean: float, *, is_paused: bool) -> list[Verdict]:
        """Take in the mean of the signal over a window.

        While the groups are paused it is scored, but says nothing about the baseline.
        """
        if not mean > FLOOR:
            self.score = None
            self.confirmation.reset()
            return []
        logarithm = math.log(mean)
        self.score = self.baseline.score(logarithm)
        is_outlier = self.score is not None and self.score > self.threshold
        is_confirmed = self.confirmation.update(is_outlier)
        if not is_paused:
            self._learn(logarithm, is_outlier)
        return [self._verdict(mean)] if is_confirmed else []

    def _learn(self, logarithm: float, is_outlier: bool) -> None:
        if not is_outlier:
            self._outliers = []
            self.baseline.add(logarithm)
        elif math.isfinite(logarithm):
            self._outliers.append(logarithm)
            if len(self._outliers) >= self.baseline.minimum:
                self.baseline.reset()
                for value in self._outliers:
                    self.baseline.add(value)
                self._outliers = []

    def _verdict(self, mean: float) -> Verdict:
        score = math.nan if self.score is None else self.score
        median = math.exp(sorted(self.baseline.values)[len(self.baseline.values) // 2])
        return Verdict(
            "kl_spike",
            Severity.WARN,
            f"the KL signal is {mean:.3g}, {score:.1f} standard deviations above its median of {median:.3g}, and was "
            f"beyond {self.threshold:g} in 2 of 3 windows: {self.meaning}",
            {"signal": mean, "score": score, "median": median, "threshold": self.threshold},
        )

    def reset(self) -> None:
        """Forget everything."""
        self.baseline.reset()
        self.confirmation.reset()
        self.score, self._outliers = None, []

    def state_dict(self) -> dict[str, Any]:
        """The baseline and what was seen last."""
        return {
            "baseline": self.baseline.state_dict(),
            "confirmation": self.confirmation.state_dict(),
            "score": self.score,
            "outliers": list(self._outliers),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.baseline.load_state_dict(state_dict["baseline"])
        self.confirmation.load_state_dict(state_dict["confirmation"])
        self.score, self._outliers = state_dict["score"], list(state_dict["outliers"])


class KLSpikePause(StepSafeguard):
    """Leaves out the updates of named parameter groups for a while when a KL signal spikes.

    A ledger compares the evaluation return before and after its pauses, and it disarms itself where they do not help
    (an improvement after a pause is rarer than heads of a coin) or when `max_pauses` is spent; after that it only
    raises alarms.

    Optimisers go on with their other groups, schedules and target networks with their steps. A paused parameter has no
    gradient, so that weights and moments stay bit-identical, with weight decay too.

    Args:
        groups: `group["name"]` of the parameter groups that are paused, for example `["actor", "critic"]`.
        signal: name of a signal of `training_step`, of any shape, not negative; its mean counts. `kl_dynamics` with
            the groups actor and critic lets a world model catch up with what it did not foresee.
        pause_updates: K, updates of its own optimiser that each group leaves out; more while the signal stays above
            half the threshold.
        threshold: standard deviations above the median of the logarithm, corrected for autocorrelation.
        warmup_windows: windows before the first score.
        cooldown_windows: windows after a pause without a new one.
        max_duty: share of an optimiser's updates so far that may be left out, in (0, 1).
        max_pauses: pauses before it disarms itself.
        monitor: evaluation metric of the ledger; where it is not logged, the ledger stays empty.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` only raises alarms, `act` pauses; `stop` does no more than `act`, for a spike is only a warning.

    Raises:
        ValueError: where an argument is outside its range; at the start, where no optimiser has a group of that name;
            at the first signals, where `signal` is not among them.
    """

    def __init__(
        self,
        groups: Sequence[str],
        *,
        signal: str = "approx_kl",
        pause_updates: int = 10,
        threshold: float = 6.0,
        warmup_windows: int = 20,
        cooldown_windows: int = 10,
        max_duty: float = 0.2,
        max_pauses: int = 20,
        monitor: str = "eval/mean_reward",
        every_n_iterations: int = 1,
        name: str = "kl_spike_pause",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if not groups or isinstance(groups, str):
            raise ValueError(f"KLSpikePause got groups = {groups!r}, expected a list of names, for example ['actor']")
        ranges = {
            "pause_updates": (pause_updates >= 1, "at least 1"),
            "threshold": (threshold > 0.0, "above 0"),
            "warmup_windows": (warmup_windows >= 3, "at least 3"),
            "cooldown_windows": (cooldown_windows >= 0, "at least 0"),
            "max_duty": (0.0 < max_duty < 1.0, "in (0, 1), for example 0.2"),
            "max_pauses": (max_pauses >= 1, "at least 1; mode='observe' never pauses"),
            "every_n_iterations": (every_n_iterations >= 1, "at least 1"),
        }
        got = locals()
        for argument, (is_inside, expected) in ranges.items():
            if not is_inside:
                raise ValueError(f"KLSpikePause got {argument} = {got[argument]}, expected a value {expected}")
        self.groups = list(groups)
        self.signal = signal
        self.pause_updates = pause_updates
        self.cooldown_windows = cooldown_windows
        self.max_duty = max_duty
        self.max_pauses = max_pauses
        self.monitor = monitor
        self.every_n_iterations = every_n_iterations
        meaning = _OF_A_MODEL if signal == "kl_dynamics" else _OF_A_POLICY
        self.detector = KLSpikeDetector(threshold=threshold, minimum=warmup_windows, meaning=meaning)
        self.ledger = Ledger()
        self.pauses = 0
        self.is_armed = True
        self._cooldown = 0
        self._clocks: dict[int, DutyCycle] = {}  # by the optimiser's number
        self._paused: dict[Optimizer, tuple[DutyCycle, list[Parameter]]] = {}
        self._means: list[Tensor] = []  # of the iterations of this window
        self._checked = False
        self._readings = Readings()

    @property
    def is_paused(self) -> bool:
        """Whether a pause is under way."""
        return any(clock.held is not None for clock in self._clocks.values())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups.

        Raises:
            ValueError: where one is missing.
        """
        found = find_groups(trainer, type(self).__name__, self.groups)
        self._paused.clear()
        for number, optimizer in enumerate(trainer.optimizers):
            if optimizer in found:
                fresh = DutyCycle(hold=self.pause_updates, max_duty=self.max_duty)
                self._paused[optimizer] = self._clocks.setdefault(number, fresh), found[optimizer]
        super().on_train_start(trainer, pl_module)

    def before_step(self, optimizer: Optimizer) -> None:
        """Leave out this update of the paused groups. A step without any gradient is no update."""
        paused = self._paused.get(optimizer)
        if paused is None:
            return
        clock, parameters = paused
        if parameters[0].grad is None and all(parameter.grad is None for parameter in parameters):
            return
        if clock.held is None:  # nearly always: it has to be quick
            clock.updates += 1
        elif clock.count(self.detector.is_calm):
            for parameter in parameters:
                parameter.grad = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the iteration's mean; at the end of a window, decide."""
        if isinstance(outputs, Mapping) and outputs:
            if not self._checked:
                require_signals(self, outputs, [self.signal])
                self._checked = True
            if self.signal in outputs:
                self._means.append(outputs[self.signal].detach().float().mean())
        if not is_window(self.every_n_iterations, batch_idx):
            return
        means, self._means = self._means or [torch.tensor(math.nan)], []
        mean = means[0] if len(means) == 1 else torch.stack([each.to(pl_module.device) for each in means]).mean()
        arrived = self._readings.exchange(trainer, mean.to(pl_module.device))
        if arrived is not None:
            self._decide(trainer, [row[0] for row in arrived[0]])
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._draw(trainer)

    def _decide(self, trainer: Trainer, means: list[float]) -> None:
        numbers = [mean for mean in means if not math.isnan(mean)]
        if not numbers:
            return  # no update was made, or none with the signal: that is no calm window
        is_paused = self.is_paused
        verdicts = self.detector.update(sum(numbers) / len(numbers), is_paused=is_paused)
        wants_pause = self.detector.is_spiking and not is_paused
        if self._cooldown and not is_paused:
            self._cooldown -= 1
            wants_pause = False
        acts = self.is_armed and self.mode != "observe"
        if acts and self.ledger.is_worse_than_chance():
            verdicts.append(self._disarm("guard_does_not_help", self.ledger.in_words()))
        elif acts and wants_pause and self.pauses >= self.max_pauses:
            verdicts.append(self._disarm("pause_budget_spent", f"all {self.max_pauses} pauses are spent"))
        begins = self.is_armed and acts and wants_pause and all(clock.may_begin() for clock in self._clocks.values())
        self.report(trainer, verdicts)
        if begins:
            self._begin(trainer)

    def _begin(self, trainer: Trainer) -> None:
        for clock in self._clocks.values():
            clock.begin()
        self._cooldown = self.cooldown_windows
        self.pauses += 1
        self.ledger.add_action()
        self.act(
            trainer,
            f"paused the groups {self.groups} for {self.pause_updates} updates (pause {self.pauses} of at most "
            f"{self.max_pauses})",
            {"groups": self.groups, "updates": self.pause_updates, "pause": self.pauses, "score": self.detector.score},
        )

    def _disarm(self, cause: str, reason: str) -> Verdict:
        self.is_armed = False
        return Verdict(
            cause,
            Severity.WARN,
            f"{reason}: it will not pause again. Its pauses treat a symptom: lower the learning rate instead, or leave "
            "this callback out",
            {
                "pauses": self.pauses,
                "max_pauses": self.max_pauses,
                "improved": self.ledger.improved,
                "worsened": self.ledger.worsened,
            },
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Enter the evaluation in the ledger."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        if self.monitor not in trainer.callback_metrics:
            return
        mean: float = trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))
        for before, after in self.ledger.add_evaluation(mean):
            self.act(
                trainer,
                f"the return was {before:.4g} before a pause and {after:.4g} after it; {self.ledger.in_words()}",
                {"before": before, "after": after},
            )

    def _draw(self, trainer: Trainer) -> None:
        curves = {"paused": float(self.is_paused), "pauses": float(self.pauses), "armed": float(self.is_armed)}
        if self.detector.score is not None:
            curves["score"] = self.detector.score
        if self.ledger.outcomes:
            curves["improved"] = self.ledger.improved / len(self.ledger.outcomes)
        self.draw(trainer, curves)

    def rearm(self) -> None:
        """Start a new baseline, and end a pause."""
        super().rearm()
        self.detector.reset()
        self._cooldown, self._means = 0, []
        for clock in self._clocks.values():
            clock.held = None

    def state_dict(self) -> dict[str, Any]:
        """The alarms, the baseline, the pause under way and the ledger."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "ledger": self.ledger.state_dict(),
            "clocks": {str(number): clock.state_dict() for number, clock in self._clocks.items()},
            "pauses": self.pauses,
            "is_armed": self.is_armed,
            "cooldown": self._cooldown,
            "means": [float(mean) for mean in self._means],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self.ledger.load_state_dict(state_dict["ledger"])
        for number, clock in state_dict["clocks"].items():
            self._clocks[int(number)] = DutyCycle(hold=self.pause_updates, max_duty=self.max_duty)
            self._clocks[int(number)].load_state_dict(clock)
        self.pauses, self.is_armed = state_dict["pauses"], state_dict["is_armed"]
        self._cooldown = state_dict["cooldown"]
        self._means = [torch.tensor(mean) for mean in state_dict["means"]]
