"""Whether gradients are clipped as declared: true norms before and after the clip, by optimiser and by module."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from rlmods.callbacks.clip_defects import ClipDetector
from rlmods.callbacks.clip_measurement import ClipMeasurement
from rlmods.callbacks.clip_samples import NUM_MARKS, ClipSample, WatchedOptimizer, present_gradients
from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.error_ratio import ErrorRatio
from rlmods.callbacks.ownership import all_parameters, ownership_verdicts
from rlmods.callbacks.safeguard import Mode, Readings, StepSafeguard, is_window, makes_update
from rlmods.functional.gradients import gradient_norms
from rlmods.functional.norms import global_norm

# Metrics of the user that are looked at: a fixed number, because all processes exchange vectors of one length.
_METRICS = 8
# Updates at the start of a run that are all measured.
_FULL = 100
# Updates of the busiest optimiser after which one that never made any is no longer waiting for its turn.
_PATIENCE = 500


class GradientClipVerifier(StepSafeguard):
    """Measures gradients before and after the clip, and holds the clip against the limit that is declared.

    It measures the first hundred updates of each optimiser, then one in `every_n_updates` and one a window: the L2 norm
    and the largest magnitude of each tensor, when the last backward pass has ended and when the step uses them. The
    clip itself is seen by its effect, whoever makes it. A `loss.backward()` that passes by `manual_backward` is not
    seen: what the gradients were before the clip is then unknown, unless `self.clip_gradients` clips.

    Causes: the limit is exceeded, and why (`clip_never_applied`, `clip_before_backward`, `clip_after_step`,
    `parameter_outside_clip`, `clip_per_group`, `clip_by_value`, else `clip_limit_exceeded`); `accumulated_gradients`,
    and `dangling_gradients`, those of another optimiser's loss; `non_finite_gradient`; `clip_always_active`;
    `module_dominates`; `no_gradient`; `vanished_gradient` and `exploding_gradient`, against the module's own past;
    `sum_of_norms`, a metric that is no norm; `scaled_gradients_clipped`; `unobserved_optimizer`;
    `limit_without_optimizer`; `optimizer_never_steps`; `shared_parameters`, `stale_parameters`,
    `parameter_not_optimised`.

    Args:
        max_norm: the declared limit of the L2 norm, or one for each named parameter group. None takes, in this order,
            the trainer's `gradient_clip_val`, the module's attribute or hyper-parameter `max_grad_norm` (a number, or a
            limit for each named group, where who is not named has none), and what `self.clip_gradients` is called with.
            Without any there are norms and no limit.
        depth: components of a parameter's name that make a module, 2: `q_network.0`.
        every_n_updates: one in so many is measured. Best a prime, so that each of an iteration's updates has its turn.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the start of training, where no optimiser has a group
            with a name of `max_norm`.
    """

    def __init__(
        self,
        *,
        max_norm: float | dict[str, float] | None = None,
        depth: int = 2,
        every_n_updates: int = 251,
        every_n_iterations: int = 8,
        name: str = "gradient_clip",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        limits = max_norm.values() if isinstance(max_norm, dict) else [max_norm]
        if any(limit is not None and not limit > 0.0 for limit in limits) or max_norm == {}:
            raise ValueError(
                f"GradientClipVerifier got max_norm = {max_norm}, expected an L2 norm above 0, or one for each group: "
                "type max_norm=10.0 or max_norm={'actor': 1.0}"
            )
        for argument, value in (
            ("depth", depth),
            ("every_n_updates", every_n_updates),
            ("every_n_iterations", every_n_iterations),
        ):
            if value < 1:
                raise ValueError(f"GradientClipVerifier got {argument} = {value}, expected at least 1")
        self.max_norm = max_norm
        self.every_n_updates = every_n_updates
        self.every_n_iterations = every_n_iterations
        self.detector = ClipDetector(depth=depth)
        self._module: LightningModule | None = None
        self._watches: dict[int, WatchedOptimizer] = {}
        self._samples: list[ClipSample] = []
        self._held: list[ClipSample] = []  # those whose gradients are looked at once more
        self._metrics: dict[str, Tensor] = {}
        self._reported: list[int] = []  # the samples that the metrics are about
        self._strangers: list[str] = []  # optimisers that Lightning does not know
        self._error_ratio = ErrorRatio()
        self._restored: dict[str, Any] = {}
        self._is_first_iteration = False  # of a window
        self._is_scaled = False  # gradients before the step carry the factor of a loss scaler
        self._limits: Mapping[str, float] | None = None  # by group, where they were declared so
        self._readings = Readings()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the groups, and wrap what shows the gradients before the clip."""
        super().on_train_start(trainer, pl_module)
        self._module = pl_module
        # In automatic optimisation Lightning takes the factor out before the clip.
        self._is_scaled = not self._is_automatic and getattr(trainer.precision_plugin, "scaler", None) is not None
        self._limits = self.max_norm if isinstance(self.max_norm, dict) else self._declared_by_name(trainer, pl_module)
        self._watches = {
            id(optimizer): WatchedOptimizer(optimizer, self._clip_groups(optimizer, number))
            for number, optimizer in enumerate(trainer.optimizers)
            if any(True for _ in all_parameters(optimizer))  # Lightning's stand-in for no optimiser has none
        }
        self._check_names()
        self._restore()
        # The class's own functions come back when these attributes of the instance are deleted.
        self._wrap(pl_module, "backward", self._watch_backward)
        self._wrap(pl_module, "clip_gradients", self._watch_clip)
        self._handles.append(register_optimizer_step_pre_hook(self._find_stranger))
        self.report(trainer, [*self._standing(trainer, pl_module), *self.detector.present()])

    def _declared_by_name(self, trainer: Trainer, pl_module: LightningModule) -> Mapping[str, float] | None:
        declared = _declared(pl_module)
        is_asked = self.max_norm is None and not trainer.gradient_clip_val
        return declared if is_asked and isinstance(declared, Mapping) else None

    def _clip_groups(self, optimizer: Optimizer, number: int) -> dict[str, list[int]]:
        names = [
            str(group.get("name", f"{number}.{position}")) for position, group in enumerate(optimizer.param_groups)
        ]
        if self._limits is not None and any(name in self._limits for name in names):
            return {name: [position] for position, name in enumerate(names)}
        return {"+".join(names): list(range(len(names)))}

    def _check_names(self) -> None:
        missing = self._missing_names()
        if missing and self.max_norm is not None:
            raise ValueError(
                f"GradientClipVerifier got max_norm for {missing}, but the optimisers have the groups "
                f"{self._group_names()}: name them in configure_optimizers, {{'params': ..., 'name': 'actor'}}"
            )

    def _group_names(self) -> list[str]:
        return [name for watch in self._watches.values() for name in watch.groups]

    def _missing_names(self) -> list[str]:
        found = self._group_names()
        return [name for name in self._limits or () if name not in found]

    def _wrap(self, pl_module: LightningModule, function: str, wrapper: Any) -> None:
        setattr(pl_module, function, partial(wrapper, getattr(pl_module, function)))

    def _remove_hooks(self) -> None:
        super()._remove_hooks()
        for function in ("backward", "clip_gradients"):
            wrapped = None if self._module is None else vars(self._module).get(function)
            if isinstance(wrapped, partial):
                delattr(self._module, function)
                inner = wrapped.args[0]
                if getattr(inner, "__func__", None) is not getattr(type(self._module), function):
                    setattr(self._module, function, inner)  # somebody else's wrapper
        self._module = None

    def _watch_backward(self, backward: Any, *arguments: Any, **options: Any) -> None:
        due = [watch for watch in self._watches.values() if watch.is_due]
        if not due and not self._held:
            backward(*arguments, **options)
            return
        with torch.no_grad():
            self._held = [sample for sample in self._held if not sample.look(is_alone=len(self._watches) == 1)]
            for watch in due:
                watch.measure_leftover()
        backward(*arguments, **options)
        if not self._is_automatic and not self._is_scaled:
            for watch in due:
                watch.measure_before()

    def _watch_clip(self, clip: Any, optimizer: Any, *arguments: Any, **options: Any) -> None:
        watch = self._watches.get(id(getattr(optimizer, "optimizer", optimizer)))
        if watch is not None:
            limit = arguments[0] if arguments else options.get("gradient_clip_val")
            algorithm = arguments[1] if len(arguments) > 1 else options.get("gradient_clip_algorithm")
            if limit:
                watch.requested = (float(limit), _is_by_value(algorithm))
            if watch.is_due and not watch.before and not self._is_scaled:
                watch.measure_before()
        clip(optimizer, *arguments, **options)

    def before_step(self, optimizer: Optimizer) -> None:
        """Manual optimisation: what the step is going to use. Automatic: the gradients before the clip."""
        watch = self._watches.get(id(optimizer))
        if watch is not None and not self._is_automatic:
            self._count(watch)
        elif watch is not None and watch.is_due:
            watch.measure_before()

    def after_step(self, optimizer: Optimizer) -> None:
        """Automatic optimisation: what the step has used is still there."""
        watch = self._watches.get(id(optimizer))
        if watch is not None and self._is_automatic:
            self._count(watch)

    def _count(self, watch: WatchedOptimizer) -> None:
        if not makes_update(watch.optimizer):
            return
        if watch.is_due:
            for group in watch.groups:
                self._sample(watch, group)
            watch.forget()
        for other in self._watches.values():
            if other is not watch and other.is_due:
                other.other_steps()
        watch.requested = None
        watch.updates += 1
        watch.in_iteration += 1
        watch.is_due = self._is_due(watch)

    def _is_due(self, watch: WatchedOptimizer) -> bool:
        # That the next update is the last of the iteration is a guess from the iteration before.
        is_last = self._is_first_iteration and watch.in_iteration == watch.in_last - 1
        return is_last or watch.updates < _FULL or watch.updates % self.every_n_updates == 0

    @torch.no_grad()
    def _sample(self, watch: WatchedOptimizer, group: str) -> None:
        parameters = watch.parameters(group)
        gradients = present_gradients(parameters)
        if not gradients:
            return
        before = watch.before.get(group)
        after = gradient_norms(gradients)
        if before is not None and before.shape != after.shape:
            before = None  # a gradient was dropped in between
        limit, is_by_value, is_certain = self._limit(watch, group)
        is_coarse = any(gradient.dtype in (torch.bfloat16, torch.float16) for gradient in gradients)
        sample = ClipSample(
            group=group,
            update=watch.updates,
            tensors=self._names(watch, parameters),
            is_present=[parameter.grad is not None for parameter in parameters],
            limit=limit,
            is_by_value=is_by_value,
            is_certain=is_certain,
            tolerance=1e-2 if is_coarse else 1e-3,
            before=before,
            after=after,
            leftover=watch.leftover.get(group),
            dangling=watch.dangling.get(group),
            parameters=[parameter for parameter in parameters if parameter.grad is not None],
            gradients=gradients,
        )
        self._samples.append(sample)
        self._held.append(sample)

    def _names(self, watch: WatchedOptimizer, parameters: list[Tensor]) -> list[str]:
        if any(id(parameter) not in watch.names for parameter in parameters) and self._module is not None:
            watch.names = {}
            # One that several modules share goes by the module that its group is named after, else by the first.
            for name, parameter in self._module.named_parameters(remove_duplicate=False):
                if id(parameter) not in watch.names or name.partition(".")[0] in watch.groups:
                    watch.names[id(parameter)] = name
            for position, held in enumerate(all_parameters(watch.optimizer)):
                watch.names.setdefault(id(held), f"a parameter that the module does not have.{position}")
        return [watch.names[id(parameter)] for parameter in parameters]

    def _limit(self, watch: WatchedOptimizer, group: str) -> tuple[float | None, bool, bool]:
        """The declared limit, whether it is one of values, and whether it is meant for this group beyond doubt."""
        module = self._module
        if module is None:
            return None, False, False
        if self._limits is not None:
            return self._limits.get(group), False, True
        if isinstance(self.max_norm, (float, int)):
            return float(self.max_norm), False, True
        trainer: Any = module.trainer
        if trainer.gradient_clip_val:
            return float(trainer.gradient_clip_val), _is_by_value(trainer.gradient_clip_algorithm), True
        is_single = len(self._watches) == 1
        declared = _declared(module)
        if watch.requested is not None and (declared is None or not is_single):
            return *watch.requested, True
        if isinstance(declared, (int, float)) and declared > 0.0:
            return float(declared), False, is_single
        return None, False, False

    def _find_stranger(self, optimizer: Optimizer, *_: Any) -> None:
        kind = type(optimizer).__name__
        if id(optimizer) in self._watches or self._module is None or kind in self._strangers:
            return
        held = {id(parameter) for parameter in self._module.parameters()}
        if any(id(parameter) in held and parameter.grad is not None for parameter in all_parameters(optimizer)):
            self._strangers.append(kind)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """In the first iteration of a window its last update is measured."""
        self._is_first_iteration = batch_idx % self.every_n_iterations == 0
        for watch in self._watches.values():
            watch.in_last = watch.in_iteration or watch.in_last
            watch.in_iteration = 0
            watch.is_due = self._is_due(watch)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at the gradients of the last updates once more; at the end of a window, bring all together."""
        if self._held:
            self._look_again()
        if self._is_first_iteration:
            last = self._last_updates()
            self._reported = [n for n, each in enumerate(self._samples) if each.update == last[each.group]]
            self._metrics = _norms_of_the_user(trainer, outputs) if self._reported else {}
        if not is_window(self.every_n_iterations, batch_idx):
            return
        samples, self._samples = self._samples, []
        for sample in self._held:
            sample.let_go()
        self._held.clear()
        metrics = [value.to(pl_module.device) for value in self._metrics.values()]
        slots = torch.zeros(_METRICS, device=pl_module.device)
        if metrics:
            slots[: len(metrics)] = torch.stack(metrics)
        vector = torch.cat(
            [
                slots,
                self._error_ratio.measure(outputs).view(1).to(slots),
                *(sample.vector().to(slots.device) for sample in samples),
            ]
        )
        context = (samples, list(self._metrics), self._reported)
        self._metrics, self._reported = {}, []
        arrived = self._readings.exchange(trainer, vector, context)
        if arrived is not None:
            self._decide(trainer, pl_module, *arrived)

    @torch.no_grad()
    def _look_again(self) -> None:
        last = self._last_updates()
        for sample in self._held:
            if sample.update == last[sample.group] and sample.at_end is None:
                sample.at_end = global_norm(sample.gradients)

    def _last_updates(self) -> dict[str, int]:
        """By group, the number of the newest."""
        return {name: watch.updates - 1 for watch in self._watches.values() for name in watch.groups}

    def _decide(self, trainer: Trainer, pl_module: LightningModule, rows: list[list[float]], context: Any) -> None:
        samples, metric_names, reported = context
        measurements: list[ClipMeasurement] = []
        for row in rows:
            position = _METRICS + 1
            for sample in samples:
                length = 4 * sum(sample.is_present) + NUM_MARKS
                measurements.append(sample.measurement(row[position : position + length]))
                position += length
        metrics = dict(zip(metric_names, rows[0], strict=False))
        error_ratio = min(row[_METRICS] for row in rows)
        verdicts = self.detector.update(measurements, metrics, [measurements[n] for n in reported], error_ratio)
        self.report(trainer, [*self._standing(trainer, pl_module), *verdicts])
        self.draw(trainer, self._curves(measurements))

    def _curves(self, measurements: list[ClipMeasurement]) -> dict[str, float]:
        curves: dict[str, float] = {}
        for group in dict.fromkeys(measurement.group for measurement in measurements):
            of_group = [measurement for measurement in measurements if measurement.group == group]
            last = of_group[-1]
            curves[f"{group}/after"] = last.norm_after
            if last.norm_before is not None:
                curves[f"{group}/before"] = last.norm_before
                modules = last.modules(self.detector.depth)
                curves |= {f"{group}/{module}/before": norm for module, norm in modules.items()}
            clipped = [measurement.is_clipped for measurement in of_group if measurement.is_clipped is not None]
            if clipped:
                curves[f"{group}/clipped_fraction"] = sum(clipped) / len(clipped)
        return curves

    def _standing(self, trainer: Trainer, pl_module: LightningModule) -> list[Verdict]:
        """C4, C9, C10, C14 to C16: what the optimisers hold, and what is known without a gradient."""
        verdicts = ownership_verdicts(pl_module, trainer.optimizers, others_step=bool(self._strangers))
        verdicts += [*self._never_stepping(), *self._unclaimed()]
        if self._is_scaled and any(self._limit(w, group)[0] for w in self._watches.values() for group in w.groups):
            message = (
                f"gradients are clipped in manual optimisation under precision {trainer.precision}, where they still "
                "carry the factor of the loss scaler: the true limit is that many times smaller. Take bf16-mixed or "
                "32-true, or unscale before the clip"
            )
            verdicts.append(
                Verdict("scaled_gradients_clipped", Severity.WARN, message, {"precision": str(trainer.precision)})
            )
        if self._strangers:
            message = (
                f"{', '.join(self._strangers)} steps on parameters of {type(pl_module).__name__}, but "
                "configure_optimizers did not return it: no callback sees its updates, and no checkpoint has its state"
            )
            verdicts.append(
                Verdict("unobserved_optimizer", Severity.WARN, message, {"optimizers": list(self._strangers)})
            )
        return verdicts

    def _never_stepping(self) -> list[Verdict]:
        most = max((watch.updates for watch in self._watches.values()), default=0)
        idle = ["+".join(watch.groups) for watch in self._watches.values() if watch.updates == 0]
        if most < _PATIENCE or not idle:
            return []
        message = (
            f"the optimiser of {', '.join(idle)} has not made an update while another one made {most}: its parameters "
            "never change; step it in training_step, or take it out of configure_optimizers"
        )
        return [Verdict("optimizer_never_steps", Severity.WARN, message, {"groups": idle, "updates": most})]

    def _unclaimed(self) -> list[Verdict]:
        missing = self._missing_names()
        if not missing:
            return []
        message = (
            f"max_grad_norm has limits for {', '.join(missing)}, but no optimiser has a group of that name: they have "
            f"{', '.join(self._group_names())}. Those limits clip nothing"
        )
        return [Verdict("limit_without_optimizer", Severity.WARN, message, {"limits": missing})]

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()
        self._samples, self._held, self._metrics, self._reported = [], [], {}, []

    def state_dict(self) -> dict[str, Any]:
        """The detector, the optimisers' clocks and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "watches": [[w.updates, w.in_iteration, w.in_last] for w in self._watches.values()],
            "samples": [
                {name: value for name, value in vars(sample).items() if name not in ("gradients", "parameters")}
                for sample in self._samples
            ],
            "metrics": dict(self._metrics),
            "reported": list(self._reported),
            "strangers": list(self._strangers),
            "peak_errors": dict(self._error_ratio.peaks),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; the clocks, when there are optimisers."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._restored = state_dict
        self._strangers = list(state_dict["strangers"])
        self._error_ratio.peaks = dict(state_dict["peak_errors"])

    def _restore(self) -> None:
        restored, self._restored = self._restored, {}
        if not restored:
            return
        for watch, (updates, in_iteration, in_last) in zip(self._watches.values(), restored["watches"], strict=False):
            watch.updates, watch.in_iteration, watch.in_last = updates, in_iteration, in_last
        self._samples = [ClipSample(parameters=[], gradients=[], **sample) for sample in restored["samples"]]
        self._metrics, self._reported = dict(restored["metrics"]), list(restored["reported"])


def _norms_of_the_user(trainer: Trainer, outputs: Any) -> dict[str, Tensor]:
    """Scalars whose names say "norm", of a signal `[K]` that of the last update."""
    found: dict[str, Tensor] = {}
    returned = outputs if isinstance(outputs, Mapping) else {}
    for source in (trainer.callback_metrics, trainer.logged_metrics, returned):
        for name, value in source.items():
            tensor = torch.as_tensor(value).detach() if isinstance(value, (Tensor, float, int)) else None
            if "norm" in str(name).lower() and tensor is not None and tensor.dim() <= 1 and tensor.numel():
                found[str(name)] = tensor.flatten()[-1].float()
    # Those that curves of ours have made come last.
    names = sorted(found, key=lambda name: (name.startswith("stability/"), name))
    return {name: found[name] for name in names[:_METRICS]}


def _declared(pl_module: LightningModule) -> Any:
    """What the module says of its own clip."""
    return getattr(pl_module, "max_grad_norm", None) or pl_module.hparams.get("max_grad_norm")


def _is_by_value(algorithm: Any) -> bool:
    """Of Lightning's enumeration or of a word; None is the norm."""
    return str(algorithm).lower().endswith("value")
