"""Training frames per second of DQN on CartPole-v1: a bare loop, rlmods and Stable-Baselines3 where it is installed.

`python benchmarks/dqn_speed.py` lets the contenders train side by side in one process with one torch thread, a block of
256 frames each in turn, and prints for each the median, minimum and maximum over the repeats of its frame rate, and of
the ratio of rlmods to it, in wall time and in CPU time.

A clock runs from the end of the first block with updates, while its contender works. rlmods runs in Lightning's
`Trainer` with TensorBoard, curves, the record of the run and atomic checkpoints (two files at each evaluation, the
replay with them), all of which count; of its evaluations the time in which episodes are played does not. The others
neither evaluate, log curves nor save. All have the same network, Huber loss, Adam, clipping and exploration, without
double Q-learning, which Stable-Baselines3 has not.

    zoo     1 environment; 256 frames, then 128 updates of 64; 256x256. Stable-Baselines3's target_update_interval of 10
            frames copies the target network once between two blocks of updates: every 128 updates in the other two.
    vector  8 environments; 256 frames (32 vector steps), then 32 updates of 128; 120-84. Stable-Baselines3 makes one
            update after each vector step. The target network is copied every 64 updates in all three.
"""

import argparse
import importlib.util
import logging
import os
import platform
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from bare_dqn import SpeedSettings, train_bare
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from turns import FrameRate, Turn, take_turns

from rlmods.algorithms import DQN
from rlmods.callbacks import Curves, GlobalRNG, GracefulStop, RunRecord
from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.data import ReplayDataModule

ZOO = SpeedSettings("zoo", 1, 15_360, 256, 128, 64, (256, 256), 2.3e-3, target_update_interval=128)
VECTOR = SpeedSettings("vector", 8, 40_960, 256, 32, 128, (120, 84), 2.5e-4, target_update_interval=64)
EVAL_EVERY = 5_000  # as shipped
LOG_EVERY_N_STEPS = 4  # as shipped

Contenders = dict[str, Callable[[SpeedSettings, int, Turn], None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", choices=["zoo", "vector", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=None, help="of one run, instead of 15,360 and 40,960")
    parser.add_argument("--without-peer", action="store_true", help="leave Stable-Baselines3 out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    contenders: Contenders = {"rlmods": train_rlmods, "bare": train_bare}
    if not arguments.without_peer and importlib.util.find_spec("stable_baselines3"):
        contenders["Stable-Baselines3"] = train_stable_baselines3
    print(describe_machine(with_peer="Stable-Baselines3" in contenders))
    for settings in (ZOO, VECTOR):
        if arguments.settings in (settings.name, "both"):
            measure(settings._replace(frames=arguments.frames or settings.frames), contenders, arguments.repeats)


def measure(settings: SpeedSettings, contenders: Contenders, repeats: int) -> None:
    """Run the contenders side by side and print one row each."""
    rates: dict[str, list[FrameRate]] = {name: [] for name in contenders}
    for seed in range(100, 100 + repeats):
        runs = {name: partial(train, settings, seed) for name, train in contenders.items()}
        for name, rate in take_turns(runs).items():
            rates[name].append(rate)
    load = " ".join(f"{average:.2f}" for average in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    print(f"\n{settings.name}: {settings.frames:,} frames, {repeats} repeats, load average {load}")
    print(f"{'':18s}{'frames/s (min to max)':>28s}{'rlmods / it (min to max)':>28s}{'the same in CPU time':>28s}")
    for name, each in rates.items():
        pairs = list(zip(rates["rlmods"], each, strict=True))
        columns = [
            spread([rate.wall for rate in each], ",.0f"),
            spread([ours.wall / it.wall for ours, it in pairs], ".2f"),
            spread([ours.cpu / it.cpu for ours, it in pairs], ".2f"),
        ]
        print(f"{name:18s}" + "".join(f"{column:>28s}" for column in columns), flush=True)


def spread(numbers: list[float], form: str) -> str:
    return f"{median(numbers):{form}} ({min(numbers):{form}} to {max(numbers):{form}})"


class TakesTurns(Callback):
    """Hands over after each iteration; the clock stands while episodes are played to evaluate."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Hand over; evaluation and checkpoints, where they are due, begin the next turn."""
        self.turn.end_block(batch.env_steps, learned=pl_module.update_steps > 0)

    def on_validation_batch_start(self, *_: Any) -> None:
        """Stop the clock."""
        self.turn.pause()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Let it go on."""
        self.turn.resume()


def train_rlmods(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """Ours, with what a run has when it is started from the command line, but the progress bar."""
    seed_everything(seed, verbose=False)
    data = make_data(settings)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(Path(folder), TakesTurns(turn)).fit(make_model(settings, data), datamodule=data)


def make_data(settings: SpeedSettings) -> ReplayDataModule:
    return ReplayDataModule(
        "CartPole-v1",
        settings.frames,
        num_envs=settings.num_envs,
        gamma=settings.gamma,
        buffer_size=settings.buffer_size,
        batch_size=settings.batch_size,
        learning_starts=settings.learning_starts,
        steps_per_iteration=settings.frames_per_block,
        updates_per_iteration=settings.updates_per_block,
        eval_every=EVAL_EVERY,
    )


def make_model(settings: SpeedSettings, data: ReplayDataModule) -> DQN:
    return DQN(
        data.spec,
        hidden_sizes=settings.hidden_sizes,
        learning_rate=settings.learning_rate,
        loss="huber",
        double_q=False,
        target_update_interval=settings.target_update_interval,
        exploration_final_eps=settings.final_eps,
        exploration_fraction=settings.exploration_fraction,
        max_grad_norm=settings.max_grad_norm,
    )


def make_trainer(
    folder: Path,
    *callbacks: Callback,
    log_every_n_steps: int = LOG_EVERY_N_STEPS,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> Trainer:
    checkpoints = [
        ModelCheckpoint(monitor="step", mode="max", save_top_k=3, filename="{step}"),
        ModelCheckpoint(monitor="eval/mean_reward", mode="max", filename="best-{step}"),
    ]
    return Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=log_every_n_steps,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        plugins=[AtomicCheckpointIO()],
        callbacks=[GlobalRNG(), Curves(), RunRecord(), GracefulStop(), *callbacks, *checkpoints],
    )


def train_stable_baselines3(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """The peer, without logger and progress bar."""
    from stable_baselines3 import DQN as PeerDQN
    from stable_baselines3.common.env_util import make_vec_env

    class TakesTurnsDQN(PeerDQN):  # type: ignore[misc]
        """Hands over after each block of updates, and of frames during the warm-up."""

        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            super().train(gradient_steps, batch_size)
            if self.num_timesteps % settings.frames_per_block == 0:
                turn.end_block(self.num_timesteps, learned=True)

    if settings.num_envs == 1:
        rhythm = {"train_freq": settings.frames_per_block, "gradient_steps": settings.updates_per_block}
        target_update_interval = 10
    else:
        rhythm = {"train_freq": 1, "gradient_steps": 1}
        target_update_interval = settings.target_update_interval * settings.num_envs
    TakesTurnsDQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", settings.num_envs, seed=seed),
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        target_update_interval=target_update_interval,
        exploration_fraction=settings.exploration_fraction,
        exploration_final_eps=settings.final_eps,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.hidden_sizes)},
        seed=seed,
        device="cpu",
        **rhythm,
    ).learn(settings.frames)


def describe_machine(*, with_peer: bool) -> str:
    packages = ["torch", "lightning", "gymnasium", "numpy", *(["stable-baselines3"] if with_peer else [])]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} torch thread"
    return f"{processor()}, {cores}\nPython {platform.python_version()}, {versions}"


def processor() -> str:
    """The model of the CPU."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor() or platform.machine()
    return next(
        (line.partition(": ")[2] for line in cpuinfo.read_text().splitlines() if line.startswith("model name")),
        platform.machine(),
    )


if __name__ == "__main__":
    main()
