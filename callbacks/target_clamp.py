"""Bootstrap targets stay where values can be."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn import Module
from torch.utils.hooks import RemovableHandle

from rlmods.callbacks.detectors import Confirmation, Severity, Verdict
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window
from rlmods.callbacks.seen_values import SeenValues, entropy_bonus
from rlmods.callbacks.target_networks import target_value_networks
from rlmods.callbacks.transitions import transition_of


class ClampDetector:
    """Says when the clamp works all the time: then it does not guard the training, it hides what is wrong with it.

    Args:
        max_fraction: of the targets that may be moved.
        windows: in a row, from which on it is said.
    """

    def __init__(self, *, max_fraction: float, windows: int) -> None:
        if not 0.0 <= max_fraction < 1.0:
            raise ValueError(f"TargetClamp got max_fraction = {max_fraction}, expected a fraction in [0, 1)")
        self.max_fraction = max_fraction
        self.busy = Confirmation(needed=windows, window=windows)

    def update(self, fraction: float, low: float, high: float) -> list[Verdict]:
        """Take in the fraction of a window's targets that lay outside [low, high] by more than 1 % of it."""
        # Before the first reward the interval is a point, and nothing can be said.
        if not self.busy.update(high != low and fraction > self.max_fraction):
            return []
        message = (
            f"{fraction:.1%} of the targets lie outside [{low:.4g}, {high:.4g}], where no policy's value can be, and "
            f"did so in {self.busy.window} windows: the clamp hides a divergence. Look for its cause (a target network "
            "that does not lag, a wrong discount, a learning rate too high) instead of relying on it"
        )
        evidence = {
            "fraction": fraction,
            "max_fraction": self.max_fraction,
            "windows": self.busy.window,
            "interval": [low, high],
        }
        return [Verdict("clamp_always_active", Severity.WARN, message, evidence)]


class TargetClamp(Safeguard):
    """Clamps bootstrap targets to the interval in which values can lie.

    The interval comes from the transitions that were seen: their rewards and discounts
    (`rlmods.functional.value_bounds.value_interval`), or is given. A clamp to it changes no target that is possible.
    Soft values (`rlmods.types.SoftValues`) are clamped from above alone, with the entropy that can be added to them; of
    a target that is made from one drawn action, the far tail of −ln π may be cut.

    Where the module has `target_transforms` (all algorithms of rlmods), the clamp is one of them. Elsewhere it is a
    forward hook on the modules whose name says that they are a target network (`target`, `tgt`, `slow`, `ema`), and
    clamps what they return, which must be one tensor of values; actors and encoders are left alone.

    Args:
        low: lowest value that is possible; None finds it from the transitions.
        high: highest value that is possible; None finds it from the transitions.
        max_fraction: of the targets that may be moved without a word.
        windows: windows in a row above `max_fraction` until it is said that the clamp hides something.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` only measures what would be moved.

    Raises:
        ValueError: where an argument is outside its range; at the start, where there is nothing to clamp; at the first
            batch, where the interval is neither given nor can be found.
    """

    def __init__(
        self,
        *,
        low: float | None = None,
        high: float | None = None,
        max_fraction: float = 0.1,
        windows: int = 10,
        every_n_iterations: int = 8,
        name: str = "target_clamp",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if low is not None and high is not None and low >= high:
            raise ValueError(f"TargetClamp got low = {low} and high = {high}, expected low < high")
        self.low, self.high = low, high
        self.every_n_iterations = every_n_iterations
        self.detector = ClampDetector(max_fraction=max_fraction, windows=windows)
        self._seen = SeenValues()
        self._bounds: tuple[Tensor, Tensor] | None = None  # of this iteration
        self._outside: list[Tensor] = []  # before the clamp, of a sampled iteration
        self._is_sampling = False
        self._readings = Readings()
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take a place in the module's targets."""
        transforms = getattr(pl_module, "target_transforms", None)
        if isinstance(transforms, list):
            transforms.append(self.clamp)
            return
        networks = target_value_networks(pl_module)
        if not networks:
            raise ValueError(
                f"TargetClamp found nothing to clamp in {type(pl_module).__name__}: expected a list target_transforms, "
                "whose callables the module applies to its targets, or a sub-module with target, tgt, slow or ema in "
                f"its name; got {[name for name, _ in pl_module.named_children()]}"
            )
        for module in networks.values():
            self._handles.append(module.register_forward_hook(self._clamp_output))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Widen the interval by what this batch shows, before its targets are made."""
        self._is_sampling = is_window(self.every_n_iterations, batch_idx)
        self._bounds = None
        if self.low is not None and self.high is not None:
            return
        transition = transition_of(batch, self, "low=... and high=...")
        self._seen.see(transition.reward, transition.discount)
        self._seen.see_entropy(entropy_bonus(pl_module, None, transition))

    def clamp(self, target: Tensor) -> Tensor:
        """Targets, or a target network's values, of any shape, into the interval."""
        if self._is_sampling:
            self._outside.append(target.detach())
        if self.mode == "observe":
            return target
        low, high = self._interval(target)
        if target.device.type == "cpu":
            # Numbers are there at once, and cost half of what tensors do.
            return target.clamp(low.item(), high.item())
        return target.clamp(low, high)

    def _clamp_output(self, module: Module, inputs: Any, output: Any) -> Tensor:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"TargetClamp got a {type(output).__name__} from {type(module).__name__}, expected one tensor of "
                "values: give the module a list target_transforms, whose callables it applies to its targets"
            )
        return self.clamp(output)

    def _interval(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._bounds is None:
            self._bounds = self._find_bounds(like)
        return self._bounds

    def _find_bounds(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = like.new_tensor(-torch.inf), like.new_tensor(torch.inf)
        seen, size = self._seen.interval, self._seen.size
        if seen is not None and size is not None:
            # Before the first reward 0 is all that was seen. To clamp to it would take away the differences between the
            # actions of a fresh network, by which it finds the first reward.
            is_known = size.to(like) > 0.0
            low, high = seen.low.to(like).where(is_known, low), seen.high.to(like).where(is_known, high)
        return (
            low if self.low is None else like.new_tensor(self.low),
            high if self.high is None else like.new_tensor(self.high),
        )

    def _size(self, low: Tensor, high: Tensor) -> Tensor:
        size = torch.maximum(high - low, torch.maximum(low.abs(), high.abs()))
        seen = self._seen.size
        # Soft values have no lower end.
        return size if seen is None else size.where(size.isfinite(), torch.maximum(seen.to(high), high.abs()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of a window, see how much there was to clamp."""
        if not self._is_sampling:
            return
        self._is_sampling = False
        if self._outside:
            targets = torch.cat([target.reshape(-1) for target in self._outside])
            low, high = self._interval(targets)
            slack = 0.01 * self._size(low, high)
            outside = ((targets > high + slack) | (targets < low - slack)).float().mean()
            statistics = torch.stack([outside, -low, high])
        else:
            statistics = torch.full((3,), torch.nan, device=pl_module.device)
        self._outside = []
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is None:
            return
        fraction, minus_low, high_now = (max(column) for column in zip(*arrived[0], strict=True))
        if fraction != fraction:  # no update in this window, or targets that are no numbers
            return
        self.report(trainer, self.detector.update(fraction, -minus_low, high_now))
        self.draw(trainer, {"clamped_fraction": fraction, "low": -minus_low, "high": high_now})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the module as it was."""
        self._leave(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the module as it was."""
        self._leave(pl_module)

    def _leave(self, pl_module: LightningModule) -> None:
        transforms = getattr(pl_module, "target_transforms", None)
        if isinstance(transforms, list) and self.clamp in transforms:
            transforms.remove(self.clamp)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rearm(self) -> None:
        """Count the windows anew; what the transitions allow stays."""
        super().rearm()
        self.detector.busy.reset()

    def state_dict(self) -> dict[str, Any]:
        """The interval and the windows."""
        return {**super().state_dict(), "seen": self._seen.state_dict(), "busy": self.detector.busy.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self._seen.load_state_dict(state_dict["seen"])
        self.detector.busy.load_state_dict(state_dict["busy"])
