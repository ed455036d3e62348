"""What the critic says of the policy's own actions, against what it says of the data's."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.policy_value_detector import PolicyValueDetector, PolicyValueWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.callbacks.seen_values import SeenValues, entropy_bonus
from rlmods.callbacks.transitions import num_action_dimensions


class PolicyValueGapGuard(Safeguard):
    """Watches Q(s, π(s)) against Q(s, a) in the states of the data, the encoder's features, and the twin critics.

    Needs the signals `q_value` `[K, B]` and, in the iterations that move the actor, `q_policy` `[K_a, B]`; uses
    `feature_norm` and `twin_gap`, and batches with transitions, for the bound.

    - `policy_value_out_of_bounds`, a bound: the mean of Q at the policy's actions lies above what the rewards and
      discounts allow any policy, while that at the data's lies within, in three windows.
    - `policy_value_gap`, a warning: the first exceeds the second by more spreads of Q over the data than an action can
      be better, and the more from window to window. In healthy runs on a replay of random actions it is one to two.
    - `feature_norm_grows`, a warning: a hundred times its start, in five windows, and growing.
    - `twins_equal`, a warning: |Q1 − Q2| is exactly 0, and Q is no constant.
    - `twin_disagreement`, a warning: |Q1 − Q2| in spreads of Q above five times its own median in five windows.

    Args:
        threshold: spreads of Q over the data that the gap may have; at least 2√(3A) for A action dimensions.
        slack: share of the interval's size by which the policy's Q may pass its end.
        feature_growth: multiple of its start that a feature norm may reach.
        twin_growth: multiple of its median that the twins' disagreement may reach.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first signals, where `q_value` is missing.
    """

    def __init__(
        self,
        *,
        threshold: float = 5.0,
        slack: float = 0.05,
        feature_growth: float = 100.0,
        twin_growth: float = 5.0,
        every_n_iterations: int = 8,
        name: str = "policy_value_gap",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"PolicyValueGapGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = PolicyValueDetector(
            threshold=threshold, slack=slack, feature_growth=feature_growth, twin_growth=twin_growth
        )
        self._seen = SeenValues()
        self._unseen: list[tuple[Tensor, Tensor]] = []  # rewards and discounts since the last window
        self._latest: tuple[Tensor, Tensor] | None = None  # q_value, q_policy of the window's last update of the actor
        self._restored: Tensor | None = None  # what they came to, of a window that a checkpoint cut
        self._num_actions = 1
        self._has_signals = False
        self._has_policy = False
        self._readings = Readings()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep what this batch says of the interval."""
        transition = getattr(batch, "transition", batch)
        reward, discount = getattr(transition, "reward", None), getattr(transition, "discount", None)
        if isinstance(reward, Tensor) and isinstance(discount, Tensor) and reward.numel():
            self._num_actions = num_action_dimensions(transition) or 1
            # Copies: a view would keep the whole batch.
            self._unseen.append((reward.flatten().clone(), discount.flatten().clone()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the last actions of the actor; at the end of a window, measure."""
        has_outputs = isinstance(outputs, Mapping) and len(outputs) > 0
        if has_outputs:
            if not self._has_signals:
                require_signals(self, outputs, ["q_value"])
            self._has_signals = True
            if "q_policy" in outputs:
                self._has_policy, self._restored = True, None
                self._latest = (outputs["q_value"], outputs["q_policy"])
        if not is_window(self.every_n_iterations, batch_idx):
            return
        with torch.no_grad():
            self._see()
            if has_outputs:
                self._seen.see_entropy(entropy_bonus(pl_module, outputs, getattr(batch, "transition", batch)))
            statistics = self._measure(outputs if has_outputs else {}, pl_module.device)
        self._latest = self._restored = None
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _see(self) -> None:
        """Widen the interval by the batches since the last window."""
        if self._unseen:
            reward, discount = (torch.cat(column) for column in zip(*self._unseen, strict=True))
            self._seen.see(reward, discount)
        self._unseen = []

    def _measure(self, outputs: Mapping[str, Tensor], device: torch.device) -> Tensor:
        nothing = torch.full((), math.nan, device=device)
        interval, size = self._seen.interval, self._seen.size
        bounds = [nothing if interval is None else interval.high, nothing if size is None else size]
        others = [outputs[name].float().mean() if name in outputs else nothing for name in ("twin_gap", "feature_norm")]
        tail = torch.stack([value.to(nothing) for value in (*bounds, *others)])
        return torch.cat([self._policy_and_data(outputs).to(nothing), tail])

    def _policy_and_data(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """Mean and spread at the data's actions, mean at the policy's, `[3]`; NaN where the actor did not move."""
        if self._latest is not None:
            q_value, q_policy = (values.float() for values in self._latest)
            return torch.stack([q_value.mean(), q_value.std(correction=0), q_policy.mean()])
        if self._restored is not None:
            return self._restored
        if "q_value" not in outputs:
            return torch.full((3,), math.nan)
        q_value = outputs["q_value"].float()
        return torch.stack([q_value.mean(), q_value.std(correction=0), q_value.new_tensor(math.nan)])

    def _decide(self, trainer: Trainer, window: PolicyValueWindow) -> None:
        if math.isnan(window.q_data_mean):
            return  # a warm-up
        self.report(trainer, self.detector.update(window, self._num_actions))
        curves = {"q_policy": window.q_policy_mean, "q_data": window.q_data_mean, "spread": window.q_data_std}
        self.draw(trainer, {name: value for name, value in curves.items() if not math.isnan(value)})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the module never gave the signal of the policy, which a delayed actor may do for a while."""
        if self._has_signals and not self._has_policy:
            message = (
                f"the gap was not measured: training_step of {type(pl_module).__name__} never returned q_policy, "
                "expected Q at the policy's own actions in the states of q_value, detached, in the iterations that "
                "move the actor; return it, or leave this callback out"
            )
            self.report(trainer, [Verdict("no_signals", Severity.WARN, message, {})])

    def rearm(self) -> None:
        """Start the windows anew; what the transitions allow stays."""
        super().rearm()
        self.detector.reset()
        self._latest = self._restored = None

    def state_dict(self) -> dict[str, Any]:
        """The interval, the detector and the window that is open."""
        self._see()
        is_open = self._latest is not None or self._restored is not None
        return {
            **super().state_dict(),
            "seen": self._seen.state_dict(),
            "detector": self.detector.state_dict(),
            "open": self._policy_and_data({}).tolist() if is_open else None,
            "num_actions": self._num_actions,
            "has_signals": self._has_signals,
            "has_policy": self._has_policy,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self._seen.load_state_dict(state_dict["seen"])
        self.detector.load_state_dict(state_dict["detector"])
        self._restored = None if state_dict["open"] is None else torch.tensor(state_dict["open"])
        self._num_actions = state_dict["num_actions"]
        self._has_signals, self._has_policy = state_dict["has_signals"], state_dict["has_policy"]


def _of_all_processes(rows: list[list[float]]) -> PolicyValueWindow:
    """Means of means; the widest interval, because each process has seen transitions of its own."""
    windows = [PolicyValueWindow(*row) for row in rows]
    means = [sum(column) / len(windows) for column in zip(*windows, strict=True)]
    widest = {name: max(getattr(window, name) for window in windows) for name in ("high", "size")}
    return PolicyValueWindow(*means)._replace(**widest)
