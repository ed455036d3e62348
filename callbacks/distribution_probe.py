"""How far apart the behaviour policy and the target policy are: in the states they visit and in their actions."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from rlmods.callbacks.probe import Chains, Plateau, Probe, linear_module, require_memory, rollout_source
from rlmods.functional.gaussian_policy import (
    isotropic_kl,
    isotropic_total_variation,
    sampled_total_variation,
)
from rlmods.functional.off_policy import effective_sample_size
from rlmods.functional.two_samples import median_bandwidth, mmd_permutation_test, rbf_mmd2_biased
from rlmods.types import OffPolicyLinear, Rollout

# Points of the pooled samples that set the kernel's bandwidth.
_BANDWIDTH_POINTS = 300


class DistributionProbe(Probe):
    """Lets μ and π play environments of their own and compares what they saw and what they would do.

    States: `mmd2` (the biased estimate of the published runs, which is positive for equal policies too), `mmd_sigma`
    (its bandwidth), `mean_l2` (between the mean observations); and `mmd2_unbiased`, with `mmd2_p_value` and the 95 %
    quantile `mmd2_null_q95` of its values for exchanged labels of whole chains (`mmd_permutation_test`). These three
    need independent chains and are NaN for a single one.

    Actions, over the states of both: `dist_action_kl` = KL(π‖μ), `dist_action_tv` sampled with `action_samples` draws,
    and `dist_action_tv_exact` (two-dimensional actions, else NaN).

    Importance ratios of μ's own actions, as the module uses them: `rho_mean` (1 for a density ratio),
    `rho_second_moment`, `rho_max`, and `effective_sample_size` as a share of the samples.

    Args:
        num_samples: steps of each policy, n.
        action_samples: draws of π in each state.
        num_chains: trajectories of each policy, n/num_chains steps each; 1 is the single one of the published runs.
        permutations: of the test.
        every_n_iterations: iterations between two firings.
        plateau: whether and how it also fires where the loss stands still.
        plateau_tolerance: of that rule.
        seed: of the probe's own randomness; None takes the one that torch was given.
        name: of the file and the curves.

    Raises:
        ValueError: where an argument is outside its range, or the samples would not fit into memory.
        TypeError: where the module is no `OffPolicyLinear` or the data module no `RolloutSource`.
    """

    stream = 3
    curve_columns: ClassVar[Mapping[str, str]] = {
        "dist_mmd2": "mmd2",
        "dist_mean_l2": "mean_l2",
        "dist_action_kl": "dist_action_kl",
        "dist_action_tv": "dist_action_tv",
    }

    def __init__(
        self,
        *,
        num_samples: int = 4096,
        action_samples: int = 64,
        num_chains: int = 64,
        permutations: int = 200,
        every_n_iterations: int = 10,
        plateau: Plateau = "off",
        plateau_tolerance: float = 0.05,
        seed: int | None = None,
        name: str = "distribution",
    ) -> None:
        super().__init__(
            name=name,
            every_n_iterations=every_n_iterations,
            plateau=plateau,
            plateau_tolerance=plateau_tolerance,
            seed=seed,
        )
        self.require_at_least_one("action_samples", action_samples)
        self.require_at_least_one("permutations", permutations)
        self.num_steps = Chains.of(self, "num_samples", num_samples, num_chains).num_steps
        self.num_samples = num_samples
        self.action_samples = action_samples
        self.num_chains = num_chains
        self.permutations = permutations

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module or a data module that it cannot ask, and samples that do not fit into memory."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        rollout_source(self, trainer)
        weight = linear_module(self, pl_module).critic_weight
        # The features behind the ratios, and in each state of both the drawn actions with what becomes of them.
        numbers = self.num_samples * (3 * weight.numel() + 2 * 10 * self.action_samples)
        require_memory(self, trainer, numbers * weight.element_size(), "num_samples", self.num_samples)

    def measure(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, iteration: int
    ) -> dict[str, float]:
        """States, actions, ratios."""
        module = linear_module(self, pl_module)
        seed = self.seed_of(iteration)
        rollouts = rollout_source(self, trainer).probe_rollout(
            [module.behaviour_policy(), module.target_policy()],
            num_envs=self.num_chains,
            num_steps=self.num_steps,
            seed=seed,
        )
        # Not `seed` itself: that is the rollout's.
        torch.manual_seed(seed + 1)
        of_behaviour, of_target = (_chains(rollout) for rollout in rollouts)
        return {
            **self._compare_states(of_behaviour, of_target, torch.Generator().manual_seed(seed + 1)),
            **self._compare_actions(module, torch.cat((of_behaviour, of_target)).flatten(0, 1)),
            **_ratio_statistics(module, rollouts[0]),
        }

    def _compare_states(self, of_behaviour: Tensor, of_target: Tensor, generator: torch.Generator) -> dict[str, float]:
        """Chains `[C, T, O]` of both."""
        x, y = of_behaviour.flatten(0, 1), of_target.flatten(0, 1)
        points = torch.randperm(2 * self.num_samples, generator=generator)[:_BANDWIDTH_POINTS].to(x.device)
        bandwidth = median_bandwidth(torch.cat((x, y))[points])
        row = {
            "mmd2": float(rbf_mmd2_biased(x, y, bandwidth)),
            "mmd_sigma": float(bandwidth),
            "mean_l2": float(torch.linalg.vector_norm(x.mean(0) - y.mean(0))),
            "num_samples": self.num_samples,
        }
        names = ("mmd2_unbiased", "mmd2_p_value", "mmd2_null_q95")
        if self.num_chains == 1:
            return row | dict.fromkeys(names, math.nan)
        test = mmd_permutation_test(of_behaviour, of_target, bandwidth, self.permutations, generator)
        return row | {name: float(value) for name, value in zip(names, test, strict=True)}

    def _compare_actions(self, module: OffPolicyLinear, states: Tensor) -> dict[str, float]:
        """Observations `[M, O]`."""
        behaviour_mean, target_mean = module.policy_means(states)
        gaussians = (target_mean, module.target_std, behaviour_mean, module.behaviour_std)
        noise = torch.randn(
            (states.shape[0], self.action_samples, target_mean.shape[-1]),
            dtype=target_mean.dtype,
            device=target_mean.device,
        )
        drawn = target_mean.unsqueeze(-2) + module.target_std * noise
        exact = isotropic_total_variation(*gaussians).mean() if target_mean.shape[-1] == 2 else math.nan
        return {
            "dist_action_kl": float(isotropic_kl(*gaussians).mean()),
            "dist_action_tv": float(sampled_total_variation(drawn, *gaussians).mean()),
            "dist_action_tv_exact": float(exact),
            "action_samples": self.action_samples,
        }


def _ratio_statistics(module: OffPolicyLinear, rollout: Rollout) -> dict[str, float]:
    # The module alone knows at which action it takes the densities; no bootstrap is the cheapest question.
    ratio = module.linear_transitions(rollout, 0).importance_ratio.double()
    return {
        "rho_mean": float(ratio.mean()),
        "rho_second_moment": float(ratio.square().mean()),
        "rho_max": float(ratio.amax()),
        "effective_sample_size": float(effective_sample_size(ratio)) / ratio.numel(),
    }


def _chains(rollout: Rollout) -> Tensor:
    """Observations `[C, T, O]`."""
    observation: Any = rollout.observation
    chains: Tensor = observation.transpose(0, 1)
    return chains
