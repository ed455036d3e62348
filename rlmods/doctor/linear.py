"""Step and importance ratios of linear off-policy TD."""

import math

from rlmods.doctor.line import Line, fail, line_of, of_model, warn
from rlmods.functional.gaussian_policy import expected_ratio_of_ball_clip, expected_squared_ratio

_FEW_EFFECTIVE = 0.1


def critical_step(dimensionless_step: float | None, learning_rate: float, feature_dim: int) -> Line:
    """The step of the mean update in units of 1/|λ|, where it is known before there are data.

    An error along an eigenvector is multiplied by 1 + s λ: with λ < 0 it falls in size for s |λ| < 2.
    """
    if dimensionless_step is None:
        return Line(
            "PASS",
            "critical_step",
            f"learning_rate {learning_rate:g}: the step is {learning_rate:g} |lambda|/sqrt({feature_dim}) of data that "
            "are not there yet",
            "StabilityProbe measures it; with dimensionless_step it is set, stable below 2 where eigenvalues are real",
        )
    return line_of(
        "critical_step",
        f"dimensionless_step {dimensionless_step:g}: each update multiplies the fastest error by "
        f"1 - {dimensionless_step:g} = {1.0 - dimensionless_step:.3g}",
        warn(
            dimensionless_step >= 2.0,
            "Beyond the critical step 2: the critic's error grows with every update",
            of_model("dimensionless_step", 0.1),
        ),
        note="learning_rate is measured from the first ten rollouts; the configured one is not in effect",
    )


def importance_ratio(
    behaviour_std: float, target_std: float, num_actions: int, ball_radius: float | None, clip: float | None
) -> Line:
    """Mean and variance of ρ before there are data, for policies with equal means.

    Args:
        behaviour_std: σ_μ.
        target_std: σ_π.
        num_actions: A.
        ball_radius: where ρ is taken at the draw after its projection on this ball, two actions; else None.
        clip: upper bound of ρ; None has none.
    """
    squared = expected_squared_ratio(behaviour_std, target_std, num_actions)
    mean = 1.0 if ball_radius is None else expected_ratio_of_ball_clip(behaviour_std, target_std, ball_radius)
    share = 0.0 if math.isinf(squared) else 1.0 / squared
    narrower = of_model("target_std", f"{behaviour_std:g}, or a smaller one")
    return line_of(
        "importance_ratio",
        f"sigma_pi {target_std:g}, sigma_mu {behaviour_std:g}: E rho = {mean:.3g}, E rho^2 = {squared:.4g} of a "
        f"density ratio, {share:.1%} of the samples are effective",
        fail(
            abs(mean - 1.0) > 1e-6,
            "E rho is not 1: taken at the clipped action it is no density ratio, and what is averaged with it is wrong",
            "type --data.init_args.env_kwargs.action_mode raw or tanh, or equal standard deviations",
        ),
        fail(
            math.isinf(squared) and clip is None,
            f"sigma_pi^2 = {target_std**2:.4g} >= 2 sigma_mu^2 = {2 * behaviour_std**2:.4g}: the variance is infinite",
            narrower,
        ),
        warn(share < _FEW_EFFECTIVE, "Hardly any sample counts", narrower),
        note=f"clipped at {clip:g}" if clip is not None else "",
    )


def following(beta: float, actor_learning_rate: float, num_iterations: int) -> Line:
    """How fast the behaviour policy follows the target policy."""
    if beta >= 1.0:
        arithmetic = "beta 1: the behaviour policy is the target policy after each iteration"
    elif beta == 0.0:
        arithmetic = "beta 0: the behaviour policy never moves"
    else:
        lag = math.log(2.0) / -math.log1p(-beta)
        arithmetic = f"beta {beta:g}: half of a gap between the policies is gone after {lag:,.4g} iterations"
    return line_of(
        "following",
        f"{arithmetic}, the run has {num_iterations:,}",
        warn(
            0.0 < beta < 1.0 and actor_learning_rate > 0.0 and math.log(2.0) / beta > num_iterations,
            "The behaviour policy hardly moves in the run while the target policy leaves it",
            of_model("beta", 0.2),
        ),
    )
