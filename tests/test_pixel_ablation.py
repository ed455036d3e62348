"""The ablation of pixels: its arms are configurations that exist, and its table says the right numbers."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from rlmods.cli import run
from rlmods.configs import find_config

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from pixel_ablation import ARMS, read_arms, share_of_the_way, table


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_a_configuration(arm: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = [f"--config={find_config('td3_pixels')}", *(f"--{override}" for override in ARMS[arm])]
    with pytest.raises(SystemExit, match="0"):
        run(["fit", *options, "--print_config"])
    printed = capsys.readouterr().out
    assert ("features_dim: null" in printed) == (arm in ("naive", "wrong-wiring"))
    assert ("SharedFeatures" in printed) == (arm == "wrong-wiring")
    assert "learning_rate: 0.001" in printed  # the same for all


def test_the_way_goes_from_random_actions_to_the_optimum() -> None:
    assert share_of_the_way(-12.1) == 0.0
    assert share_of_the_way(-0.06) == pytest.approx(1.0)
    assert share_of_the_way(-6.08) == pytest.approx(0.5)


def result(seed: int, score: float, q_policy: float) -> dict[str, Any]:
    return {"seed": seed, "score": {"mean": score}, "q_policy": q_policy, "q_data": 1.0, "saturation": 0.25}


def test_the_table_averages_over_seeds_and_leaves_out_arms_without_results(tmp_path: Path) -> None:
    (tmp_path / "naive").mkdir()
    for seed, score in enumerate((-1.0, -3.0)):
        (tmp_path / "naive" / f"seed_{seed}.json").write_text(json.dumps(result(seed, score, 2.0 + seed)))
    lines = table(read_arms(tmp_path)).splitlines()
    assert len(lines) == 3
    assert lines[2] == "| naive | 2 | -2.00 ± 1.00 | 84% | 2.5 | 1 | 25% |"
