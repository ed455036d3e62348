"""Rules of health for the off-policy laboratory: those of the original program, and those that it lacked.

Weaknesses of the original's rules are spoken of as in `docs/report.md`: its limit of 1000 on a mean of ratios passes a
run whose ratios are no density ratios.
"""

import math
from collections.abc import Sequence

from rlmods.callbacks.inert_learning import judge_inertia
from rlmods.reports.check import Check, not_applicable
from rlmods.reports.lab_settings import LabSettings
from rlmods.reports.run_data import RunData
from rlmods.reports.run_rules import is_probe_column

_RHO_LIMIT = 1000.0
_FEWEST_EFFECTIVE = 0.1
_FEWEST_ROWS = 10  # as judge_inertia
_KL_LIMIT, _TV_LIMIT, _GAP_LIMIT, _RHO2_BAND = 1e-6, 1e-4, 1e-6, (0.98, 1.02)
_NOT_LAB = "not a run of the off-policy laboratory"


def column(run: RunData, name: str) -> list[float]:
    """The finite values of a column; empty where there is none."""
    return [value for value in run.curves[name].values if math.isfinite(value)] if name in run.curves else []


def probe_missing_values(run: RunData) -> Check:
    """A drift is a number wherever it is marked as defined; other probe values may be absent, but not infinite."""
    if run.rows is None:
        return not_applicable("probe_missing_values", "there is no learning_curves.csv")
    columns = {name: values for name, values in run.rows.columns.items() if is_probe_column(run, name)}
    if not columns:
        return not_applicable("probe_missing_values", "there are no probe columns")
    infinite = {name: sum(map(math.isinf, values)) for name, values in columns.items()}
    infinite = {name: count for name, count in infinite.items() if count}
    defined = columns.get("fixed_point_drift_defined", [])
    drifts = columns.get("fixed_point_drift", [])
    missing = sum(mark > 0 and math.isnan(drift) for mark, drift in zip(defined, drifts, strict=False))
    reason = f"infinite: {infinite}; drifts that are marked as defined, but missing: {missing}"
    passed = not infinite and not missing
    if passed:
        reason = "no probe value is infinite, every drift that is marked as defined is there"
    observed = {"infinite": infinite, "missing_drifts": missing, "probe_columns": sorted(columns)}
    return Check("probe_missing_values", passed, "fail", reason, observed, "look at the iterations in probes/*.csv")


def rho_sane(run: RunData) -> Check:
    """The original's limit: the mean of ρ² never exceeds 1000. Passing it says nothing of the ratio's correctness."""
    name = (
        "mean_rho2" if "mean_rho2" in run.curves else next((n for n in run.curves if "rho" in n and "/" not in n), "")
    )
    values = column(run, name)
    if not values:
        return not_applicable("rho_sane", "there is no column of the ratio")
    passed = max(values) <= _RHO_LIMIT
    reason = f"max {name} {max(values):.4g} {'≤' if passed else '>'} {_RHO_LIMIT:g}"
    observed = {"rho_column": name, "max": max(values), "threshold": _RHO_LIMIT}
    advice = "bring sigma_mu and sigma_pi together, raise beta or p_mix, or bound the ratio"
    return Check("rho_sane", passed, "fail", reason, observed, advice)


def sigma_condition(run: RunData) -> Check:
    """σ_π² < 2σ_μ²: the second moment of the density ratio of two Gaussians is finite only then."""
    mu, pi = _sigmas(run.lab)
    if run.lab is None or mu is None or pi is None:
        return not_applicable("sigma_condition", _NOT_LAB)
    passed = pi**2 < 2.0 * mu**2
    reason = (
        f"sigma_pi² = {pi**2:.4g} {'<' if passed else '≥'} 2 sigma_mu² = {2 * mu**2:.4g}: the variance of the density "
    )
    reason += "ratio is finite" if passed else "ratio is infinite"
    if not passed and run.lab.action_mode in ("ball_clip", "box_clip"):
        reason += "; that mean_rho2 looks small is the projection's doing, which bounds the logged ratio"
    advice = f"take sigma_pi below {math.sqrt(2) * mu:.3g}, better below sigma_mu = {mu:g}"
    return Check("sigma_condition", passed, "fail", reason, {"sigma_mu": mu, "sigma_pi": pi}, advice)


def ratio_variance(run: RunData) -> Check:
    """(E ρ)²/E ρ², the share of the samples that is effective, stays above 0.1 (Kish)."""
    moments = zip(run.curve("mean_rho").values, run.curve("mean_rho2").values, strict=False)
    shares = sorted(mean**2 / square for mean, square in moments if square > 0.0 and math.isfinite(mean))
    if not shares:
        return not_applicable("ratio_variance", "there are no columns mean_rho and mean_rho2", "warn")
    middle = shares[len(shares) // 2]
    passed = middle >= _FEWEST_EFFECTIVE
    reason = f"of the samples of an iteration {middle:.1%} are effective (median; lowest {shares[0]:.1%})"
    observed = {"median": middle, "lowest": shares[0], "threshold": _FEWEST_EFFECTIVE}
    advice = "bring the policies together, or bound the ratio: a few samples decide each update"
    return Check("ratio_variance", passed, "warn", reason, observed, advice)


def on_policy_expected(run: RunData) -> Check:
    """With β = 1 and equal stds behaviour and target are one: ρ = 1, no gap, no divergence."""
    lab = run.lab
    if lab is None or not (lab.check_name == "on_policy" or (lab.beta == 1.0 and lab.sigma_mu == lab.sigma_pi)):
        return not_applicable("on_policy_expected", "the run is not meant to be on-policy")
    last = {
        n: column(run, n)[-1]
        for n in ("mean_rho2", "tracking_gap", "dist_action_kl", "dist_action_tv")
        if column(run, n)
    }
    divergences = [
        last[n] <= limit for n, limit in (("dist_action_kl", _KL_LIMIT), ("dist_action_tv", _TV_LIMIT)) if n in last
    ]
    passed = (
        _RHO2_BAND[0] <= last.get("mean_rho2", math.nan) <= _RHO2_BAND[1]
        and last.get("tracking_gap", math.nan) <= _GAP_LIMIT
        and (any(divergences) or not divergences)
    )
    reason = ", ".join(f"{name} = {value:.4g}" for name, value in last.items()) or "no column to tell"
    advice = "set beta 1 and equal stds; what remains is a fault of the ratio"
    return Check("on_policy_expected", passed, "fail", reason, last, advice)


def no_bootstrap_expected(run: RunData) -> Check:
    """A check of the regression without bootstrapping has γ = 0."""
    gamma = run.lab.gamma if run.lab is not None else None
    if run.lab is None or not (run.lab.check_name == "no_bootstrap" or gamma == 0.0):
        return not_applicable("no_bootstrap_expected", "the run is meant to bootstrap", observed={"gamma": gamma})
    return Check("no_bootstrap_expected", gamma == 0.0, "fail", f"gamma = {gamma}", {"gamma": gamma}, "set gamma 0")


def fixed_pi_expected(run: RunData) -> Check:
    """A check of pure evaluation has α_π = 0."""
    step = run.lab.alpha_pi if run.lab is not None else None
    if run.lab is None or not (run.lab.check_name == "fixed_pi" or step == 0.0):
        return not_applicable("fixed_pi_expected", "the target policy is meant to move", observed={"alpha_pi": step})
    return Check("fixed_pi_expected", step == 0.0, "fail", f"alpha_pi = {step}", {"alpha_pi": step}, "set alpha_pi 0")


def inert_learning(run: RunData) -> Check:
    """Over the run as it was planned the weights move, or the loss has changed: something was learned."""
    norms, losses = run.curve("w_norm").values, run.curve("td_loss").values
    if min(len(norms), len(losses)) < _FEWEST_ROWS:
        return not_applicable("inert_learning", f"fewer than {_FEWEST_ROWS} rows of w_norm and td_loss")
    moves = run.curve("delta_w_norm").values
    relative = [move / (norm or math.nan) for move, norm in zip(moves, norms, strict=True)] if moves else None
    planned = run.lab.outer_iters if run.lab is not None and run.lab.outer_iters is not None else 0
    verdict = judge_inertia(norms, losses, relative, remaining=float(max(planned - len(norms), 0)))
    if verdict is None:
        reason = f"in {len(norms)} rows w_norm went from {norms[0]:.6g} to {norms[-1]:.6g}, "
        reason += f"td_loss from {losses[0]:.4g} to {losses[-1]:.4g}"
        return Check("inert_learning", True, "fail", reason, {"rows": len(norms)})
    # From norms alone the detector only warns: weights may turn. But then the loss would move.
    factor = verdict.evidence["thresholds"]["movement"] / max(verdict.evidence["movement_projected"], 1e-300)
    advice = f"raise alpha_w, by a factor of {factor:.0f} at least, or train that much longer"
    return Check("inert_learning", False, "fail", verdict.message, verdict.evidence, advice)


def repeated_stream(run: RunData) -> Check:
    """Every iteration has data of its own."""
    stretches = run.repetitions
    if stretches is None or run.rows is None:
        return not_applicable("repeated_stream", "there is no column mean_rho2 or mean_rho")
    times = run.rows.times
    found = [
        {
            "first": _iteration(times, stretch.first),
            "last": _iteration(times, stretch.last),
            "of_first": _iteration(times, stretch.first - stretch.lag),
            "of_last": _iteration(times, stretch.last - stretch.lag),
        }
        for stretch in stretches
    ]
    reason = ", ".join(f"{f['first']}-{f['last']} the data of {f['of_first']}-{f['of_last']}" for f in found)
    own = len(times) - len(run.repeated_rows)
    observed = {"stretches": found, "rows": len(times), "own_rows": own}
    reason = (
        f"iterations have again, {reason}: {own} of {len(times)} have data of their own"
        if found
        else "no iteration repeats another"
    )
    advice = "restore the random streams when a run goes on (--ckpt_path last does), or start it anew"
    return Check("repeated_stream", not found, "fail", reason, observed, advice)


def _iteration(times: Sequence[float], row: int) -> int:
    """The row number, where the cell of the iteration is damaged."""
    return int(times[row]) if math.isfinite(times[row]) else row


def _sigmas(lab: LabSettings | None) -> tuple[float | None, float | None]:
    return (None, None) if lab is None else (lab.sigma_mu, lab.sigma_pi)
