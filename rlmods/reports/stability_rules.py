"""Rules of health that judge the critic's step of the off-policy laboratory."""

import math

from rlmods.reports.check import Check, not_applicable
from rlmods.reports.run_data import RunData

RADIUS = "spectral_radius"
# An eigenvalue of zero gives exactly 1. The smallest eigenvalues of a sample matrix have real parts of either sign:
# with few transitions for each feature the radius of a stable update lies above 1 by that much.
_RADIUS_MARGIN, _RADIUS_MARGIN_OF_FEW, _FEW = 1e-3, 1e-2, 10.0
_SCALE_TOLERANCE = 0.1
_OF_RADIUS = (RADIUS, "critical_learning_rate", "dimensionless_step")


def spectral_radius(run: RunData) -> Check:
    """At the last firing of the probe the update multiplies no error of the critic by more than 1."""
    measured = _last_row(run, RADIUS)
    if measured is None:
        return not_applicable(RADIUS, f"no probe has measured {RADIUS}")
    radius, critical, dimensionless = (measured.get(name, math.nan) for name in _OF_RADIUS)
    margin = _radius_margin(run, measured)
    passed = radius <= 1.0 + margin
    reason = (
        f"spectral_radius is {radius:.7g}, {'at most' if passed else 'above'} 1 + {margin:g}, what a sample may add: "
    )
    reason += "the mean update makes " + ("no error grow" if passed else "an error of the critic grow")
    reason += f" (critical_learning_rate {critical:.4g}, dimensionless_step {dimensionless:.4g})"
    observed = {name: measured.get(name) for name in ("iter", *_OF_RADIUS)}
    return Check(RADIUS, passed, "fail", reason, observed, _advice(critical))


def _radius_margin(run: RunData, measured: dict[str, float]) -> float:
    features = run.lab.feature_dim if run.lab is not None else None
    is_few = bool(features) and measured.get("batch_size", math.inf) < _FEW * (features or 0)
    return _RADIUS_MARGIN_OF_FEW if is_few else _RADIUS_MARGIN


def _advice(critical: float) -> str:
    if critical == 0.0:
        return (
            "no learning rate is small enough (critical_learning_rate is 0): a smaller --model.init_args.learning_rate "
            "only slows the growth; bring the policies together (a larger beta), or lower gamma"
        )
    below = f" below {critical:.4g}" if critical > 0.0 else ""
    return f"type a smaller --model.init_args.learning_rate,{below} or halve the dimensionless_step where it is set"


def step_scale(run: RunData) -> Check:
    """The proxy of the stability probe looks at the step that training takes.

    That of the published runs (V1) sums over n transitions of its own, and without the 1/√D of the features: its step
    is n √D/(N T) times that of the training, whatever scale both have on record.
    """
    name = "step_scale"
    scales = scale_checks(run)
    if scales is None or scales[2] is None:
        return not_applicable(name, "no probe logs stability_probe_step_scale", "warn")
    factor = _factor_of_proxy(run)
    observed = {"ratio": scales[2], "effective_step_factor": factor}
    reason = f"train_step_scale {scales[0]:.4g}, of the probe {scales[1]:.4g}"
    if abs(scales[2] - 1.0) >= 1e-6:
        return Check(name, False, "warn", reason, observed, "give both one scale_mode")
    if factor is not None:
        reason = f"the effective step of the proxy (V1) is n sqrt(D)/(N T) = {factor:.4g} times that of the training"
    if _last_row(run, RADIUS) is not None:
        return Check(name, True, "warn", f"{reason}; spectral_radius is judged instead", observed)
    if factor is None:
        return not_applicable(
            name, f"{reason}; batch_size or feature_dim is unknown, and so the effective step", "warn", observed
        )
    advice = "do not judge stability by stability_proxy: measure spectral_radius (the callback StabilityProbe)"
    return Check(name, abs(factor - 1.0) <= _SCALE_TOLERANCE, "warn", reason, observed, advice)


def _factor_of_proxy(run: RunData) -> float | None:
    lab, measured = run.lab, _last_row(run, "batch_size", "stability_probe")
    if lab is None or measured is None or not lab.samples or not lab.feature_dim:
        return None
    return measured["batch_size"] * math.sqrt(lab.feature_dim) / lab.samples


def _last_row(run: RunData, column: str, probe: str | None = None) -> dict[str, float] | None:
    """The last row of a probe in which a column has a number."""
    for name, table in run.probes.items():
        values = table.columns.get(column, []) if probe in (None, name) else []
        for position in reversed(range(len(values))):
            if not math.isnan(values[position]):
                return table.row(position)
    return None


def scale_checks(run: RunData) -> tuple[float | None, float | None, float | None] | None:
    """train_step_scale, the last stability_probe_step_scale, and their ratio; None for another kind of run."""
    if run.lab is None:
        return None
    of_training = run.lab.train_step_scale
    probe = run.probes.get("stability_probe")
    logged = probe.columns.get("stability_probe_step_scale", []) if probe is not None else []
    of_probe = next((value for value in reversed(logged) if math.isfinite(value)), None)
    return of_training, of_probe, of_probe / of_training if of_probe is not None and of_training else None
