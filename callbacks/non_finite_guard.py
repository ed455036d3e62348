"""NaN and infinity: where they come from, and that no update is made of them."""

import itertools
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import torch
import torch.distributed
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from rlmods.callbacks.detectors import Verdict
from rlmods.callbacks.failure_bundle import capture_state, minibatch_of, named_leaves, pack, write_bundle
from rlmods.callbacks.global_rng import get_rng_state
from rlmods.callbacks.non_finite_detector import (
    CAUSES,
    GRADIENT,
    LOSS,
    PARAMETER,
    Bad,
    Finding,
    NonFiniteDetector,
    bad_tensors,
    cause_of_field,
)
from rlmods.callbacks.safeguard import Mode, Readings, StepSafeguard, is_window
from rlmods.functional.norms import global_norm
from rlmods.types import Feedback, ReplayBatch


class Failure(NamedTuple):
    """What is kept of the first bad update of an iteration, before it is made or skipped."""

    update: int  # of the iteration
    parameters: list[Bad]  # and buffers
    gradients: list[Bad]  # the one nearest to the loss first
    state: dict[str, Any] | None  # from `capture_state`; None where no bundle is wanted


class Iteration(NamedTuple):
    """What is looked at where one of its updates was bad."""

    lengths: list[int]  # updates of each optimiser
    failure: Failure | None
    batch: Any
    outputs: Any
    rng: Tensor  # torch's, at its start
    start_norm: Tensor | None  # of the parameters at its start, where updates are neither skipped nor looked at


class NonFiniteGuard(StepSafeguard):
    """Leaves out updates whose gradients are not finite, names the cause, and keeps what is needed to repeat it.

    Each update is judged by the norm of its gradients, which is NaN or infinite if one element is: that is
    `pl_module.grad_norm` where the module has set a new one, as the algorithms of rlmods do, else it is computed here.
    A skipped update leaves weights and optimiser bit-identical; the optimiser is still called, so that `global_step`
    advances. A loss that is not finite while its gradients are is named as well.

    The cause is the first of: a field of the batch (for a `ReplayBatch` of the update's mini-batches, as many as the
    module's hyper-parameter `accumulate_grad_batches` says), a parameter or a buffer
    (NaN only: infinite masks are common), what `training_step` returned, a gradient. Of several gradients it is that of
    the last parameter in the order of the module: backward runs the other way, and spoils all that lies before. A clip
    by norm spoils the others as well.

    Too many skips end the run, and so do parameters that are still not finite an iteration after they were found: a
    rollback may have cured them. Under a loss scaler (16-bit) infinite gradients are the
    scaler's business: it skips, and only the limit is watched.

    On an accelerator nothing waits for the device at each update if all optimisers are fused: they skip by a flag. The
    cause is then found an iteration later, without the name of a gradient, and the bundle holds the weights of that
    moment. With an optimiser that is not fused, each update waits.

    Args:
        max_skips_in_window: bad updates of one optimiser among its last `window` that end the run.
        window: updates of one optimiser.
        max_bundles: failure bundles of a run, each with a copy of the weights.
        name: of the instance, in curves and events.
        mode: `observe` skips nothing and never ends the run.

    Attributes:
        finding: the newest.

    Raises:
        ValueError: where an argument is outside its range.
    """

    def __init__(
        self,
        *,
        max_skips_in_window: int = 25,
        window: int = 100,
        max_bundles: int = 3,
        name: str = "non_finite",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if max_bundles < 0:
            raise ValueError(f"NonFiniteGuard got max_bundles = {max_bundles}, expected at least 0")
        self.detector = NonFiniteDetector(
            max_skips_in_window=max_skips_in_window, window=window, skips=mode != "observe"
        )
        self.max_bundles = max_bundles
        self.bundles = 0
        self.finding: Finding | None = None
        self._readings = Readings()
        self._capture: Callable[[], dict[str, Any]] = dict
        self._pl_module: LightningModule | None = None
        self._accumulated = 1  # mini-batches of an update
        self._numbers: dict[int, int] = {}  # of the optimisers, by id
        self._flags: list[list[Any]] = []  # of each optimiser: whether its updates of this iteration are bad
        self._failure: Failure | None = None
        self._batch: Any = None
        self._rng = torch.empty(0)
        self._start_norm: Tensor | None = None
        self._last_norm: Tensor | None = None
        self._is_deferred = False
        self._has_scaler = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hooks."""
        super().on_train_start(trainer, pl_module)
        self._pl_module = pl_module
        self._capture = partial(capture_state, trainer, pl_module)
        self._accumulated = pl_module.hparams.get("accumulate_grad_batches", 1)
        self._numbers = {id(optimizer): number for number, optimizer in enumerate(trainer.optimizers)}
        self._has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        self._is_deferred = pl_module.device.type == "cuda" and self._can_defer(trainer.optimizers)
        source = trainer.datamodule  # type: ignore[attr-defined]
        if self.mode != "observe" and isinstance(source, Feedback):
            source.feedback = partial(_feed_back_finite, source.feedback)  # type: ignore[method-assign]

    def _can_defer(self, optimizers: list[Optimizer]) -> bool:
        """Whether the host need not know of a bad update when it is made."""
        if self.mode == "observe" or self._has_scaler:
            return True
        return all(group.get("fused") for optimizer in optimizers for group in optimizer.param_groups)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember what a bundle needs."""
        self._batch, self._rng = batch, torch.get_rng_state()
        self._flags, self._failure = [[] for _ in self._numbers], None
        if self._is_deferred and self.mode == "observe":
            self._start_norm = global_norm([parameter.detach() for parameter in pl_module.parameters()])

    def before_step(self, optimizer: Optimizer) -> None:
        """Judge the update; leave it out."""
        norm = self._norm(optimizer)
        if norm is None:
            return
        flags = self._flags[self._numbers[id(optimizer)]]
        if self._is_deferred:
            is_bad = norm.isfinite().logical_not()
            flags.append(is_bad)
            if self.mode != "observe" and not self._has_scaler:
                vars(optimizer).update(grad_scale=None, found_inf=is_bad.float())
            return
        flags.append(not math.isfinite(norm.item()))
        if not flags[-1]:
            return
        if self._failure is None:
            state = None
            if self.bundles < self.max_bundles:
                with suppress(TypeError):  # said where the bundle is written
                    state = self._capture()
            update = max(map(len, self._flags)) - 1
            self._failure = Failure(update, self._bad_parameters(), self._bad_gradients(optimizer), state)
        if self.mode != "observe":
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _norm(self, optimizer: Optimizer) -> Tensor | None:
        """Of the gradients; None where there are none. The module's own, if it has set a new one since the last."""
        published = getattr(self._pl_module, "grad_norm", None)
        if isinstance(published, Tensor) and published is not self._last_norm and published.numel() == 1:
            self._last_norm = published
            return published
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        return global_norm(gradients) if gradients else None

    def _bad_parameters(self) -> list[Bad]:
        if self._pl_module is None:
            return []
        buffers = ((name, buffer) for name, buffer in self._pl_module.named_buffers() if buffer.isnan().any())
        return [*bad_tensors(PARAMETER, self._pl_module.named_parameters()), *bad_tensors(PARAMETER, buffers)]

    def _bad_gradients(self, optimizer: Optimizer) -> list[Bad]:
        if self._pl_module is None:
            return []
        own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        named = [
            (f"the gradient of {name}", parameter.grad)
            for name, parameter in self._pl_module.named_parameters()
            if id(parameter) in own and parameter.grad is not None
        ]
        return list(bad_tensors(GRADIENT, reversed(named)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hear from the other processes; name the cause; report."""
        flat = [flag for flags in self._flags for flag in flags]
        iteration = self._iteration(batch, outputs)
        self._batch = self._failure = None
        if not flat:  # of warm-up, on all processes
            return
        # A loss that saturates (Huber) has finite gradients where it is infinite itself, and so has a clamped target.
        is_bad_value = ~_is_finite(batch, outputs)
        flat.append(is_bad_value.to(pl_module.device) if self._is_deferred else bool(is_bad_value))
        if trainer.world_size == 1 and not self._is_deferred:
            arrived: tuple[list[list[Any]], Any] | None = ([flat], iteration)
        else:
            statistics = torch.stack(flat) if self._is_deferred else torch.tensor(flat, device=pl_module.device)
            arrived = self._readings.exchange(trainer, statistics, iteration)
        if arrived is None:
            return
        rows, iteration = arrived
        *bad, has_bad_value = (any(column) for column in zip(*rows, strict=True))
        remaining = iter(bad)
        flags = [list(itertools.islice(remaining, length)) for length in iteration.lengths]
        self._conclude(trainer, flags, iteration, is_bad=has_bad_value or any(bad))
        if any(bad) or is_window(max(trainer.log_every_n_steps, 1), batch_idx):  # type: ignore[attr-defined]
            self.draw(trainer, {"bad_updates": float(self.detector.total_bad)})

    def _iteration(self, batch: Any, outputs: Any) -> Iteration:
        lengths = [len(flags) for flags in self._flags]
        return Iteration(lengths, self._failure, batch, outputs, self._rng, self._start_norm)

    def _conclude(self, trainer: Trainer, flags: list[list[bool]], iteration: Iteration, *, is_bad: bool) -> None:
        """Name the cause of the first bad update, report it, leave a bundle, stop. All processes come here alike."""
        finding, batch = None, None
        if is_bad:
            update = _first_bad_update(iteration, flags, self._accumulated)
            minibatch = minibatch_of(iteration.batch, update, self._accumulated)
            finding, batch = _agree(trainer, self._examine(iteration, update), minibatch)
            self.finding = finding
            if self._has_scaler and finding.cause == GRADIENT:
                finding = None
        verdicts = self.detector.update(flags, finding)
        if verdicts or self.active:
            self._raise_alarm(trainer, verdicts, iteration, batch)

    def _raise_alarm(self, trainer: Trainer, verdicts: list[Verdict], iteration: Iteration, batch: Any) -> None:
        fresh = {verdict.cause for verdict in verdicts}
        lasting = [verdict for verdict in self.detector.still_active() if verdict.cause not in fresh]
        for verdict in self.report(trainer, [*verdicts, *lasting]):
            if self.bundles < self.max_bundles:
                self.bundles += 1
                self._leave_bundle(trainer, verdict, iteration, batch)
        if verdicts and self.detector.must_stop and self.mode != "observe" and not trainer.should_stop:
            self.stop(trainer, verdicts[0].message)

    def _examine(self, iteration: Iteration, update: int) -> Finding:
        """What is not finite, the first in causal order."""
        batch = minibatch_of(iteration.batch, update, self._accumulated)
        fields = named_leaves(batch, "batch")
        found = [bad for field in fields for bad in bad_tensors(cause_of_field(field[0]), [field])]
        if batch is not iteration.batch:
            row = update * self._accumulated
            found = [bad._replace(element=[row + bad.element[0], *bad.element[1:]]) for bad in found]
        if iteration.failure is not None:
            found += iteration.failure.parameters
        elif iteration.start_norm is None or not iteration.start_norm.isfinite():
            found += self._bad_parameters()
        outputs = iteration.outputs if isinstance(iteration.outputs, Mapping) else {"loss": iteration.outputs}
        for name, value in outputs.items():
            if not str(name).startswith("grad_norm"):
                found += bad_tensors(LOSS, named_leaves(value, str(name)))
        if iteration.failure is not None:
            found += iteration.failure.gradients
        first = found[0] if found else Bad(GRADIENT, "the norm of the gradients", "", [])
        return Finding(*first, also=[bad.where for bad in found[1:]], update=update)

    def _leave_bundle(self, trainer: Trainer, verdict: Verdict, iteration: Iteration, batch: Any) -> None:
        kept = iteration.failure.state if iteration.failure else None
        failure = {"cause": verdict.cause, "message": verdict.message, "evidence": dict(verdict.evidence)}
        try:
            written = write_bundle(
                trainer,
                failure={**failure, "severity": verdict.severity.name.lower(), "safeguard": self.name},
                batch=pack(batch),
                state=self._capture() if kept is None else kept,
                rng={**get_rng_state(), "torch": iteration.rng},
            )
            if written is None:
                return
            message = f"kept the failure; to repeat it: {written.command}"
            evidence = {"folder": str(written.folder)}
        except (OSError, TypeError) as error:
            message, evidence = f"could not keep the failure, and goes on without: {error}", {}
        try:
            self.act(trainer, message, evidence)  # by all processes, also where only the first could not write
        except OSError:  # a full disk is no reason to end the training
            rank_zero_warn(f"NonFiniteGuard {message}")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Name the cause where NaN made the module itself give up; then leave."""
        # The other processes do not come here: nothing that waits for them.
        if self._batch is not None and trainer.world_size == 1 and isinstance(exception, Exception):
            flags = [[bool(flag) for flag in flags] for flags in self._flags]
            iteration = self._iteration(self._batch, None)
            update = self._failure.update if self._failure else max(map(len, flags), default=0)
            finding = self._examine(iteration, update)
            if finding.cause != GRADIENT or self._failure is not None:
                self.finding = finding
                minibatch = minibatch_of(self._batch, update, self._accumulated)
                self._raise_alarm(trainer, self.detector.update(flags, finding), iteration, minibatch)
        self._leave(trainer)
        super().on_exception(trainer, pl_module, exception)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave everything as it was."""
        self._leave(trainer)
        super().on_train_end(trainer, pl_module)

    def _leave(self, trainer: Trainer) -> None:
        source = trainer.datamodule  # type: ignore[attr-defined]
        if self.mode != "observe" and isinstance(source, Feedback):
            vars(source).pop("feedback", None)
        for optimizer in trainer.optimizers if self._is_deferred else []:
            for name in ("grad_scale", "found_inf"):
                vars(optimizer).pop(name, None)
        self._pl_module, self._batch, self._capture = None, None, dict

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The alarms, the windows, and how many bundles there are."""
        return {**super().state_dict(), "detector": self.detector.state_dict(), "bundles": self.bundles}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self.bundles = state_dict["bundles"]


def _feed_back_finite(feedback: Callable[..., None], index: Tensor, *, td_error: Tensor) -> None:
    """A replay refuses an iteration without one finite TD error, in the middle of it, before the cause is named."""
    if td_error.isfinite().any():
        feedback(index, td_error=td_error)


def _loss(outputs: Any) -> Tensor | None:
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) else None


def _given(batch: Any) -> list[Tensor]:
    """Rewards and observations of a `ReplayBatch`, as far as they can be other than finite."""
    if not isinstance(batch, ReplayBatch) or batch.num_updates == 0:
        return []
    leaves = [batch.transition.reward, *(leaf for _, leaf in named_leaves(batch.transition.observation, ""))]
    return [leaf for leaf in leaves if leaf.is_floating_point()]


def _is_finite(batch: Any, outputs: Any) -> Tensor:
    """Whether the returned loss and what was given are finite: a scalar."""
    # A sum is finite where all its terms are, but for an overflow, which then names nothing.
    loss = _loss(outputs)
    total = sum((leaf.sum() for leaf in _given(batch)), start=torch.zeros(()) if loss is None else loss.float().sum())
    return total.isfinite()


def _bad_minibatches(batch: Any, outputs: Any) -> Tensor:
    """Where they are not: `[K]`, or a scalar."""
    loss = _loss(outputs)
    is_bad = torch.tensor(False) if loss is None else loss.isfinite().logical_not()
    for leaf in _given(batch):
        is_bad = is_bad | leaf.reshape(batch.num_updates, -1).isfinite().all(1).logical_not()
    return is_bad


def _first_bad_update(iteration: Iteration, flags: list[list[bool]], accumulated: int) -> int:
    if iteration.failure is not None:
        return iteration.failure.update
    longest = max(flags, key=len)
    if True in longest:
        return longest.index(True)
    return int(_bad_minibatches(iteration.batch, iteration.outputs).reshape(-1).int().argmax()) // accumulated


def _agree(trainer: Trainer, finding: Finding, batch: Any) -> tuple[Finding, Any]:
    """The first finding in causal order over all processes, with the batch it was found in."""
    if trainer.world_size == 1:
        return finding, batch
    try:
        batch = pack(batch)
    except TypeError:
        batch = None
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, (CAUSES.index(finding.cause), finding, batch))
    _, finding, batch = min(everyone, key=itemgetter(0))
    return finding, batch
