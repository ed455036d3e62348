"""The entropy of a policy against the volume of its actions, and σ against μ."""

import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.entropy_detector import EntropyDetector, EntropyWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, require_signals
from rlmods.types import EnvSpec

_BY_ACTION = ("action_std", "action_mean_abs", "action_saturation")


@runtime_checkable
class KnowsItsSpaces(Protocol):
    """A module that knows what its environment's actions are."""

    spec: EnvSpec


class EntropyGuard(Safeguard):
    """Watches how random a policy is: at most as the box or the number of its actions allows, and σ not without μ.

    Needs the signal `entropy` `[K]`, in nats, of continuous actions in units of half their range; for those also
    `action_std`, `action_mean_abs` and `action_saturation` `[1, A]`. A window is an iteration.

    - `entropy_above_bound`, a bound: no distribution over n actions has more than log n, no density on the cube
      [−1, 1]^A more than A log 2.
    - `sigma_beyond_box`, for information, and `sigma_outruns_mean` and `sigma_costs_return`, warnings: of a Gaussian
      that the environment clips, whose entropy is that before the clip and has no bound. σ beyond twice half the range
      clips most actions; as long as |μ| grows with it, the policy is one of extremes and may be good. Where σ is half
      as large again as it once was and still grows in three iterations, and |μ|/σ is below 0.25 or half of its best,
      actions are coin flips; where the last evaluation is a quarter below the best, they cost return.
    - `entropy_collapse`, a warning: far below its own start, and the last evaluation has lost half of what was gained,
      or never gained anything. A policy that solves its task may be deterministic.
    - `saturated_actions`, for information: above 95 % of one action at the ends of its range.

    Args:
        largest: entropy that no distribution over the actions passes, in nats; None takes A log 2 of continuous actions
            and log n of discrete ones, where the module has a `spec` (`rlmods.types.EnvSpec`).
        collapsed: share of the largest entropy, below which that of discrete actions counts as gone.
        windows: in a row, until a collapse or actions at their ends are told.
        monitor: evaluation metric that says whether a collapse does harm.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first signals, where `entropy` is missing.
    """

    def __init__(
        self,
        *,
        largest: float | None = None,
        collapsed: float = 0.05,
        windows: int = 10,
        monitor: str = "eval/mean_reward",
        name: str = "entropy",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        self.largest = largest
        self.monitor = monitor
        self.detector = EntropyDetector(collapsed=collapsed, windows=windows)
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure, and decide."""
        if not (isinstance(outputs, Mapping) and outputs):
            return
        require_signals(self, outputs, ["entropy"])
        num_actions = outputs["action_std"].numel() if "action_std" in outputs else 0
        with torch.no_grad():
            columns = [outputs["entropy"].detach().float().flatten()[:1]]
            if num_actions:
                require_signals(self, outputs, _BY_ACTION)
                columns += [outputs[name].detach().float().flatten() for name in _BY_ACTION]
            statistics = torch.cat([column.to(pl_module.device) for column in columns])
        metric = trainer.callback_metrics.get(self.monitor)
        context = (self._largest(pl_module, num_actions), math.nan if metric is None else float(metric))
        arrived = self._readings.exchange(trainer, statistics, context)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(*arrived))

    def _largest(self, pl_module: LightningModule, num_actions: int) -> float:
        if self.largest is not None:
            return self.largest
        if isinstance(pl_module, KnowsItsSpaces):
            return largest_entropy(pl_module.spec)
        return num_actions * math.log(2.0) if num_actions else math.inf

    def _decide(self, trainer: Trainer, window: EntropyWindow) -> None:
        self.report(trainer, self.detector.update(window))
        curves = {}
        if math.isfinite(window.largest) and window.largest > 0.0:
            curves["share"] = window.entropy / window.largest
        if window.stds:
            curves["mean_over_std"] = min(m / s for m, s in zip(window.means, window.stds, strict=True) if s > 0.0)
        self.draw(trainer, curves)

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector."""
        return {**super().state_dict(), "detector": self.detector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])


def largest_entropy(spec: EnvSpec) -> float:
    """Σ log n of discrete actions, A log 2 of continuous ones in the cube, ∞ of those without bounds."""
    action = spec["action"]
    if action["kind"] == "discrete":
        return math.log(action["n"])
    if action["kind"] == "multi_discrete":
        return sum(math.log(n) for n in action["nvec"])
    is_finite = all(map(math.isfinite, [*action["low"], *action["high"]]))
    return math.prod(action["shape"]) * math.log(2.0) if is_finite else math.inf


def _of_all_processes(rows: list[list[float]], context: tuple[float, float]) -> EntropyWindow:
    """Means."""
    entropy, *by_action = (sum(column) / len(rows) for column in zip(*rows, strict=True))
    size = len(by_action) // len(_BY_ACTION)
    stds, means, saturation = (by_action[part * size : (part + 1) * size] for part in range(len(_BY_ACTION)))
    largest, mean_reward = context
    return EntropyWindow(entropy, largest, stds, means, saturation, mean_reward)
