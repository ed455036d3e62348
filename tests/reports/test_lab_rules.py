"""The health of the off-policy laboratory: the seed's defects are named, healthy runs pass."""

import math
import random
from pathlib import Path
from typing import Any

import pytest
from lab_folder import Row, healthy_rows, write_lab, write_table
from torch.utils.tensorboard import SummaryWriter

from rlmods.reports.check import Check
from rlmods.reports.health import judge, status
from rlmods.reports.next_steps import next_steps
from rlmods.reports.run_data import read_run


def judged(folder: Path, rows: list[Row], **settings: Any) -> dict[str, Check]:
    return {check.name: check for check in judge(read_run(write_lab(folder, rows, **settings)))}


def failed(checks: dict[str, Check]) -> list[str]:
    return sorted(name for name, check in checks.items() if check.failed)


def seed_like(count: int = 24) -> list[Row]:
    """Ratios of projected actions, weights that stand, and rows 14 on repeat the data of rows 0 on."""
    draw = random.Random(3)
    noise = [draw.gauss(0.0, 1.0) for _ in range(14)]
    return [
        {
            "iter": row,
            "td_loss": 2.5e-5 * (1.0 + 0.04 * noise[row % 14]),
            "critic_teacher_error": 0.0445 - 1e-7 * row,
            "tracking_gap": 1e-12,
            "mean_rho": 0.6305 + 0.003 * noise[row % 14],
            "mean_rho2": 0.4276 + 0.004 * noise[row % 14],
            "w_norm": 9.163 - 2.5e-6 * row,
        }
        for row in range(count)
    ]


SEED = {"sigma_mu": 0.25, "sigma_pi": 0.4, "trajectories": 16, "horizon": 200, "gamma": 0.99, "action_mode": None}


def test_the_seed_fails_and_each_cause_is_named(tmp_path: Path) -> None:
    checks = judged(tmp_path, seed_like(), **SEED)
    assert failed(checks) == ["inert_learning", "ratio_identity", "repeated_stream", "sigma_condition"]
    assert status(list(checks.values())) == "FAIL"
    identity = checks["ratio_identity"]
    assert "the mean of rho is 0.63" in identity.reason
    assert "over 44800 samples" in identity.reason  # 14 rows of their own
    assert identity.observed["expected_mean_rho"] == pytest.approx(0.6304, abs=5e-5)
    assert checks["repeated_stream"].observed["stretches"] == [{"first": 14, "last": 23, "of_first": 0, "of_last": 9}]
    assert checks["repeated_stream"].observed["own_rows"] == 14
    assert checks["rho_sane"].passed  # the original's limit, which is why it said PASS


def test_next_steps_cite_what_failed_and_are_never_neutral(tmp_path: Path) -> None:
    run = read_run(write_lab(tmp_path, seed_like(), **SEED))
    steps = next_steps(run, judge(run))
    assert [step.partition(":")[0] for step in steps] == [
        *("sigma_condition", "ratio_identity", "inert_learning", "repeated_stream"),
    ]
    assert all("Evidence: " in step for step in steps)


@pytest.mark.parametrize("mode", ["raw", "tanh"])
@pytest.mark.parametrize(
    ("settings", "rho", "applies"),
    [
        ({"beta": 1.0, "check_name": "on_policy"}, 0.0, "on_policy_expected"),
        ({"gamma": 0.0, "sigma_pi": 0.25}, 0.02, "no_bootstrap_expected"),
        ({"alpha_pi": 0.0, "sigma_pi": 0.25}, 0.02, "fixed_pi_expected"),
    ],
)
def test_healthy_runs_pass(tmp_path: Path, mode: str, settings: dict[str, Any], rho: float, applies: str) -> None:
    checks = judged(tmp_path, healthy_rows(rho_noise=rho), action_mode=mode, **settings)
    assert failed(checks) == []
    assert status(list(checks.values())) == "PASS"
    assert checks[applies].passed
    assert checks["ratio_identity"].passed


@pytest.mark.parametrize("check_name", ["no_bootstrap", "fixed_pi"])
def test_unequal_stds_on_the_disc_fail_the_identity_whatever_the_data(tmp_path: Path, check_name: str) -> None:
    settings = {"gamma": 0.0, "alpha_pi": 0.0, "sigma_pi": 0.2, "check_name": check_name}
    rows = [{name: v for name, v in row.items() if name != "mean_rho"} for row in healthy_rows(rho=1.2)]
    checks = judged(tmp_path, rows, action_mode="ball_clip", **settings)
    assert failed(checks) == ["ratio_identity"]
    # 1 − e^(−2) + e^(−8/9) · 2.25 e^(−10/9) = 1 + 1.25 e^(−2)
    assert checks["ratio_identity"].observed["expected_mean_rho"] == pytest.approx(1.0 + 1.25 * math.exp(-2.0))
    assert not failed(judged(tmp_path, rows, action_mode="ball_clip", **(settings | {"sigma_pi": 0.3})))


def test_a_heavy_tail_that_the_sample_has_not_seen_is_no_defect(tmp_path: Path) -> None:
    # α = 0.16 / (0.16 − 0.0625) = 1.64: the mean of 24 · 200 samples may lie at 0.9, that of a bounded ratio may not.
    rows = healthy_rows(rho=0.95, rho_noise=0.03)
    heavy = judged(tmp_path, rows, sigma_mu=0.25, sigma_pi=0.4)
    assert failed(heavy) == ["sigma_condition"]
    assert heavy["ratio_identity"].observed["interval"][0] < 0.9
    assert failed(judged(tmp_path, rows, sigma_mu=0.3, sigma_pi=0.29)) == ["ratio_identity"]


def test_without_the_number_of_samples_the_scatter_of_the_rows_decides(tmp_path: Path) -> None:
    rows = healthy_rows(rho=1.3, rho_noise=0.02)
    checks = judged(tmp_path, rows, trajectories=None)
    assert failed(checks) == ["ratio_identity"]
    assert "over 24 rows" in checks["ratio_identity"].reason
    assert judged(tmp_path, rows[:2], trajectories=None, outer_iters=2)["ratio_identity"].passed is None


def test_a_capped_ratio_is_judged_by_the_uncapped_column_or_not_at_all(tmp_path: Path) -> None:
    rows = healthy_rows(rho=0.8, rho_noise=0.01)
    assert judged(tmp_path, rows, rho_clip=2.0)["ratio_identity"].passed is None
    assert failed(judged(tmp_path, rows)) == ["ratio_identity"]


def test_a_second_moment_below_one_is_impossible(tmp_path: Path) -> None:
    rows = [row | {"mean_rho2": 0.5 + 0.001 * (row["iter"] ** 2 % 7)} for row in healthy_rows()]
    for row in rows:
        del row["mean_rho"]
    checks = judged(tmp_path, rows)
    assert failed(checks) == ["ratio_identity"]
    assert "it is at least 1 for every density ratio" in checks["ratio_identity"].reason


def test_the_rules_of_the_original(tmp_path: Path) -> None:
    rows = healthy_rows()
    rows[3] |= {"mean_rho2": 1381.0}
    rows[5] |= {"td_loss": math.nan}
    rows[7] |= {"iter": 6}
    rows[9] |= {"stability_proxy": math.inf}
    checks = judged(tmp_path, rows, check_name="on_policy")
    assert {"rho_sane", "no_nan_inf", "monotone_time", "probe_missing_values"} <= set(failed(checks))
    assert checks["no_nan_inf"].observed["not_finite"] == {"td_loss": 1}
    assert checks["monotone_time"].observed["first_violation_row"] == 7
    assert judged(tmp_path, healthy_rows(rho=1.1), check_name="on_policy")["on_policy_expected"].failed
    assert judged(tmp_path, healthy_rows(), check_name="no_bootstrap")["no_bootstrap_expected"].failed
    assert judged(tmp_path, healthy_rows(), check_name="fixed_pi")["fixed_pi_expected"].failed


def test_a_drift_that_is_marked_as_defined_must_be_there(tmp_path: Path) -> None:
    rows = [row | {"fixed_point_drift": math.nan, "fixed_point_drift_defined": 0.0} for row in healthy_rows()]
    write_lab(tmp_path, healthy_rows())
    write_table(tmp_path / "learning_curves.csv", rows)
    assert not [check.name for check in judge(read_run(tmp_path)) if check.failed]
    write_table(tmp_path / "learning_curves.csv", [*rows[:-1], rows[-1] | {"fixed_point_drift_defined": 1.0}])
    assert [check.name for check in judge(read_run(tmp_path)) if check.failed] == ["probe_missing_values"]


def test_few_effective_samples_and_another_step_of_the_probe_warn(tmp_path: Path) -> None:
    write_lab(tmp_path, [row | {"mean_rho2": 30.0 + row["iter"] ** 2} for row in healthy_rows()], sigma_pi=0.35)
    write_table(tmp_path / "probes/stability_probe.csv", [{"iter": 5, "stability_probe_step_scale": 0.002}])
    checks = judge(read_run(tmp_path))  # trains with 0.2 / (4 · 50) = 0.001
    assert [check.name for check in checks if check.failed] == ["ratio_variance", "step_scale"]
    assert status(checks) == "WARN"


def probed(folder: Path, probe: dict[str, float], **settings: Any) -> dict[str, Check]:
    write_lab(folder, healthy_rows(), **settings)
    write_table(folder / "probes/stability_probe.csv", [{"iter": 5, **probe}, {"iter": 9}])  # the last did not measure
    return {check.name: check for check in judge(read_run(folder))}


@pytest.mark.parametrize(("radius", "passed"), [(0.9, True), (1.0, True), (1.0 + 9e-7, True), (1.2, False)])
def test_a_spectral_radius_above_one_fails_and_says_what_to_type(tmp_path: Path, radius: float, passed: bool) -> None:
    probe = {"spectral_radius": radius, "critical_learning_rate": 25.0, "dimensionless_step": 2.5}
    check = probed(tmp_path, probe)["spectral_radius"]
    assert check.passed is passed
    assert f"{radius:.7g}" in check.reason
    assert "critical_learning_rate 25, dimensionless_step 2.5" in check.reason
    assert "smaller --model.init_args.learning_rate, below 25" in check.advice


@pytest.mark.parametrize(("batch_size", "passed"), [(50.0, True), (100_000.0, False)])
def test_few_transitions_for_each_feature_excuse_a_radius_just_above_one(
    tmp_path: Path, batch_size: float, passed: bool
) -> None:
    check = probed(tmp_path, {"spectral_radius": 1.005, "batch_size": batch_size}, **SEED)["spectral_radius"]
    assert check.passed is passed


def test_the_radius_comes_first_in_next_steps(tmp_path: Path) -> None:
    probed(tmp_path, {"spectral_radius": 1.2, "critical_learning_rate": 0.0}, **SEED)
    run = read_run(tmp_path)
    first, second, *_ = next_steps(run, judge(run))
    assert first.startswith("spectral_radius: no learning rate is small enough")
    assert not second.startswith("spectral_radius")


@pytest.mark.parametrize(
    ("more", "word"),
    [({"batch_size": 4096}, "WARN"), ({"batch_size": 71}, "PASS"), ({}, "not applicable")],
)
def test_the_step_of_the_published_proxy_is_not_that_of_the_training(
    tmp_path: Path, more: dict[str, float], word: str
) -> None:
    probe = {"stability_probe_step_scale": 0.001, **more}  # as trained: 0.2 / (4 · 50)
    check = probed(tmp_path, probe)["step_scale"]
    assert check.word == word
    if more:  # n √8 / (4 · 50)
        assert check.observed["effective_step_factor"] == pytest.approx(more["batch_size"] * math.sqrt(8) / 200)
    judged_by_radius = probed(tmp_path, {**probe, "spectral_radius": 1.0})["step_scale"]
    assert judged_by_radius.word == "PASS"
    assert "spectral_radius is judged instead" in judged_by_radius.reason


@pytest.mark.parametrize(("mean", "passed"), [(1.0, True), (1.3, False)])
def test_a_capped_ratio_is_judged_by_its_uncapped_curve(tmp_path: Path, mean: float, passed: bool) -> None:
    write_lab(tmp_path, healthy_rows(rho=0.8, rho_noise=0.01), rho_clip=2.0)
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(12):
            writer.add_scalar("stability/importance_ratio", mean + 0.01 * (-1) ** step, 200 * step)
    (check,) = [check for check in judge(read_run(tmp_path)) if check.name == "ratio_identity"]
    assert check.passed is passed
    assert check.observed["mean_rho"] == pytest.approx(mean, abs=1e-6)


def test_a_table_without_rows_fails(tmp_path: Path) -> None:
    checks = judged(tmp_path, [])
    assert {"complete", "no_nan_inf"} <= set(failed(checks))
    assert checks["no_nan_inf"].reason == "there are no rows of numbers in learning_curves.csv"
