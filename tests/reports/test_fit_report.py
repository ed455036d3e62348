"""Every fit ends with a report, and a report that fails hides nothing."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from running import KILLER, SMALL, kill_at, newest_run

from rlmods.cli import run
from rlmods.reports import markdown

TINY = "data: {init_args: {total_env_steps: 160, eval_every: 80, eval_episodes: 1}}"
STRANGER = """
from lightning.pytorch import Callback

class Raise(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            raise ArithmeticError("in the middle")
"""
RAISE = "--trainer.callbacks+=stranger_of_reports.Raise"


@pytest.fixture
def options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, text in (("small", SMALL), ("tiny", TINY)):
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "stranger_of_reports.py").write_text(STRANGER)
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.syspath_prepend(tmp_path)
    configs = [word for name in ("small", "tiny") for word in ("--config", str(tmp_path / f"{name}.yaml"))]
    return ["fit", *configs, "--trainer.default_root_dir", str(tmp_path)]


def report_of(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((newest_run(root) / "report.json").read_text())
    return content


def test_a_run_that_came_to_its_end(tmp_path: Path, options: list[str]) -> None:
    run(options)
    report = report_of(tmp_path)
    assert (report["incomplete"], report["health"]["status"]) == (False, "PASS")
    assert report["samples"]["tail"][-1]["env_steps"] == 160
    text = (newest_run(tmp_path) / "report.md").read_text()
    assert "| eval/mean_reward |" in text
    assert re.search(r"train/learning_rate=(\S+) \(configured learning_rate=\1\)", text)


def test_an_exception_is_on_record_and_goes_on(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(ArithmeticError, match="in the middle"):
        run([*options, RAISE])
    report = report_of(tmp_path)
    assert (report["incomplete"], report["exception"]) == (True, "ArithmeticError: in the middle")
    assert report["health"]["status"] == "FAIL"


def test_a_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markdown, "_sections", None)
    with (
        pytest.raises(ArithmeticError, match="in the middle"),
        pytest.warns(UserWarning, match=r"no report was written: TypeError.* python -m rlmods report .*version_0"),
    ):
        run([*options, RAISE])
    assert not list(newest_run(tmp_path).glob("*report*"))


def test_a_signal_leaves_an_incomplete_run_and_a_resume_completes_it(tmp_path: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run([*options, *kill_at(5, signal.SIGTERM)])
    assert end.value.code == 143
    report = report_of(tmp_path)
    assert (report["incomplete"], report["exception"]) == (True, None)
    assert "SIGTERM received" in report["health"]["checks"]["complete"]["reason"]
    run([*options, "--ckpt_path", "last"])
    report = report_of(tmp_path)
    assert (report["incomplete"], report["health"]["status"]) == (False, "PASS")
    assert [line["kind"] for line in report["events"]] == ["start", "stop", "resume", "stop"]


def test_no_run_no_report(tmp_path: Path, options: list[str]) -> None:
    run([*options, "--trainer.logger", "false", "--trainer.enable_checkpointing", "false"])
    assert not list(tmp_path.rglob("report.*"))
