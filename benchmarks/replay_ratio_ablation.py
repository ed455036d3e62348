"""What each remedy against a Q above its ceiling really does, on the configuration that reaches it.

    python benchmarks/replay_ratio_ablation.py --seeds 1-3 --out benchmarks/results/replay_ratio_ablation
    python benchmarks/replay_ratio_ablation.py --table --out benchmarks/results/replay_ratio_ablation

The base is `postmortem/dqn_replay_ratio`: each transition is learned from more than a hundred times, the target network
follows quickly, no gradient is clipped and a bonus in the reward fades. One thing is changed in each arm. Each run
leaves one JSON file, and the same command goes on where it stopped. The base was chosen with seed 0; seeds 1 to 3 are
reported.

The ceiling is that of the rewards of a step, Σ γᵗ r_max. `q_max` is the largest Q of a mini-batch's actions; the share
is that of the iterations with an update in which it lay above the ceiling.
"""

import argparse
import json
import logging
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any, TypedDict

import torch
import yaml
from learning import parse_seeds
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from rlmods.algorithms import DQN
from rlmods.callbacks import GlobalRNG, TargetClamp, ValueBoundGuard
from rlmods.configs import find_config
from rlmods.data import ExpertDataModule
from rlmods.functional.value_bounds import discounted_value_bounds

CONFIG = "postmortem/dqn_replay_ratio"
# Of the model, of the data, and whether targets are clamped to the bounds of the values.
ARMS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "base": ({}, {}, False),
    "lower learning rate": ({"learning_rate": 3e-4}, {}, False),
    "slower target": ({"tau": 0.005}, {}, False),
    "one-step returns": ({}, {"n_steps": 1}, False),
    "accumulation of 4": ({"accumulate_grad_batches": 4}, {}, False),
    "target clamp": ({}, {}, True),
    "ratio at most 8": ({}, {"max_replay_ratio": 8.0}, False),
}


class Result(TypedDict):
    """One seed of one arm."""

    arm: str
    seed: int
    ceiling: float
    q_max: float
    first_above: int | None  # environment steps
    share_above: float  # of the iterations with an update
    mean_reward: float
    expert_mean_reward: float
    replay_ratio: float
    alarms: list[str]


class Recorder(Callback):
    """The largest Q of each iteration."""

    def __init__(self) -> None:
        self.q_max: list[float] = []
        self.env_steps: list[int] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep it."""
        if outputs:
            self.q_max.append(float(outputs["q_value"].amax()))
            self.env_steps.append(batch.env_steps)


def train(arm: str, seed: int, **data_settings: Any) -> Result:
    """One run; `data_settings` take the place of those of the configuration and the arm."""
    config = yaml.safe_load(find_config(CONFIG).read_text())
    model_changes, data_changes, clamps = ARMS[arm]
    seed_everything(seed, verbose=False)
    data = ExpertDataModule(**({**config["data"]["init_args"], "eval_every": 10**6} | data_changes | data_settings))
    model = DQN(data.spec, **(config["model"]["init_args"] | model_changes))
    reward_low, reward_high = data.spec["settings"]["reward_bounds"]
    low, high = discounted_value_bounds(reward_low, reward_high, data.gamma)
    recorder, guard = Recorder(), ValueBoundGuard(low=low, high=high)
    callbacks: list[Callback] = [GlobalRNG(), recorder, guard, *([TargetClamp(low=low, high=high)] if clamps else [])]
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=callbacks,
        )
        trainer.fit(model, datamodule=data)
    above = [q > high for q in recorder.q_max]
    metrics = trainer.callback_metrics
    return Result(
        arm=arm,
        seed=seed,
        ceiling=high,
        q_max=max(recorder.q_max),
        first_above=recorder.env_steps[above.index(True)] if any(above) else None,
        share_above=statistics.mean(above),
        mean_reward=float(metrics["eval/mean_reward"]),
        expert_mean_reward=float(metrics["eval/expert_mean_reward"]),
        replay_ratio=data.replay_ratio or 0.0,
        alarms=list(dict.fromkeys(cause for cause, _ in guard.raised)),
    )


def table(results: list[Result]) -> str:
    """A line for each arm; q_max and the first step are medians over its seeds, the rest means."""
    lines = [
        "| arm | seeds | replay ratio | ceiling | q_max | first above at | iterations above | evaluation | expert |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        of_arm = [result for result in results if result["arm"] == arm]
        if not of_arm:
            continue
        firsts = [result["first_above"] for result in of_arm if result["first_above"] is not None]
        first = f"{statistics.median(firsts):,.0f} ({len(firsts)} of {len(of_arm)})" if firsts else "never"
        q_max = sorted(result["q_max"] for result in of_arm)
        means = {
            name: statistics.mean(float(result[name]) for result in of_arm)
            for name in ("replay_ratio", "share_above", "mean_reward", "expert_mean_reward")
        }
        lines.append(
            f"| {arm} | {len(of_arm)} | {means['replay_ratio']:.0f} | {of_arm[0]['ceiling']:.2f} "
            f"| {statistics.median(q_max):.3g} ({q_max[0]:.3g} to {q_max[-1]:.3g}) | {first} "
            f"| {means['share_above']:.0%} | {means['mean_reward']:.2f} | {means['expert_mean_reward']:.2f} |"
        )
    return "\n".join(lines)


def stored(folder: Path) -> list[Result]:
    """Every result of a folder."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/seed_*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("1-3"), help="0-2, or 100,101")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Seed by seed, so that an unfinished table compares the same seeds.
    for seed in [] if arguments.table else arguments.seeds:
        for arm in ARMS:
            path = arguments.out / arm.replace(" ", "-") / f"seed_{seed}.json"
            if path.exists():
                continue
            result = train(arm, seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(arm, seed, f"q_max {result['q_max']:.3g} of {result['ceiling']:.3g}", flush=True)
    print(table(stored(arguments.out)))


if __name__ == "__main__":
    main()
