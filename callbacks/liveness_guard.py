"""Whether gradients, updates, targets and experience are alive."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from rlmods.callbacks.error_ratio import ErrorRatio
from rlmods.callbacks.liveness_detector import LivenessDetector, LivenessWindow
from rlmods.callbacks.ownership import all_parameters, ownership_verdicts
from rlmods.callbacks.safeguard import Mode, Readings, StepSafeguard, is_window, makes_update
from rlmods.callbacks.target_networks import online_network, target_networks
from rlmods.functional.norms import global_norm
from rlmods.types import ExperienceSource, ReplayBatch, ReplaySource

# Updates that are measured in a window. Two in a row: a target network that is copied every second update equals the
# online one before one of them, one that is copied at each update before both.
_SAMPLES = 2
_FEW = 16  # numbers of a group: the smallest networks have more


class LivenessGuard(StepSafeguard):
    """Watches that something is learned, by what must move: gradients, weights, target networks, experience.

    It needs no signals. Identities: the optimisers hold the module's parameters and no others, and experience comes in
    while updates go on. Measured of two updates a window: each module gets a gradient; an update changes the weights by
    neither nothing nor all; target networks lag, and move; no loss is pinned at a constant. Where the data module has a
    replay, transitions are drawn as often as configured.

    A learning rate below 1 % of its peak excuses weights that stand still: that is the end of a schedule, and is said
    only where it comes too early. So does an error of a value function (`value_loss`, `critic_loss`, `td_error`) that
    has fallen to 5 % of its largest: nothing is left to move for.

    Args:
        inert_below: ‖Δθ‖/‖θ‖ of one update, below which the weights stand still.
        violent_above: the same, above which what was learned is thrown away.
        target_patience: updates after which a target network must have moved; None is three times the module's
            hyper-parameter `target_update_interval`, else 10,000.
        may_rest: names of modules and losses that may stand still by design: those without a gradient below free nats.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range.
    """

    def __init__(
        self,
        *,
        inert_below: float = 1e-5,
        violent_above: float = 0.1,
        target_patience: int | None = None,
        may_rest: Sequence[str] = (),
        every_n_iterations: int = 8,
        name: str = "liveness",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        self.every_n_iterations = every_n_iterations
        if isinstance(may_rest, str):
            raise ValueError(f"LivenessGuard got may_rest = {may_rest!r}, expected a list of names")
        self.may_rest = list(may_rest)
        self.declares_patience = target_patience is not None
        self.detector = LivenessDetector(
            inert_below=inert_below,
            violent_above=violent_above,
            target_patience=10_000 if target_patience is None else target_patience,
        )
        self._pairs: dict[str, tuple[Module, Module]] = {}  # target network and online network, by the former's name
        self._is_sampling = False
        self._updates: dict[int, int] = {}  # by optimiser, in this window
        self._updates_before = 0  # in this window, before a resume
        self._samples: dict[int, int] = {}  # by optimiser, in this iteration
        self._weights_before: list[Tensor] = []
        self._measured: dict[str, Tensor] = {}
        self._checksums: dict[str, Tensor] = {}
        self._counted: dict[str, int] = {}  # the data module's clocks at the end of the last window
        self._readings = Readings()
        self._error_ratio = ErrorRatio()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the target networks."""
        super().on_train_start(trainer, pl_module)
        for name, network in target_networks(pl_module).items():
            online = online_network(pl_module, name)
            if online is not None:
                self._pairs[name] = (network, online)
        interval = pl_module.hparams.get("target_update_interval")
        if isinstance(interval, int) and not self.declares_patience:
            self.detector.target_patience = 3 * interval
        self._counted = self._counted or _count(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Measure in the last iteration of a window."""
        self._is_sampling = is_window(self.every_n_iterations, batch_idx)
        self._samples.clear()

    def before_step(self, optimizer: Optimizer) -> None:
        """Count the update; measure its gradient, and keep the weights, where it is sampled."""
        if not makes_update(optimizer):
            return
        key = id(optimizer)
        self._updates[key] = self._updates.get(key, 0) + 1
        if not self._is_sampling or self._samples.get(key, 0) >= _SAMPLES:
            return
        self._samples[key] = self._samples.get(key, 0) + 1
        with torch.no_grad():
            for name, (target, online) in self._pairs.items():
                distance = _distance(list(online.parameters()), list(target.parameters()))
                earlier = self._measured.get(f"distance/{name}")
                self._measured[f"distance/{name}"] = distance if earlier is None else torch.maximum(earlier, distance)
            if self._samples[key] == 1:
                gradients = [parameter.grad for parameter in all_parameters(optimizer) if parameter.grad is not None]
                norms = iter(torch._foreach_norm(gradients))
                for parameter in all_parameters(optimizer):
                    norm = gradients[0].new_zeros(()) if parameter.grad is None else next(norms)
                    self._measured[f"grad/{id(parameter)}"] = norm
                self._weights_before = [parameter.detach().clone() for parameter in all_parameters(optimizer)]

    def after_step(self, optimizer: Optimizer) -> None:
        """Measure by how much the sampled update moved the weights."""
        if not self._weights_before:
            return
        before, self._weights_before = self._weights_before, []
        with torch.no_grad():
            for position, group in enumerate(optimizer.param_groups):
                weights = group["params"]
                old, before = before[: len(weights)], before[len(weights) :]
                self._measured[f"ratio/{id(optimizer)}/{position}"] = _distance(weights, old)
                self._measured[f"norm/{id(optimizer)}/{position}"] = global_norm(weights)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, bring together what was measured."""
        if not self._is_sampling:
            return
        self._is_sampling = False
        with torch.no_grad():
            self._measure_targets()
            self._measure_losses(outputs)
            self._measured["error_ratio"] = self._error_ratio.measure(outputs)
        counted = _count(trainer)
        updates = self._window_updates()
        minibatches = updates * pl_module.hparams.get("accumulate_grad_batches", 1)
        uses = minibatches * batch.index.shape[1] if isinstance(batch, ReplayBatch) and updates else 0
        self._measured |= {
            "updates": torch.tensor(float(updates)),
            "uses": torch.tensor(float(uses)),
            **{f"new_{name}": torch.tensor(float(now - self._counted[name])) for name, now in counted.items()},
        }
        self._counted = counted
        self._updates.clear()
        self._updates_before = 0
        names, statistics = list(self._measured), [value.to(pl_module.device) for value in self._measured.values()]
        self._measured = {}
        arrived = self._readings.exchange(trainer, torch.stack([value.float() for value in statistics]), names)
        if arrived is not None:
            rows, its_names = arrived
            columns = dict(zip(its_names, zip(*rows, strict=True), strict=True))
            self._decide(trainer, pl_module, columns)

    def _window_updates(self) -> int:
        return self._updates_before + max(self._updates.values(), default=0)

    def _measure_targets(self) -> None:
        for name, (target, _) in self._pairs.items():
            checksum = torch.stack([parameter.sum(dtype=torch.float64) for parameter in target.parameters()])
            earlier = self._checksums.get(name)
            if earlier is not None:
                self._measured[f"moved/{name}"] = (checksum != earlier.to(checksum.device)).any()
            self._checksums[name] = checksum

    def _measure_losses(self, outputs: Any) -> None:
        for name, loss in outputs.items() if isinstance(outputs, Mapping) else ():
            if name in self.may_rest:
                continue
            if isinstance(loss, Tensor) and (name.partition("/")[0] == "loss" or name.endswith("_loss")):
                low, high = loss.detach().aminmax()
                at_low, at_high = (loss == low).float().mean(), (loss == high).float().mean()
                self._measured[f"value/{name}"] = low.where(at_low >= at_high, high)
                self._measured[f"share/{name}"] = torch.maximum(at_low, at_high)

    def _decide(self, trainer: Trainer, pl_module: LightningModule, columns: Mapping[str, tuple[float, ...]]) -> None:
        window = self._window(trainer, pl_module, columns)
        # Also where no update was counted: an optimiser of a network that nobody uses makes none.
        ownership = ownership_verdicts(pl_module, trainer.optimizers)
        self.report(trainer, [*ownership, *self.detector.update(window)])
        curves = {f"update_ratio/{group}": ratio for group, ratio in window.update_ratio.items()}
        curves |= {f"weight_norm/{group}": norm for group, norm in window.weight_norm.items()}
        curves |= {f"target_distance/{name}": distance for name, distance in window.target_distance.items()}
        if window.added > 0.0:
            curves["uses_per_transition"] = window.uses / window.added
        self.draw(trainer, curves)

    def _window(
        self, trainer: Trainer, pl_module: LightningModule, columns: Mapping[str, tuple[float, ...]]
    ) -> LivenessWindow:
        highest = {name: max(values) for name, values in columns.items()}
        lowest = {name: min(values) for name, values in columns.items()}
        owners = {id(parameter): name for name, parameter in pl_module.named_parameters()}
        ratios, rates, sizes, norms = {}, {}, {}, {}
        groups: dict[str, str] = {}
        for number, optimizer in enumerate(trainer.optimizers):
            for position, group in enumerate(optimizer.param_groups):
                name = _group_name(group, number, position)
                groups |= {_module_of(owners, parameter): name for parameter in group["params"]}
                ratio = highest.get(f"ratio/{id(optimizer)}/{position}")
                # A few numbers, as the logarithms of a temperature or of σ, pass through 0: their size is no scale of a
                # step.
                are_few = sum(parameter.numel() for parameter in group["params"]) < _FEW
                if ratio is not None and not are_few:
                    ratios[name], rates[name] = ratio, float(group["lr"])
                    sizes[name] = highest[f"norm/{id(optimizer)}/{position}"]
            modules: dict[str, float] = {}
            for parameter in all_parameters(optimizer):
                norm = highest.get(f"grad/{id(parameter)}")
                if norm is not None and parameter.requires_grad:
                    module = _module_of(owners, parameter)
                    if not any(f"{module}.".startswith(f"{resting}.") for resting in self.may_rest):
                        modules[module] = math.hypot(modules.get(module, 0.0), norm)
            if modules:
                norms[_group_name(optimizer.param_groups[0], number, 0)] = modules
        source = trainer.datamodule  # type: ignore[attr-defined]
        return LivenessWindow(
            updates=lowest["updates"],
            update_ratio=ratios,
            learning_rate=rates,
            weight_norm=sizes,
            grad_norm=norms,
            target_distance=_family("distance", highest),
            target_moved=_family("moved", highest),
            losses={name: (value, lowest[f"share/{name}"]) for name, value in _family("value", lowest).items()},
            collected=lowest.get("new_env_steps", math.nan),
            added=lowest.get("new_transitions", math.nan),
            uses=highest["uses"],
            uses_per_transition=source.uses_per_transition if isinstance(source, ReplaySource) else math.nan,
            progress=_progress(trainer),
            module_group=groups,
            error_ratio=lowest["error_ratio"],
        )

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()

    def state_dict(self) -> dict[str, Any]:
        """The detector, the target networks' checksums and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "checksums": dict(self._checksums),
            "counted": dict(self._counted),
            "updates": self._window_updates(),
            "peak_errors": dict(self._error_ratio.peaks),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._checksums = dict(state_dict["checksums"])
        self._counted = dict(state_dict["counted"])
        self._updates_before = state_dict["updates"]
        self._error_ratio.peaks = dict(state_dict["peak_errors"])


def _group_name(group: Mapping[str, Any], number: int, position: int) -> str:
    return str(group.get("name", f"{number}.{position}"))


def _module_of(owners: Mapping[int, str], parameter: Tensor) -> str:
    return owners.get(id(parameter), "a module of others").rpartition(".")[0]


def _distance(weights: list[Any], others: list[Any]) -> Tensor:
    """‖θ − θ'‖ / ‖θ‖."""
    return global_norm(list(torch._foreach_sub(weights, others))) / global_norm(weights).clamp(min=1e-12)


def _family(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    return {name.removeprefix(f"{prefix}/"): value for name, value in values.items() if name.startswith(f"{prefix}/")}


def _count(trainer: Trainer) -> dict[str, int]:
    source = trainer.datamodule  # type: ignore[attr-defined]
    counted = {"env_steps": source.env_steps} if isinstance(source, ExperienceSource) else {}
    return counted | ({"transitions": source.transitions_added} if isinstance(source, ReplaySource) else {})


def _progress(trainer: Trainer) -> float:
    source = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(source, ExperienceSource):
        return source.env_steps / max(source.total_env_steps, 1)
    if trainer.max_steps > 0:
        return trainer.global_step / trainer.max_steps
    batches = (trainer.max_epochs or math.nan) * trainer.num_training_batches
    done = trainer.current_epoch * trainer.num_training_batches + trainer.fit_loop.batch_idx + 1
    return done / batches if math.isfinite(batches) and batches > 0 else math.nan
