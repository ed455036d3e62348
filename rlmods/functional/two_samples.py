"""Do two samples come from one distribution? The maximum mean discrepancy with a Gaussian kernel.

MMD² = E k(x, x′) + E k(y, y′) − 2 E k(x, y), k(x, y) = exp(−‖x − y‖²/(2 bandwidth²)) (Gretton et al. 2012). The biased
estimate is positive for equal distributions too, the more so the more the samples of one trajectory resemble each
other: its value alone says nothing. `mmd_permutation_test` says how large it would be for equal distributions.
"""

from typing import NamedTuple

import torch
from torch import Tensor

# Rows of the kernel matrix in memory at once: 64 × 4096 float32 are 1 MiB and stay in a core's cache.
_BLOCK = 64


class PermutationTest(NamedTuple):
    """An estimate and what it is compared with; scalars."""

    mmd2: Tensor  # unbiased: around 0, also below, for equal distributions
    p_value: Tensor  # in [1/(1 + permutations), 1]
    null_quantile_95: Tensor  # of the estimates with permuted labels


def median_bandwidth(sample: Tensor) -> Tensor:
    """√(median(d²)/2) over all ordered pairs, self pairs included; 1 where that median is at most 1e-12.

    Args:
        sample: `[n, d]`, a few hundred points: time and memory n².

    Returns:
        Scalar.
    """
    # Not the Gram form: with its rounding, pairs of equal points would differ.
    distance = torch.cdist(sample, sample, compute_mode="donot_use_mm_for_euclid_dist")
    ordered = distance.square().flatten().sort().values
    # The mean of the two in the middle; torch.median takes the lower one.
    middle = 0.5 * (ordered[(ordered.numel() - 1) // 2] + ordered[ordered.numel() // 2])
    return torch.where(middle > 1e-12, (0.5 * middle).sqrt(), 1.0)


def rbf_mmd2_biased(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> Tensor:
    """The V-statistic: means over all pairs, self pairs included (Gretton et al. 2012, equation 5).

    Args:
        x: `[n, d]`.
        y: `[m, d]`.
        bandwidth: positive.

    Returns:
        Scalar, at least 0 up to rounding. Extra memory 64 · max(n, m) numbers.
    """
    n, m = x.shape[0], y.shape[0]
    within_x, within_y, between = _kernel_sums(x, y, bandwidth)
    return ((within_x + n) / n**2 + (within_y + m) / m**2 - 2.0 * between / (n * m)).to(x.dtype)


def rbf_mmd2_unbiased(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> Tensor:
    """The U-statistic: self pairs left out (Gretton et al. 2012, equation 3).

    Args:
        x: `[n, d]`, n ≥ 2; unbiased for independent samples, which the steps of one trajectory are not.
        y: `[m, d]`, m ≥ 2.
        bandwidth: positive.

    Returns:
        Scalar, around 0 for equal distributions. Extra memory 64 · max(n, m) numbers.

    Raises:
        ValueError: for fewer than two samples.
    """
    n, m = x.shape[0], y.shape[0]
    if min(n, m) < 2:
        raise ValueError(f"got {n} and {m} samples; expected at least 2 of each")
    within_x, within_y, between = _kernel_sums(x, y, bandwidth)
    return (within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2.0 * between / (n * m)).to(x.dtype)


def mmd_permutation_test(
    x: Tensor, y: Tensor, bandwidth: float | Tensor, permutations: int, generator: torch.Generator
) -> PermutationTest:
    """Unbiased MMD² between two sets of independent chains, and how often permuted labels give as much.

    Whole chains change sides, and only pairs of different chains count: the steps within one chain may be correlated
    as they like, the estimate stays unbiased and the test exact. Independent samples are chains of length 1,
    `x.unsqueeze(1)`; for those the estimate is `rbf_mmd2_unbiased`. The kernel is summed once per pair of chains, so
    that a permutation costs a product with a `[C, C]` matrix.

    Args:
        x: `[C_x, T, d]`, C_x ≥ 2 chains.
        y: `[C_y, T, d]`, C_y ≥ 2 chains.
        bandwidth: positive.
        permutations: at least 1. p cannot fall below 1/(1 + permutations), nor, with few chains, below the share of
            the partitions that equal the observed one.
        generator: of the permutations.

    Returns:
        p = (1 + #{null ≥ observed}) / (1 + permutations).

    Raises:
        ValueError: for other shapes, fewer than two chains, or no permutation.
    """
    if x.ndim != 3 or x.shape[1:] != y.shape[1:] or min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(
            f"got x {tuple(x.shape)} and y {tuple(y.shape)}; expected [C, T, d] with at least 2 chains each and the "
            "same T and d (independent samples: unsqueeze(1))"
        )
    if permutations < 1:
        raise ValueError(f"got {permutations} permutations; expected at least 1, usually some hundred")
    count_x, count = x.shape[0], x.shape[0] + y.shape[0]
    kernel = _chain_kernel(torch.cat((x, y)), bandwidth)
    order = torch.rand(permutations, count, generator=generator, device=generator.device).argsort(1).to(x.device)
    observed = torch.arange(count, device=x.device).unsqueeze(0)
    estimates = _partition_mmd2(kernel, torch.cat((observed, order)) < count_x)
    null = estimates[1:]
    # Permutations that restore the observed partition are ties, whatever the order of summation makes of them.
    as_much = (null >= estimates[0] - 1e-12).sum()
    p_value = (1 + as_much).double() / (1 + permutations)
    quantile = torch.quantile(null, 0.95)
    return PermutationTest(estimates[0].to(x.dtype), p_value.to(x.dtype), quantile.to(x.dtype))


def _partition_mmd2(kernel: Tensor, is_x: Tensor) -> Tensor:
    """MMD² over pairs of different items for each labelling: kernel `[C, C]` with diagonal 0, `is_x [P, C]` bool."""
    x, y = is_x.to(kernel.dtype), (~is_x).to(kernel.dtype)
    n, m = x[0].sum(), y[0].sum()
    from_x = x @ kernel
    within_x, between = (from_x * x).sum(1), (from_x * y).sum(1)
    within_y = kernel.sum() - within_x - 2.0 * between
    return within_x / (n * (n - 1)) + within_y / (m * (m - 1)) - 2.0 * between / (n * m)


def _chain_kernel(chains: Tensor, bandwidth: float | Tensor) -> Tensor:
    """Mean kernel between each two of the chains `[C, T, d]`: `[C, C]` float64, diagonal 0."""
    count, length, _ = chains.shape
    pooled = chains.flatten(0, 1)
    left, right = _factors(pooled, pooled.mean(0), bandwidth)
    sums = torch.zeros(count, count, dtype=torch.float64, device=chains.device)
    for chain in range(count - 1):
        later = right[:, (chain + 1) * length :]
        for rows in _blocks(left[chain * length : (chain + 1) * length]):
            sums[chain, chain + 1 :] += (rows @ later).exp_().sum(0).view(-1, length).sum(1)
    return (sums + sums.T) / length**2


def _kernel_sums(x: Tensor, y: Tensor, bandwidth: float | Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ k over the ordered pairs within x, within y (self pairs left out) and from x to y; float64."""
    centre = 0.5 * (x.mean(0) + y.mean(0))
    left_x, right_x = _factors(x, centre, bandwidth)
    left_y, right_y = _factors(y, centre, bandwidth)
    between = x.new_zeros((), dtype=torch.float64)
    for rows in _blocks(left_x):
        between += (rows @ right_y).exp_().sum()
    return _sum_within(left_x, right_x), _sum_within(left_y, right_y), between


def _sum_within(left: Tensor, right: Tensor) -> Tensor:
    total = left.new_zeros((), dtype=torch.float64)
    for start in range(0, left.shape[0], _BLOCK):
        # The block on the diagonal holds both orders of a pair, the rest of the row one.
        kernel = (left[start : start + _BLOCK] @ right[:, start:]).exp_()
        size = kernel.shape[0]
        total += 2.0 * kernel.sum() - kernel[:, :size].sum() - kernel.diagonal().sum()
    return total


def _blocks(rows: Tensor) -> list[Tensor]:
    return [rows[start : start + _BLOCK] for start in range(0, rows.shape[0], _BLOCK)]


def _factors(sample: Tensor, centre: Tensor, bandwidth: float | Tensor) -> tuple[Tensor, Tensor]:
    """`[n, d + 2]` and `[d + 2, n]` whose product is −‖x − y‖²/(2 bandwidth²), ready for exp in place."""
    # Centred, because the Gram form loses what the squared norms have in common.
    scaled = (sample - centre) / bandwidth
    half_square = 0.5 * scaled.square().sum(1, keepdim=True)
    one = torch.ones_like(half_square)
    left = torch.cat((scaled, -half_square, one), 1)
    right = torch.cat((scaled, one, -half_square), 1)
    return left, right.T.contiguous()
