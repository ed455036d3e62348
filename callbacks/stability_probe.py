"""Whether the critic's update amplifies its errors while the policies stand still."""

import math
import statistics
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

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
from rlmods.functional.linear_dynamics import (
    critical_step,
    leading_eigenvalues,
    power_iteration_proxy,
    spectral_radius_of_update,
)
from rlmods.types import LinearTransitions, OffPolicyLinear, Rollout

Operator = Literal["V1", "V0"]

_NUM_EIGENVALUES = 4


class StabilityProbe(Probe):
    """Measures how much one update multiplies an error of the critic by: I + s A/√D, A = E_μ[ρ φ (γφ̄ − φ)ᵀ].

    `stability_proxy` (also `_mean`), `stability_proxy_std` over the batches, `power_iters`, `batch_size`,
    `stability_probe_step_scale`: of the published runs. A few power steps from a random vector: too few to find
    the spectrum, and mostly with another step than training takes; see `operator`. Above 1 it means nothing.

    `spectral_radius`: the largest |1 + s λ| over the eigenvalues λ of A/√D, with the step s = `mean_step` that training
    takes: above 1, some error grows. `critical_step` is the smallest s that reaches 1 and `critical_learning_rate` the
    α_w that it means (0: an eigenvalue lies on the right, every step is unstable). `dimensionless_step` = s |λ|_max,
    `leading_eigenvalue_real` and `_imag` are of the largest one. They describe plain TD and the matrix of one batch:
    its noise is that of n samples.

    Args:
        batch_size: transitions of a batch, n.
        num_bootstrap_samples: actions of π for φ̄; None takes the exact expectation where there is one, which is
            without noise and several times as fast.
        num_batches: over which the proxy is averaged; the published runs took `num_bootstrap_samples` of them.
        num_chains: trajectories of a batch, n/num_chains steps each; 1 is the single one of the published runs; None
            makes them as long as the rollouts of the training, and n a multiple of that.
        power_iters: steps of the power iteration.
        operator: of the proxy. V1, of most published runs: v + α_w c Σ ρ φ (γφ̄ − φ)·v, whose sum over the probe's
            batch and missing 1/√D are not the training's. V0, of the first ones: v + α_w A v/√D, of one batch.
        every_n_iterations: iterations between two firings.
        plateau: whether and how it also fires where the loss stands still.
        plateau_tolerance: of that rule.
        seed: of the probe's own randomness; None takes the one that torch was given.
        name: of the file and the curves.

    Raises:
        ValueError: where an argument is outside its range, or a batch would not fit into memory.
        TypeError: where the module is no `OffPolicyLinear` or the data module no `RolloutSource`.
    """

    stream = 2
    curve_columns: ClassVar[Mapping[str, str]] = {"stability_proxy": "stability_proxy"}

    def __init__(
        self,
        *,
        batch_size: int = 4096,
        num_bootstrap_samples: int | None = 8,
        num_batches: int = 8,
        num_chains: int | None = None,
        power_iters: int = 20,
        operator: Operator = "V1",
        every_n_iterations: int = 10,
        plateau: Plateau = "off",
        plateau_tolerance: float = 0.05,
        seed: int | None = None,
        name: str = "stability",
    ) -> None:
        super().__init__(
            name=name,
            every_n_iterations=every_n_iterations,
            plateau=plateau,
            plateau_tolerance=plateau_tolerance,
            seed=seed,
        )
        self.require_at_least_one("num_batches", num_batches)
        self.require_at_least_one("power_iters", power_iters)
        if operator not in ("V0", "V1"):
            raise ValueError(f"StabilityProbe got operator = {operator!r}, expected 'V1' or 'V0'")
        self.require_at_least_one("batch_size", batch_size)
        self.batch_size = batch_size
        self.chains = None if num_chains is None else Chains.of(self, "batch_size", batch_size, num_chains)
        self.num_bootstrap_samples = num_bootstrap_samples
        self.num_batches = num_batches if operator == "V1" else 1
        self.power_iters = power_iters
        self.operator = operator

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module or a data module that it cannot ask, and a batch that does not fit into memory."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        rollout_source(self, trainer)
        module = linear_module(self, pl_module)
        check_bootstrap_samples(self, module, self.num_bootstrap_samples)
        weight = module.critic_weight
        # φ, φ̄, their difference and one of them in the making; for small sizes the spectrum takes four in float64.
        needed = 4 * self.batch_size * weight.numel() * (weight.element_size() + 8)
        require_memory(self, trainer, needed, "batch_size", self.batch_size)

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int
    ) -> dict[str, float]:
        """The proxy on all batches, the spectrum on the first."""
        module = linear_module(self, pl_module)
        seed = self.seed_of(iteration)
        source = rollout_source(self, trainer)
        size = self.chains or Chains.like_training(self.batch_size, source)
        num_envs = self.num_batches * size.num_chains
        (rollout,) = source.probe_rollout(
            [module.behaviour_policy()], num_envs=num_envs, num_steps=size.num_steps, seed=seed
        )
        # Not `seed` itself: the bootstrap actions would repeat the noise of the rollout's actions.
        torch.manual_seed(seed + 1)
        proxies: list[float] = []
        spectrum: dict[str, float] = {}
        for first in range(0, num_envs, size.num_chains):
            chains = _of_chains(rollout, slice(first, first + size.num_chains))
            seen = module.linear_transitions(chains, self.num_bootstrap_samples)
            proxies.append(self._proxy(module, seen))
            if not spectrum:
                spectrum = _spectrum(module, seen)
        mean = statistics.fmean(proxies)
        return {
            "stability_proxy": mean,
            "stability_proxy_mean": mean,
            "stability_proxy_std": statistics.pstdev(proxies, mean),
            "power_iters": self.power_iters,
            "batch_size": size.num_samples,
            "stability_probe_step_scale": module.train_step_scale,
            **spectrum,
        }

    def _proxy(self, module: OffPolicyLinear, seen: LinearTransitions) -> float:
        weight = module.critic_weight
        is_sum = self.operator == "V1"
        return power_iteration_proxy(
            seen.feature,
            seen.bootstrap_feature,
            seen.importance_ratio,
            seen.discount,
            torch.randn(weight.numel(), dtype=torch.float64, device=weight.device),
            self.power_iters,
            module.train_step_scale if is_sum else module.critic_learning_rate,
            "sum" if is_sum else "mean",
        )


def _spectrum(module: OffPolicyLinear, seen: LinearTransitions) -> dict[str, float]:
    eigenvalues = leading_eigenvalues(
        seen.feature, seen.bootstrap_feature, seen.importance_ratio, seen.discount, _NUM_EIGENVALUES
    )
    step, critical = module.mean_step, critical_step(eigenvalues)
    # 0/0 for a learning rate of 0.
    rate_per_step = module.critic_learning_rate / step if step else math.nan
    leading: Tensor = eigenvalues[0]
    return {
        "spectral_radius": spectral_radius_of_update(eigenvalues, step),
        "critical_step": critical,
        "critical_learning_rate": critical * rate_per_step,
        "dimensionless_step": step * float(leading.abs()),
        "leading_eigenvalue_real": float(leading.real),
        "leading_eigenvalue_imag": float(leading.imag),
    }


def _of_chains(rollout: Rollout, chains: slice) -> Rollout:
    columns: dict[str, Any] = {
        name: field[:, chains] for name, field in rollout._asdict().items() if isinstance(field, Tensor)
    }
    return rollout._replace(**columns)
