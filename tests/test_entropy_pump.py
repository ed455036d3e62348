"""The post-mortem of the drone swarm, replayed on the command line: collapse, diagnosis, proposal, recovery."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlmods.cli import run
from rlmods.reports.next_command import main as next_command

PUMP = ["--from", "best", "--weights_only_from", "true", "--config", "postmortem/ppo_entropy_pump"]


def fit(root: Path, *arguments: str) -> Path:
    """The folder of a new run."""
    before = set(root.glob("lightning_logs/*"))
    run(["fit", *arguments, "--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"])
    (folder,) = set(root.glob("lightning_logs/*")) - before
    return folder


def success(folder: Path, which: str) -> float:
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return float(summary["evaluation"][which]["success_rate"]["rate"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:action_distribution is unbounded")
def test_the_entropy_pump(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four minutes: a good policy, twelve times its entropy bonus, and what `next` proposes then."""
    parent = fit(tmp_path, "--config", "postmortem/ppo_entropy_pump_parent", "--seed_everything", "0")
    assert success(parent, "last") > 0.95

    pumped = fit(tmp_path, *PUMP, "--config", "safeguards/ppo", "--seed_everything", "1")
    assert success(pumped, "first") > 0.95  # the warm start was sound
    assert success(pumped, "last") < 0.5
    events = [json.loads(line) for line in (pumped / "events.jsonl").read_text().splitlines()]
    assert {"sigma_beyond_box", "sigma_costs_return"} <= {event["evidence"].get("cause") for event in events}

    capsys.readouterr()
    assert next_command([str(pumped)]) == 0
    said = capsys.readouterr().out
    assert "hypothesis: model.init_args.ent_coef from 0.12 to 0.01" in said
    command = shlex.split(said.splitlines()[-1])
    assert command[command.index("--from") + 1].startswith(str(parent / "checkpoints" / "best-"))

    recovered = fit(tmp_path, *command[4:], "--seed_everything", "2")
    assert success(recovered, "last") > 0.95
