"""What the command writes, and how it fails."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from lab_folder import event, healthy_rows, write_events, write_lab, write_table
from torch.utils.tensorboard import SummaryWriter

from rlmods.reports import html
from rlmods.reports.command import main, write_report
from rlmods.reports.comparison import differing_settings
from rlmods.reports.lab_plots import stability_figure
from rlmods.reports.run_data import read_run

SECTIONS = [
    *("Run Info", "Health", "Scale Checks", "Core Metrics", "Probe Metrics", "Stages", "Alarms"),
    *("Samples (Head)", "Samples (Tail)", "Next Steps"),
]
NAMES = ["report.html", "report.json", "report.md"]
HOSTILE = "<script>alert('|')</script>"


def lab_run(folder: Path, **settings: Any) -> Path:
    write_lab(folder, healthy_rows(), **settings)
    probes = {
        "stability_probe": {"stability_proxy": 1.1, "stability_proxy_std": 0.1, "stability_probe_step_scale": 0.001},
        "fixed_point_probe": {"w_gap": 0.5, "w_sharp_drift": math.nan, "converged": False},
        "distribution_probe": {"mmd2": 0.01},
        "another": {"value": 3.0},
    }
    for name, columns in probes.items():
        write_table(folder / f"probes/{name}.csv", [{"iter": 4 * row, **columns} for row in range(6)])
    return folder


def table(markdown: str, heading: str) -> list[list[str]]:
    section = markdown.partition(f"{heading}\n")[2].partition("\n#")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = lab_run(tmp_path_factory.mktemp("reported") / "run")
    assert main([str(folder)]) == 0
    return folder


def test_the_report_of_a_laboratory_run(reported: Path) -> None:
    folder = reported
    assert sorted(path.name for path in folder.glob("*report*")) == NAMES
    text = (folder / "report.md").read_text()
    assert re.findall(r"^## (.*)$", text, flags=re.MULTILINE) == SECTIONS
    assert "- seed: 0\n" in text
    assert "alpha_w=0.2, alpha_pi=0.1, beta=0.2, sigma_mu=0.3, sigma_pi=0.3, p_mix=0.05" in text
    assert "- train_step_scale: 0.001\n" in text
    assert "- stability_probe_step_scale_ratio: 1.0 (expect ~1.0)" in text
    core = table(text, "## Core Metrics")
    assert core[0] == ["metric", "last", "min", "max", "mean_last_k", "slope_last_k"]
    assert [row[0] for row in core[2:7]] == ["td_loss", "w_norm", "mean_rho2", "tracking_gap", "critic_teacher_error"]
    assert core[3] == ["w_norm", "1.46", "1", "1.46", "1.42", "0.02"]
    probes = re.findall(r"^### (.*)$", text, flags=re.MULTILINE)
    assert probes == ["another", "distribution_probe", "fixed_point_probe", "stability_probe"]
    assert table(text, "### fixed_point_probe")[2:] == [
        ["iter", "20", "0", "20", "12", "1"],
        ["w_gap", "0.5", "0.5", "0.5", "0.5", "0"],
        ["w_sharp_drift", *["-"] * 5],
    ]
    head, tail = table(text, "## Samples (Head)"), table(text, "## Samples (Tail)")
    assert head[0] == tail[0] == ["iter", "td_loss", "critic_teacher_error", "tracking_gap", "mean_rho2", "w_norm"]
    assert [row[0] for row in (*head[2:], *tail[2:])] == [str(row) for row in (*range(8), *range(16, 24))]


def test_the_json_has_the_evidence(reported: Path) -> None:
    content = json.loads((reported / "report.json").read_text())
    assert content["health"]["status"] == "PASS"
    assert content["health"]["checks"]["sigma_condition"]["observed"] == {"sigma_mu": 0.3, "sigma_pi": 0.3}
    assert (content["incomplete"], content["exception"]) == (False, None)
    assert content["config"]["resolved"]["K_mc"] == 2
    assert len(content["samples"]["head"]) == len(content["samples"]["tail"]) == 20
    assert content["probe_metrics"]["fixed_point_probe"]["w_sharp_drift"]["last"] is None
    assert next(Path(path).name for path in content["files"]["probes"]) == "another.csv"


def test_the_page_needs_nothing_else_and_escapes_what_it_quotes(tmp_path: Path) -> None:
    folder = lab_run(tmp_path / "run", check_name=HOSTILE)
    alarm = event("alarm", 3, HOSTILE, safeguard=HOSTILE, cause="c", severity="warn")
    write_events(folder, event("start"), alarm, alarm | {"superseded": True}, event("stop", 9, "training ends"))
    write_report(folder)
    page = (folder / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;|&#39;)&lt;/script&gt;") >= 4
    assert not re.search(r"(src|href)=.(?!data:)", page)
    assert (
        page.count('src="data:image/png;base64,') == 5
    )  # curves, core metrics, the probes but for the one that stands
    assert '<span class="status WARN">' in page
    assert "superseded" in page
    rows = table((folder / "report.md").read_text(), "## Alarms")
    assert {len(row) for row in rows} == {8}


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = lab_run(tmp_path / "run")
    (folder / "report.md").write_text("the old one")
    monkeypatch.setattr(html, "Environment", None)  # the last of the three cannot be made
    with pytest.raises(TypeError):
        write_report(folder)
    assert (folder / "report.md").read_text() == "the old one"
    assert [path.name for path in folder.iterdir() if "report" in path.name] == ["report.md"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda run: None, "which is no folder"),
        (lambda run: run.mkdir(), "without learning_curves.csv or events.out.*"),
        (lambda run: write_table(run / "learning_curves.csv", [{}]), "which is empty"),
    ],
)
def test_bad_input_is_a_sentence_and_leaves_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, said: str
) -> None:
    make(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: got ")
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_unknown_options_are_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["run", "--outputs", "x"], ["run", "--out", "x"], []):
        with pytest.raises(SystemExit) as end:
            main(arguments)
        assert end.value.code == 2
    assert "unrecognized arguments: --outputs x" in capsys.readouterr().err


def test_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = lab_run(tmp_path / "a/run"), lab_run(tmp_path / "b/run", gamma=0.5, sigma_pi=0.5)
    assert main([str(first), str(second), "--output", str(tmp_path / "out")]) == 0
    assert "b/run: FAIL: sigma_condition" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES
    text = (tmp_path / "out/report.md").read_text()
    assert table(text, "## Settings that Differ") == [
        ["setting", "a/run", "b/run"],
        ["---"] * 3,
        ["gamma", "0.9", "0.5"],
        ["sigma_pi", "0.3", "0.5"],
    ]
    assert ["sigma_condition", "PASS", "FAIL"] in table(text, "## Health")
    assert json.loads((tmp_path / "out/report.json").read_text())["settings"]["gamma"] == {"a/run": 0.9, "b/run": 0.5}
    assert (tmp_path / "out/report.html").read_text().count("data:image/png;base64,") == 1
    assert not (first / "report.md").exists()


def test_callbacks_are_compared_by_their_class() -> None:
    guard = {"class_path": "rlmods.callbacks.LivenessGuard", "init_args": {"mode": "act"}}
    other = {"class_path": "rlmods.callbacks.Rollback", "init_args": {"keep": 2}}
    configs = [{"callbacks": [guard]}, {"callbacks": [other, guard]}, {"callbacks": [guard]}]
    assert differing_settings(configs) == {
        "callbacks.Rollback.class_path": ["(absent)", "rlmods.callbacks.Rollback", "(absent)"],
        "callbacks.Rollback.init_args.keep": ["(absent)", 2, "(absent)"],
    }


def test_no_picture_warns_where_nothing_was_measured(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    folder = lab_run(tmp_path / "run")
    for path in (folder / "probes").glob("*.csv"):
        header = path.read_text().splitlines()[0]
        write_table(path, [{"iter": row} for row in range(6)], header.split(","))
    write_report(folder)
    assert not recwarn.list


def test_the_picture_of_stability_has_the_radius_where_it_was_measured(tmp_path: Path) -> None:
    folder = lab_run(tmp_path / "run")
    widths = []
    for columns in ({}, {"spectral_radius": 0.5}):
        write_table(folder / "probes/stability_probe.csv", [{"iter": 1, "stability_proxy": 1.1, **columns}])
        (figure,) = stability_figure(read_run(folder))
        widths.append(int.from_bytes(figure.png[16:20], "big"))
    assert widths[1] == pytest.approx(1.3 * widths[0], rel=0.01)  # two panels of 1.3 for one of 2.0


@pytest.mark.parametrize("cell", ["", "inf", "-inf", "oops"])
def test_a_damaged_iteration_is_no_crash(tmp_path: Path, cell: str) -> None:
    folder = lab_run(tmp_path / "run")
    for position, path in enumerate([folder / "learning_curves.csv", *(folder / "probes").glob("*.csv")]):
        lines = path.read_text().splitlines()
        lines[-1 if position == 0 else 2] = cell + "," + lines[-1].partition(",")[2]
        path.write_text("\n".join(lines) + "\n")
    report = write_report(folder)
    assert report.status == "FAIL"
    assert cell == "inf" or any(check.name == "monotone_time" and check.failed for check in report.checks)


def test_an_empty_probe_is_noted_and_the_rest_reported(tmp_path: Path) -> None:
    folder = lab_run(tmp_path / "run")
    (folder / "probes/another.csv").write_text("")
    report = write_report(folder)
    assert report.status == "WARN"
    (note,) = report.run.notes
    assert note.startswith("probes/another.csv is left out: got ")


@pytest.mark.parametrize("text", ["iter,td_loss\n", "\x00\x8f\x01\n", "\x00\x8f,a\n\x01\x02,\x03\n", "iter\n1\n2\n"])
def test_a_table_without_numbers_does_not_pass_whatever_tensorboard_has(tmp_path: Path, text: str) -> None:
    folder = lab_run(tmp_path / "run")
    with SummaryWriter(str(folder)) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    (folder / "learning_curves.csv").write_bytes(text.encode("latin-1"))
    report = write_report(folder)
    (check,) = [check for check in report.checks if check.name == "no_nan_inf"]
    assert check.failed
    assert check.reason == "there are no rows of numbers in learning_curves.csv"


def gate_event(gate: str, passed: bool | None, *, forced: bool = False, **more: Any) -> dict[str, Any]:
    check: dict[str, Any] = {"passed": passed, "severity": "warn", "reason": f"60% < 50% is {passed}", "advice": "x"}
    evidence = {"safeguard": "stage_gates", "gate": gate, "env_steps": 500, "passed": passed, "forced": forced}
    return event("gate", 500) | {"evidence": evidence | {"checks": {"saturation": check}}} | more


def test_the_stages_are_shown_as_they_were_last(tmp_path: Path) -> None:
    folder = lab_run(tmp_path / "run")
    gates = [
        gate_event("G1", False),
        gate_event("G1", False, forced=True),
        gate_event("G2", None),
        gate_event("G3", False, superseded=True),
    ]
    write_events(folder, event("start"), *gates, event("stop", 900, "training ends"))
    report = write_report(folder)
    assert report.status == "WARN"
    assert table((folder / "report.md").read_text(), "## Stages")[2:] == [
        ["G1 (forced)", "500", "saturation", "WARN", "60% < 50% is False"],
        ["G2", "500", "saturation", "not checked", "60% < 50% is None"],
    ]
    content = json.loads((folder / "report.json").read_text())
    assert [(stage["gate"], stage["forced"]) for stage in content["stages"]] == [("G1", True), ("G2", False)]
    assert "stage_gates: G1 (forced), saturation: 60% < 50% is False" in content["health"]["reasons"]
