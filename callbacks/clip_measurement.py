"""One update as the clip's verifier saw it: norms by tensor, and what can be said of them without a past."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple


class ClipMeasurement(NamedTuple):
    """One update of the parameters that are clipped together, n tensors: a norm of −1 stands for no gradient."""

    group: str
    update: int  # of its optimiser, from 0
    tensors: tuple[str, ...]  # names of the parameters
    before: tuple[float, ...] | None  # [n] L2 norms after the last backward pass; None where nobody saw it
    before_max: tuple[float, ...] | None  # [n] largest magnitudes
    after: tuple[float, ...]  # [n] L2 norms of what the step used
    after_max: tuple[float, ...]  # [n]
    limit: float | None  # as declared
    is_by_value: bool  # the limit is one of single values
    is_certain: bool  # that the limit is meant for this group
    tolerance: float  # relative, of the precision
    at_end: float = -1.0  # L2 norm of the same gradients when another optimiser's turn or the iteration's end has come
    at_next: float = -1.0  # the same when the next backward pass of its own began; both −1 where it was not seen
    leftover: float = -1.0  # L2 norm that the backward passes found and added to; −1 where none was seen
    dangling: float = -1.0  # of it, what another optimiser's loss had left; −1 where it had left nothing

    @property
    def norm_before(self) -> float | None:
        """L2 norm of all gradients together."""
        return None if self.before is None else l2(self.before)

    @property
    def norm_after(self) -> float:
        """L2 norm of all gradients together."""
        return l2(self.after)

    @property
    def limited(self) -> float:
        """What the limit is a limit of."""
        return max(self.after_max) if self.is_by_value else self.norm_after

    @property
    def is_exceeded(self) -> bool:
        """Whether the step used more than the declared limit."""
        return self.limit is not None and self.limited > self.limit * (1.0 + self.tolerance)

    @property
    def is_clipped(self) -> bool | None:
        """Whether the gradients were made smaller; None where that is not known."""
        norm = self.norm_before
        return None if norm is None else self.norm_after < norm * (1.0 - self.tolerance)

    def modules(self, depth: int) -> dict[str, float]:
        """L2 norm by module, before the clip where that was seen."""
        norms: dict[str, list[float]] = {}
        for tensor, norm in zip(self.tensors, self.before or self.after, strict=True):
            norms.setdefault(module_name(tensor, depth), []).append(norm)
        return {module: l2(of_module) for module, of_module in norms.items()}


def how_changed(measurement: ClipMeasurement) -> tuple[str, list[str]]:
    """What happened to the gradients between the backward pass and the step.

    Returns:
        `unknown`, `unchanged`, `scaled` (all by one factor), `partly` (some by one factor), `apart` (by several
        factors) or `reshaped` (not by factors), and the names of the tensors that were left as they were.
    """
    if measurement.before is None or measurement.before_max is None:
        return "unknown", []
    tolerance, norm = measurement.tolerance, measurement.norm_before or 0.0
    rows = zip(
        measurement.tensors,
        measurement.before,
        measurement.before_max,
        measurement.after,
        measurement.after_max,
        strict=True,
    )
    unchanged, factors = [], []
    for tensor, before, before_max, after, after_max in rows:
        if before <= 1e-12 * norm or after < 0.0:
            continue
        factor, factor_of_max = after / before, after_max / before_max
        if abs(factor - factor_of_max) > tolerance * max(factor, factor_of_max):
            return "reshaped", []
        if abs(factor - 1.0) <= tolerance:
            unchanged.append(tensor)
        else:
            factors.append(factor)
    if not factors:
        return "unchanged", unchanged
    factors.sort()
    if any(b > a * (1.0 + 2.0 * tolerance) for a, b in itertools.pairwise(factors)):
        return "apart", unchanged
    return ("partly" if unchanged else "scaled"), unchanged


def as_sum_of_norms(
    value: float, measurement: ClipMeasurement, depth: int
) -> tuple[str, int, float, ClipMeasurement] | None:
    """Whether a value is the sum of the norms of all tensors, or of those of a module: of what, n, their L2 norm."""
    for norms in (measurement.after, measurement.before):
        if norms is None or math.isclose(value, l2(norms), rel_tol=measurement.tolerance):
            continue
        parts: dict[str, list[float]] = {measurement.group: [norm for norm in norms if norm > 0.0]}
        for length in range(1, depth + 1):
            by_module: dict[str, list[float]] = {}
            for tensor, norm in zip(measurement.tensors, norms, strict=True):
                if norm > 0.0:
                    by_module.setdefault(module_name(tensor, length), []).append(norm)
            parts |= by_module
        for what, of_part in parts.items():
            is_sum = math.isclose(value, sum(of_part), rel_tol=measurement.tolerance)
            if is_sum and sum(of_part) > 1.01 * l2(of_part):
                return what, len(of_part), l2(of_part), measurement
    return None


def module_name(tensor: str, depth: int) -> str:
    """The module that a parameter is counted to: `q_network.0` of `q_network.0.weight` for a depth of 2."""
    return ".".join(tensor.split(".")[:-1][:depth]) or tensor


def l2(norms: Iterable[float]) -> float:
    """√Σ of their squares; −1, for no gradient, is passed over."""
    return math.sqrt(sum(norm * norm for norm in norms if not norm < 0.0))
