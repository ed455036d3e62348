"""Back to the last state that was green, a bounded number of times."""

import math
from collections.abc import Collection
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.safeguard import Mode, Safeguard, clock, effective_learning_rates
from rlmods.callbacks.snapshots import Snapshot, fold_rng, restore_snapshot, scale_learning_rates, take_snapshot
from rlmods.types import Rollout

# What damages the weights. A wrong metric, a skipped update or a wrong setting is not cured by older weights.
_CAUSES = (
    "return_collapse",
    "target_out_of_bounds",
    "non_finite_parameter",
)
# What says nothing of the weights: a metric, an update that was skipped, the scale of gradients and rewards.
_HARMLESS = (
    "metric_out_of_range",
    "non_finite_reward",
    "non_finite_observation",
    "non_finite_batch",
    "non_finite_gradient",
    "clip_always_active",
    "module_dominates",
    "reward_range_changed",
)


class RollbackBudget:
    """Which evaluations are worth going back to, and whether another rollback may be made.

    Args:
        max_rollbacks: in the whole run.
        cooldown: iterations after the first rollback in which no other is made; doubles with each.
    """

    def __init__(self, *, max_rollbacks: int, cooldown: int) -> None:
        if max_rollbacks < 1 or cooldown < 1:
            raise ValueError(
                f"Rollback got max_rollbacks = {max_rollbacks} and cooldown = {cooldown}, expected both from 1 on"
            )
        self.max_rollbacks = max_rollbacks
        self.cooldown = cooldown
        self.iterations = 0
        self.rollbacks = 0
        self.resting_until = 0  # iteration
        self.best = -math.inf

    @property
    def is_spent(self) -> bool:
        """Whether no rollback is left."""
        return self.rollbacks >= self.max_rollbacks

    def spend(self) -> None:
        """Count a rollback."""
        self.resting_until = self.iterations + self.cooldown * 2**self.rollbacks
        self.rollbacks += 1

    def is_good(self, mean: float, standard_error: float) -> bool:
        """Take in an evaluation; whether it is at least the best so far less its standard error."""
        good = mean >= self.best - standard_error
        self.best = max(self.best, mean) if math.isfinite(mean) else self.best
        return good

    def state_dict(self) -> dict[str, Any]:
        """The counters and the best evaluation."""
        names = ("iterations", "rollbacks", "resting_until", "best")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class Rollback(Safeguard):
    """Puts weights, optimisers, schedules and random states back to the last green state, with a lower learning rate.

    It reacts to the alarms of other safeguards in the same trainer, of severity `ACT` and a cause among `causes`, at
    the start of the iteration after them, when all have spoken. The randomness is changed, so that the same failure is
    not replayed. What counts goes on counting: `global_step`, `update_steps`, environment steps, loggers; the replay
    and the memory of the safeguards stay, but their windows are rearmed.

    A state is green where no other safeguard has an active alarm from `WARN` on, but for the `harmless`, where all
    weights are finite, and where the evaluation, if there is one, reached the best so far less a standard error. The
    state at the start counts. A failure that comes back before there is a newer green state goes back further.

    The learning rate is lowered through `learning_rate_scale` of the module where it has that (all algorithms of
    rlmods), elsewhere in the parameter groups and the schedulers, and it is read back after the next iteration.

    Each snapshot holds the module and its optimisers, with Adam about three times the parameters. `keep` of them lie
    in the memory of the host and in every checkpoint, because a resumed run must be able to go back as well.

    A safeguard in mode `stop` ends the run before this one can act.

    Args:
        causes: of the alarms that it reacts to.
        harmless: causes that do not keep a state from being green, because they say nothing of the weights.
        max_rollbacks: when they are spent and an alarm comes, the run is over, in mode `act` too.
        learning_rate_factor: in (0, 1).
        cooldown: iterations after the first rollback in which no other is made; doubles with each. An alarm of that
            time counts if it is active at the end.
        keep: number of snapshots.
        monitor: logged metric of the evaluation, of which more is better; None takes snapshots without evaluations.
        snapshot_every_n_iterations: between snapshots, where the module does not evaluate or `monitor` is None.
        name: tells the instances apart.
        mode: how far it may go; `observe` says what it would have done.

    Raises:
        ValueError: where an argument is outside its range, the strategy shards the weights, or there is no other
            safeguard; at the first evaluation, where it did not log `monitor`.
    """

    def __init__(
        self,
        *,
        causes: Collection[str] = _CAUSES,
        harmless: Collection[str] = _HARMLESS,
        max_rollbacks: int = 3,
        learning_rate_factor: float = 0.5,
        cooldown: int = 100,
        keep: int = 2,
        monitor: str | None = "eval/mean_reward",
        snapshot_every_n_iterations: int = 500,
        name: str = "rollback",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if isinstance(causes, str) or isinstance(harmless, str) or not causes:
            raise ValueError(
                f"Rollback got causes = {causes!r} and harmless = {harmless!r}, expected lists of them, the first not "
                f"empty, for example {[*_CAUSES[:2]]}"
            )
        if not 0.0 < learning_rate_factor < 1.0:
            raise ValueError(f"Rollback got learning_rate_factor = {learning_rate_factor}, expected a factor in (0, 1)")
        if keep < 1 or snapshot_every_n_iterations < 1:
            raise ValueError(
                f"Rollback got keep = {keep} and snapshot_every_n_iterations = {snapshot_every_n_iterations}, expected "
                "both from 1 on"
            )
        self.causes = tuple(causes)
        self.harmless = tuple(harmless)
        self.learning_rate_factor = learning_rate_factor
        self.keep = keep
        self.monitor = monitor
        self.snapshot_every_n_iterations = snapshot_every_n_iterations
        self.budget = RollbackBudget(max_rollbacks=max_rollbacks, cooldown=cooldown)
        self.snapshots: list[Snapshot] = []  # the newest last
        self.learning_rate_scale = 1.0  # of all rollbacks so far
        self._others: dict[str, Safeguard] = {}
        self._evaluates = True
        self._heard: dict[str, int] = {}  # number of alarms of each that were answered
        self._is_candidate = (
            False  # the last evaluation was good: keep the state, if it is green, before the next batch
        )
        self._has_newer_snapshot = True  # than the last rollback
        self._not_lowered_from: dict[str, float] = {}  # learning rates that the next iteration must stay below
        self._discarding: list[RemovableHandle] = []  # hooks that leave out the updates of this iteration

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work."""
        super().setup(trainer, pl_module, stage)
        if not isinstance(trainer.strategy, (SingleDeviceStrategy, DDPStrategy)):
            raise ValueError(
                f"Rollback got the strategy {type(trainer.strategy).__name__}, expected a single device or DDP: its "
                "snapshots are of whole modules, not of shards; leave it out, or type --trainer.strategy ddp"
            )
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self._others = {
            f"{type(other).__qualname__}/{other.name}": other
            for other in callbacks
            if isinstance(other, Safeguard) and not isinstance(other, Rollback)
        }
        if not self._others:
            raise ValueError(
                "Rollback answers the alarms of other safeguards, and found none among the callbacks: add one, for "
                "example NonFiniteGuard, or leave it out"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The state at the start is the first that one can go back to."""
        self._evaluates = self.monitor is not None and trainer.enable_validation
        if not self.snapshots:
            self._heard = self._count_alarms()
            self._keep(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Answer the alarms since the last time, else keep the state if it is due and green.

        Not earlier, because here all other callbacks have spoken, in whatever order. A checkpoint that was saved in
        between carries the alarms and the number of them that were answered, so a resumed run does the same.
        """
        self.budget.iterations += 1
        alarms = self._new_alarms()
        if alarms:
            rollbacks = self.budget.rollbacks
            self._answer(trainer, pl_module, alarms)
            # The policy that has played it is gone, and what is learned from it counts on its being the same.
            if isinstance(batch, Rollout) and self.budget.rollbacks > rollbacks:
                self._discarding = [each.register_step_pre_hook(_drop_gradients) for each in trainer.optimizers]
            return
        is_due = not self._evaluates and self.budget.iterations % self.snapshot_every_n_iterations == 0
        if self._is_candidate or is_due:
            self._is_candidate = False
            self._keep_if_green(trainer, pl_module)

    def _new_alarms(self) -> list[str]:
        if self.budget.iterations < self.budget.resting_until:
            return []
        raised = self._count_alarms()
        if raised == self._heard:
            return []
        has_rested = self.budget.iterations == self.budget.resting_until
        found = [
            f"{other.name}: {cause}"
            for key, other in self._others.items()
            for cause, severity in other.raised[self._heard.get(key, 0) :]
            if severity >= Severity.ACT and cause in self.causes and (cause in other.active or not has_rested)
        ]
        self._heard = raised
        return found

    def _count_alarms(self) -> dict[str, int]:
        return {key: len(other.raised) for key, other in self._others.items()}

    def _keep_if_green(self, trainer: Trainer, pl_module: LightningModule) -> None:
        present = [
            f"{other.name}: {cause}"
            for other in self._others.values()
            for cause, severity in other.active.items()
            if severity >= Severity.WARN and cause not in self.harmless
        ]
        if not present:
            self._keep(trainer, pl_module)
            return
        message = (
            f"a state that would be worth going back to is not kept, because of {', '.join(present)}; if that says "
            "nothing of the weights, name its cause in harmless"
        )
        self.report(trainer, [Verdict("state_not_green", Severity.INFO, message, {"alarms": present})])

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scale = self.learning_rate_scale
        snapshot = take_snapshot(trainer, pl_module, clock=clock(trainer), learning_rate_scale=scale)
        if snapshot is not None:
            self.snapshots = [*self.snapshots, snapshot][-self.keep :]
            self._has_newer_snapshot = True
            self.report(trainer, [])

    def _answer(self, trainer: Trainer, pl_module: LightningModule, alarms: list[str]) -> None:
        reason = ", ".join(dict.fromkeys(alarms))
        evidence: dict[str, Any] = {"alarms": alarms, "rollbacks": self.budget.rollbacks}
        if not self.snapshots:
            message = f"there is no state to go back to after {reason}: the weights were not finite from the start"
            self.report(trainer, [Verdict("no_green_state", Severity.WARN, message, evidence)])
        elif self.budget.is_spent:
            message = (
                f"{reason} after {self.budget.rollbacks} rollbacks, each with a lower learning rate: going back does "
                "not cure it. Look for its cause in the first alarms of events.jsonl"
            )
            self.report(trainer, [Verdict("rollbacks_spent", Severity.FATAL, message, evidence)])
            if self.mode == "act":
                self.stop(trainer, message)
        elif self.mode == "observe":
            to_clock = self.snapshots[-1]["clock"]
            message = f"would go back from {clock(trainer)} to the green state at {to_clock}, because of {reason}"
            self.report(trainer, [Verdict("rollback_due", Severity.WARN, message, evidence | {"to": to_clock})])
        else:
            self._roll_back(trainer, pl_module, reason, evidence)

    def _roll_back(self, trainer: Trainer, pl_module: LightningModule, reason: str, evidence: dict[str, Any]) -> None:
        if not self._has_newer_snapshot and len(self.snapshots) > 1:
            self.snapshots = self.snapshots[:-1]
        self._has_newer_snapshot = self._is_candidate = False
        snapshot = self.snapshots[-1]
        self.budget.spend()
        before = effective_learning_rates(trainer)
        restore_snapshot(trainer, pl_module, snapshot)
        fold_rng(self.budget.rollbacks)
        unscaled = effective_learning_rates(trainer)
        self.learning_rate_scale *= self.learning_rate_factor
        scale_learning_rates(trainer, self.learning_rate_scale / snapshot["learning_rate_scale"])
        module: Any = pl_module
        if hasattr(module, "learning_rate_scale"):
            module.learning_rate_scale *= self.learning_rate_factor
        # The schedule went back as well: it may stand higher or lower than before.
        self._not_lowered_from = {group: max(rate, unscaled[group]) for group, rate in before.items()}
        for other in self._others.values():
            other.rearm()
        message = (
            f"went back from {clock(trainer)} to the green state at {snapshot['clock']}, because of {reason}; rollback "
            f"{self.budget.rollbacks} of {self.budget.max_rollbacks}, learning rates times {self.learning_rate_factor}"
        )
        clocks = {"from": clock(trainer), "to": snapshot["clock"], "rollbacks": self.budget.rollbacks}
        rates = {"learning_rates_before": before, "learning_rates_after": effective_learning_rates(trainer)}
        self.act(trainer, message, evidence | clocks | rates)
        self._draw(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Automatic optimisation makes its gradients after the hook that leaves out an update."""
        if self._discarding:
            _drop_gradients(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """After the first iteration since a rollback, read the learning rates back."""
        for handle in self._discarding:
            handle.remove()
        self._discarding = []
        if not self._not_lowered_from:
            return
        now = effective_learning_rates(trainer)
        limits, self._not_lowered_from = self._not_lowered_from, {}
        kept = {group: [limit, now[group]] for group, limit in limits.items() if limit > 0.0 and now[group] >= limit}
        if kept:
            message = (
                f"the learning rates of {sorted(kept)} were not lowered by the rollback ({kept}, before and after): "
                "something writes them in every iteration. Let it multiply them by the module's learning_rate_scale"
            )
            self.report(trainer, [Verdict("learning_rate_not_lowered", Severity.WARN, message, {"groups": kept})])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See whether the evaluation is worth going back to; all processes say the same."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING or self.monitor is None:
            return
        metrics = trainer.callback_metrics
        if self.monitor not in metrics:
            raise ValueError(
                f"Rollback needs {self.monitor!r} to know a good state, but what was logged after the evaluation is "
                f"{sorted(metrics)}: log it in validation_step, name another one of which more is better "
                "(monitor=...), or keep states without evaluations (monitor=None)"
            )
        standard_error = 0.0
        if self.monitor == "eval/mean_reward" and {"eval/std_reward", "eval/episodes"} <= metrics.keys():
            episodes = float(metrics["eval/episodes"])
            standard_error = float(metrics["eval/std_reward"]) / math.sqrt(max(episodes - 1.0, 1.0))
        good = self.budget.is_good(float(metrics[self.monitor]), standard_error)
        self._is_candidate = trainer.strategy.reduce_boolean_decision(good)
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        age = clock(trainer) - self.snapshots[-1]["clock"] if self.snapshots else math.nan
        self.draw(trainer, {"rollbacks": float(self.budget.rollbacks), "snapshot_age": float(age)})

    def state_dict(self) -> dict[str, Any]:
        """The snapshots, the budget, and which alarms were answered."""
        return {
            **super().state_dict(),
            "snapshots": list(self.snapshots),
            "budget": self.budget.state_dict(),
            "learning_rate_scale": self.learning_rate_scale,
            "heard": dict(self._heard),
            "is_candidate": self._is_candidate,
            "has_newer_snapshot": self._has_newer_snapshot,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.snapshots = list(state_dict["snapshots"])
        self.budget.load_state_dict(state_dict["budget"])
        self.learning_rate_scale = state_dict["learning_rate_scale"]
        self._heard = dict(state_dict["heard"])
        self._is_candidate = state_dict["is_candidate"]
        self._has_newer_snapshot = state_dict["has_newer_snapshot"]


def _drop_gradients(optimizer: Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
