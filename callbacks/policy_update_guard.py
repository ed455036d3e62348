"""The updates that an on-policy algorithm makes on a rollout: the identity of the first, and how far the others go."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.policy_update_detector import PolicyUpdateDetector, PolicyUpdateWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, effective_learning_rates, require_signals
from rlmods.types import Rollout

_SIGNALS = ("importance_ratio", "approx_kl", "clip_fraction")


class PolicyUpdateGuard(Safeguard):
    """Watches the K updates on a rollout by ratio, KL and clip fraction, and knows the learning rate that made them.

    Needs the signals `importance_ratio` `[K, B]`, `approx_kl` `[K]` and `clip_fraction` `[K]` of each update, measured
    before it; uses `explained_variance`, `action_std`, and `epochs` with batches of `rlmods.types.Rollout`. A window is
    an iteration.

    - `first_ratio_not_one`, an identity: before the first update all ratios are 1, because the policy that learns still
      is the one that acted.
    - `minibatches_dropped`, a warning: fewer updates than the epochs have mini-batches, in three rollouts.
    - `policy_moves_too_far` and `clip_saturation`, warnings: a KL above 0.2, once above 1, in the mean; half of the
      ratios outside the clip range.
    - `policy_stall`, a warning: KL and clip fraction are next to 0 although the learning rate is not.
      `schedule_exhausted`, for information: they are because it has been annealed, and say nothing about the policy.
      Where σ has left the action box neither is said: `EntropyGuard` tells.
    - `critic_does_not_explain`, a warning: the explained variance stays below 0.

    Args:
        policy_group: `group["name"]` of the policy's parameters; where no optimiser has it, the largest learning rate
            counts.
        tolerance: deviation of a first ratio from 1 that rounding may make; a hundredfold under bf16.
        windows: in a row, until it is told of a policy that stands still, ratios that are clipped, or a critic that
            explains nothing.
        min_updates: before anything is said of the critic.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first signals, where one is missing.
    """

    def __init__(
        self,
        *,
        policy_group: str = "actor",
        tolerance: float = 1e-3,
        windows: int = 10,
        min_updates: int = 1_000,
        name: str = "policy_update",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        self.policy_group = policy_group
        self.tolerance = tolerance
        self.detector = PolicyUpdateDetector(tolerance=tolerance, windows=windows, min_updates=min_updates)
        self._has_jumped = False  # the weights, since this iteration's rollout was played
        self._readings = Readings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allow for the rounding of the precision."""
        is_half = str(trainer.precision).startswith("bf16")
        self.detector.tolerance = min(self.tolerance * (100.0 if is_half else 1.0), 0.5)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and decide."""
        has_outputs = isinstance(outputs, Mapping) and len(outputs) > 0
        if has_outputs:
            require_signals(self, outputs, _SIGNALS)
        if self._has_jumped:
            self._has_jumped = False
            return
        statistics = self._measure(outputs if has_outputs else {}, batch, pl_module.device)
        rates = effective_learning_rates(trainer)
        rate = rates.get(self.policy_group, max(rates.values(), default=math.nan))
        arrived = self._readings.exchange(trainer, statistics, rate)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(*arrived))

    @torch.no_grad()
    def _measure(self, outputs: Mapping[str, Tensor], batch: Any, device: torch.device) -> Tensor:
        nothing = torch.full((), math.nan, device=device)
        measured = {}
        if outputs:
            ratio, kl = outputs["importance_ratio"].float(), outputs["approx_kl"].float()
            measured = {
                "ratio_error": (ratio[0] - 1.0).abs().amax(),
                "kl": kl[1:].mean(),
                "clip_fraction": outputs["clip_fraction"].float()[1:].mean(),
                "updates": nothing.new_tensor(kl.numel()),
                "batch_size": nothing.new_tensor(ratio[0].numel()),
            }
        if "action_std" in outputs:
            measured["std"] = outputs["action_std"].float().amin()
        for name in ("epochs", "explained_variance"):
            if name in outputs:
                measured[name] = outputs[name].float().mean()
        if isinstance(batch, Rollout):
            measured["steps"] = batch.valid.sum()
        return torch.stack([measured.get(name, nothing).to(nothing) for name in _MEASURED])

    def _decide(self, trainer: Trainer, window: PolicyUpdateWindow) -> None:
        if math.isnan(window.updates):
            return  # nothing was learned
        self.report(trainer, self.detector.update(window))
        self.draw(trainer, {"ratio_error": window.ratio_error, "learning_rate": window.learning_rate})

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()
        self._has_jumped = True

    def state_dict(self) -> dict[str, Any]:
        """The detector."""
        return {**super().state_dict(), "detector": self.detector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])


def _of_all_processes(rows: list[list[float]], learning_rate: float) -> PolicyUpdateWindow:
    """Means, but the largest error; updates and rollout are those of each process alike."""
    means = {name: sum(column) / len(rows) for name, column in zip(_MEASURED, zip(*rows, strict=True), strict=True)}
    means["ratio_error"] = max(row[_MEASURED.index("ratio_error")] for row in rows)
    return PolicyUpdateWindow(**means, learning_rate=learning_rate)


_MEASURED = tuple(name for name in PolicyUpdateWindow._fields if name != "learning_rate")
