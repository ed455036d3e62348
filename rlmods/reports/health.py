"""Whether a run was healthy: all the rules, in one place."""

from collections.abc import Callable, Sequence

from rlmods.reports import lab_rules, run_rules, stability_rules
from rlmods.reports.check import Check
from rlmods.reports.ratio_identity import ratio_identity
from rlmods.reports.run_data import RunData

RULES: tuple[Callable[[RunData], Check], ...] = (
    stability_rules.spectral_radius,  # first, also of the next steps: the cause of much that follows
    run_rules.complete,
    run_rules.updates_made,
    run_rules.alarms,
    run_rules.stage_gates,
    run_rules.no_nan_inf,
    lab_rules.probe_missing_values,
    run_rules.monotone_time,
    lab_rules.rho_sane,
    lab_rules.sigma_condition,
    ratio_identity,
    lab_rules.ratio_variance,
    lab_rules.inert_learning,
    lab_rules.repeated_stream,
    stability_rules.step_scale,
    lab_rules.on_policy_expected,
    lab_rules.no_bootstrap_expected,
    lab_rules.fixed_pi_expected,
    run_rules.metric_bounds,
    run_rules.evaluation_at_end,
    run_rules.return_collapse,
    run_rules.files_intact,
)


def judge(run: RunData) -> list[Check]:
    """The answers of all rules."""
    return [rule(run) for rule in RULES]


def status(checks: Sequence[Check]) -> str:
    """FAIL where a rule that applies fails, WARN where only warnings do, else PASS."""
    failed = {check.severity for check in checks if check.failed}
    return "FAIL" if "fail" in failed else "WARN" if failed else "PASS"
