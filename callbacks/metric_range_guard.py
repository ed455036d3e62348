"""Signals and logged metrics against their bounds; what lies outside is wrong, and nothing is ranked by it."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window
from rlmods.signals import METRIC_BOUNDS, SIGNALS

_CAUSE = "metric_out_of_range"
_ROUNDING = 1e-5  # of float32, in sums of some hundred terms

Interval = tuple[float, float]


class RangeDetector:
    """Compares the smallest and the largest value of each metric with its bounds.

    Attributes:
        outside: value, lower and upper bound of each metric that lies outside now.
        quarantined: names of all that ever did: what they measure is not what their name says.
    """

    def __init__(self) -> None:
        self.outside: dict[str, tuple[float, float, float]] = {}
        self.quarantined: list[str] = []

    def update(self, values: Mapping[str, Interval], bounds: Mapping[str, Interval]) -> list[Verdict]:
        """Take in the range of values of some metrics; those that are not among them stay as they were.

        Args:
            values: smallest and largest value by name; NaN where one is.
            bounds: of all these names.
        """
        for name, value in values.items():
            worst = _outside(value, bounds[name])
            if worst is None:
                self.outside.pop(name, None)
                continue
            self.outside[name] = (worst, *bounds[name])
            if name not in self.quarantined:
                self.quarantined.append(name)
        if not self.outside:
            return []
        message = "; ".join(_in_words(name, *found) for name, found in self.outside.items())
        evidence = {name: {"value": value, "bounds": [low, high]} for name, (value, low, high) in self.outside.items()}
        return [Verdict(_CAUSE, Severity.ACT, message, {"metrics": evidence})]

    def state_dict(self) -> dict[str, Any]:
        """What is outside, and what ever was."""
        return {
            "outside": {name: list(found) for name, found in self.outside.items()},
            "quarantined": list(self.quarantined),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.outside = {name: (value, low, high) for name, (value, low, high) in state_dict["outside"].items()}
        self.quarantined = list(state_dict["quarantined"])


class MetricRangeGuard(Safeguard):
    """Compares signals and logged metrics with the bounds that hold for every run, and those of the user.

    A `success_rate` of 894 is a count, whatever its name. The metric is quarantined, for the rest of the run; the
    weights and the checkpoint files are not. After each evaluation, before anything ranks by it, every
    `ModelCheckpoint` and `EarlyStopping` that monitors such a metric goes over to `fallback` and forgets its ranking;
    its files stay. Where the fallback is not logged or itself outside, a `ModelCheckpoint` keeps the newest
    checkpoint instead of the best, and an `EarlyStopping` does not stop any more. In mode `observe` nothing of this
    happens.

    Metrics are looked at after each evaluation, signals in the last iteration of each window. NaN is outside; a signal
    without a bound on either side is left to the safeguard for non-finite numbers.

    Args:
        bounds: least and largest value by name, which go before those of `rlmods/signals.py`. A name stands for itself,
            a metric's last part (`success_rate` for `eval/success_rate`) and a signal's first (`grad_norm` for
            `grad_norm/q`).
        fallback: a logged metric of which more is better.
        every_n_iterations: length of a window.
        name: tells the instances apart.
        mode: how far it may go.

    Raises:
        ValueError: where bounds are upside down; at the first outputs or the first evaluation, where nothing of a name
            in `bounds` has come.
    """

    def __init__(
        self,
        *,
        bounds: Mapping[str, Interval] | None = None,
        fallback: str = "eval/mean_reward",
        every_n_iterations: int = 50,
        name: str = "metric_range",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        own: dict[str, Interval] = {} if bounds is None else {key: (low, high) for key, (low, high) in bounds.items()}
        for key, (low, high) in own.items():
            if not low < high:
                raise ValueError(
                    f"MetricRangeGuard got bounds[{key!r}] = ({low}, {high}), expected the lower bound below the upper"
                )
        if every_n_iterations < 1:
            raise ValueError(f"MetricRangeGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.bounds = own
        self.fallback = fallback
        self.every_n_iterations = every_n_iterations
        self.detector = RangeDetector()
        declared = {key: (s.low, s.high) for key, s in SIGNALS.items() if math.isfinite(s.low) or math.isfinite(s.high)}
        self._signal_bounds: dict[str, Interval] = declared | own
        self._readings = Readings()
        self._found: dict[str, Collection[str] | None] = {"signals": None, "metrics": None}
        self._moved: dict[str, str | None] = {}  # what each callback ranks by now, by its first state key
        self._first_keys: dict[int, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Go to the front of the callbacks, so that whoever ranks by a metric finds it judged."""
        super().setup(trainer, pl_module, stage)
        others = [other for other in trainer.callbacks if other is not self]  # type: ignore[attr-defined]
        trainer.callbacks = [self, *others]  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """After a resume, send who was moved to its fallback again; the rankings came with the checkpoint."""
        self._found = {"signals": None, "metrics": None}
        for ranking in _rankings(trainer):
            first_key = ranking.state_key
            if first_key in self._moved:
                self._first_keys[id(ranking)] = first_key
                _rank_by(ranking, self._moved[first_key])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, look at the signals of its last iteration."""
        signals = outputs if isinstance(outputs, Mapping) else {}
        if signals and self._found["signals"] is None:
            self._found["signals"] = sorted(signals)
            self._require_bounded(trainer)
        if not is_window(self.every_n_iterations, batch_idx):
            return
        names = {key: [name for name in signals if _is_of_family(name, key)] for key in self._signal_bounds}
        extremes = [_extremes([signals[name] for name in names[key]], pl_module.device) for key in self._signal_bounds]
        arrived = self._readings.exchange(trainer, torch.cat(extremes), names)
        if arrived is None:
            return
        rows, names = arrived
        ranges = _over_processes(rows, self._signal_bounds)
        labels = {key: ", ".join(names[key]) or key for key in ranges}
        self._judge(
            trainer,
            {labels[key]: value for key, value in ranges.items()},
            {labels[key]: self._signal_bounds[key] for key in ranges},
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at what is logged, and take from a metric that is wrong all that rank by it."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        metrics = trainer.callback_metrics
        if self._found["metrics"] is None:
            self._found["metrics"] = sorted(metrics)
            self._require_bounded(trainer)
        bounds = {name: bound for name in sorted(metrics) if (bound := self._bound_of_metric(name)) is not None}
        if bounds:
            # The best score may be of a time before this guard was there.
            best = {r.monitor: r.best_model_score for r in _rankings(trainer) if isinstance(r, ModelCheckpoint)}
            extremes = torch.cat([_extremes([metrics[name], best.get(name)], pl_module.device) for name in bounds])
            rows = trainer.strategy.all_gather(extremes).reshape(-1, extremes.numel()).tolist()
            self._judge(trainer, _over_processes(rows, bounds), bounds)
        self._draw(trainer)
        if self.mode != "observe":
            for ranking in _rankings(trainer):
                if ranking.monitor in self.detector.quarantined:
                    self._move(trainer, ranking)

    def _judge(self, trainer: Trainer, values: Mapping[str, Interval], bounds: Mapping[str, Interval]) -> None:
        known = len(self.detector.quarantined)
        verdicts = self.detector.update(values, bounds)
        if len(self.detector.quarantined) > known:
            self.active.pop(_CAUSE, None)  # a further metric is announced, though the cause is known
        if self.report(trainer, verdicts):
            self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        numbers = {"outside": len(self.detector.outside), "quarantined": len(self.detector.quarantined)}
        self.draw(trainer, {name: float(number) for name, number in numbers.items()})

    def _bound_of_metric(self, name: str) -> Interval | None:
        last = name.rpartition("/")[2]
        anything = (-math.inf, math.inf) if name == self.fallback else None
        return self.bounds.get(name) or self.bounds.get(last) or METRIC_BOUNDS.get(last) or anything

    def _move(self, trainer: Trainer, ranking: ModelCheckpoint | EarlyStopping) -> None:
        first_key = self._first_keys.setdefault(id(ranking), ranking.state_key)
        is_sane = self.fallback in trainer.callback_metrics and self.fallback not in self.detector.quarantined
        old, new = ranking.monitor, self.fallback if is_sane else None
        self._moved[first_key] = new
        _rank_by(ranking, new)
        _forget(ranking)
        message = f"{old} is out of its range: {type(ranking).__name__} forgets its ranking and " + (
            f"goes over to {new}"
            if new is not None
            else f"ranks no more, because {self.fallback} is no better or absent"
        )
        self.act(trainer, message, {"callback": first_key, "monitor": [old, new]})

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Save what was moved under its first key: a resumed run builds it with its first monitor and looks there."""
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        states = checkpoint.get("callbacks")
        if states is None or not self._moved:
            return
        rankings = _rankings(trainer)
        for ranking in rankings:
            states.pop(ranking.state_key, None)
        # Two that rank by the same metric now had one key, so that one of the states was lost.
        for ranking in rankings:
            states[self._first_keys.get(id(ranking), ranking.state_key)] = ranking.state_dict()

    def _require_bounded(self, trainer: Trainer) -> None:
        signals, metrics = self._found["signals"], self._found["metrics"]
        for key in self.bounds:
            is_signal = any(_is_of_family(name, key) for name in signals or ())
            is_metric = any(name == key or name.rpartition("/")[2] == key for name in metrics or ())
            may_be_signal = "/" not in key or key.partition("/")[0] in SIGNALS
            may_be_metric = key.partition("/")[0] not in SIGNALS and trainer.enable_validation
            is_awaited = (may_be_signal and signals is None) or (may_be_metric and metrics is None)
            if not (is_signal or is_metric or is_awaited):
                raise ValueError(
                    f"MetricRangeGuard got bounds for {key!r}, which never came: training_step returned the signals "
                    f"{signals or 'none'}, and after the evaluation the logged metrics were {metrics or 'none'}; "
                    "correct the name, or return or log it"
                )

    def rearm(self) -> None:
        """Nothing: what a metric measures does not change with the weights."""

    def state_dict(self) -> dict[str, Any]:
        """What is quarantined, and who was moved where."""
        return {**super().state_dict(), "detector": self.detector.state_dict(), "moved": dict(self._moved)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._moved = dict(state_dict["moved"])


def _outside(value: Interval, bound: Interval) -> float | None:
    """The value that lies outside by more than rounding, or NaN; None where all lie inside."""
    low, high = bound
    if math.isnan(value[0]) or math.isnan(value[1]):
        return math.nan
    slack = [_ROUNDING * max(1.0, abs(edge)) if math.isfinite(edge) else 0.0 for edge in bound]
    if value[1] > high + slack[1]:
        return value[1]
    return value[0] if value[0] < low - slack[0] else None


def _in_words(name: str, value: float, low: float, high: float) -> str:
    if math.isnan(value):
        reason = "it is not a number; look for a mean over nothing or a division by zero in how it is computed"
    elif (low, high) == (0.0, 1.0) and value > 1.0:
        reason = "above 1 it is a count, a sum or a percentage and no rate; divide by the number of cases, or rename it"
    elif low == 0.0 and value < 0.0:
        reason = "it cannot be negative; look for a wrong sign or an estimator that can be (for KL, mean(-ln ratio))"
    else:
        reason = "it is not what its name says, or the bound is wrong; look at how it is computed"
    return f"{name} is {value:.6g}, but must lie in [{low:g}, {high:g}]: {reason}"


def _is_of_family(signal: str, key: str) -> bool:
    return signal == key or signal.partition("/")[0] == key


def _extremes(values: list[Any], device: torch.device) -> Tensor:
    """Smallest and largest `[2]` of some tensors and Nones, of nothing +∞ and −∞; NaN where one is."""
    found = [tensor.detach() for value in values if value is not None and (tensor := torch.as_tensor(value)).numel()]
    pairs = [torch.stack(torch.aminmax(tensor.float())).to(device, non_blocking=True) for tensor in found]
    if not pairs:
        return torch.tensor([math.inf, -math.inf], device=device)
    low, high = torch.stack(pairs).unbind(-1)
    return torch.stack([low.amin(), high.amax()])


def _over_processes(rows: list[list[float]], names: Collection[str]) -> dict[str, Interval]:
    """`[W][2n]` extremes of W processes to the n of all, without those that none has."""
    ranges: dict[str, Interval] = {}
    for position, name in enumerate(names):
        lows, highs = ([row[2 * position + side] for row in rows] for side in (0, 1))
        if any(math.isnan(value) for value in (*lows, *highs)):
            ranges[name] = (math.nan, math.nan)
        elif min(lows) <= max(highs):
            ranges[name] = (min(lows), max(highs))
    return ranges


def _rankings(trainer: Trainer) -> list[ModelCheckpoint | EarlyStopping]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, (ModelCheckpoint, EarlyStopping))]


def _rank_by(ranking: ModelCheckpoint | EarlyStopping, monitor: str | None) -> None:
    """More is better; None ranks no more."""
    ranking.mode = "max"
    if isinstance(ranking, ModelCheckpoint):
        ranking.monitor = monitor
        if monitor is None:
            # 0 would also end `save_last`; without a monitor 1 keeps the newest, and -1 all.
            ranking.save_top_k = min(ranking.save_top_k, 1)
        return
    # Its thresholds are in the unit of the other metric. It looks for None, finds nothing, and is not strict.
    ranking.monitor = monitor  # type: ignore[assignment]
    ranking.strict = ranking.strict and monitor is not None
    ranking.min_delta, ranking.stopping_threshold, ranking.divergence_threshold = 0.0, None, None


def _forget(ranking: ModelCheckpoint | EarlyStopping) -> None:
    worst = torch.tensor(-math.inf)
    if isinstance(ranking, ModelCheckpoint):
        ranking.best_k_models, ranking.kth_best_model_path, ranking.kth_value = {}, "", worst
        ranking.best_model_path, ranking.best_model_score, ranking.current_score = "", None, None
    else:
        ranking.best_score, ranking.wait_count = worst, 0
