"""Small run folders in the format of the original off-policy program, and events of ours."""

import csv
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "seed": 0,
    "outer_iters": 24,
    "trajectories": 4,
    "horizon": 50,
    "gamma": 0.9,
    "alpha_w": 0.2,
    "alpha_pi": 0.1,
    "beta": 0.2,
    "sigma_mu": 0.3,
    "sigma_pi": 0.3,
    "K_mc": 2,
    "action_mode": "raw",
    "env": {"p_mix": 0.05},
}
HEADER = (
    "iter td_loss critic_teacher_error tracking_gap mean_rho mean_rho2 w_norm fixed_point_gap stability_proxy dist_mmd2"
)

Row = dict[str, float]


def healthy_rows(count: int = 24, *, rho: float = 1.0, rho_noise: float = 0.0, seed: int = 0) -> list[Row]:
    """The loss halves, the weights grow; the ratio is `rho` with some noise."""
    draw = random.Random(seed)
    rows = []
    for position in range(count):
        mean = rho + rho_noise * draw.gauss(0.0, 1.0)
        rows.append(
            {
                "iter": position,
                "td_loss": 1e-2 * 0.9**position,
                "critic_teacher_error": 0.5 - 0.01 * position,
                "tracking_gap": 0.0,
                "mean_rho": mean,
                "mean_rho2": mean**2 + abs(rho_noise) * draw.random(),
                "w_norm": 1.0 + 0.02 * position,
            }
        )
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], header: Sequence[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, header or list(rows[0]), restval="nan", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_lab(folder: Path, rows: Sequence[Mapping[str, Any]], **settings: Any) -> Path:
    """A run of the laboratory with these rows and settings."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in (CONFIG | settings).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env_resolved.json").write_text(json.dumps({"v_max": 0.4, "p_mix": 0.05, "feature_dim": 8}))
    header = [name for name in HEADER.split() if not rows or any(name in row for row in rows)]
    write_table(folder / "learning_curves.csv", rows, header)
    return folder


def event(kind: str, env_steps: int = 0, message: str = "", **evidence: Any) -> dict[str, Any]:
    content = {"kind": kind, "env_steps": env_steps, "iteration": 1, "message": message, "evidence": evidence}
    return {"time": "2026-01-01T00:00:00.000+00:00", **content}


def write_events(folder: Path, *events: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in events))
