"""`python -m rlmods sanity`: four short runs of the off-policy laboratory whose answers are known beforehand.

Each switches off a part of the deadly triad, so that what is left obeys an identity; the last switches off nothing.
"""

import argparse
import logging
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

import yaml

from rlmods.functional.gaussian_policy import ActionMode, expected_squared_ratio
from rlmods.reports.lab_rules import column
from rlmods.reports.run_data import RunData, read_run
from rlmods.reports.run_report import Report, examine, one_line

_DESCRIPTION = """\
Makes four short runs of the off-policy laboratory, with probes, tables and a report each, and prints what must hold
and what was observed. Leaves with 1 where something does not hold.

  on_policy     beta 1 and equal stds: ratio identically 1, no gap between the policies
  no_bootstrap  gamma 0: regression on the teacher
  fixed_pi      actor_learning_rate 0: the policies stand still
  full_triad    bootstrapping, off-policy, function approximation, and a policy that moves
"""
_STDS = {"behaviour_std": 0.3, "target_std": 0.2}
_BETA = 0.2
_NUM_ENVS, _NUM_STEPS = 2, 50
_NUM_ITERATIONS = 30  # on the first ten, which set the learning rate, nothing is learned
# Of means of independent rows: one false alarm in 100,000.
_STANDARD_ERRORS = 4.5
_ROUNDING = 1e-5  # of float32


class Requirement(NamedTuple):
    """A line of the table."""

    quantity: str
    required: str
    observed: str
    passed: bool


class SanityCheck(NamedTuple):
    """A run, and what it must obey."""

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    identities: Callable[[RunData], list[Requirement]]


class Finding(NamedTuple):
    """What became of a run."""

    name: str
    report: Report
    requirements: list[Requirement]

    @property
    def passed(self) -> bool:
        """Whether all of it holds."""
        return all(requirement.passed for requirement in self.requirements)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Print a sentence and leave, without the usage."""
        print(f"error: {message}; the options are explained by: python -m rlmods sanity --help", file=sys.stderr)
        raise SystemExit(2)


def main(arguments: Sequence[str]) -> int:
    """Run the command; the code to leave with."""
    parser = _Parser(
        "python -m rlmods sanity",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, default=Path("sanity"), help="folder of the runs (default: sanity)")
    parser.add_argument(
        "--action_mode",
        choices=get_args(ActionMode),
        default="raw",
        help="what is executed of a drawn action; where it is clipped, the ratio is none of densities, and the table "
        "says so (default: raw)",
    )
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: could not write {options.output}: {error.strerror}; type --output DIR", file=sys.stderr)
        return 2
    findings = [run_check(check, options.output, options.action_mode) for check in CHECKS]
    print(table(findings))
    failed = [finding.name for finding in findings if not finding.passed]
    print(f"\n{'FAIL: ' + ', '.join(failed) if failed else 'PASS: all four'}; the runs are in {options.output}")
    return 1 if failed else 0


def run_check(check: SanityCheck, output: Path, action_mode: ActionMode) -> Finding:
    """Make the run with the command line proper, and judge it.

    Args:
        check: to be made.
        output: the run folder is a new one below `output/NAME`, the configuration `output/NAME.yaml`.
        action_mode: of the environment.

    Raises:
        SystemExit: where the run cannot be made.
    """
    # Late: the help needs none of it.
    from rlmods.cli import run

    folder, file = output / check.name, output / f"{check.name}.yaml"
    file.write_text(yaml.safe_dump(_configuration(check, folder, action_mode), sort_keys=False))
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it says is in the table
    try:
        run(["fit", "--config", str(file)])
    finally:
        logger.setLevel(level)
    versions = (folder / "lightning_logs").iterdir()
    newest = max(versions, key=lambda version: int(version.name.removeprefix("version_")))
    report = examine(read_run(newest), datetime.now())
    requirements = [*check.identities(report.run), *_of_every_run(report)]
    return Finding(check.name, report, requirements)


def _configuration(check: SanityCheck, folder: Path, action_mode: ActionMode) -> dict[str, Any]:
    samples = {"num_bootstrap_samples": None if action_mode == "raw" else 2, "every_n_iterations": 15}
    batch = {"batch_size": 512, "num_chains": 32}
    probes = {
        "FixedPointProbe": {**batch, **samples, "max_iters": 200, "tol": 1e-6},
        "StabilityProbe": {**batch, **samples, "num_batches": 2},
        "DistributionProbe": {"num_samples": 512, "num_chains": 32, "every_n_iterations": 15},
        "LearningCurves": {},
    }
    model = {
        "dimensionless_step": 0.3,
        "actor_learning_rate": 30.0,
        "beta": _BETA,
        **_STDS,
        "num_bootstrap_samples": samples["num_bootstrap_samples"],
        "theta_radius": 5.0,
    }
    data = {
        "env_id": "rlmods/TorusGobletGhost-v0",
        "total_env_steps": _NUM_ENVS * _NUM_STEPS * _NUM_ITERATIONS,
        "num_envs": _NUM_ENVS,
        "n_steps": _NUM_STEPS,
        "gamma": 0.95,
        "eval_episodes": 2,
        "env_kwargs": {
            "max_episode_steps": _NUM_STEPS,
            "p_mix": 0.1,
            "feature_dim": 256,
            "actor_feature_dim": 64,
            "action_mode": action_mode,
        },
    }
    return {
        "seed_everything": 0,
        "trainer": {
            "accelerator": "cpu",
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": str(folder),
            "callbacks": [
                {"class_path": f"rlmods.callbacks.{name}", "init_args": settings} for name, settings in probes.items()
            ],
        },
        "model": {"class_path": "rlmods.algorithms.LinearTD", "init_args": model | check.model},
        "data": {"class_path": "rlmods.data.RolloutDataModule", "init_args": data | check.data},
    }


def _on_policy(run: RunData) -> list[Requirement]:
    """The two policies are one."""
    ratios = column(run, "min_rho") + column(run, "max_rho")
    requirements = [
        Requirement("every ratio", "1", f"{min(ratios):.9g} to {max(ratios):.9g}", set(ratios) == {1.0}),
    ]
    for quantity, name in (
        ("tracking gap, largest", "tracking_gap"),
        ("KL(π‖μ), largest", "dist_action_kl"),
        ("total variation, largest", "dist_action_tv"),
    ):
        largest = max(column(run, name), default=math.nan)
        requirements.append(Requirement(quantity, "0", f"{largest:.3g}", largest == 0.0))
    return requirements


def _no_bootstrap(run: RunData) -> list[Requirement]:
    """Rewards are w_R·φ/√D, so that every update is a step of ‖w − w_R‖² downhill, on whatever sample."""
    errors = column(run, "critic_teacher_error")
    growth = max((after / before for before, after in pairwise(errors)), default=math.nan)
    return [
        Requirement(
            "‖w − w_R‖² from update to update, largest factor", "≤ 1", f"{growth:.6f}", growth <= 1.0 + _ROUNDING
        ),
        Requirement("‖w − w_R‖²/D at the end", f"< {errors[0]:.4g}", f"{errors[-1]:.4g}", errors[-1] < errors[0]),
    ]


def _fixed_pi(run: RunData) -> list[Requirement]:
    """The policies differ in their stds alone: divergence and second moment have closed forms."""
    steps = column(run, "delta_theta_pi_norm")
    mu, pi = _STDS["behaviour_std"], _STDS["target_std"]
    divergence = 2.0 * math.log(mu / pi) + (pi / mu) ** 2 - 1.0
    observed = column(run, "dist_action_kl")
    error = max((abs(value - divergence) for value in observed), default=math.nan)
    squares = column(run, "mean_rho2")
    expected, mean = expected_squared_ratio(mu, pi), statistics.fmean(squares)
    allowed = _STANDARD_ERRORS * statistics.stdev(squares) / math.sqrt(len(squares))
    return [
        Requirement("steps of θ_π, largest", "0", f"{max(steps):.3g}", max(steps) == 0.0),
        Requirement(
            "KL(π‖μ)", f"{divergence:.6f}", f"{statistics.fmean(observed):.6f}", error <= _ROUNDING * divergence
        ),
        Requirement("mean ρ²", f"{expected:.3f} ± {allowed:.3f}", f"{mean:.3f}", abs(mean - expected) <= allowed),
    ]


def _full_triad(run: RunData) -> list[Requirement]:
    """θ_μ follows: the gap e obeys e′ = (1 − β)(e + Δθ_π), so that ‖e′‖ ≤ (1 − β)(‖e‖ + ‖Δθ_π‖)."""
    actor_dim = run.configured("data")["env_kwargs"]["actor_feature_dim"]
    gaps = [math.sqrt(actor_dim * gap) for gap in column(run, "tracking_gap")]
    steps = column(run, "delta_theta_pi_norm")
    excess = max(
        after - (1.0 - _BETA) * (before + step) for before, after, step in zip([0.0, *gaps], gaps, steps, strict=False)
    )
    return [
        Requirement("‖θ_π − θ_μ‖ over (1 − β)(‖e‖ + ‖Δθ_π‖)", "≤ 0", f"{excess:.2g}", excess <= _ROUNDING),
        Requirement("steps of θ_π, smallest", "> 0", f"{min(steps):.3g}", min(steps) > 0.0),
    ]


CHECKS = (
    SanityCheck("on_policy", {"beta": 1.0, "behaviour_std": _STDS["target_std"]}, {}, _on_policy),
    SanityCheck("no_bootstrap", {}, {"gamma": 0.0}, _no_bootstrap),
    SanityCheck("fixed_pi", {"actor_learning_rate": 0.0}, {}, _fixed_pi),
    SanityCheck("full_triad", {}, {}, _full_triad),
)


def _of_every_run(report: Report) -> list[Requirement]:
    """E ρ = 1, and the report finds nothing; among other things, that something was learned."""
    identity = next(check for check in report.checks if check.name == "ratio_identity")
    low, high = identity.observed.get("interval", (math.nan, math.nan))
    mean = identity.observed.get("mean_rho", math.nan)
    return [
        Requirement("mean ρ", f"1 ({low:.3f} to {high:.3f})", f"{mean:.4f}", identity.passed is True),
        Requirement("health", "PASS", f"{report.status}: {one_line(report)}", report.status == "PASS"),
    ]


def table(findings: Sequence[Finding]) -> str:
    """One line a requirement; name and health stand in the first of a check."""
    rows = [("check", "health", "quantity", "required", "observed", "")]
    for finding in findings:
        heads = [(finding.name, finding.report.status)] + [("", "")] * (len(finding.requirements) - 1)
        rows += [
            (*head, each.quantity, each.required, each.observed, "ok" if each.passed else "FAIL")
            for head, each in zip(heads, finding.requirements, strict=True)
        ]
    widths = [max(len(row[position]) for row in rows) for position in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:{width}s}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * len(widths) - 2), *lines[1:]])
