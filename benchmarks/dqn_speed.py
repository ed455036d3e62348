"""Training frames per second of DQN on CartPole-v1: a bare loop, rlmods and Stable-Baselines3 where it is installed.

`python benchmarks/dqn_speed.py` lets the contenders take turns (A B C A B C ...), one torch thread, in one process, and
prints for each the median, minimum and maximum of its frame rate, and of the ratio of rlmods to it within a round.

What is measured: from the end of the first block of updates to the end of the run, so that imports, building the
environments, warm-up and the first allocations count for nobody. rlmods runs in Lightning's `Trainer` with TensorBoard,
curves, the record of the run and atomic checkpoints (two files at each evaluation, the replay with them), all of which
count; of its evaluations the time in which episodes are played does not. The others neither evaluate, log curves nor
save. All have the same network, Huber loss, Adam, clipping and exploration, without double Q-learning, which
Stable-Baselines3 has not.

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
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from bare_dqn import SpeedSettings, bare_frame_rate
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from rlmods.algorithms import DQN
from rlmods.callbacks import Curves, GlobalRNG, GracefulStop, RunRecord
from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.data import ReplayDataModule

ZOO = SpeedSettings("zoo", 1, 15_360, 256, 128, 64, (256, 256), 2.3e-3, target_update_interval=128)
VECTOR = SpeedSettings("vector", 8, 40_960, 256, 32, 128, (120, 84), 2.5e-4, target_update_interval=64)
EVAL_EVERY = 5_000  # as shipped
LOG_EVERY_N_STEPS = 4  # as shipped

FrameRate = Callable[[SpeedSettings, int], float]


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
    contenders = {"bare": bare_frame_rate, "rlmods": rlmods_frame_rate}
    if not arguments.without_peer and importlib.util.find_spec("stable_baselines3"):
        contenders["Stable-Baselines3"] = stable_baselines3_frame_rate
    print(describe_machine(with_peer="Stable-Baselines3" in contenders))
    for settings in (ZOO, VECTOR):
        if arguments.settings in (settings.name, "both"):
            measure(settings._replace(frames=arguments.frames or settings.frames), contenders, arguments.repeats)


def measure(settings: SpeedSettings, contenders: dict[str, FrameRate], repeats: int) -> None:
    """Let the contenders take turns and print one row each."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for seed in range(100, 100 + repeats):
        for name, frame_rate in contenders.items():
            rates[name].append(frame_rate(settings, seed))
    load = " ".join(f"{average:.2f}" for average in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"
    print(f"\n{settings.name}: {settings.frames:,} frames, {repeats} rounds, load average {load}")
    print(f"{'':18s} {'frames/s':>9s}  {'(min to max)':16s} {'rlmods / it':>12s}  (min to max)")
    for name, each in rates.items():
        ratios = [ours / it for ours, it in zip(rates["rlmods"], each, strict=True)]
        print(
            f"{name:18s} {median(each):9,.0f}  {f'({min(each):,.0f} to {max(each):,.0f})':16s} "
            f"{median(ratios):12.2f}  ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


class TrainingClock(Callback):
    """Seconds and frames since the end of the first block of updates, without the time in which episodes are played."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.frames_before = 0
        self.frames_per_second = 0.0
        self._paused = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        if self.started is None and batch.num_updates:
            self.started, self.frames_before = perf_counter(), batch.env_steps

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Stop the clock."""
        self._paused = perf_counter()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Let it go on."""
        if self.started is not None:
            self.started += perf_counter() - self._paused

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read it."""
        if self.started is not None:
            frames = trainer.datamodule.env_steps - self.frames_before  # type: ignore[attr-defined]
            self.frames_per_second = frames / (perf_counter() - self.started)


def rlmods_frame_rate(settings: SpeedSettings, seed: int) -> float:
    """Ours, with what a run has when it is started from the command line, but the progress bar."""
    seed_everything(seed, verbose=False)
    data = make_data(settings)
    clock = TrainingClock()
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(Path(folder), clock).fit(make_model(settings, data), datamodule=data)
    return clock.frames_per_second


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


def make_trainer(folder: Path, *callbacks: Callback) -> Trainer:
    checkpoints = [
        ModelCheckpoint(monitor="step", mode="max", save_top_k=3, filename="{step}"),
        ModelCheckpoint(monitor="eval/mean_reward", mode="max", filename="best-{step}"),
    ]
    return Trainer(
        accelerator="cpu",
        max_epochs=1,
        num_sanity_val_steps=0,
        log_every_n_steps=LOG_EVERY_N_STEPS,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=TensorBoardLogger(folder, default_hp_metric=False),
        plugins=[AtomicCheckpointIO()],
        callbacks=[GlobalRNG(), Curves(), RunRecord(), GracefulStop(), *callbacks, *checkpoints],
    )


def stable_baselines3_frame_rate(settings: SpeedSettings, seed: int) -> float:
    """The peer, without logger and progress bar."""
    from stable_baselines3 import DQN as PeerDQN
    from stable_baselines3.common.env_util import make_vec_env

    class TimedDQN(PeerDQN):  # type: ignore[misc]
        """Notes the end of the first block of updates."""

        started: tuple[float, int] | None = None

        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            super().train(gradient_steps, batch_size)
            self.started = self.started or (perf_counter(), self.num_timesteps)

    rhythm = (
        {"train_freq": settings.frames_per_block, "gradient_steps": settings.updates_per_block}
        | {"target_update_interval": 10}
        if settings.num_envs == 1
        else {"train_freq": 1, "gradient_steps": 1}
        | {"target_update_interval": settings.target_update_interval * settings.num_envs}
    )
    dqn = TimedDQN(
        "MlpPolicy",
        make_vec_env("CartPole-v1", settings.num_envs, seed=seed),
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        gamma=settings.gamma,
        exploration_fraction=settings.exploration_fraction,
        exploration_final_eps=settings.final_eps,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.hidden_sizes)},
        seed=seed,
        device="cpu",
        **rhythm,
    ).learn(settings.frames)
    started, frames = dqn.started
    return float((dqn.num_timesteps - frames) / (perf_counter() - started))


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
