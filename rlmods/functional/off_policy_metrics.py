"""Importance ratios and TD errors of an iteration in single numbers, `[]` float64, by the names of their columns."""

import torch
from torch import Tensor

_QUANTILES = {"p95": 0.95, "p99": 0.99}


def ratio_metrics(ratio: Tensor) -> dict[str, Tensor]:
    """Moments, quantiles and extremes of ratios `[M]` and of their squares; quantiles interpolate linearly."""
    ratio = ratio.double()
    squared = ratio.square()
    return {
        "mean_rho": ratio.mean(),
        "mean_rho2": squared.mean(),
        **{f"{name}_rho2": torch.quantile(squared, level) for name, level in _QUANTILES.items()},
        "max_rho2": squared.amax(),
        "min_rho": ratio.amin(),
        "max_rho": ratio.amax(),
        **{f"{name}_rho": torch.quantile(ratio, level) for name, level in _QUANTILES.items()},
    }


def td_error_metrics(td_error: Tensor) -> dict[str, Tensor]:
    """Mean, population spread, quantiles and maximum of TD errors `[M]`, with their signs."""
    td_error = td_error.double()
    return {
        "delta_mean": td_error.mean(),
        "delta_std": td_error.std(correction=0),
        **{f"delta_{name}": torch.quantile(td_error, level) for name, level in _QUANTILES.items()},
        "delta_max": td_error.amax(),
    }
