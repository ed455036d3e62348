"""The expert DQN whose Q passed its ceiling, replayed: what the doctor and the safeguards say, and what remedies do."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlmods.cli import run
from rlmods.configs import find_config
from rlmods.data import ExpertDataModule
from rlmods.doctor.command import diagnose
from rlmods.functional.value_bounds import discounted_value_bounds

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from replay_ratio_ablation import ARMS, Result, table, train

NAME = "postmortem/dqn_replay_ratio"
CONFIG = yaml.safe_load(find_config(NAME).read_text())


def test_the_ceiling_of_the_configuration_is_that_of_its_rewards() -> None:
    """(−0.03 − 0.01) / 0.05 and (0.1 + 0.01 + 0.05) / 0.05."""
    data = ExpertDataModule(**CONFIG["data"]["init_args"])
    low, high = data.spec["settings"]["reward_bounds"]
    ceiling = next(c for c in CONFIG["trainer"]["callbacks"] if c["class_path"].endswith("ValueBoundGuard"))[
        "init_args"
    ]
    assert (ceiling["low"], ceiling["high"]) == pytest.approx(discounted_value_bounds(low, high, data.gamma), rel=1e-6)
    assert data.uses_per_transition == 384.0


def test_the_doctor_names_the_replay_ratio_and_the_target_before_the_run() -> None:
    lines = {line.name: line for line in diagnose([NAME]).lines}
    assert lines["replay_ratio"].status == "FAIL"
    assert "384 draws of each" in lines["replay_ratio"].arithmetic
    assert lines["target_mixing"].status == "WARN"
    assert "values lie in [-0.8, 3.2]" in lines["value_bound"].arithmetic
    assert "applied: 0.003 all the time" in lines["learning_rate"].arithmetic


def test_q_passes_its_ceiling_in_a_few_hundred_updates() -> None:
    result = train("base", 0, total_env_steps=1_200, eval_episodes=2)
    assert result["ceiling"] == pytest.approx(3.2)
    assert result["first_above"] is not None
    assert result["first_above"] <= 1_200
    assert result["q_max"] > result["ceiling"]
    assert result["replay_ratio"] == pytest.approx(384.0, rel=0.02)


@pytest.mark.slow
def test_the_safeguards_name_ceiling_replay_ratio_and_learning_rate(tmp_path: Path) -> None:
    """A minute: Q at 22, where no policy has a value above 3.2."""
    options = ["--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    run(["fit", "--config", NAME, "--seed_everything", "0", *options])
    (folder,) = tmp_path.glob("lightning_logs/*")
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    alarms: dict[str, list[Any]] = {}
    for event in events:
        if event["kind"] == "alarm":
            alarms.setdefault(event["evidence"]["cause"], []).append(event)
    assert alarms["value_out_of_bounds"][0]["evidence"]["interval"] == pytest.approx([-0.8, 3.2])
    assert "likely cause" in alarms["high_replay_ratio"][-1]["message"]
    (last,) = [event for event in events if event["kind"] == "settings"][-1:]
    applied = {row["name"]: row for row in last["evidence"]["rows"]}
    assert applied["learning_rate"]["configured"] == pytest.approx(applied["learning_rate"]["last"]) == 3e-3
    assert applied["replay_ratio"]["last"] == pytest.approx(384.0, rel=0.02)


def make_result(arm: str, seed: int, q_max: float, first_above: int | None) -> Result:
    return Result(
        arm=arm,
        seed=seed,
        ceiling=3.2,
        q_max=q_max,
        first_above=first_above,
        share_above=0.25,
        mean_reward=5.0,
        expert_mean_reward=22.0,
        replay_ratio=384.0,
        alarms=[],
    )


def test_the_table_says_how_many_seeds_came_above() -> None:
    results = [make_result("base", seed, q_max, 800 + seed) for seed, q_max in enumerate((4.0, 50.0, 9.0))]
    results.append(make_result("slower target", 0, 2.0, None))
    lines = table(results).splitlines()
    assert lines[2] == "| base | 3 | 384 | 3.20 | 9 (4 to 50) | 801 (3 of 3) | 25% | 5.00 | 22.00 |"
    assert lines[3] == "| slower target | 1 | 384 | 3.20 | 2 (2 to 2) | never | 25% | 5.00 | 22.00 |"
    assert len(lines) == 4
    assert next(iter(ARMS)) == "base"
