"""Isotropic Gaussian policies 𝒩(m(s), σ²I) with means that depend on the state: ratios, scores, divergences.

The executed action may differ from the draw (`executed_action`). A ratio is a density ratio only at the draw: a
projection puts an atom on the boundary that the Gaussian densities do not have, E ρ is no longer 1, and
`expected_ratio_of_ball_clip` says what it is instead. Under tanh the Jacobians cancel: pass the draw u, not tanh(u).
"""

import math
from typing import Literal

import torch
from torch import Tensor

ActionMode = Literal["ball_clip", "box_clip", "tanh", "raw"]


def executed_action(action: Tensor, mode: ActionMode, limit: float) -> Tensor:
    """What the environment executes where the policy drew `action`.

    Args:
        action: `[..., A]`, the Gaussian draw.
        mode: "ball_clip" projects on the ball of radius `limit`, "box_clip" clips each component to ±`limit`, "tanh"
            is limit · tanh(action), "raw" changes nothing.
        limit: positive; "raw" does not use it.

    Returns:
        `[..., A]`.

    Raises:
        ValueError: for an unknown mode.
    """
    if mode == "ball_clip":
        norm = torch.linalg.vector_norm(action, dim=-1, keepdim=True)
        return torch.where(norm > limit, action * (limit / norm), action)
    if mode == "box_clip":
        return action.clamp(-limit, limit)
    if mode == "tanh":
        return limit * action.tanh()
    if mode == "raw":
        return action
    raise ValueError(f'got the action mode {mode!r}; expected "ball_clip", "box_clip", "tanh" or "raw"')


def isotropic_log_density(action: Tensor, mean: Tensor, std: float) -> Tensor:
    """Log 𝒩(action; mean, std² I).

    Args:
        action: `[..., A]`.
        mean: `[..., A]`.
        std: of each component, positive.

    Returns:
        `[...]`.
    """
    dimension = action.shape[-1]
    constant = dimension * (math.log(std) + 0.5 * math.log(2.0 * math.pi))
    return (action - mean).square().sum(-1) * (-0.5 / std**2) - constant


def importance_ratio(
    action: Tensor, behaviour_mean: Tensor, behaviour_std: float, target_mean: Tensor, target_std: float
) -> Tensor:
    """ρ = π(a)/μ(a) = (σ_μ/σ_π)^A exp(‖a − m_μ‖²/(2σ_μ²) − ‖a − m_π‖²/(2σ_π²)): one exp, exactly 1 for π = μ.

    Args:
        action: `[..., A]`, the draw of μ.
        behaviour_mean: `[..., A]`, m_μ.
        behaviour_std: σ_μ, positive.
        target_mean: `[..., A]`, m_π.
        target_std: σ_π, positive.

    Returns:
        `[...]`, positive. E_μ ρ = 1; E_μ ρ² is `expected_squared_ratio` where the means are equal, and infinite from
        σ_π² = 2σ_μ² on whatever they are.
    """
    behaviour = (action - behaviour_mean).square().sum(-1) * (0.5 / behaviour_std**2)
    target = (action - target_mean).square().sum(-1) * (0.5 / target_std**2)
    return (behaviour - target).exp() * (behaviour_std / target_std) ** action.shape[-1]


def score(action: Tensor, mean: Tensor, std: float, feature: Tensor) -> Tensor:
    """∇_θ log 𝒩(action; θᵀψ/√N, std² I) = ψ (a − m)ᵀ / (std² √N).

    Args:
        action: `[..., A]`, the draw.
        mean: `[..., A]`, θᵀψ/√N.
        std: positive.
        feature: ψ, `[..., N]`.

    Returns:
        `[..., N, A]`, the shape of θ. Its expectation under the same policy is 0.
    """
    scaled = (action - mean) / (std**2 * math.sqrt(feature.shape[-1]))
    return feature.unsqueeze(-1) * scaled.unsqueeze(-2)


def isotropic_kl(mean_p: Tensor, std_p: float, mean_q: Tensor, std_q: float) -> Tensor:
    """KL(p‖q) = ½[A σ_p²/σ_q² + ‖m_p − m_q‖²/σ_q² − A + A ln(σ_q²/σ_p²)], in nats.

    Args:
        mean_p: `[..., A]`.
        std_p: σ_p, positive.
        mean_q: `[..., A]`.
        std_q: σ_q, positive.

    Returns:
        `[...]`, at least 0; exactly 0 for p = q.
    """
    squared = (std_p / std_q) ** 2
    constant = mean_p.shape[-1] * (squared - 1.0 - math.log(squared))
    return 0.5 * ((mean_p - mean_q).square().sum(-1) / std_q**2 + constant)


def isotropic_total_variation(mean_p: Tensor, std_p: float, mean_q: Tensor, std_q: float) -> Tensor:
    """TV(p, q) = ½∫|p − q| in two dimensions, exact: no sampling.

    p > q holds in a disc or outside of one (log p − log q is an isotropic quadratic), so TV = |P(disc) − Q(disc)|;
    each is a one-dimensional integral of a smooth function (64 Gauss-Legendre nodes, about 1e-9). With equal stds the
    disc is a half-plane: 2Φ(d/2σ) − 1. With equal means it is |exp(−r²/2σ_p²) − exp(−r²/2σ_q²)|,
    r² = 4 ln(σ_p/σ_q) / (σ_q⁻² − σ_p⁻²).

    Args:
        mean_p: `[..., 2]`.
        std_p: positive.
        mean_q: `[..., 2]`.
        std_q: positive.

    Returns:
        `[...]` in [0, 1]; exactly 0 for p = q. Computed in float64, returned in the dtype of the means.

    Raises:
        ValueError: for means that are not two-dimensional.
    """
    if mean_p.shape[-1] != 2:
        raise ValueError(f"got means {tuple(mean_p.shape)}; expected [..., 2]: elsewhere use sampled_total_variation")
    gap = torch.linalg.vector_norm((mean_p - mean_q).double(), dim=-1)
    if abs(std_p / std_q - 1.0) < 1e-6:  # the disc's radius overflows what float64 resolves
        return torch.erf(gap / (math.sqrt(2.0) * (std_p + std_q))).to(mean_p.dtype)
    # On the line from m_p (0) to m_q (gap): ‖x − gap‖²/σ_q² − ‖x‖²/σ_p² = 4 ln(σ_p/σ_q) is a circle.
    curvature = std_q**-2 - std_p**-2
    centre = gap / (std_q**2 * curvature)
    squared = 4.0 * math.log(std_p / std_q) / curvature + gap.square() / (std_p * std_q * curvature) ** 2
    radius = squared.sqrt()
    inside_p = _probability_of_disc(centre.abs(), radius, std_p)
    inside_q = _probability_of_disc((centre - gap).abs(), radius, std_q)
    return (inside_p - inside_q).abs().to(mean_p.dtype)


def _probability_of_disc(distance: Tensor, radius: Tensor, std: float) -> Tensor:
    """P(‖a − c‖ < radius) for a ~ 𝒩(m, std² I) in the plane with ‖m − c‖ = distance (a non-central χ²)."""
    # Along the line x = radius · sin(angle), across it an erf; the sine takes the root out of the chord's length.
    reach = 9.0 * std
    low = ((distance - reach) / radius).clamp(-1.0, 1.0).asin().unsqueeze(-1)
    high = ((distance + reach) / radius).clamp(-1.0, 1.0).asin().unsqueeze(-1)
    nodes, weights = _gauss_legendre(64, distance.device)
    angle = low + (high - low) * nodes
    half_chord = radius.unsqueeze(-1) * angle.cos()
    offset = radius.unsqueeze(-1) * angle.sin() - distance.unsqueeze(-1)
    density = (-0.5 * (offset / std).square()).exp() / (std * math.sqrt(2.0 * math.pi))
    chance = density * half_chord * torch.erf(half_chord / (math.sqrt(2.0) * std))
    return (chance @ weights) * (high - low).squeeze(-1)


def _gauss_legendre(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights `[count]` float64 on [0, 1] (Golub & Welsch 1969: eigenvalues of the Jacobi matrix)."""
    index = torch.arange(1, count, dtype=torch.float64)
    off_diagonal = index / (4.0 * index.square() - 1.0).sqrt()
    jacobi = torch.diag(off_diagonal, 1)
    nodes, vectors = torch.linalg.eigh(jacobi + jacobi.T)
    return (0.5 * (nodes + 1.0)).to(device), vectors[0].square().to(device)


def sampled_total_variation(action: Tensor, mean_p: Tensor, std_p: float, mean_q: Tensor, std_q: float) -> Tensor:
    """½ · mean |1 − q(a)/p(a)| over draws a ~ p: unbiased, in any dimension; log q/p is clipped to ±50.

    Args:
        action: `[..., S, A]`, S draws of p, not projected.
        mean_p: `[..., A]`.
        std_p: positive.
        mean_q: `[..., A]`.
        std_q: positive; the variance is infinite from σ_q² = 2σ_p² on.

    Returns:
        `[...]`, at least 0; exactly 0 for p = q. Unlike the total variation itself it may exceed 1.
    """
    log_q = isotropic_log_density(action, mean_q.unsqueeze(-2), std_q)
    log_p = isotropic_log_density(action, mean_p.unsqueeze(-2), std_p)
    ratio = (log_q - log_p).clamp(-50.0, 50.0).exp()
    return 0.5 * (1.0 - ratio).abs().mean(-1)


def expected_ratio_of_ball_clip(behaviour_std: float, target_std: float, limit: float) -> float:
    """E ρ where ρ is taken at the draw of μ projected on the disc of radius `limit`; means 0, two dimensions.

    1 − exp(−R²/2σ_π²) + P ρ_R: within the disc the target's mass, on its edge P = exp(−R²/2σ_μ²) (the share of clipped
    draws) times ρ_R = (σ_μ/σ_π)² exp(kR²), k = (σ_μ⁻² − σ_π⁻²)/2. It is 1 for equal stds only.
    """
    clipped = math.exp(-0.5 * (limit / behaviour_std) ** 2)
    inside = -math.expm1(-0.5 * (limit / target_std) ** 2)
    return inside + clipped * _ratio_at_radius(behaviour_std, target_std, limit)


def expected_squared_ratio_of_ball_clip(behaviour_std: float, target_std: float, limit: float) -> float:
    """E ρ² under the same projection: finite for all stds, since ρ is bounded on the disc.

    q²/(2σ_μ²) · (exp(eR²) − 1)/e + P ρ_R² with q = (σ_μ/σ_π)², e = 2k − 1/(2σ_μ²).
    """
    exponent = 0.5 * behaviour_std**-2 - target_std**-2
    clipped = math.exp(-0.5 * (limit / behaviour_std) ** 2)
    # (exp(eR²) − 1)/e has the limit R² at e = 0, that is σ_π² = 2σ_μ².
    integral = math.expm1(exponent * limit**2) / exponent if exponent else limit**2
    inside = 0.5 * behaviour_std**2 / target_std**4 * integral
    return inside + clipped * _ratio_at_radius(behaviour_std, target_std, limit) ** 2


def _ratio_at_radius(behaviour_std: float, target_std: float, radius: float) -> float:
    slope = 0.5 * (behaviour_std**-2 - target_std**-2)
    return (behaviour_std / target_std) ** 2 * math.exp(slope * radius**2)


def expected_squared_ratio(behaviour_std: float, target_std: float, dimension: int = 2) -> float:
    """E_μ ρ² of a true density ratio (raw or tanh) with equal means: [σ_μ²/(σ_π √(2σ_μ² − σ_π²))]^A.

    At least 1; infinite where σ_π² ≥ 2σ_μ². A gap d between the means multiplies it by exp(d²/(2σ_μ² − σ_π²)).
    """
    excess = 2.0 * behaviour_std**2 - target_std**2
    if excess <= 0.0:
        return math.inf
    return (behaviour_std**2 / (target_std * math.sqrt(excess))) ** dimension


def ratio_tail_index(behaviour_std: float, target_std: float) -> float:
    """α = σ_π²/(σ_π² − σ_μ²) of the tail P(ρ > x) ~ x^−α under μ; infinite where σ_π ≤ σ_μ (a lighter tail).

    With equal means ρ = q exp(k r²) and in two dimensions P(r² > z) = exp(−z/2σ_μ²), so P(ρ > x) = (x/q)^(−1/(2kσ_μ²))
    and 2kσ_μ² = 1 − σ_μ²/σ_π². Other dimensions and a gap between the means change factors that grow more slowly than
    any power. Moments below α exist: α is above 1, and the variance is infinite exactly where α ≤ 2. For σ_π > σ_μ
    alone: for equal stds the ratio is log-normal, below it is bounded.
    """
    if target_std <= behaviour_std:
        return math.inf
    return target_std**2 / (target_std**2 - behaviour_std**2)
