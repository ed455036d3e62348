"""What each part of the pixel recipe is worth, on the tracked dot: arms by seeds, and one table.

    python benchmarks/pixel_ablation.py --seeds 0-2 --out benchmarks/results/pixel_ablation
    python benchmarks/pixel_ablation.py --seeds 100 --updates 2000 --arms recipe,naive --out ...

All arms are `td3_pixels`, with the same encoder, environment and budget:

    recipe       the critic's loss trains the one encoder, bounded trunks behind it, images shifted at random
    separate     the same, but actor and critic have an encoder each
    naive        separate encoders, features passed on as they are, no shift
    wrong-wiring naive, with the actor's loss flowing through the critic's state input, and its gradient clipped

Each run is a process of its own with one torch thread, and leaves one JSON file; the same command goes on where it
stopped. The score is the last weights' return over 100 episodes, also as a share of the way from uniformly random
actions (0) to the optimum (1), both of which are known. Seeds 0 to 9 are for reporting, tuning has those from 100 up.
"""

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, TypedDict

import torch
from contenders import EvaluationRecorder, versions
from learning import SettingsDifferError, Task, parse_seeds, run
from lightning.pytorch import LightningModule, Trainer
from scores import Evaluation, Score

from rlmods.cli import RLModsCLI
from rlmods.configs import find_config

TRAIN = [sys.executable, str(Path(__file__)), "train"]
RANDOM_RETURN, BEST_RETURN = -12.1, -0.06  # of `DotTracking`'s docstring
WARM_UP = 1_000  # environment steps, one for each update after them
_SEPARATE = ["model.init_args.encoder_ownership=separate"]
_NAIVE = [*_SEPARATE, "model.init_args.features_dim=null", "model.init_args.random_shift=0"]
ARMS = {
    "recipe": [],
    "separate": _SEPARATE,
    "naive": _NAIVE,
    "wrong-wiring": [
        "model=rlmods.configs.postmortem.td3_shared_features.SharedFeatures",
        "model.init_args.max_grad_norm={critic: 10.0, actor: 1.0}",
        *_NAIVE,
    ],
}


class ArmResult(TypedDict):
    """One seed of one arm, as its JSON file holds it; the last four are of the last iteration that moved the actor."""

    seed: int
    settings: dict[str, Any]
    versions: dict[str, str | None]
    training_seconds: float
    evaluations: list[Evaluation]
    score: Score
    q_data: float
    q_policy: float
    saturation: float  # share of |tanh| > 0.99
    actor_grad_norm: float  # before the clip


class Recorder(EvaluationRecorder):
    """Notes the evaluations, and the last signals of the actor."""

    def __init__(self) -> None:
        super().__init__()
        self.signals: dict[str, float] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep them."""
        if outputs and "q_policy" in outputs:
            self.signals = {
                "q_data": float(outputs["q_value"].mean()),
                "q_policy": float(outputs["q_policy"].mean()),
                "saturation": float((outputs["pre_tanh"].tanh().abs() > 0.99).float().mean()),
                "actor_grad_norm": float(outputs["grad_norm/actor"].mean()),
            }


class RecordedCLI(RLModsCLI):
    """The command line, with the recorder among the callbacks."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the recorder."""
        trainer = super().instantiate_trainer(**kwargs)
        self.recorder = Recorder()
        trainer.callbacks.insert(0, self.recorder)  # type: ignore[attr-defined]
        return trainer


def train(job: dict[str, Any], seed: int, folder: str) -> ArmResult:
    """One run from the command line, and the score of its last weights."""
    options = [
        *job["overrides"],
        f"seed_everything={seed}",
        f"trainer.default_root_dir={folder}",
        "trainer.enable_progress_bar=false",
        "trainer.enable_model_summary=false",
        f"data.init_args.total_env_steps={WARM_UP + job['updates']}",
    ]
    cli = RecordedCLI(["fit", f"--config={find_config(job['config'])}", *(f"--{option}" for option in options)])
    cli.datamodule.eval_episodes = job["score_episodes"]
    (metrics,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    return ArmResult(
        seed=seed,
        settings=job,
        versions=versions(),
        training_seconds=cli.recorder.training_seconds,
        evaluations=cli.recorder.evaluations,
        score=Score(mean=metrics["test/mean_reward"], std=metrics["test/std_reward"], episodes=job["score_episodes"]),
        q_data=cli.recorder.signals["q_data"],
        q_policy=cli.recorder.signals["q_policy"],
        saturation=cli.recorder.signals["saturation"],
        actor_grad_norm=cli.recorder.signals["actor_grad_norm"],
    )


def share_of_the_way(mean_return: float) -> float:
    """0 for uniformly random actions, 1 for the optimum."""
    return (mean_return - RANDOM_RETURN) / (BEST_RETURN - RANDOM_RETURN)


def table(results: dict[str, list[ArmResult]]) -> str:
    """One line for each arm: means over its seeds, the spread of the scores over them."""
    lines = ["| arm | seeds | return | of random to best | Q at the policy's actions | at the data's | saturated |"]
    lines.append("|---|---|---|---|---|---|---|")
    for arm, of_arm in results.items():
        scores = [result["score"]["mean"] for result in of_arm]
        means = [statistics.mean(result[name] for result in of_arm) for name in ("q_policy", "q_data", "saturation")]
        lines.append(
            f"| {arm} | {len(of_arm)} | {statistics.mean(scores):.2f} ± {statistics.pstdev(scores):.2f} "
            f"| {share_of_the_way(statistics.mean(scores)):.0%} | {means[0]:.3g} | {means[1]:.3g} | {means[2]:.0%} |"
        )
    return "\n".join(lines)


def read_arms(folder: Path) -> dict[str, list[ArmResult]]:
    """The results of the arms that have some."""
    found = {arm: sorted((folder / arm).glob("seed_*.json")) for arm in ARMS}
    return {arm: [json.loads(path.read_text()) for path in paths] for arm, paths in found.items() if paths}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", default=",".join(ARMS), help="some of them, with commas")
    parser.add_argument("--seeds", type=parse_seeds, default=parse_seeds("0-2"), help="0-2, or 100,101")
    parser.add_argument("--updates", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, choices=[1, 2], default=1, help="runs side by side, one thread each")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    arguments = parser.parse_args()
    arms = arguments.arms.split(",")
    if unknown := [arm for arm in arms if arm not in ARMS]:
        parser.error(f"got --arms {','.join(unknown)}, expected some of {','.join(ARMS)}")
    jobs = {
        arm: {"config": "td3_pixels", "overrides": ARMS[arm], "updates": arguments.updates, "score_episodes": 100}
        for arm in arms
    }
    # Seed by seed, so that an unfinished table compares the same seeds.
    tasks = [Task(jobs[arm], seed, arguments.out / arm) for seed in arguments.seeds for arm in arms]
    try:
        run(tasks, jobs=arguments.jobs, train=TRAIN)
    except SettingsDifferError as error:
        parser.error(str(error))
    print(table(read_arms(arguments.out)))


def train_one() -> None:
    """What the runner starts for each seed: a job and the file to write, on the command line."""
    out = Path(sys.argv[3])
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        result = train(json.loads(sys.argv[2]), int(out.stem.removeprefix("seed_")), folder)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        train_one()
    else:
        main()
