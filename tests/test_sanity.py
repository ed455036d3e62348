"""The sanity suite: it passes where the identities hold, and says which one a defect breaks."""

from datetime import datetime
from pathlib import Path

import pytest

from rlmods.functional.gaussian_policy import ActionMode
from rlmods.reports.run_data import RunData, Series
from rlmods.reports.run_report import examine
from rlmods.sanity import CHECKS, Finding, Requirement, main, run_check, table

BY_NAME = {check.name: check for check in CHECKS}


def check_run(name: str, folder: Path, action_mode: ActionMode = "raw") -> dict[str, Requirement]:
    finding = run_check(BY_NAME[name], folder, action_mode)
    assert finding.report.run.folder == folder / name / "lightning_logs" / "version_0"
    assert (finding.report.run.folder / "report.html").exists()
    return {requirement.quantity: requirement for requirement in finding.requirements}


def failed(requirements: dict[str, Requirement]) -> list[str]:
    return [quantity for quantity, requirement in requirements.items() if not requirement.passed]


def test_a_projected_action_breaks_the_identity_of_the_ratio_where_the_stds_differ(tmp_path: Path) -> None:
    """Mean ρ of the projection: 1 − e^(−0.16/0.08) + e^(−0.16/0.18) · 2.25 · e^(−0.16·6.94) = 1.1698."""
    requirements = check_run("fixed_pi", tmp_path, "ball_clip")
    assert failed(requirements) == ["mean ρ²", "mean ρ", "health"]
    assert float(requirements["mean ρ"].observed) == pytest.approx(1.17, abs=0.05)
    assert requirements["health"].observed == "FAIL: ratio_identity"


@pytest.mark.slow
def test_a_projected_action_is_no_defect_where_the_policies_are_one(tmp_path: Path) -> None:
    requirements = check_run("on_policy", tmp_path, "ball_clip")
    assert failed(requirements) == []
    assert requirements["every ratio"].observed == "1 to 1"


@pytest.mark.slow
def test_all_four_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("PASS: all") == len(CHECKS) + 1
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(tuple(BY_NAME))] == list(BY_NAME)


def fake(**columns: list[float]) -> RunData:
    """A run of which only some columns are known."""
    config = {"data": {"init_args": {"env_kwargs": {"actor_feature_dim": 4}}}}
    curves = {name: Series([float(i) for i in range(len(values))], values) for name, values in columns.items()}
    return RunData(Path("run"), curves, config=config)


def test_golden_identities_of_the_tracking() -> None:
    """‖e‖² = 4·gap; e = 0.8·(0 + 1) = 0.8 has a gap of 0.16, and then 0.8·(0.8 + 1) = 1.44 one of 0.5184."""
    follows = fake(tracking_gap=[0.16, 0.5184], delta_theta_pi_norm=[1.0, 1.0])
    assert [each.passed for each in BY_NAME["full_triad"].identities(follows)] == [True, True]
    lags = fake(tracking_gap=[0.16, 0.53], delta_theta_pi_norm=[1.0, 1.0])
    assert [each.passed for each in BY_NAME["full_triad"].identities(lags)] == [False, True]
    stands = fake(tracking_gap=[0.0, 0.0], delta_theta_pi_norm=[1.0, 0.0])
    assert [each.passed for each in BY_NAME["full_triad"].identities(stands)] == [True, False]


def test_golden_identities_of_the_other_checks() -> None:
    on_policy = {"tracking_gap": [0.0], "dist_action_kl": [0.0], "dist_action_tv": [0.0], "min_rho": [1.0]}
    passed = [each.passed for each in BY_NAME["on_policy"].identities(fake(**on_policy, max_rho=[1.0 + 1e-7]))]
    assert passed == [False, True, True, True]
    contracts = BY_NAME["no_bootstrap"].identities(fake(critic_teacher_error=[1.0, 0.8, 0.82, 0.5]))
    assert [each.passed for each in contracts] == [False, True]
    # KL(π‖μ) = 2 ln 1.5 + 4/9 − 1 and E ρ² = 0.0081/(0.04 · 0.14)
    columns = {"delta_theta_pi_norm": [0.0], "mean_rho2": [1.44, 1.45]}
    closed = BY_NAME["fixed_pi"].identities(fake(**columns, dist_action_kl=[0.2553746606]))
    assert [each.passed for each in closed] == [True, True, True]
    moved = BY_NAME["fixed_pi"].identities(fake(**columns, dist_action_kl=[0.2554]))
    assert [each.passed for each in moved] == [True, False, True]


def test_the_table_names_a_check_once() -> None:
    report = examine(fake(td_loss=[1.0]), datetime(2026, 1, 1))
    rows = [Requirement("first", "0", "0", True), Requirement("second", "1", "2", False)]
    lines = table([Finding("a_check", report, rows)]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["a_check", report.status, "first", "0", "0", "ok"],
        ["second", "1", "2", "FAIL"],
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--actionmode", "raw"], "unrecognized arguments: --actionmode raw"),
        (["--action_mode", "clip"], "invalid choice: 'clip'"),
        (["here"], "unrecognized arguments: here"),
    ],
)
def test_unknown_options_are_a_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("error: ")
    assert printed.endswith("python -m rlmods sanity --help\n")
    assert printed.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["--output", str(tmp_path / "file")]) == 2
    assert "File exists; type --output DIR" in capsys.readouterr().err
