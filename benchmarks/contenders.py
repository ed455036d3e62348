"""Trains one seed of one contender and writes its result: the process that `learning.py` starts for each seed.

`python benchmarks/contenders.py JOB OUT`, both JSON: the job on the command line, the result a file.
"""

import json
import platform
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any, TypedDict

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scores import Evaluation, Result, Score, time_to_solve, write_result

from rlmods.cli import RLModsCLI
from rlmods.configs import find_config
from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.envs.make import make_envs
from rlmods.types import EpisodeBatch, Observation

PEER_SETTINGS: dict[str, Any] = {
    "learning_rate": 2.3e-3,
    "batch_size": 64,
    "buffer_size": 100_000,
    "learning_starts": 1_000,
    "gamma": 0.99,
    "target_update_interval": 10,
    "train_freq": 256,
    "gradient_steps": 128,
    "exploration_fraction": 0.16,
    "exploration_final_eps": 0.04,
    "policy_kwargs": {"net_arch": [256, 256]},
}
PEER_ENV_ID, PEER_ENV_STEPS = "CartPole-v1", 50_000


class Job(TypedDict):
    """What to train, and how it is evaluated. All of it, but the seed, must be equal for the seeds of one folder."""

    contender: str  # "rlmods" or "sb3-zoo"
    config: str | None  # for rlmods
    overrides: list[str]  # for rlmods, "key=value"
    eval_every: int  # environment steps, rounded down to whole blocks
    eval_episodes: int
    score_episodes: int
    threshold: float


class Stopwatch:
    """Seconds since the training began, and how many of them went into evaluations."""

    def __init__(self) -> None:
        self.started = perf_counter()
        self.evaluating = 0.0
        self._evaluation_started = 0.0

    def total(self) -> float:
        """With the evaluations."""
        return perf_counter() - self.started

    def training(self) -> float:
        """Without them."""
        return self.total() - self.evaluating

    def begin_evaluation(self) -> None:
        """Stop the clock of the training."""
        self._evaluation_started = perf_counter()

    def end_evaluation(self) -> None:
        """Let it go on."""
        self.evaluating += perf_counter() - self._evaluation_started


class EvaluationRecorder(Callback):
    """Notes every evaluation of a run, and the seconds of training before it."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch()
        self.evaluations: list[Evaluation] = []
        self.training_seconds = self.total_seconds = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.stopwatch = Stopwatch()

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop the clock of the training while episodes are played."""
        self.stopwatch.begin_evaluation()

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let it go on."""
        self.stopwatch.end_evaluation()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the evaluation; checkpoints are written after this, on the clock of the training."""
        metrics = trainer.callback_metrics
        self.evaluations.append(
            Evaluation(
                env_steps=trainer.datamodule.env_steps,  # type: ignore[attr-defined]
                wall_seconds=self.stopwatch.training(),
                mean=float(metrics["eval/mean_reward"]),
                std=float(metrics["eval/std_reward"]),
            )
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the clock."""
        self.training_seconds, self.total_seconds = self.stopwatch.training(), self.stopwatch.total()


class RecordedCLI(RLModsCLI):
    """The command line, with the recorder among the callbacks."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the recorder."""
        trainer = super().instantiate_trainer(**kwargs)
        self.recorder = EvaluationRecorder()
        trainer.callbacks.insert(0, self.recorder)  # type: ignore[attr-defined]
        return trainer


def train_rlmods(job: Job, seed: int, folder: Path) -> Result:
    """As a user would, from the command line, all on but the progress bar."""
    options = {
        "seed_everything": seed,
        "trainer.default_root_dir": folder,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "data.init_args.eval_every": job["eval_every"],
        "data.init_args.eval_episodes": job["eval_episodes"],
    }
    config = [] if job["config"] is None else [f"--config={find_config(job['config'])}"]
    arguments = [*job["overrides"], *(f"{name}={value}" for name, value in options.items())]
    cli = RecordedCLI(["fit", *config, *(f"--{argument}" for argument in arguments)])
    cli.datamodule.eval_episodes = job["score_episodes"]
    (metrics,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    score = Score(mean=metrics["test/mean_reward"], std=metrics["test/std_reward"], episodes=job["score_episodes"])
    recorder = cli.recorder
    return make_result(job, seed, recorder.evaluations, (recorder.training_seconds, recorder.total_seconds), score)


class PeerPolicy:
    """The peer's greedy policy, as our evaluator asks for it."""

    def __init__(self, dqn: Any) -> None:
        self.dqn = dqn

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> torch.Tensor:
        """The best action."""
        q_value: torch.Tensor = self.dqn.q_net(observation)
        return q_value.argmax(-1)


def train_peer(job: Job, seed: int) -> Result:
    """Stable-Baselines3 with the zoo's settings, evaluated by our evaluator at the same environment steps."""
    from stable_baselines3 import DQN as PeerDQN
    from stable_baselines3.common.callbacks import BaseCallback

    block = PEER_SETTINGS["train_freq"]
    rhythm = max(1, job["eval_every"] // block) * block

    class Recorder(BaseCallback):  # type: ignore[misc]
        """Evaluates after a block of updates, where rlmods does."""

        def __init__(self) -> None:
            super().__init__()
            self.stopwatch = Stopwatch()
            self.evaluations: list[Evaluation] = []
            self.environments = make_envs(PEER_ENV_ID, job["eval_episodes"])
            self.seconds = (0.0, 0.0)

        def _on_training_start(self) -> None:
            self.stopwatch = Stopwatch()

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps and self.num_timesteps % rhythm == 0:
                self.evaluate()

        def _on_training_end(self) -> None:
            self.evaluate()
            self.seconds = (self.stopwatch.training(), self.stopwatch.total())

        def evaluate(self) -> None:
            training_seconds = self.stopwatch.training()
            self.stopwatch.begin_evaluation()
            episodes = play(self.model, self.environments, stream_seed(seed, 0), self.num_timesteps)
            self.stopwatch.end_evaluation()
            mean, std = mean_and_std(episodes)
            self.evaluations.append(
                Evaluation(env_steps=self.num_timesteps, wall_seconds=training_seconds, mean=mean, std=std)
            )

    recorder = Recorder()
    dqn = PeerDQN("MlpPolicy", PEER_ENV_ID, seed=seed, device="cpu", **PEER_SETTINGS)
    dqn.learn(PEER_ENV_STEPS, callback=recorder)
    episodes = play(dqn, make_envs(PEER_ENV_ID, job["score_episodes"]), stream_seed(seed, 1), dqn.num_timesteps)
    mean, std = mean_and_std(episodes)
    score = Score(mean=mean, std=std, episodes=job["score_episodes"])
    return make_result(job, seed, recorder.evaluations, recorder.seconds, score)


def play(dqn: Any, environments: Any, seed: int, env_steps: int) -> EpisodeBatch:
    device = torch.device("cpu")
    evaluator = EpisodeEvaluator(
        environments, gamma=PEER_SETTINGS["gamma"], seed=seed, env_steps=env_steps, device=device
    )
    return evaluator.run(PeerPolicy(dqn))


def mean_and_std(episodes: EpisodeBatch) -> tuple[float, float]:
    return float(episodes.returns.mean()), float(episodes.returns.std(correction=0))


def stream_seed(seed: int, stream: int) -> int:
    """Of the evaluations, or of the score: neither is the seed of the training."""
    return int(np.random.SeedSequence([seed, stream]).generate_state(1)[0])


def make_result(
    job: Job, seed: int, evaluations: list[Evaluation], seconds: tuple[float, float], score: Score
) -> Result:
    training_seconds, total_seconds = seconds
    return Result(
        seed=seed,
        settings=dict(job),
        versions=versions(),
        training_seconds=training_seconds,
        total_seconds=total_seconds,
        evaluations=evaluations,
        score=score,
        time_to_solve=time_to_solve(evaluations, job["threshold"]),
    )


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("rlmods", "torch", "lightning", "gymnasium", "numpy", "stable-baselines3"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def main() -> None:
    job: Job = json.loads(sys.argv[1])
    out = Path(sys.argv[2])
    seed = int(out.stem.removeprefix("seed_"))
    torch.set_num_threads(1)
    if job["contender"] == "sb3-zoo":
        result = train_peer(job, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = train_rlmods(job, seed, Path(folder))
    write_result(out, result)


if __name__ == "__main__":
    main()
