"""How the TD errors of different times within a trajectory go together."""

from collections.abc import Mapping
from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer

from rlmods.callbacks.probe import Plateau, Probe
from rlmods.callbacks.safeguard import require_signals
from rlmods.types import Rollout


class TDErrorKernelProbe(Probe):
    """Measures the kernel Q(t, t′) = mean_b δ[t, b] δ[t′, b] of the iteration's first trajectories.

    Needs the signals `td_error` `[1, T·B]`, time first, and `td_loss`, and a `Rollout` as batch. `kernel_loss` is the
    mean of Q's diagonal, the td_loss of these trajectories; `kernel_loss_rel_diff` to td_loss is 0 where they are all
    there are. `td_loss_from_Q` is half of it, as the published runs have it, so that its `_abs_diff` and `_rel_diff` to
    td_loss are about half of td_loss and 1/2. `effective_rank` is (tr Q)²/‖Q‖_F²: 1 where all trajectories have one
    shape, up to their number where they have nothing in common.

    Args:
        num_trajectories: the first so many, or all where there are fewer.
        every_n_iterations: iterations between two firings.
        plateau: whether and how it also fires where the loss stands still.
        plateau_tolerance: of that rule.
        name: of the file and the curves.

    Raises:
        ValueError: where an argument is outside its range; at a firing, where a signal is missing or the batch is no
            `Rollout` of as many steps as there are TD errors.
    """

    curve_columns: ClassVar[Mapping[str, str]] = {
        name: name for name in ("td_loss_from_Q", "td_loss_from_Q_abs_diff", "td_loss_from_Q_rel_diff")
    }

    def __init__(
        self,
        *,
        num_trajectories: int = 8,
        every_n_iterations: int = 10,
        plateau: Plateau = "off",
        plateau_tolerance: float = 0.05,
        name: str = "td_error_kernel",
    ) -> None:
        super().__init__(
            name=name,
            every_n_iterations=every_n_iterations,
            plateau=plateau,
            plateau_tolerance=plateau_tolerance,
            seed=None,
        )
        self.require_at_least_one("num_trajectories", num_trajectories)
        self.num_trajectories = num_trajectories

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int
    ) -> dict[str, float]:
        """The kernel in single numbers."""
        require_signals(self, outputs, ["td_error", "td_loss"])
        td_error = outputs["td_error"]
        if not isinstance(batch, Rollout) or batch.reward.numel() != td_error.numel():
            raise ValueError(
                f"TDErrorKernelProbe got td_error {list(td_error.shape)} with a batch {type(batch).__name__}, expected "
                "[1, T·B] with a Rollout of T steps of B environments: leave this callback out"
            )
        delta = td_error.double().reshape(batch.reward.shape)[:, : self.num_trajectories]
        kernel = delta @ delta.T / delta.shape[1]
        td_loss, kernel_loss = float(outputs["td_loss"]), float(kernel.diagonal().mean())
        return {
            "td_loss_from_Q": 0.5 * kernel_loss,
            "td_loss_from_Q_abs_diff": abs(0.5 * kernel_loss - td_loss),
            "td_loss_from_Q_rel_diff": _relative(0.5 * kernel_loss, td_loss),
            "kernel_loss": kernel_loss,
            "kernel_loss_rel_diff": _relative(kernel_loss, td_loss),
            "effective_rank": float(kernel.trace().square() / kernel.square().sum()),
            "num_trajectories": delta.shape[1],
        }


def _relative(value: float, reference: float) -> float:
    return abs(value - reference) / max(abs(reference), 1e-300)
