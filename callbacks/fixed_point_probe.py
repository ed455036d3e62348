"""How far the critic is from the TD fixed point of the policies as they are, and how that point moves."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.probe import (
    Chains,
    Plateau,
    Probe,
    check_bootstrap_samples,
    linear_module,
    require_memory,
    rollout_source,
)
from rlmods.functional.linear_dynamics import iterate_fixed_point, solve_fixed_point
from rlmods.types import LinearTransitions, OffPolicyLinear

# The seeds of the common random numbers are those of firings before the first iteration.
_COMMON = (-1, -2)


class FixedPointProbe(Probe):
    """Measures ‖w − w♯‖ and ‖w♯ − previous w♯‖ for two estimates of the fixed point w♯ of E_μ[ρ δ φ] = 0.

    `w_gap`, `w_sharp_drift` (0, with `w_sharp_drift_defined` 0, at the first firing), `converged`, `num_iters`,
    `batch_size`, `tol`: of the published runs. w is moved by α_w times the mean update of a fresh batch until a step is
    no longer than `tol`. Along slow modes it never is, and the gap is then the distance walked in `max_iters` steps;
    the drift is mostly that of the batch.

    `lstd_gap`, `lstd_drift` (NaN at the first firing), both also as `…_squared`, `lstd_residual`, `ridge`: regularised
    LSTD around w (`solve_fixed_point`) on two independent batches, with the same two seeds at every firing. The
    squares are inner products of the two estimates, ⟨w − w♯₁, w − w♯₂⟩: each w♯ has the error of its sample, which does
    not go away where w converges, but the two errors are independent, so that the square is unbiased, and about 0 (or
    below) where there is no gap. The residual is ‖update at w♯‖/‖update at w‖, the larger one: near 1, nothing was
    solved.

    Args:
        batch_size: transitions, n.
        num_bootstrap_samples: actions of π for φ̄; None takes the exact expectation where there is one, which is
            without noise and several times as fast.
        num_chains: trajectories of the batch, n/num_chains steps each; 1 is the single one of the published runs; None
            makes them as long as the rollouts of the training, and n a multiple of that.
        max_iters: largest number of steps of the iteration.
        tol: its L2 length of the last step.
        ridge: relative weight of ‖w♯ − w‖², at least 1e-12.
        every_n_iterations: iterations between two firings.
        plateau: whether and how it also fires where the loss stands still.
        plateau_tolerance: of that rule.
        seed: of the probe's own randomness; None takes the one that torch was given.
        name: of the file and the curves.

    Raises:
        ValueError: where an argument is outside its range, or the batch would not fit into memory.
        TypeError: where the module is no `OffPolicyLinear` or the data module no `RolloutSource`.
    """

    stream = 1
    curve_columns: ClassVar[Mapping[str, str]] = {
        "fixed_point_gap": "w_gap",
        "fixed_point_drift": "w_sharp_drift",
        "fixed_point_drift_defined": "w_sharp_drift_defined",
    }

    def __init__(
        self,
        *,
        batch_size: int = 4096,
        num_bootstrap_samples: int | None = 8,
        num_chains: int | None = None,
        max_iters: int = 2000,
        tol: float = 1e-7,
        ridge: float = 1e-6,
        every_n_iterations: int = 10,
        plateau: Plateau = "off",
        plateau_tolerance: float = 0.05,
        seed: int | None = None,
        name: str = "fixed_point",
    ) -> None:
        super().__init__(
            name=name,
            every_n_iterations=every_n_iterations,
            plateau=plateau,
            plateau_tolerance=plateau_tolerance,
            seed=seed,
        )
        self.require_at_least_one("max_iters", max_iters)
        if not ridge >= 1e-12:
            raise ValueError(f"FixedPointProbe got ridge = {ridge}, expected at least 1e-12, for example 1e-6")
        self.require_at_least_one("batch_size", batch_size)
        self.batch_size = batch_size
        self.chains = None if num_chains is None else Chains.of(self, "batch_size", batch_size, num_chains)
        self.num_bootstrap_samples = num_bootstrap_samples
        self.max_iters = max_iters
        self.tol = tol
        self.ridge = ridge
        self._w_sharp: Tensor | None = None  # [D] float64, of the last firing
        self._lstd_weights: list[Tensor] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module or a data module that it cannot ask, and a batch that does not fit into memory."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        rollout_source(self, trainer)
        module = linear_module(self, pl_module)
        check_bootstrap_samples(self, module, self.num_bootstrap_samples)
        weight = module.critic_weight
        # φ, φ̄, their difference, φ weighted and one of them in the making; five D × D matrices of the solver.
        needed = 5 * weight.numel() * (self.batch_size * weight.element_size() + 8 * weight.numel())
        require_memory(self, trainer, needed, "batch_size", self.batch_size)

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int
    ) -> dict[str, float]:
        """Both estimates."""
        module = linear_module(self, pl_module)
        weight = module.critic_weight.double()
        return self._iterate(trainer, module, weight, iteration) | self._solve(trainer, module, weight)

    def _iterate(self, trainer: Trainer, module: OffPolicyLinear, weight: Tensor, iteration: int) -> dict[str, float]:
        seen = self._transitions(trainer, module, self.seed_of(iteration))
        walk = iterate_fixed_point(*seen, weight, module.critic_learning_rate, self.tol, self.max_iters)
        before, self._w_sharp = self._w_sharp, walk.weight
        return {
            "w_gap": _distance(weight, walk.weight),
            "w_sharp_drift": 0.0 if before is None else _distance(walk.weight, before),
            "w_sharp_drift_defined": float(before is not None),
            "converged": walk.converged,
            "num_iters": walk.num_iterations,
            "batch_size": seen.reward.numel(),
            "tol": self.tol,
        }

    def _solve(self, trainer: Trainer, module: OffPolicyLinear, weight: Tensor) -> dict[str, float]:
        solutions = [
            solve_fixed_point(*self._transitions(trainer, module, self.seed_of(common)), weight, self.ridge)
            for common in _COMMON
        ]
        before, self._lstd_weights = self._lstd_weights, [solution.weight for solution in solutions]
        gap = _cross_fitted([weight, weight], self._lstd_weights)
        drift = _cross_fitted(before, self._lstd_weights) if before else math.nan
        return {
            "lstd_gap": max(gap, 0.0) ** 0.5,
            "lstd_gap_squared": gap,
            "lstd_drift": max(drift, 0.0) ** 0.5 if before else math.nan,
            "lstd_drift_squared": drift,
            "lstd_residual": max(solution.relative_residual for solution in solutions),
            "ridge": self.ridge,
        }

    def _transitions(self, trainer: Trainer, module: OffPolicyLinear, seed: int) -> LinearTransitions:
        source = rollout_source(self, trainer)
        size = self.chains or Chains.like_training(self.batch_size, source)
        (rollout,) = source.probe_rollout(
            [module.behaviour_policy()], num_envs=size.num_chains, num_steps=size.num_steps, seed=seed
        )
        # Not `seed` itself: the bootstrap actions would repeat the noise of the rollout's actions.
        torch.manual_seed(seed + 1)
        return module.linear_transitions(rollout, self.num_bootstrap_samples)

    def curve_values(self, iteration: int) -> dict[str, float]:
        """As those of any probe, but a drift that was not measured is marked as undefined by 0."""
        values = super().curve_values(iteration)
        if self.latest is None or self.latest[0] != iteration:
            values["fixed_point_drift_defined"] = 0.0
        return values

    def state_dict(self) -> dict[str, Any]:
        """Adds the last fixed points."""
        return {**super().state_dict(), "w_sharp": self._w_sharp, "lstd_weights": self._lstd_weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on."""
        super().load_state_dict(state_dict)
        self._w_sharp, self._lstd_weights = state_dict["w_sharp"], list(state_dict["lstd_weights"])


def _cross_fitted(first: list[Tensor], second: list[Tensor]) -> float:
    """⟨a₁ − b₁, a₂ − b₂⟩."""
    one, other = (a.to(b.device) - b for a, b in zip(first, second, strict=True))
    return float(one @ other)


def _distance(first: Tensor, second: Tensor) -> float:
    # What comes from a checkpoint is on the CPU.
    return float(torch.linalg.vector_norm(first - second.to(first.device)))
