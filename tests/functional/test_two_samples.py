import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlmods.functional.two_samples import (
    median_bandwidth,
    mmd_permutation_test,
    rbf_mmd2_biased,
    rbf_mmd2_unbiased,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def autocorrelated(chains: int, length: int, seed: int) -> Tensor:
    """AR(1) with coefficient 0.95 and unit variance."""
    noise = normal(chains, length, 2, seed=seed)
    steps = [noise[:, 0]]
    for t in range(1, length):
        steps.append(0.95 * steps[-1] + math.sqrt(1 - 0.95**2) * noise[:, t])
    return torch.stack(steps, 1)


def test_golden_bandwidth() -> None:
    """Points 0, 1, 3: d² are three 0, and twice 1, 4, 9; the fifth of nine is 1. With 0, 2: half 0, half 4: 2."""
    assert float(median_bandwidth(torch.tensor([[0.0], [1.0], [3.0]]))) == pytest.approx(math.sqrt(0.5))
    assert float(median_bandwidth(torch.tensor([[0.0], [2.0]]))) == pytest.approx(1.0)
    assert float(median_bandwidth(torch.tensor([[0.0], [4.0]]))) == pytest.approx(2.0)
    assert float(median_bandwidth(torch.full((5, 3), 0.1))) == 1.0


def test_golden_two_by_two() -> None:
    """x = 0, 1, y = 0, 2, 2·bandwidth² = 1: k = e^−1 within x, e^−4 within y, and 1, e^−4, e^−1, e^−1 between."""
    x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [2.0]])
    between = (1 + math.exp(-4) + 2 * math.exp(-1)) / 4
    unbiased = math.exp(-1) + math.exp(-4) - 2 * between
    biased = (1 + math.exp(-1)) / 2 + (1 + math.exp(-4)) / 2 - 2 * between
    assert float(rbf_mmd2_unbiased(x, y, math.sqrt(0.5))) == pytest.approx(unbiased, abs=1e-6)
    assert float(rbf_mmd2_biased(x, y, math.sqrt(0.5))) == pytest.approx(biased, abs=1e-6)
    chains = mmd_permutation_test(x.unsqueeze(1), y.unsqueeze(1), math.sqrt(0.5), 5, torch.Generator().manual_seed(0))
    assert float(chains.mmd2) == pytest.approx(unbiased, abs=1e-6)


@settings(max_examples=20)
@given(st.integers(2, 150), st.integers(2, 150), st.floats(0.3, 3.0), st.floats(-30, 30))
def test_blocks_and_gram_form_against_all_distances(n: int, m: int, bandwidth: float, shift: float) -> None:
    """More than one block of 64 rows, and far from the origin."""
    x, y = normal(n, 3) + shift, normal(m, 3, seed=1) + shift + 0.2

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b).square() / (2 * bandwidth**2)).exp()

    biased = kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()
    within = [(k.sum() - k.diagonal().sum()) / (len(k) * (len(k) - 1)) for k in (kernel(x, x), kernel(y, y))]
    unbiased = within[0] + within[1] - 2 * kernel(x, y).mean()
    torch.testing.assert_close(rbf_mmd2_biased(x, y, bandwidth), biased, atol=1e-10, rtol=0.0)
    torch.testing.assert_close(rbf_mmd2_unbiased(x, y, bandwidth), unbiased, atol=1e-10, rtol=0.0)


def test_float32_agrees_with_float64_and_the_dtype_is_kept() -> None:
    x, y = normal(200, 18), normal(150, 18, seed=1)
    narrow = rbf_mmd2_biased(x.float(), y.float(), median_bandwidth(x.float()))
    assert narrow.dtype == torch.float32
    assert float(narrow) == pytest.approx(float(rbf_mmd2_biased(x, y, median_bandwidth(x))), abs=1e-6)


def test_equal_samples_have_no_biased_discrepancy_and_the_unbiased_one_is_around_zero() -> None:
    x = normal(100, 3)
    assert float(rbf_mmd2_biased(x, x.flip(0), 1.0)) == pytest.approx(0.0, abs=1e-12)
    estimates = torch.stack(
        [rbf_mmd2_unbiased(normal(20, 2, seed=s), normal(20, 2, seed=-s), 1.0) for s in range(1, 201)]
    )
    assert abs(float(estimates.mean())) < 4 * float(estimates.std()) / math.sqrt(200)


def chain_estimate(x: Tensor, y: Tensor, bandwidth: float) -> float:
    """By definition: pairs of different chains only."""
    pooled = torch.cat((x, y)).flatten(0, 1)
    count, length = len(x) + len(y), x.shape[1]
    kernel = (-torch.cdist(pooled, pooled).square() / (2 * bandwidth**2)).exp()
    means = kernel.view(count, length, count, length).mean((1, 3)).fill_diagonal_(0.0)
    n, m = len(x), len(y)
    within = means[:n, :n].sum() / (n * (n - 1)) + means[n:, n:].sum() / (m * (m - 1))
    return float(within - 2 * means[:n, n:].mean())


def test_the_chain_estimate_against_its_definition() -> None:
    x, y = autocorrelated(3, 70, seed=0), autocorrelated(5, 70, seed=1)
    found = mmd_permutation_test(x, y, 1.5, 10, torch.Generator().manual_seed(0))
    assert float(found.mmd2) == pytest.approx(chain_estimate(x, y, 1.5), abs=1e-12)


def test_under_the_null_p_is_about_uniform_for_autocorrelated_chains() -> None:
    """60 p-values in multiples of 1/100: mean 0.505, standard error 0.037; taken at 3.5 of them."""
    generator = torch.Generator().manual_seed(0)
    p = [
        float(mmd_permutation_test(autocorrelated(6, 8, 2 * i), autocorrelated(6, 8, 2 * i + 1), 1.0, 99, generator)[1])
        for i in range(60)
    ]
    assert sum(p) / 60 == pytest.approx(0.505, abs=0.13)
    assert sum(value <= 0.1 for value in p) <= 14


def test_a_shifted_mean_is_found_with_the_smallest_p() -> None:
    generator = torch.Generator().manual_seed(0)
    found = mmd_permutation_test(normal(12, 4, 2), normal(12, 4, 2, seed=1) + 1.0, 1.0, 99, generator)
    assert float(found.p_value) == pytest.approx(0.01)
    assert found.mmd2 > found.null_quantile_95


def test_with_two_chains_each_a_third_of_the_labellings_ties() -> None:
    """Three partitions of four chains into pairs: however different, p is about 1/3."""
    found = mmd_permutation_test(
        normal(2, 4, 2), normal(2, 4, 2, seed=1) + 9.0, 1.0, 999, torch.Generator().manual_seed(0)
    )
    assert float(found.p_value) == pytest.approx(1 / 3, abs=0.05)


def test_the_generator_alone_decides() -> None:
    x, y = normal(4, 3, 2), normal(4, 3, 2, seed=1)
    first, second = (mmd_permutation_test(x, y, 1.0, 50, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second


def test_bad_shapes_are_refused() -> None:
    generator = torch.Generator()
    with pytest.raises(ValueError, match="at least 2 of each"):
        rbf_mmd2_unbiased(normal(1, 2), normal(5, 2), 1.0)
    for x, y in ((normal(4, 2), normal(4, 2)), (normal(1, 3, 2), normal(4, 3, 2)), (normal(4, 3, 2), normal(4, 2, 2))):
        with pytest.raises(ValueError, match=r"expected \[C, T, d\] with at least 2 chains"):
            mmd_permutation_test(x, y, 1.0, 10, generator)
    with pytest.raises(ValueError, match="got 0 permutations"):
        mmd_permutation_test(normal(4, 3, 2), normal(4, 3, 2), 1.0, 0, generator)
