"""Training frames per second of PPO on CartPole-v1 with the RL Zoo's settings: rlmods, a bare loop, Stable-Baselines3.

`python benchmarks/ppo_speed.py` lets the contenders train side by side in one process, eight rollouts each in turn,
and prints for each the median, minimum and maximum over the repeats of its frames per second, and of the ratio of
rlmods to it, in wall time and in CPU time.

8 environments, 32 steps, 20 epochs on the whole rollout of 256, separate 64-64 networks. rlmods runs in Lightning's
`Trainer` with TensorBoard, curves, the record of the run and checkpoints. The others neither evaluate, log curves nor
save. A clock runs from the end of its first turn, while its contender works.
"""

import argparse
import importlib.util
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from bare_ppo import SpeedSettings, train_bare
from dqn_speed import TakesTurns, describe_machine, make_trainer, spread
from lightning.pytorch import seed_everything
from turns import FrameRate, Turn, take_turns

from rlmods.algorithms import PPO
from rlmods.data import RolloutDataModule

ROLLOUTS_A_TURN = 8  # as many as between two points of the curves

Contender = Callable[[SpeedSettings, int, Turn], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=25_600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--without-peer", action="store_true", help="leave Stable-Baselines3 out")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("rlmods").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    contenders: dict[str, Contender] = {"rlmods": train_rlmods, "bare": train_bare}
    if not arguments.without_peer and importlib.util.find_spec("stable_baselines3"):
        contenders["Stable-Baselines3"] = train_stable_baselines3
    print(describe_machine(with_peer="Stable-Baselines3" in contenders))
    measure(SpeedSettings(frames=arguments.frames), contenders, arguments.repeats)


def measure(settings: SpeedSettings, contenders: dict[str, Contender], repeats: int) -> None:
    """Run the contenders side by side and print one row each."""
    rates: dict[str, list[FrameRate]] = {name: [] for name in contenders}
    for seed in range(100, 100 + repeats):
        runs = {name: partial(train, settings, seed) for name, train in contenders.items()}
        for name, rate in take_turns(runs, num_blocks=ROLLOUTS_A_TURN).items():
            rates[name].append(rate)
    load = " ".join(f"{average:.2f}" for average in os.getloadavg())
    print(f"\n{settings.env_id}, {settings.frames:,} frames, load average {load}")
    print(f"{'':20s}{'frames/s (min to max)':>26s}{'rlmods / it (min to max)':>28s}{'the same in CPU time':>28s}")
    for name, each in rates.items():
        pairs = list(zip(rates["rlmods"], each, strict=True))
        columns = [
            spread([ours.wall / it.wall for ours, it in pairs], ".2f"),
            spread([ours.cpu / it.cpu for ours, it in pairs], ".2f"),
        ]
        row = f"{name:20s}{spread([rate.wall for rate in each], ',.0f'):>26s}"
        print(row + "".join(f"{column:>28s}" for column in columns), flush=True)


def train_rlmods(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """Ours, with what a run has when it is started from the command line, but the progress bar."""
    seed_everything(seed, verbose=False)
    data = RolloutDataModule(
        settings.env_id,
        settings.frames,
        num_envs=settings.num_envs,
        n_steps=settings.n_steps,
        gamma=settings.gamma,
        eval_every=settings.frames,
        eval_episodes=1,
    )
    model = PPO(
        data.spec,
        hidden_sizes=settings.hidden_sizes,
        learning_rate=settings.learning_rate,
        learning_rate_schedule="linear",
        n_epochs=settings.n_epochs,
        batch_size=settings.batch_size,
        gae_lambda=settings.gae_lambda,
        clip_range=settings.clip_range,
        clip_range_schedule="linear",
        vf_coef=settings.vf_coef,
        max_grad_norm=settings.max_grad_norm,
    )
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(Path(folder), TakesTurns(turn), log_every_n_steps=ROLLOUTS_A_TURN).fit(model, datamodule=data)


def train_stable_baselines3(settings: SpeedSettings, seed: int, turn: Turn) -> None:
    """The peer, without logger and progress bar."""
    from stable_baselines3 import PPO as PeerPPO
    from stable_baselines3.common.env_util import make_vec_env

    class TakesTurnsPPO(PeerPPO):  # type: ignore[misc]
        """Hands over after each rollout."""

        def train(self) -> None:
            super().train()
            turn.end_block(self.num_timesteps, learned=True)

    TakesTurnsPPO(
        "MlpPolicy",
        make_vec_env(settings.env_id, settings.num_envs, seed=seed),
        learning_rate=lambda remaining: settings.learning_rate * remaining,
        n_steps=settings.n_steps,
        batch_size=settings.batch_size,
        n_epochs=settings.n_epochs,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        clip_range=lambda remaining: settings.clip_range * remaining,
        vf_coef=settings.vf_coef,
        max_grad_norm=settings.max_grad_norm,
        policy_kwargs={"net_arch": list(settings.hidden_sizes)},
        seed=seed,
        device="cpu",
    ).learn(settings.frames)


if __name__ == "__main__":
    main()
