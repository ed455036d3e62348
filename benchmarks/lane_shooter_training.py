"""Training frames per second of DQN on the lane shooter: rlmods and Stable-Baselines3, side by side.

`python benchmarks/lane_shooter_training.py` lets both train in one process, eight iterations each in turn, and prints
for each the median, minimum and maximum over the repeats of its frames per second, and of the ratio of rlmods to it, in
wall time and in CPU time.

64 games in one numpy step, without expert; an iteration is 1,024 frames and 32 updates on 256 transitions; 128-128
networks, plain Q-learning. The peer gets the same vector environment through a `VecEnv` of its own. rlmods runs in
Lightning's `Trainer` with TensorBoard, curves, the record of the run and checkpoints. The peer neither evaluates, logs
nor saves. A clock runs from the end of its contender's first turn with updates.
"""

import argparse
import importlib.util
import logging
import os
import tempfile
import warnings
from functools import partial
from pathlib import Path

import torch
from dqn_speed import TakesTurns, describe_machine, make_trainer, spread
from lightning.pytorch import seed_everything
from turns import FrameRate, Turn, take_turns

from rlmods.algorithms import DQN
from rlmods.data import ReplayDataModule

NUM_ENVS, FRAMES_A_BLOCK, UPDATES_A_BLOCK, BATCH_SIZE = 64, 1_024, 32, 256
HIDDEN_SIZES, BUFFER_SIZE, WARM_UP = [128, 128], 100_000, 10_240
BLOCKS_A_TURN = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=102_400)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("rlmods").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    contenders = {"rlmods": train_rlmods}
    if importlib.util.find_spec("stable_baselines3"):
        contenders["Stable-Baselines3"] = train_stable_baselines3
    print(describe_machine(with_peer=len(contenders) > 1))
    rates: dict[str, list[FrameRate]] = {name: [] for name in contenders}
    for seed in range(100, 100 + arguments.repeats):
        runs = {name: partial(train, arguments.frames, seed) for name, train in contenders.items()}
        for name, rate in take_turns(runs, num_blocks=BLOCKS_A_TURN).items():
            rates[name].append(rate)
    print(f"\n{arguments.frames:,} frames, load average {os.getloadavg()[0]:.2f}")
    for name, each in rates.items():
        pairs = list(zip(rates["rlmods"], each, strict=True))
        wall, cpu = [ours.wall / it.wall for ours, it in pairs], [ours.cpu / it.cpu for ours, it in pairs]
        row = f"{name:20s}{spread([rate.wall for rate in each], ',.0f'):>26s}"
        print(f"{row}{spread(wall, '.2f'):>24s}{spread(cpu, '.2f'):>24s}", flush=True)


def train_rlmods(frames: int, seed: int, turn: Turn) -> None:
    """Ours, with what a run has when it is started from the command line, but the progress bar."""
    seed_everything(seed, verbose=False)
    data = ReplayDataModule(
        "rlmods/LaneShooter-v0",
        frames,
        num_envs=NUM_ENVS,
        gamma=0.99,
        buffer_size=BUFFER_SIZE,
        batch_size=BATCH_SIZE,
        learning_starts=WARM_UP,
        steps_per_iteration=FRAMES_A_BLOCK,
        updates_per_iteration=UPDATES_A_BLOCK,
        eval_every=frames,
        eval_episodes=1,
    )
    model = DQN(data.spec, hidden_sizes=HIDDEN_SIZES, double_q=False, learning_rate=5e-4, target_update_interval=500)
    with tempfile.TemporaryDirectory() as folder:
        make_trainer(Path(folder), TakesTurns(turn)).fit(model, datamodule=data)


def train_stable_baselines3(frames: int, seed: int, turn: Turn) -> None:
    """The peer, without logger and progress bar."""
    from peer_games import PeerGames
    from stable_baselines3 import DQN as PeerDQN

    class TakesTurnsDQN(PeerDQN):  # type: ignore[misc]
        """Hands over after each block of updates."""

        def train(self, gradient_steps: int, batch_size: int = 100) -> None:
            super().train(gradient_steps, batch_size)
            turn.end_block(self.num_timesteps, learned=True)

    TakesTurnsDQN(
        "MlpPolicy",
        PeerGames(NUM_ENVS, seed),
        learning_rate=5e-4,
        buffer_size=BUFFER_SIZE,
        learning_starts=WARM_UP,
        batch_size=BATCH_SIZE,
        gamma=0.99,
        train_freq=(FRAMES_A_BLOCK // NUM_ENVS, "step"),
        gradient_steps=UPDATES_A_BLOCK,
        target_update_interval=500 * FRAMES_A_BLOCK // UPDATES_A_BLOCK,
        policy_kwargs={"net_arch": HIDDEN_SIZES},
        seed=seed,
        device="cpu",
    ).learn(frames)


if __name__ == "__main__":
    main()
