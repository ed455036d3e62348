"""The command line does not go on after a failed stage gate, unless it is told to."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from running import SMALL, newest_run

from rlmods.cli import run

# No policy of CartPole gets a million: G2 fails at the first evaluation.
GATES = """\
trainer:
  callbacks:
    - class_path: rlmods.callbacks.StageGates
      init_args: {env_steps: [100, 101], baseline: 1000000.0}
"""


def fit(folder: Path, *more: str, gates: bool = True) -> None:
    files = ["-c", str(folder / "small.yaml"), *(["-c", str(folder / "gates.yaml")] if gates else [])]
    run(["fit", *files, "--trainer.default_root_dir", str(folder / "root"), *more])


def gates_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == "gate" and not event.get("superseded")]


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("failed")
    (folder / "small.yaml").write_text(SMALL)
    (folder / "gates.yaml").write_text(GATES)
    fit(folder)
    return folder


MORE = ["--ckpt_path", "last", "--data.init_args.total_env_steps", "700"]


@pytest.mark.parametrize("gates", [True, False], ids=["with StageGates", "without"])
def test_a_failed_gate_is_refused_before_anything_is_written(
    failed: Path, gates: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in failed.rglob("*"))
    with pytest.raises(SystemExit) as end:
        fit(failed, *MORE, gates=gates)
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "failed a stage gate (G2 at 140 environment steps, above_random: the evaluation is " in said
    assert "--force_gates true" in said
    assert sorted((path, path.stat().st_mtime_ns) for path in failed.rglob("*")) == before


def test_a_forced_run_goes_on_and_says_so(failed: Path) -> None:
    with pytest.warns(UserWarning, match=r"forced: got a checkpoint of a run that failed a stage gate \(G2"):
        fit(failed, *MORE, "--force_gates", "true")
    folder = newest_run(failed / "root")
    assert [(event["evidence"]["gate"], event["evidence"]["forced"]) for event in gates_of(folder)] == [
        *(("G1", False), ("G2", False), ("G0", False), ("G2", True))
    ]
    report = json.loads((folder / "report.json").read_text())
    assert report["health"]["status"] == "WARN"
    assert [stage["forced"] for stage in report["stages"] if stage["gate"] == "G2"] == [True]
    checkpoint = max(folder.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    gates = torch.load(checkpoint, weights_only=True)["stages"]["stage_gates"]["gates"]
    assert {gate["gate"]: gate["forced"] for gate in gates} == {"G1": False, "G2": True, "G0": False}
