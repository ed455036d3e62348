"""Q and its targets against what values can be, and against what really came."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.callbacks.seen_values import SeenValues, entropy_bonus
from rlmods.callbacks.target_probe import probe_targets
from rlmods.callbacks.transitions import num_action_dimensions, transition_of
from rlmods.callbacks.value_detector import Gap, ValueDetector, ValueWindow
from rlmods.functional.value_bounds import ValueInterval, explained_variance
from rlmods.types import ExperienceSource, Observation, ReplayBatch, Rollout, StoresTerminations, Transition

# Windows between two probes of the module's td_target, which cost two more of them.
_PROBE_EVERY = 64
_LOWEST = ("low", "reward_low", "q_low", "target_low", "start_low")
_MEANS = (
    "target_mean",
    "q_outside",
    "target_outside",
    "start_mean",
    "explained_variance",
    "terminated",
    "truncated",
    "unchanged",
    "episode_length",
    "entropy",
)


class ValueBoundGuard(Safeguard):
    """Watches that Q and its targets can be values, and that Q expects what really comes.

    Needs the signals `q_value` and `td_target` (uses `td_error`), or `value` and `value_target`, and batches with
    transitions, or `low` and `high`.
    Identities, exact in every run: a terminated transition's target is its reward; discounts lie below 1; the error
    that is fed back is target − value; targets carry no graph; half the discount adds half the bootstrap value (a probe
    of `td_target(transition)`, where the module has that method); episodes that end are stored as ended. Bounds: no
    policy has a value outside the interval that the rewards and discounts allow; soft values (signal `ent_coef`, or
    `rlmods.types.SoftValues`) have an upper end alone, which the largest entropy so far raises. A tenth of a window's
    values beyond it is a warning in the third window in a row, or in the first where they pass it by its own size; less
    is for information (`values_pass_bound`). And, of each evaluation that logs them, `eval/q_gap` with
    `eval/q_gap_sem`: Q at the start states minus the discounted return.

    It changes nothing; `TargetClamp` clamps, `Rollback` goes back.

    Args:
        low: lowest value that is possible; None finds it from the transitions.
        high: highest value that is possible; None finds it from the transitions.
        slack: share of the interval's size by which values may pass it.
        gap: share of the discounted return by which Q at the start states may exceed it.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first batch, where a signal or the transitions are
            missing.
    """

    def __init__(
        self,
        *,
        low: float | None = None,
        high: float | None = None,
        slack: float = 0.05,
        gap: float = 0.5,
        every_n_iterations: int = 8,
        name: str = "value_bound",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"ValueBoundGuard got low = {low} and high = {high}, expected low < high")
        self.low, self.high = low, high
        self.every_n_iterations = every_n_iterations
        self.detector = ValueDetector(slack=slack, gap=gap)
        self._seen = SeenValues()
        self._rewards: ValueInterval | None = None  # the rewards themselves
        self._unseen: list[tuple[Tensor, Tensor]] = []  # rewards and discounts since the last window
        self._start: list[Tensor] = []  # of the first update: lowest value or target, mean target, highest of both
        self._interval = [-math.inf, math.inf]  # of the last window
        self._windows = 0  # that were measured
        self._updates = 0
        self._checked = False
        self._expects_signals = False  # a batch came, which is no warm-up, without any
        self._readings = Readings()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what this batch says of the interval."""
        if self.low is not None and self.high is not None:
            return
        transition = transition_of(batch, self, "low=... and high=...")
        if transition.reward.numel():
            # Copies: a view would keep the whole batch.
            self._unseen.append((transition.reward.flatten().clone(), transition.discount.flatten().clone()))

    def _see(self) -> None:
        """Widen the interval by the batches since the last window."""
        if not self._unseen:
            return
        reward, discount = (torch.cat(column) for column in zip(*self._unseen, strict=True))
        self._unseen = []
        self._seen.see(reward, discount)
        # A reward at the end, as that of a goal, says nothing about the scale of the others.
        is_inner = reward.isfinite() & (discount > 0.0)
        low, high = reward.where(is_inner, torch.inf).amin(), reward.where(is_inner, -torch.inf).amax()
        rewards = ValueInterval(low, high)
        self._rewards = rewards if self._rewards is None else self._rewards.hull(rewards)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, measure."""
        has_outputs = isinstance(outputs, Mapping) and len(outputs) > 0
        if has_outputs:
            outputs = with_action_values(outputs)
        if has_outputs and not self._checked:
            require_signals(self, outputs, ["q_value", "td_target"])
            self._checked = True
        self._expects_signals |= not has_outputs and not (isinstance(batch, ReplayBatch) and batch.num_updates == 0)
        if has_outputs and not self._start:
            self._start = _of_first_update(outputs["q_value"], outputs["td_target"])
        if has_outputs:
            self._updates += outputs["q_value"].shape[0] if outputs["q_value"].dim() > 1 else 1
        if not is_window(self.every_n_iterations, batch_idx):
            return
        with torch.no_grad():
            self._see()
            if has_outputs:
                self._seen.see_entropy(entropy_bonus(pl_module, outputs, getattr(batch, "transition", batch)))
            measured = self._measure(pl_module, outputs, batch) if has_outputs else {}
        length = _episode_length(trainer)
        if length is not None:
            measured["episode_length"] = torch.tensor(length, device=pl_module.device)
        source = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, StoresTerminations):
            lost = max(0, source.terminations - source.terminated_stored)
            measured["terminations_lost"] = torch.tensor(float(lost), device=pl_module.device)
        nothing = torch.full((), math.nan, device=pl_module.device)
        statistics = torch.stack([measured.get(field, nothing).to(nothing) for field in ValueWindow._fields])
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None and has_outputs:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _decide(self, trainer: Trainer, window: ValueWindow) -> None:
        self._interval = [window.low, window.high]
        self.report(trainer, self.detector.update(window))
        names = ("low", "high", "target_low", "target_high", "q_low", "q_high", "explained_variance")
        # Soft values have no lower end to draw.
        self.draw(trainer, {name: value for name in names if not math.isinf(value := getattr(window, name))})

    def _measure(self, pl_module: LightningModule, outputs: Mapping[str, Tensor], batch: Any) -> dict[str, Tensor]:
        q_value, target = outputs["q_value"].float(), outputs["td_target"].float()
        q_low, q_high = q_value.aminmax()
        target_low, target_high = target.aminmax()
        measured = {
            "q_low": q_low,
            "q_high": q_high,
            "target_low": target_low,
            "target_mean": target.mean(),
            "target_high": target_high,
            "explained_variance": explained_variance(target, target - q_value),
            "error": (target - q_value).std(correction=0),
            "updates": torch.tensor(float(self._updates), device=target.device),
            "transitions": torch.tensor(float(target.numel()), device=target.device),
        }
        num_actions = num_action_dimensions(getattr(batch, "transition", batch))
        if {"ent_coef", "entropy"} <= outputs.keys() and num_actions is not None:
            measured["entropy"] = outputs["entropy"].float().mean()
            measured["largest_entropy"] = torch.tensor(num_actions * math.log(2.0), device=target.device)
        if "td_error" in outputs:
            measured["identity_error"] = (outputs["td_error"] - (target - q_value)).abs().amax()
        measured |= dict(zip(("start_low", "start_mean", "start_high"), self._start, strict=True))
        bounds = self._bounds(target)
        measured |= bounds
        if "size" in bounds:
            beyond = self.detector.slack * bounds["size"]
            low, high = bounds["low"] - beyond, bounds["high"] + beyond
            measured["q_outside"] = ((q_value < low) | (q_value > high)).float().mean()
            measured["target_outside"] = ((target < low) | (target > high)).float().mean()
        transition = getattr(batch, "transition", batch)
        if all(hasattr(transition, name) for name in Transition._fields) and transition.reward.shape == target.shape:
            measured |= _of_transitions(transition)
            measured["terminal_error"] = (target - transition.reward).abs().where(transition.terminated, 0.0).amax()
        elif isinstance(batch, Rollout):
            measured |= _of_transitions(_counted(batch))
        # At 1, 2, 4, … too: of a network that begins at zero the first probe sees nothing.
        if self._windows % _PROBE_EVERY == 0 or self._windows.bit_count() == 1:
            measured |= probe_targets(pl_module, batch)
        self._windows += 1
        return measured

    def _bounds(self, like: Tensor) -> dict[str, Tensor]:
        bounds = {}
        seen, size = self._seen.interval, self._seen.size
        if seen is not None and size is not None and self._rewards is not None:
            bounds = {
                "low": seen.low,
                "high": seen.high,
                "size": size,
                "reward_low": self._rewards.low,
                "reward_high": self._rewards.high,
            }
        if self.low is not None:
            bounds["low"] = like.new_tensor(self.low)
        if self.high is not None:
            bounds["high"] = like.new_tensor(self.high)
        if "low" in bounds and "high" in bounds:
            width = bounds["high"] - bounds["low"]
            # Soft values have no lower end: theirs is that of the rewards alone.
            bounds["size"] = width.where(width.isfinite(), bounds.get("size", width))
        return bounds

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare Q with the return. The metrics are those of all processes, so all decide alike."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        names = ("eval/q_gap", "eval/q_gap_sem", "eval/mean_discounted_reward")
        metrics = [trainer.callback_metrics.get(name) for name in names]
        if all(metric is not None for metric in metrics):
            gap = Gap(*(float(metric) for metric in metrics if metric is not None))
            self.detector.update_gap(gap, *self._interval)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the module never gave a signal, which a warm-up may do for a while."""
        if self._expects_signals and not self._checked:
            message = (
                f"nothing was measured: training_step of {type(pl_module).__name__} returned nothing in the whole run, "
                "expected a dict with detached tensors q_value and td_target; return them, or leave this callback out"
            )
            self.report(trainer, [Verdict("no_signals", Severity.WARN, message, {})])

    def rearm(self) -> None:
        """Start the windows anew; what the transitions allow stays."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The interval and the detector."""
        self._see()
        return {
            **super().state_dict(),
            "seen": self._seen.state_dict(),
            "rewards": None if self._rewards is None else [float(bound) for bound in self._rewards],
            "start": [float(value) for value in self._start],
            "interval": list(self._interval),
            "windows": self._windows,
            "updates": self._updates,
            "detector": self.detector.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self._seen.load_state_dict(state_dict["seen"])
        rewards = state_dict["rewards"]
        self._rewards = None if rewards is None else ValueInterval(*(torch.tensor(bound) for bound in rewards))
        self._start = [torch.tensor(value) for value in state_dict["start"]]
        self._interval = list(state_dict["interval"])
        self._windows = state_dict["windows"]
        self._updates = state_dict["updates"]
        self.detector.load_state_dict(state_dict["detector"])


def with_action_values(outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The signals `value` and `value_target` of states under the names of Q; the same bounds hold for both.

    They are not soft: where there is a bonus for entropy, it is no part of these values.
    """
    if "q_value" in outputs or "value" not in outputs or "value_target" not in outputs:
        return outputs
    others = {name: signal for name, signal in outputs.items() if name not in ("ent_coef", "entropy")}
    return others | {"q_value": outputs["value"], "td_target": outputs["value_target"]}


def _of_first_update(q_value: Tensor, td_target: Tensor) -> list[Tensor]:
    """The lowest value or target, the mean target and the highest of both: a clamp moves targets, and not values."""
    value, target = (each.detach().float() for each in (q_value, td_target))
    value, target = (each[0] if each.dim() > 1 else each for each in (value, target))
    return [torch.minimum(value.amin(), target.amin()), target.mean(), torch.maximum(value.amax(), target.amax())]


def _counted(rollout: Rollout) -> Transition:
    """The steps that count, `[M]`; those that only reset an environment are no transitions."""
    valid = rollout.valid

    def of(observation: Observation) -> Observation:
        if isinstance(observation, dict):
            return {key: column[valid] for key, column in observation.items()}
        return observation[valid]

    fields: dict[str, Any] = {
        name: of(getattr(rollout, name)) if name.endswith("observation") else getattr(rollout, name)[valid]
        for name in Transition._fields
    }
    return Transition(**fields)


def _of_transitions(transition: Transition) -> dict[str, Tensor]:
    terminated = transition.terminated
    return {
        "discount": transition.discount.amax(),
        "terminal_discount": transition.discount.where(terminated, 0.0).amax(),
        "terminated": terminated.float().mean(),
        "truncated": transition.truncated.float().mean(),
        "unchanged": _unchanged(transition.observation, transition.next_observation, terminated.dim()),
    }


def _unchanged(observation: Observation, next_observation: Observation, batch_dims: int) -> Tensor:
    """Share of the transitions in which nothing of the observation changed."""
    if isinstance(observation, dict) and isinstance(next_observation, dict):
        keys = [_is_equal(observation[key], next_observation[key], batch_dims) for key in observation]
        return torch.stack(keys).all(0).float().mean()
    if isinstance(observation, Tensor) and isinstance(next_observation, Tensor):
        return _is_equal(observation, next_observation, batch_dims).float().mean()
    raise TypeError(f"got {type(observation).__name__} and {type(next_observation).__name__}, expected two alike")


def _is_equal(now: Tensor, then: Tensor, batch_dims: int) -> Tensor:
    return (now == then).reshape(*now.shape[:batch_dims], -1).all(-1)


def _of_all_processes(rows: list[list[float]]) -> ValueWindow:
    columns = dict(zip(ValueWindow._fields, zip(*rows, strict=True), strict=True))
    reduced = {}
    for field, values in columns.items():
        numbers = [value for value in values if not math.isnan(value)]
        if len(numbers) < len(values):
            reduced[field] = math.nan
        elif field in _LOWEST:
            reduced[field] = min(numbers)
        elif field in _MEANS:
            reduced[field] = sum(numbers) / len(numbers)
        else:
            reduced[field] = sum(numbers) if field == "transitions" else max(numbers)
    return ValueWindow(**reduced)


def _episode_length(trainer: Trainer) -> float | None:
    source = trainer.datamodule  # type: ignore[attr-defined]
    statistics = source.rollout_statistics() if isinstance(source, ExperienceSource) else {}
    return statistics.get("rollout/ep_len_mean")
