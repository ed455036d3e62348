"""Updates per second of TD3 with one update a step: rlmods, a bare loop, Stable-Baselines3, and the products alone.

`python benchmarks/td3_speed.py` lets the contenders train side by side in one process, a block of frames each in turn,
and prints for each the median, minimum and maximum over the repeats of its updates per second, and of the ratio of
rlmods to it, in wall time and in CPU time. The environment's steps are in all of them but the last.

All have the constants of the authors' repository: 256-256, mini-batches of 256, Adam, a policy delay of 2, and make as
many updates as steps after 1,000 random ones; rlmods and the bare loop in blocks, Stable-Baselines3 one after the
other. rlmods runs in Lightning's `Trainer` with TensorBoard, curves, the record of the run and checkpoints, once with
the safeguards of the preset `actor_critic` and once without. The others neither evaluate, log curves nor save. A clock
runs from the end of the first block with updates, while its contender works.

`products` multiplies matrices of the same shapes in the same number, and does nothing else: the floor of a program in
this precision on this processor.
"""

import argparse
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from bare_td3 import SpeedSettings, multiply, train_bare
from dqn_speed import TakesTurns, describe_machine, make_trainer, spread
from lightning.pytorch import Callback, seed_everything
from turns import FrameRate, Turn, take_turns

from rlmods.algorithms import TD3
from rlmods.configs import find_config
from rlmods.data import ReplayDataModule

Contender = Callable[[SpeedSettings, int, Turn], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="HalfCheetah-v5")
    parser.add_argument("--frames", type=int, default=4_000, help="of one run, the first 1,000 without updates")
    parser.add_argument("--block", type=int, default=8, help="frames, and updates, of an iteration")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="rlmods under bf16-mixed as well")
    parser.add_argument("--without-peer", action="store_true", help="leave Stable-Baselines3 out")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("rlmods").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(arguments.threads)
    contenders: dict[str, Contender] = {
        "rlmods": partial(train_rlmods, safeguards=True),
        "without safeguards": partial(train_rlmods, safeguards=False),
        **({"in bf16": partial(train_rlmods, safeguards=True, precision="bf16-mixed")} if arguments.bf16 else {}),
        "bare": train_bare,
        "products": multiply,
    }
    if not arguments.without_peer and importlib.util.find_spec("stable_baselines3"):
        contenders["Stable-Baselines3"] = train_stable_baselines3
    print(describe_machine(with_peer="Stable-Baselines3" in contenders))
    settings = SpeedSettings(arguments.env_id, arguments.frames, arguments.block)
    measure(settings, contenders, arguments.repeats, arguments.threads)


def measure(settings: SpeedSettings, contenders: dict[str, Contender], repeats: int, num_threads: int) -> None:
    """Run the contenders side by side and print one row each."""
    rates: dict[str, list[FrameRate]] = {name: [] for name in contenders}
    for seed in range(100, 100 + repeats):
        runs = {name: partial(train, settings, seed) for name, train in contenders.items()}
        for name, rate in take_turns(runs, num_threads=num_threads).items():
            rates[name].append(rate)
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    print(
        f"\n{settings.env_id}, {settings.frames:,} frames, blocks of {settings.frames_per_block}, load average {load}"
    )
    print(f"{'':20s}{'updates/s (min to max)':>26s}{'rlmods / it (min to max)':>28s}{'the same in CPU time':>28s}")
    for name, each in rates.items():
        pairs = list(zip(rates["rlmods"], each, strict=True))
        columns = [
            spread([ours.wall / it.wall for ours, it in pairs], ".2f"),
            spread([ours.cpu / it.cpu for ours, it in pairs], ".2f"),
        ]
        row = f"{name:20s}{spread([rate.wall for rate in each], ',.0f'):>26s}"
        print(row + "".join(f"{column:>28s}" for column in columns), flush=True)


def train_rlmods(
    settings: SpeedSettings,
    seed: int,
    turn: Turn,
    *,
    safeguards: bool,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
) -> None:
    """Ours, with what a run has when it is started from the command line, but the progress bar."""
    seed_everything(seed, verbose=False)
    data = ReplayDataModule(
        settings.env_id,
        settings.frames,
        gamma=settings.gamma,
        buffer_size=settings.buffer_size,
        batch_size=settings.batch_size,
        learning_starts=settings.learning_starts,
        steps_per_iteration=settings.frames_per_block,
        updates_per_iteration=settings.frames_per_block,
        eval_every=settings.frames,
        eval_episodes=1,
    )
    model = TD3(data.spec, hidden_sizes=settings.hidden_sizes, learning_rate=settings.learning_rate)
    with tempfile.TemporaryDirectory() as folder:
        guards = preset("safeguards/actor_critic") if safeguards else []
        trainer = make_trainer(Path(folder), TakesTurns(turn), *guards, log_every_n_steps=32, precision=precision)
        trainer.fit(model, datamodule=data)


def preset(name: str) -> list[Callback]:
    """The callbacks of a shipped preset."""
    entries = yaml.safe_load(Path(find_config(name)).read_text())["trainer"]["callbacks+"]
    return [_instance(**entry) for entry in entries]


def _instance(class_path: str, init_args: dict[str, Any] | None = None) -> Callback:
    module, _, name = class_path.rpartition(".")
    made: Callback = getattr(import_module(module), name)(**(init_args or {}))
    return made


def train_stable_baselines3(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """The peer, without logger and progress bar."""
    import numpy as np
    from stable_baselines3 import TD3 as PeerTD3
    from stable_baselines3.common.noise import NormalActionNoise

    class TakesTurnsTD3(PeerTD3):  # type: ignore[misc]
        """Hands over after each block."""

        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            super().train(gradient_steps, batch_size)
            if self.num_timesteps % settings.frames_per_block == 0:
                turn.end_block(self.num_timesteps, learned=True)

    peer = TakesTurnsTD3(
        "MlpPolicy",
        settings.env_id,
        learning_rate=settings.learning_rate,
        buffer_size=settings.buffer_size,
        learning_starts=settings.learning_starts,
        batch_size=settings.batch_size,
        tau=settings.tau,
        gamma=settings.gamma,
        train_freq=1,
        gradient_steps=1,
        policy_delay=settings.policy_delay,
        target_policy_noise=settings.target_noise,
        target_noise_clip=settings.noise_clip,
        policy_kwargs={"net_arch": list(settings.hidden_sizes)},
        seed=seed,
        device="cpu",
    )
    num_actions = peer.action_space.shape[0]
    peer.action_noise = NormalActionNoise(np.zeros(num_actions), settings.noise * np.ones(num_actions))
    peer.learn(settings.frames)


if __name__ == "__main__":
    main()
