"""Whether the importance ratios of off-policy learning are what they must be."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.ratio_detector import NUM_LARGEST, RatioDetector, RatioWindow
from rlmods.callbacks.safeguard import Mode, Readings, Safeguard, is_window, require_signals
from rlmods.types import ReplayBatch


class RatioGuard(Safeguard):
    """Watches the importance ratios ρ = π(a|s)/μ(a|s) of samples that were drawn from μ.

    Needs the signal `importance_ratio`, of any shape, before any clip, of a policy π that was not fitted to these very
    samples. Uses `behaviour_std` and `target_std`, single numbers, where policies are isotropic Gaussians. Identity:
    E_μ[ρ] = 1 (`ratio_identity`: a warning in the first window that breaks it, sure in the second), because actions
    that are clipped after the draw, or densities that are not those of the draw, make the ratio a number without a
    meaning. Bound: the variance of ρ is infinite from σ_π² = 2 σ_μ² on (`ratio_variance_infinite`: sure where the
    standard deviations are published; from the largest ratios alone, by Hill's estimate, a warning). And the effective
    sample size (Σρ)²/Σρ² (`low_effective_sample_size`, a warning).

    Ratios that are all 1, those of on-policy learning, are in good health. Calibrated on 10⁴ to 2·10⁵ windows of 100 to
    32,000 samples from Gaussian policies with σ_π/σ_μ from 0.67 to 3 and means up to 3 σ_μ apart: of them at most one
    window in 10,000 breaks the identity.

    Args:
        tolerance: deviation of the mean ratio from 1 that is never alarmed.
        min_effective_fraction: effective sample size as a share of the samples, below which it is told.
        every_n_iterations: length of a window.
        name: of the instance, in curves and events.
        mode: `observe` and `act` only raise alarms.

    Raises:
        ValueError: where an argument is outside its range; at the first signals, where `importance_ratio` is missing.
    """

    def __init__(
        self,
        *,
        tolerance: float = 0.01,
        min_effective_fraction: float = 0.1,
        every_n_iterations: int = 10,
        name: str = "ratio",
        mode: Mode = "act",
    ) -> None:
        super().__init__(name=name, mode=mode)
        if every_n_iterations < 1:
            raise ValueError(f"RatioGuard got every_n_iterations = {every_n_iterations}, expected at least 1")
        self.every_n_iterations = every_n_iterations
        self.detector = RatioDetector(tolerance=tolerance, min_effective_fraction=min_effective_fraction)
        self._sums = torch.zeros(3)  # n, Σ (ρ − 1), Σ (ρ − 1)² of the window that is open
        self._largest = torch.zeros(0)
        self._stds = torch.full((2,), math.nan)
        self._has_signals = False
        self._expects_signals = False  # a batch came, which is no warm-up, without any
        self._readings = Readings()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add up; at the end of a window, decide."""
        is_empty = outputs is None or (isinstance(outputs, Mapping) and not outputs)
        if not is_empty:
            require_signals(self, outputs, ["importance_ratio"])
        self._expects_signals |= is_empty and not (isinstance(batch, ReplayBatch) and batch.num_updates == 0)
        with torch.no_grad():
            if not is_empty:
                self._has_signals = True
                self._add(outputs["importance_ratio"].detach().float().flatten())
                for position, name in enumerate(("behaviour_std", "target_std")):
                    if name in outputs:
                        self._stds[position] = _number(name, outputs[name])
            if not is_window(self.every_n_iterations, batch_idx):
                return
            largest = self._largest.new_full((NUM_LARGEST,), -math.inf)
            largest[: self._largest.numel()] = self._largest
            statistics = torch.cat([self._sums, self._stds.to(self._sums), largest.to(self._sums)]).to(pl_module.device)
        self._sums, self._largest = torch.zeros(3), torch.zeros(0)
        arrived = self._readings.exchange(trainer, statistics)
        if arrived is not None:
            self._decide(trainer, _of_all_processes(arrived[0]))

    def _add(self, ratio: Tensor) -> None:
        excess = ratio - 1.0
        count = torch.full_like(excess.sum(), float(ratio.numel()))
        self._sums = self._sums.to(ratio) + torch.stack([count, excess.sum(), excess.square().sum()])
        candidates = torch.cat([self._largest.to(ratio), ratio])
        self._largest = candidates.topk(min(NUM_LARGEST, candidates.numel())).values

    def _decide(self, trainer: Trainer, window: RatioWindow) -> None:
        if not window.samples:
            return  # a warm-up
        self.report(trainer, self.detector.update(window))
        curves = {
            "mean": window.mean,
            "second_moment": window.second_moment,
            "effective_fraction": window.effective_fraction,
            "max": window.largest[0],
        }
        self.draw(trainer, curves)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so where the module never gave a signal, which a warm-up may do for a while."""
        if self._expects_signals and not self._has_signals:
            message = (
                f"nothing was measured: training_step of {type(pl_module).__name__} returned nothing in the whole run, "
                "expected a dict with the detached tensor importance_ratio; return it, or leave this callback out"
            )
            self.report(trainer, [Verdict("no_signals", Severity.WARN, message, {})])

    def rearm(self) -> None:
        """Start the windows anew."""
        super().rearm()
        self.detector.reset()
        self._sums, self._largest = torch.zeros(3), torch.zeros(0)

    def state_dict(self) -> dict[str, Any]:
        """The detector and the window that is open."""
        return {
            **super().state_dict(),
            "detector": self.detector.state_dict(),
            "sums": self._sums.tolist(),
            "largest": self._largest.tolist(),
            "stds": self._stds.tolist(),
            "has_signals": self._has_signals,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self.detector.load_state_dict(state_dict["detector"])
        self._sums = torch.tensor(state_dict["sums"])
        self._largest = torch.tensor(state_dict["largest"])
        self._stds = torch.tensor(state_dict["stds"])
        self._has_signals = state_dict["has_signals"]


def _number(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"RatioGuard got {name} of shape {list(value.shape)}, expected one number, the same in all states and "
            f"dimensions: leave {name} out of the outputs where it is not"
        )
    return value.detach().reshape(())


def _of_all_processes(rows: list[list[float]]) -> RatioWindow:
    samples, excess, square = (sum(row[column] for row in rows) for column in range(3))
    largest = sorted((value for row in rows for value in row[5:] if value > -math.inf), reverse=True)
    return RatioWindow(samples, excess, square, largest[:NUM_LARGEST], rows[0][3], rows[0][4])
