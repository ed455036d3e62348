"""The two policies of the off-policy laboratory: Gaussians whose means are linear in frozen features."""

import math

import torch
from torch import Tensor, nn

from rlmods.functional.off_policy import project_to_ball
from rlmods.networks.random_features import ActorFeatures, FeatureSettings
from rlmods.types import Observation


class LinearActors(nn.Module):
    """The target policy π = N(θᵀψ(s)/√D_a, σ_π² I), and the behaviour policy μ with θ_μ and σ_μ, which follows it.

    Only θ is a parameter; θ_μ is state that `follow` moves.

    Args:
        settings: of the features ψ.
        theta: `[D_a, A]`, at the start.
        behaviour_theta: `[D_a, A]`, at the start.
        behaviour_std: σ_μ.
        target_std: σ_π.
    """

    behaviour_theta: Tensor

    def __init__(
        self,
        settings: FeatureSettings,
        theta: Tensor,
        behaviour_theta: Tensor,
        *,
        behaviour_std: float,
        target_std: float,
    ) -> None:
        super().__init__()
        self.features = ActorFeatures(settings)
        self.theta = nn.Parameter(theta)
        self.register_buffer("behaviour_theta", behaviour_theta)
        self.behaviour_std = behaviour_std
        self.target_std = target_std

    def mean(self, feature: Tensor, theta: Tensor) -> Tensor:
        """Means `[..., A]` for features `[..., D_a]`."""
        return feature @ theta / math.sqrt(theta.shape[0])

    def means(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Means of μ and of π, `[..., A]`."""
        feature = self.features(observation)
        return self.mean(feature, self.behaviour_theta), self.mean(feature, self.theta)

    def draw(self, observation: Tensor, *, of_target: bool, noise: Tensor | None = None) -> Tensor:
        """Actions `[..., A]` of π or of μ, from standard normal noise of this shape, else from torch's generator."""
        theta, std = (self.theta, self.target_std) if of_target else (self.behaviour_theta, self.behaviour_std)
        mean = self.mean(self.features(observation), theta)
        return mean + std * (torch.randn_like(mean) if noise is None else noise.to(mean))

    @torch.no_grad()
    def follow(self, beta: float, radius: float) -> None:
        """θ_μ ← (1 − β) θ_μ + β θ; then both are projected on the ball of the radius (0: not)."""
        # Not add(alpha=…), which rounds once: the gap between the two is at the level of rounding errors.
        self.behaviour_theta.copy_((1.0 - beta) * self.behaviour_theta + beta * self.theta)
        for theta in (self.theta, self.behaviour_theta):
            theta.copy_(project_to_ball(theta, radius))


class LinearActor:
    """One of the two policies by itself, from torch's generator."""

    def __init__(self, actors: LinearActors, *, of_target: bool) -> None:
        self.actors = actors
        self.of_target = of_target

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        """Actions `[N, A]` for observations `[N, O]`."""
        return self.actors.draw(one_tensor(observation), of_target=self.of_target)


def one_tensor(observation: Observation) -> Tensor:
    """The observation, which must not be a dict.

    Raises:
        TypeError: where it is.
    """
    if not isinstance(observation, Tensor):
        raise TypeError(f"got observations with the keys {sorted(observation)}, expected one tensor")
    return observation
