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
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from scores import Evaluation, Result, Score, time_to_solve, write_result

from rlmods.cli import RLModsCLI
from rlmods.configs import find_config
from rlmods.data.evaluation import EpisodeEvaluator
from rlmods.envs.make import make_envs
from rlmods.types import EpisodeBatch, Observation

PEER_ENV_ID = "CartPole-v1"


class Peer(NamedTuple):
    """An algorithm of Stable-Baselines3 with the zoo's settings for CartPole-v1."""

    algorithm: str
    env_steps: int
    num_envs: int
    block: int  # environment steps between two collections
    gamma: float
    settings: dict[str, Any]


PEERS = {
    "sb3-zoo": Peer(
        algorithm="DQN",
        env_steps=50_000,
        num_envs=1,
        block=256,
        gamma=0.99,
        settings={
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "target_update_interval": 10,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
            "exploration_final_eps": 0.04,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "sb3-zoo-ppo": Peer(
        algorithm="PPO",
        env_steps=100_000,
        num_envs=8,
        block=256,
        gamma=0.98,
        settings={
            "learning_rate": lambda remaining: 1e-3 * remaining,
            "clip_range": lambda remaining: 0.2 * remaining,
            "n_steps": 32,
            "batch_size": 256,
            "n_epochs": 20,
            "gae_lambda": 0.8,
            "ent_coef": 0.0,
        },
    ),
}


class Job(TypedDict):
    """What to train, and how it is evaluated. All of it, but the seed, must be equal for the seeds of one folder."""

    contender: str  # "rlmods" or a name of PEERS
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

    def __init__(self, algorithm: Any) -> None:
        self.policy = algorithm.policy

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> torch.Tensor:
        """The best action."""
        action: torch.Tensor = self.policy._predict(observation, deterministic=True)
        return action


def train_peer(job: Job, seed: int) -> Result:
    """Stable-Baselines3 with the zoo's settings, evaluated by our evaluator at the same environment steps."""
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env

    peer = PEERS[job["contender"]]
    rhythm = max(1, job["eval_every"] // peer.block) * peer.block

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
            policy = PeerPolicy(self.model)
            episodes = play(policy, self.environments, stream_seed(seed, 0), self.num_timesteps, peer.gamma)
            self.stopwatch.end_evaluation()
            mean, std = mean_and_std(episodes)
            self.evaluations.append(
                Evaluation(env_steps=self.num_timesteps, wall_seconds=training_seconds, mean=mean, std=std)
            )

    recorder = Recorder()
    environments = make_vec_env(PEER_ENV_ID, peer.num_envs, seed=seed)
    settings = peer.settings | {"gamma": peer.gamma, "seed": seed, "device": "cpu"}
    algorithm = getattr(stable_baselines3, peer.algorithm)("MlpPolicy", environments, **settings)
    algorithm.learn(peer.env_steps, callback=recorder)
    score_environments = make_envs(PEER_ENV_ID, job["score_episodes"])
    policy = PeerPolicy(algorithm)
    episodes = play(policy, score_environments, stream_seed(seed, 1), algorithm.num_timesteps, peer.gamma)
    mean, std = mean_and_std(episodes)
    score = Score(mean=mean, std=std, episodes=job["score_episodes"])
    return make_result(job, seed, recorder.evaluations, recorder.seconds, score)


def play(policy: PeerPolicy, environments: Any, seed: int, env_steps: int, gamma: float) -> EpisodeBatch:
    device = torch.device("cpu")
    return EpisodeEvaluator(environments, gamma=gamma, seed=seed, env_steps=env_steps, device=device).run(policy)


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
    if job["contender"] in PEERS:
        result = train_peer(job, seed)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = train_rlmods(job, seed, Path(folder))
    write_result(out, result)


if __name__ == "__main__":
    main()
