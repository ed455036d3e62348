"""The frozen-policy dynamics of a linear TD critic: mean update, fixed point, spectrum.

With Q_w = w·φ/√N and φ̄ = E_π φ(s′, ·) the mean TD(0) update of n transitions is u(w) = b + A w/√N with
A = mean ρ φ (γφ̄ − φ)ᵀ and b = mean ρ r φ. A step of size s maps w to w + s u(w): an error is multiplied by
I + s A/√N, so that everything hangs on the eigenvalues λ of A/√N. `feature` and `bootstrap_feature` are φ and φ̄
`[n, N]`, `ratio` and `reward` `[n]`. The features give the dtype of the products with them; vectors are kept and summed
in float64.
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

# Of a Krylov basis; beyond it the fixed-point iteration starts a new one.
_MAX_BASIS = 48
# Of the steps taken within one basis: bounds the `[basis, steps]` matrix of coefficients.
_MAX_STEPS = 2048
_MAX_RITZ = 192
_DENSE = 1024


class FixedPointIteration(NamedTuple):
    """Where the iteration stood when it ended."""

    weight: Tensor  # [N]
    num_iterations: int
    converged: bool  # the last step was not longer than the tolerance


class FixedPoint(NamedTuple):
    """A solution and what is left of the update there."""

    weight: Tensor  # [N]
    relative_residual: float  # ‖u(w♯)‖ / ‖u(w)‖, in [0, 1] up to rounding; 0 where w was one already


def mean_td_update(
    feature: Tensor, bootstrap_feature: Tensor, ratio: Tensor, reward: Tensor, discount: float, weight: Tensor
) -> Tensor:
    """u(w) = mean ρ (r + (γφ̄ − φ)·w/√N) φ.

    Args:
        feature: φ, `[n, N]`.
        bootstrap_feature: φ̄, `[n, N]`.
        ratio: ρ, `[n]`.
        reward: r, `[n]`.
        discount: γ.
        weight: w, `[N]`.

    Returns:
        `[N]`, in the dtype of the weight, which may be float64 over float32 features.
    """
    narrow = weight.to(feature.dtype)
    bootstrap = discount * (bootstrap_feature @ narrow) - feature @ narrow
    td_error = reward + bootstrap / math.sqrt(feature.shape[1])
    return (feature.T @ (ratio * td_error)).to(weight.dtype) / feature.shape[0]


def td_matrix(feature: Tensor, bootstrap_feature: Tensor, ratio: Tensor, discount: float) -> Tensor:
    """A = mean ρ φ (γφ̄ − φ)ᵀ, `[N, N]`, without the 1/√N (Sutton & Barto 2018, equation 9.11, with the other sign).

    Costs 2nN² operations; the functions below that only need products with it never form it.
    """
    weighted = feature * (ratio / feature.shape[0]).unsqueeze(1)
    return weighted.T @ (bootstrap_feature * discount).sub_(feature)


def td_vector(feature: Tensor, ratio: Tensor, reward: Tensor) -> Tensor:
    """The vector b = mean ρ r φ, `[N]`."""
    return feature.T @ (ratio * reward) / feature.shape[0]


def iterate_fixed_point(
    feature: Tensor,
    bootstrap_feature: Tensor,
    ratio: Tensor,
    reward: Tensor,
    discount: float,
    weight: Tensor,
    step_size: float,
    tolerance: float,
    max_iterations: int,
) -> FixedPointIteration:
    """Repeat w ← w + step_size · u(w) until a step is not longer than the tolerance: the result, not the cost.

    The steps of that loop are d_k = (I + s A/√N)ᵏ d_0, so the first m lie in the Krylov space of m products with A
    (Arnoldi), and there the loop runs on an m × m matrix. Beyond m steps this is an approximation with a known
    defect: as many steps are taken as keep it below 1e-12 of the distance walked (1e-8 with float32 features, whose
    products are no better), m at the least, and a new basis starts where they end. Thousands of steps along slow
    modes need about ten products.

    A loop that ends at `max_iterations` says how far it walked, not where the fixed point is: see `solve_fixed_point`.

    Args:
        feature: φ, `[n, N]`.
        bootstrap_feature: φ̄, `[n, N]`.
        ratio: ρ, `[n]`.
        reward: r, `[n]`.
        discount: γ.
        weight: where to start, `[N]`; float64 over float32 features gives differences more digits.
        step_size: s, positive.
        tolerance: on the L2 norm of a step.
        max_iterations: at least 1. A loop that overflows ends there, earlier, and has not converged.
    """
    product = _update_product(feature, bootstrap_feature, ratio, discount)
    accuracy = 1e-12 if feature.dtype == torch.float64 else 1e-8
    reached, taken, converged = weight.double(), 0, False
    while taken < max_iterations and not converged:
        first = step_size * mean_td_update(feature, bootstrap_feature, ratio, reward, discount, reached)
        if not first.any() or not first.isfinite().all():
            return FixedPointIteration((reached + first).to(weight.dtype), taken + 1, not first.any())
        limit = min(max_iterations - taken, _MAX_STEPS)
        for basis, hessenberg in _arnoldi(product, first, min(limit, _MAX_BASIS)):
            size = hessenberg.shape[1]
            if size % 4 == 0 or size == min(limit, _MAX_BASIS) or not hessenberg[-1, -1]:
                steps, converged = _small_steps(hessenberg, float(first.norm()), step_size, limit, accuracy, tolerance)
                walked = basis[:, :size] @ steps.sum(1)
                if converged or steps.shape[1] == limit:
                    break
        reached = reached + walked
        taken += steps.shape[1]
    return FixedPointIteration(reached.to(weight.dtype), taken, converged)


def _small_steps(
    hessenberg: Tensor, length: float, step_size: float, limit: int, accuracy: float, tolerance: float
) -> tuple[Tensor, bool]:
    """Coordinates `[m, steps]` in the basis of the steps that are accurate together, cut after one ≤ tolerance."""
    size = hessenberg.shape[1]
    power = torch.eye(size, dtype=torch.float64, device=hessenberg.device) + step_size * hessenberg[:size]
    growth = max(1.0, float(torch.linalg.matrix_norm(power, 2)))
    steps = power.new_zeros(size, 1)
    steps[0] = length
    while steps.shape[1] < limit:
        steps = torch.cat((steps, power @ steps), 1)
        power = power @ power
    steps = steps[:, :limit]
    # Step k loses h·|last coordinate| out of the space; the steps after it carry that on, growing at most so fast.
    lost = (step_size * float(hessenberg[-1, -1]) * steps[-1].abs()).cumsum(0).roll(1)
    lost[0] = 0.0
    error = (lost * growth ** torch.arange(limit, dtype=torch.float64, device=lost.device)).cumsum(0)
    inaccurate = (~(error <= accuracy * steps.cumsum(1).norm(dim=0))).nonzero()
    count = max(int(inaccurate[0]), min(size, limit)) if inaccurate.numel() else limit
    short = (steps[:, :count].norm(dim=0) <= tolerance).nonzero()
    if short.numel():
        return steps[:, : int(short[0]) + 1], True
    return steps[:, :count], False


def solve_fixed_point(
    feature: Tensor,
    bootstrap_feature: Tensor,
    ratio: Tensor,
    reward: Tensor,
    discount: float,
    weight: Tensor,
    ridge: float,
) -> FixedPoint:
    """Regularised LSTD: the w♯ nearest to w among those that leave as small an update.

    Minimises ‖u(w♯)‖² + ridge ‖A/√N‖_F² ‖w♯ − w‖²: modes whose singular value is below √ridge of the whole stay where
    they are, since the sample does not determine them (LSTD: Bradtke & Barto 1996; here with the ridge around w).
    Costs 3nN² + N³ operations, in float64 from the N × N matrices on.

    Args:
        feature: φ, `[n, N]`.
        bootstrap_feature: φ̄, `[n, N]`.
        ratio: ρ, `[n]`.
        reward: r, `[n]`.
        discount: γ.
        weight: w, `[N]`.
        ridge: relative, at least 1e-12.

    Raises:
        ValueError: for a smaller ridge, with which the equations are singular in float64.
    """
    if not ridge >= 1e-12:
        raise ValueError(f"got ridge {ridge}; expected at least 1e-12, for example 1e-6")
    size = feature.shape[1]
    matrix = td_matrix(feature, bootstrap_feature, ratio, discount).double() / math.sqrt(size)
    update = mean_td_update(feature, bootstrap_feature, ratio, reward, discount, weight.double())
    before = float(update.norm())
    if before == 0.0:
        return FixedPoint(weight, 0.0)
    normal = matrix @ matrix.T
    diagonal = normal.diagonal()
    # A may vanish altogether (all ratios 0), and then so does the change.
    diagonal += ridge * diagonal.sum() + torch.finfo(torch.float64).tiny
    multiplier = torch.cholesky_solve(update.unsqueeze(1), torch.linalg.cholesky(normal)).squeeze(1)
    solution = weight.double() - matrix.T @ multiplier
    after = mean_td_update(feature, bootstrap_feature, ratio, reward, discount, solution)
    return FixedPoint(solution.to(weight.dtype), float(after.norm()) / before)


def power_iteration_proxy(
    feature: Tensor,
    bootstrap_feature: Tensor,
    ratio: Tensor,
    discount: float,
    initial_vector: Tensor,
    iterations: int,
    step_scale: float,
    reduction: Literal["sum", "mean"],
) -> float:
    """‖v′‖ after some power steps from a unit vector: a growth factor per update, if there were enough of them.

    "mean" takes v′ = v + step_scale · A v/√N, the linearised update. "sum" takes v′ = v + step_scale · n A v, which
    lacks the 1/√N and grows with the size of the batch. Twenty steps from a random vector do not find the spectrum of
    a small step: the proxy is here to compare with, `leading_eigenvalues` to know.

    Args:
        feature: φ, `[n, N]`.
        bootstrap_feature: φ̄, `[n, N]`.
        ratio: ρ, `[n]`.
        discount: γ.
        initial_vector: `[N]`, not 0; normalised here.
        iterations: at least 1.
        step_scale: what multiplies the sum or the mean.
        reduction: "sum" or "mean".

    Returns:
        The last ‖v′‖; 0 where it is not above 1e-12.

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f'got the reduction {reduction!r}; expected "sum" or "mean"')
    product = _update_product(feature, bootstrap_feature, ratio, discount)
    scale = step_scale if reduction == "mean" else step_scale * feature.shape[0] * math.sqrt(feature.shape[1])
    accuracy = 1e-12 if feature.dtype == torch.float64 else 1e-8
    # The normalisations cancel, and the vectors (I + s A/√N)ᵏ v lie in a Krylov space of few dimensions.
    for _, hessenberg in _arnoldi(product, initial_vector.double(), iterations + 1):
        size = hessenberg.shape[1]
        if size % 4 == 0 or size == iterations + 1 or not hessenberg[-1, -1]:
            vectors, _ = _small_steps(hessenberg, 1.0, scale, iterations + 1, accuracy, tolerance=0.0)
            if vectors.shape[1] == iterations + 1 or not vectors[:, -1].any():
                break
    norms = vectors.norm(dim=0)
    growth = norms[1:] / norms[:-1].clamp(min=1e-300)
    return 0.0 if bool((growth <= 1e-12).any()) else float(growth[-1])


def leading_eigenvalues(
    feature: Tensor, bootstrap_feature: Tensor, ratio: Tensor, discount: float, count: int
) -> Tensor:
    """The eigenvalues of A/√N that decide about the step size, largest magnitude first.

    The `count` largest, and, where they are not among them, the one with the largest real part and the one that limits
    the step (`critical_step`). For n or N up to 1024 from the dense matrix of the smaller side (the nonzero spectra
    are equal), else from an Arnoldi basis of at most 192 products: then only eigenvalues whose residual is below 1e-8
    of the largest magnitude are returned, fewer than `count` if need be, since the others are not of A.

    Args:
        feature: φ, `[n, N]`.
        bootstrap_feature: φ̄, `[n, N]`.
        ratio: ρ, `[n]`.
        discount: γ.
        count: at least 1.

    Returns:
        `[at most count + 2]` complex128.
    """
    if min(feature.shape) > _DENSE:
        return _decisive(
            _ritz_values(_update_product(feature, bootstrap_feature, ratio, discount), feature, count), count
        )
    # Before any product: the small eigenvalues are differences of large numbers.
    phi = feature.double()
    difference = (bootstrap_feature.double() * discount).sub_(phi)
    weighted = phi * (ratio.double() / (phi.shape[0] * math.sqrt(phi.shape[1]))).unsqueeze(1)
    tall = phi.shape[0] >= phi.shape[1]
    return _decisive(torch.linalg.eigvals(weighted.T @ difference if tall else difference @ weighted.T), count)


def _ritz_values(product: Callable[[Tensor], Tensor], feature: Tensor, count: int) -> Tensor:
    """Converged Ritz values, as soon as the `count` largest are."""
    # Its own fixed stream: the answer does not depend on the global generator, and does not move it.
    start = torch.randn(feature.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good = torch.zeros(0, dtype=torch.complex128)
    for _, hessenberg in _arnoldi(product, start.to(feature.device), _MAX_RITZ):
        size = hessenberg.shape[1]
        if size % 16 and size < _MAX_RITZ and hessenberg[-1, -1]:
            continue
        values, vectors = torch.linalg.eig(hessenberg[:size])
        order = values.abs().argsort(descending=True)
        residual = hessenberg[-1, -1].abs() * vectors[-1, order].abs()
        accurate = residual <= 1e-8 * values.abs().max()
        good = values[order][accurate]
        if bool(accurate[:count].all()) and size >= count:
            break
    return good


def _decisive(eigenvalues: Tensor, count: int) -> Tensor:
    ordered = eigenvalues[eigenvalues.abs().argsort(descending=True)]
    if ordered.numel() <= count:
        return ordered
    limit = torch.where(ordered.real < 0.0, _largest_steps(ordered), torch.inf)
    others = sorted({int(ordered.real.argmax()), int(limit.argmin())} - set(range(count)))
    return torch.cat((ordered[:count], ordered[others]))


def _largest_steps(eigenvalues: Tensor) -> Tensor:
    """|1 + s λ| = 1 at s = −2 Re λ / |λ|²."""
    return -2.0 * eigenvalues.real / eigenvalues.abs().square().clamp(min=1e-300)


def spectral_radius_of_update(eigenvalues: Tensor, step: float) -> float:
    """The largest |1 + step · λ| over eigenvalues of A/√N, `[m]`: above 1 some error of the critic grows."""
    return float((1.0 + step * eigenvalues).abs().max())


def critical_step(eigenvalues: Tensor, tolerance: float = 1e-6) -> float:
    """The smallest step with which some |1 + step · λ| reaches 1: min over λ of −2 Re λ/|λ|².

    Args:
        eigenvalues: of A/√N, `[m]` complex (`leading_eigenvalues`).
        tolerance: a real part above this share of the largest magnitude counts as positive. What lies between 0 and
            it, and magnitudes below 1e-10 of the largest, are rounding and are ignored.

    Returns:
        0 where an eigenvalue has a positive real part: no step is stable. Infinite where none limits the step.
    """
    magnitude = eigenvalues.abs()
    largest = magnitude.max() if eigenvalues.numel() else torch.zeros(())
    if bool((eigenvalues.real > tolerance * largest).any()):
        return 0.0
    limits = _largest_steps(eigenvalues)[(magnitude > 1e-10 * largest) & (eigenvalues.real < 0.0)]
    return float(limits.min()) if limits.numel() else math.inf


def _update_product(
    feature: Tensor, bootstrap_feature: Tensor, ratio: Tensor, discount: float
) -> Callable[[Tensor], Tensor]:
    """The map v → A v/√N for `[N]` float64: two passes over `[n, N]` in the dtype of the features."""
    difference = (bootstrap_feature * discount).sub_(feature)
    scaled = ratio / (feature.shape[0] * math.sqrt(feature.shape[1]))

    def product(vector: Tensor) -> Tensor:
        return (feature.T @ (scaled * (difference @ vector.to(feature.dtype)))).double()

    return product


def _arnoldi(product: Callable[[Tensor], Tensor], start: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Basis `[N, m + 1]` and Hessenberg matrix `[m + 1, m]` with A V_m = V_{m+1} H, for m = 1, 2, … up to `size`.

    Ends early, with a last entry that is exactly 0, where the space is invariant (Saad 2011, algorithm 6.2, with a
    second orthogonalisation).
    """
    size = min(size, start.numel())
    basis = start.new_zeros(size + 1, start.numel())
    hessenberg = start.new_zeros(size + 1, size)
    basis[0] = start / start.norm()
    for m in range(1, size + 1):
        vector = product(basis[m - 1])
        length = float(vector.norm())
        for _ in range(2):
            overlap = basis[:m] @ vector
            vector = vector - overlap @ basis[:m]
            hessenberg[:m, m - 1] += overlap
        rest = float(vector.norm())
        invariant = m == start.numel() or rest <= 1e-13 * length
        hessenberg[m, m - 1] = 0.0 if invariant else rest
        yield basis[: m + 1].T, hessenberg[: m + 1, :m]
        if invariant:
            return
        basis[m] = vector / rest
