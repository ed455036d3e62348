"""What all safeguards share: a name, a ladder, alarms with evidence, readings of device values, hooks on the steps."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.events import append_event
from rlmods.types import ExperienceSource

Mode = Literal["observe", "act", "stop"]

log = logging.getLogger(__name__)


class MissingInputError(ValueError):
    """A safeguard needs what the module or the data do not give; found at the first batch that should have it."""


class Safeguard(Callback):
    """A callback that raises alarms, and acts on them as far as its mode lets it.

    Every alarm goes to `events.jsonl` of the run, to the console, and to `stability/<name>/alarm` (the highest severity
    that is active, −1 for none). A cause is announced when it begins or gets worse, not again in each window.

    All processes must call `report` together and with the same verdicts: `Readings` sees to that.

    Args:
        name: tells the instances of one class apart.
        mode: how far it may go. `observe` changes nothing, `act` takes its own bounded action, `stop` also ends the
            training on a verdict of severity `ACT`.

    Attributes:
        active: the severity of each cause that is present now.
        raised: (cause, severity) of every alarm so far, in order.
        stopped: why it ended the training; None where it did not.
    """

    def __init__(self, *, name: str, mode: Mode) -> None:
        if mode not in ("observe", "act", "stop"):
            raise ValueError(f"{type(self).__name__} got mode = {mode!r}, expected 'observe', 'act' or 'stop'")
        if not name or "/" in name:
            raise ValueError(f"{type(self).__name__} got name = {name!r}, expected a word without a slash")
        self.name = name
        self.mode = mode
        self.active: dict[str, Severity] = {}
        self.raised: list[tuple[str, Severity]] = []
        self.stopped: str | None = None
        self._drawn = (-2, 0)  # severity and global step
        # Lightning looks for equal keys when the trainer is made, and what it says does not help; `setup` does.
        self._state_key = self._generate_state_key(name=name, instance=id(self))

    @property
    def state_key(self) -> str:
        """Several instances of a class live side by side under different names."""
        return self._state_key  # made once: Lightning asks for it at each hook

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second instance of the same class and name.

        Raises:
            ValueError: where there is one.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        twins = [other for other in callbacks if type(other) is type(self) and other.name == self.name]
        if len(twins) > 1:
            raise ValueError(
                f"got {len(twins)} callbacks {type(self).__name__} with the name {self.name!r}, expected one: give the "
                f"others names of their own, {type(self).__name__}(name=...)"
            )
        self._state_key = self._generate_state_key(name=self.name)

    def rearm(self) -> None:
        """Start the windows anew, because the weights or the data have jumped; what was alarmed stays on record."""
        self.active.clear()

    def report(self, trainer: Trainer, verdicts: Iterable[Verdict]) -> list[Verdict]:
        """Take in a window's verdicts; announce those that are new or worse; stop where the mode says so.

        A cause that is active and not among the verdicts has ended.

        Returns:
            The verdicts that were announced.
        """
        found = list(verdicts)
        new = [
            verdict
            for verdict in found
            if verdict.cause not in self.active or verdict.severity > self.active[verdict.cause]
        ]
        self.active = {verdict.cause: verdict.severity for verdict in found}
        for verdict in new:
            self._announce(trainer, verdict)
        return new

    def _announce(self, trainer: Trainer, verdict: Verdict) -> None:
        self.raised.append((verdict.cause, verdict.severity))
        evidence = {
            "safeguard": self.name,
            "cause": verdict.cause,
            "severity": verdict.severity.name.lower(),
            **verdict.evidence,
            "learning_rate": effective_learning_rates(trainer),
        }
        append_event(trainer, "alarm", verdict.message, evidence)
        _say(f"{type(self).__name__}: {verdict.message}", verdict.severity)
        if self.mode == "stop" and verdict.severity >= Severity.ACT:
            self.stop(trainer, verdict.message)

    def act(self, trainer: Trainer, message: str, evidence: Mapping[str, Any]) -> None:
        """Put an action on record."""
        append_event(trainer, "action", message, {"safeguard": self.name, **evidence})
        _say(f"{type(self).__name__}: {message}", Severity.WARN)

    def stop(self, trainer: Trainer, reason: str) -> None:
        """End the training after this iteration. Every process must call it."""
        trainer.should_stop = True
        self.stopped = reason
        append_event(trainer, "stop", f"{type(self).__name__}: {reason}", {"safeguard": self.name})

    def draw(self, trainer: Trainer, curves: Mapping[str, float]) -> None:
        """Log `stability/<name>/…` on the axis of environment steps, with the severity that is active.

        Once in `trainer.log_every_n_steps`, and whenever the severity changes.
        """
        severity = int(max(self.active.values(), default=-1))
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if severity == self._drawn[0] and trainer.global_step - self._drawn[1] < every:
            return
        self._drawn = (severity, trainer.global_step)
        tags = {f"stability/{self.name}/{tag}": value for tag, value in curves.items()}
        tags[f"stability/{self.name}/alarm"] = float(severity)
        for logger in trainer.loggers:
            logger.log_metrics(tags, step=clock(trainer))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Mark the checkpoint with what is wrong at this moment."""
        health = checkpoint.setdefault("health", {})
        health[self.name] = {cause: severity.name.lower() for cause, severity in self.active.items()}

    def state_dict(self) -> dict[str, Any]:
        """The alarms; a subclass adds its detector."""
        return {
            "active": {cause: int(severity) for cause, severity in self.active.items()},
            "raised": [[cause, int(severity)] for cause, severity in self.raised],
            "drawn": list(self._drawn),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        self.active = {cause: Severity(severity) for cause, severity in state_dict["active"].items()}
        self.raised = [(cause, Severity(severity)) for cause, severity in state_dict["raised"]]
        severity, global_step = state_dict["drawn"]
        self._drawn = (severity, global_step)


class StepSafeguard(Safeguard):
    """A safeguard that looks at single updates: around every optimiser step, raw or through Lightning's wrapper.

    In manual optimisation both calls come from torch's own step hooks. In automatic optimisation the gradients are made
    inside the step: there `before_step` is called from `on_before_optimizer_step`, before the clip.
    """

    def __init__(self, *, name: str, mode: Mode) -> None:
        super().__init__(name=name, mode=mode)
        self._handles: list[RemovableHandle] = []
        self._is_automatic = False

    def before_step(self, optimizer: Optimizer) -> None:
        """The gradients are there, the weights have not moved. The optimiser passes over gradients set to None."""

    def after_step(self, optimizer: Optimizer) -> None:
        """The weights have moved."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hooks."""
        self._is_automatic = pl_module.automatic_optimization
        has_before = type(self).before_step is not StepSafeguard.before_step
        has_after = type(self).after_step is not StepSafeguard.after_step
        for optimizer in trainer.optimizers:
            if has_before and not self._is_automatic:
                self._handles.append(optimizer.register_step_pre_hook(self._call_before_step))
            if has_after:
                self._handles.append(optimizer.register_step_post_hook(self._call_after_step))

    def _call_before_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.before_step(optimizer)

    def _call_after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self.after_step(optimizer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Automatic optimisation: the gradients are there, not yet clipped."""
        if self._is_automatic:
            self.before_step(optimizer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the hooks off."""
        self._remove_hooks()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the hooks off."""
        self._remove_hooks()

    def _remove_hooks(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


class Readings:
    """Brings small vectors of statistics from the device to the host, the same on all processes.

    On the CPU a reading is there at once. On an accelerator it is copied in the background and comes with the next
    `exchange`, one window late, so that training never waits for it.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Tensor, Any, Any]] = deque()

    def exchange(
        self, trainer: Trainer, statistics: Tensor, context: Any = None
    ) -> tuple[list[list[float]], Any] | None:
        """Hand in a vector `[n]` with what belongs to it; every process must, at the same iteration.

        Returns:
            `[W][n]` numbers of the W processes with their context, or None where nothing has arrived yet.
        """
        statistics = statistics.detach().float()
        rows = trainer.strategy.all_gather(statistics).reshape(-1, statistics.numel())
        if rows.device.type != "cuda":
            return rows.tolist(), context
        host = torch.empty(rows.shape, pin_memory=True)
        host.copy_(rows, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending.append((host, context, event))
        if len(self._pending) < 2:
            return None
        arrived, its_context, its_event = self._pending.popleft()
        its_event.synchronize()  # a window has passed since: it is there
        return arrived.tolist(), its_context


def makes_update(optimizer: Optimizer) -> bool:
    """Whether there is a gradient: a step without any is none, as those of a warm-up, or skipped or paused ones."""
    groups = optimizer.param_groups
    first: Tensor | None = next(iter(groups[0]["params"]), None)
    if first is not None and first.grad is not None:
        return True  # nearly always
    return any(parameter.grad is not None for group in groups for parameter in group["params"])


def is_window(every_n_iterations: int, batch_idx: int) -> bool:
    """Whether an iteration ends a window. The index goes on after a resume, and all processes count alike."""
    return (batch_idx + 1) % every_n_iterations == 0


def require_signals(safeguard: Callback, outputs: Any, names: Iterable[str]) -> None:
    """Raise where `training_step` did not return the signals that a safeguard needs.

    Raises:
        MissingInputError: naming the missing ones and those that were found.
    """
    found = sorted(outputs) if isinstance(outputs, Mapping) else []
    missing = [name for name in names if name not in found]
    if missing:
        raise MissingInputError(
            f"{type(safeguard).__name__} needs the signals {missing}, but training_step returned "
            f"{found or 'nothing'}: return a dict with detached tensors under these names (rlmods/signals.py says what "
            "they mean), or leave this callback out"
        )


def clock(trainer: Trainer) -> int:
    """Environment steps where the data module counts them, else `global_step`."""
    source = trainer.datamodule  # type: ignore[attr-defined]
    return source.env_steps if isinstance(source, ExperienceSource) else trainer.global_step


def effective_learning_rates(trainer: Trainer) -> dict[str, float]:
    """What the optimisers use now, by group name, else by number."""
    return {
        str(group.get("name", f"{number}.{position}")): float(group["lr"])
        for number, optimizer in enumerate(trainer.optimizers)
        for position, group in enumerate(optimizer.param_groups)
    }


@rank_zero_only
def _say(message: str, severity: Severity) -> None:
    log.log(logging.INFO if severity is Severity.INFO else logging.WARNING, message)
