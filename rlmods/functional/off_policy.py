"""Off-policy corrections for a linear critic Q_w(s, a) = w·φ(s, a)/√N: what multiplies the features in the sums.

An update of the critic is G_w = Σ c_φ φ + c_φ̄ φ̄ and, for the gradient-TD methods, G_h = Σ c_h φ, with φ̄ = E_π φ(s′, ·).
Nothing here sees a feature, so one pass over them serves every method. The 1/√N of the value is not repeated in the
updates; sums become means in the caller. Time first: `[T, B]` are T steps of B trajectories.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Coefficients(NamedTuple):
    """Per sample: G_w = Σ feature · φ + bootstrap_feature · φ̄, G_h = Σ auxiliary · φ."""

    feature: Tensor  # [...]
    bootstrap_feature: Tensor  # [...], 0 for the semi-gradient methods
    auxiliary: Tensor  # [...], 0 for methods without auxiliary weights


def clipped_ratio(ratio: Tensor, bound: float | None) -> Tensor:
    """min(ρ, bound), or ρ itself for None. Biased: E of it is below 1 wherever it clips.

    Args:
        ratio: `[...]`.
        bound: positive, or None.

    Raises:
        ValueError: for a bound that is not positive.
    """
    if bound is None:
        return ratio
    if bound <= 0.0:
        raise ValueError(f"got the bound {bound}; expected a positive one, or None to switch it off")
    return ratio.clamp(max=bound)


def td_coefficients(ratio: Tensor, td_error: Tensor) -> Coefficients:
    """TD(0) with an importance ratio: ρ δ φ (Precup, Sutton, Singh 2000). May diverge off-policy.

    Args:
        ratio: ρ, `[...]`.
        td_error: δ = r + γ w·φ̄/√N − w·φ/√N, `[...]`.
    """
    feature = ratio * td_error
    zero = torch.zeros_like(feature)
    return Coefficients(feature, zero, zero)


def emphatic_td_coefficients(ratio: Tensor, td_error: Tensor, emphasis: Tensor) -> Coefficients:
    """ETD(0): F ρ δ φ (Sutton, Mahmood, White 2016, equations 15 to 17 at λ = 0); stable off-policy in expectation.

    Args:
        ratio: ρ, `[T, B]`.
        td_error: δ, `[T, B]`.
        emphasis: F, `[T, B]` (`emphasis`).
    """
    return td_coefficients(emphasis * ratio, td_error)


def gtd2_coefficients(ratio: Tensor, td_error: Tensor, auxiliary_value: Tensor, discount: float) -> Coefficients:
    """GTD2: G_w = ρ(φ − γφ̄) h_value, G_h = (ρδ − h_value) φ (Sutton et al. 2009, equations 8 and 9).

    A stochastic gradient of the projected Bellman error: converges off-policy where the features are independent.

    Args:
        ratio: ρ, `[...]`.
        td_error: δ, `[...]`.
        auxiliary_value: h·φ/√N, `[...]`, an estimate of E[ρδ | s, a] by the auxiliary weights h.
        discount: γ.
    """
    feature = ratio * auxiliary_value
    return Coefficients(feature, -discount * feature, ratio * td_error - auxiliary_value)


def tdc_coefficients(ratio: Tensor, td_error: Tensor, auxiliary_value: Tensor, discount: float) -> Coefficients:
    """TDC: G_w = ρ(δφ − γφ̄ h_value), G_h = (ρδ − h_value) φ (Sutton et al. 2009, equation 10).

    The same objective as GTD2; faster, but h has to learn faster than w.

    Args:
        ratio: ρ, `[...]`.
        td_error: δ, `[...]`.
        auxiliary_value: h·φ/√N, `[...]`.
        discount: γ.
    """
    corrected = ratio * td_error
    return Coefficients(corrected, -discount * ratio * auxiliary_value, corrected - auxiliary_value)


def emphasis(ratio: Tensor, discount: float, restart: Tensor | None = None) -> Tensor:
    """The follow-on trace F_t = γ ρ_{t−1} F_{t−1} + 1 (Sutton, Mahmood, White 2016, equation 14; λ = 0, interest 1).

    The window begins with F = 1, whatever came before it: shorter windows are closer to plain TD. At least 1; its
    variance may be infinite although its expectation, at most 1/(1 − γ) over all states together, is not.

    Args:
        ratio: ρ, `[T, B]`.
        discount: γ.
        restart: `[T, B]` bool, True where step t begins a new trajectory; None where only the window's first step does.

    Returns:
        `[T, B]`.

    Raises:
        ValueError: where the shapes differ.
    """
    if restart is not None and restart.shape != ratio.shape:
        raise ValueError(f"got ratio {tuple(ratio.shape)} and restart {tuple(restart.shape)}; expected the same [T, B]")
    followed = discount * ratio
    if restart is not None:
        # What step t hands on to t + 1 is cut where t + 1 starts afresh.
        followed[:-1] *= ~restart[1:]
    trace = torch.ones_like(ratio)
    for t in range(1, ratio.shape[0]):
        trace[t].addcmul_(followed[t - 1], trace[t - 1])
    return trace


def vtrace_advantage(
    td_error: Tensor,
    ratio: Tensor,
    discount: float | Tensor,
    rho_bar: float,
    c_bar: float,
    trace_lambda: float,
    ended: Tensor | None = None,
) -> Tensor:
    """A_t = min(ρ̄, ρ_t) δ_t + γ λ min(c̄, ρ_t) A_{t+1}, 0 after the window (Espeholt et al. 2018, equation 1, remark 2).

    That is v_t − V(s_t). Written for V, used here with the δ of Q(s, a) = w·φ/√N, as TD(0) above is: each δ_t carries
    its own ratio. (Retrace, Munos et al. 2016, made for Q, gives δ_t none and traces with ρ_{t+1}.) λ = 0 is TD(0) with
    a clipped ratio; ρ = λ = 1 is the Monte Carlo error with the bootstrap at the window's end.

    Args:
        td_error: δ, `[T, B]`.
        ratio: ρ, `[T, B]`.
        discount: γ, or of each step γ (1 − terminated), `[T, B]`.
        rho_bar: ρ̄, sets the fixed point: that of π where it is infinite, nearer to μ where it clips.
        c_bar: c̄ ≤ ρ̄, sets the speed only.
        trace_lambda: λ in [0, 1].
        ended: `[T, B]` bool, True where step t is the last of its trajectory; None where only the window's last one is.

    Returns:
        `[T, B]`.

    Raises:
        ValueError: where the shapes differ.
    """
    if td_error.shape != ratio.shape:
        raise ValueError(f"got td_error {tuple(td_error.shape)}, ratio {tuple(ratio.shape)}; expected the same [T, B]")
    advantage = ratio.clamp(max=rho_bar) * td_error
    trace = discount * trace_lambda * ratio.clamp(max=c_bar)
    if ended is not None:
        trace = trace * ~ended
    for t in range(advantage.shape[0] - 2, -1, -1):
        advantage[t].addcmul_(trace[t], advantage[t + 1])
    return advantage


def effective_sample_size(ratio: Tensor) -> Tensor:
    """(Σρ)²/Σρ² (Kish 1965): how many on-policy samples M weighted ones are worth.

    Args:
        ratio: ρ ≥ 0, `[M]`.

    Returns:
        Scalar in [1, M]; M for equal ratios, NaN where all are 0.
    """
    # A single ratio of 1e20 has no square in float32; the size does not change with the scale.
    relative = ratio / ratio.max()
    return relative.sum().square() / relative.square().sum()


def project_to_ball(matrix: Tensor, radius: float) -> Tensor:
    """The nearest matrix with Frobenius norm ≤ radius: a factor radius/(norm + 1e-12) where the norm is larger.

    Args:
        matrix: `[..., N, A]`; each `[N, A]` by itself.
        radius: ≤ 0 switches it off.
    """
    if radius <= 0.0:
        return matrix
    norm = torch.linalg.matrix_norm(matrix, keepdim=True)
    return torch.where(norm > radius, matrix * (radius / (norm + 1e-12)), matrix)
