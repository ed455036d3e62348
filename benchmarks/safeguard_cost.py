"""What safeguards cost: training frames per second of DQN on CartPole-v1 with and without them, side by side.

`python benchmarks/safeguard_cost.py` lets a run without safeguards and one with those of `configs/safeguards/safe.yaml`
take turns, a block each, in one process with one torch thread, as `dqn_speed.py` does, and prints the share of time
that the second spends more, in wall time and in CPU time. `--each` measures each safeguard alone as well.

    small    as `configs/dqn_cartpole.yaml`: 8 environments; 64 frames, then 16 updates of 64; 128x128
    zoo      1 environment; 256 frames, then 128 updates of 64; 256x256
"""

import argparse
import importlib
import logging
import tempfile
import warnings
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from bare_dqn import SpeedSettings
from dqn_speed import ZOO, TakesTurns, describe_machine, make_data, make_model, make_trainer
from lightning.pytorch import Callback, seed_everything
from turns import FrameRate, Turn, take_turns

from rlmods.configs import find_config

SMALL = SpeedSettings("small", 8, 30_720, 64, 16, 64, (128, 128), 1e-3, target_update_interval=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", choices=["small", "zoo", "both"], default="both")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--frames", type=int, default=None, help="of one run")
    parser.add_argument("--each", action="store_true", help="each safeguard alone, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    preset = yaml.safe_load(find_config("safeguards/safe").read_text())["trainer"]["callbacks+"]
    contenders: dict[str, list[dict[str, Any]]] = {"none": [], "safe": preset}
    if arguments.each:
        contenders |= {entry["class_path"].rpartition(".")[2]: [entry] for entry in preset}
    print(describe_machine(with_peer=False))
    for settings in (SMALL, ZOO):
        if arguments.settings in (settings.name, "both"):
            measure(settings._replace(frames=arguments.frames or settings.frames), contenders, arguments.repeats)


def measure(settings: SpeedSettings, contenders: dict[str, list[dict[str, Any]]], repeats: int) -> None:
    """Run the contenders side by side and print one row each."""
    rates: dict[str, list[FrameRate]] = {name: [] for name in contenders}
    for seed in range(100, 100 + repeats):
        runs = {name: partial(train, settings, seed, entries) for name, entries in contenders.items()}
        for name, rate in take_turns(runs).items():
            rates[name].append(rate)
    print(f"\n{settings.name}: {settings.frames:,} frames, {repeats} repeats")
    print(f"{'':24s}{'frames/s':>10s}{'more time, % (min to max)':>30s}{'the same in CPU time':>30s}")
    for name, each in rates.items():
        pairs = list(zip(rates["none"], each, strict=True))
        columns = [
            spread([100.0 * (none.wall / it.wall - 1.0) for none, it in pairs]),
            spread([100.0 * (none.cpu / it.cpu - 1.0) for none, it in pairs]),
        ]
        print(f"{name:24s}{median(rate.wall for rate in each):>10,.0f}" + "".join(f"{c:>30s}" for c in columns))


def spread(numbers: list[float]) -> str:
    return f"{median(numbers):.1f} ({min(numbers):.1f} to {max(numbers):.1f})"


def train(settings: SpeedSettings, seed: int, entries: list[dict[str, Any]], turn: Turn) -> None:
    """One run; its safeguards come first, as on the command line, where they are configured callbacks."""
    seed_everything(seed, verbose=False)
    data = make_data(settings)
    callbacks = [make_callback(entry) for entry in entries]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), *callbacks, TakesTurns(turn))
        trainer.fit(make_model(settings, data), datamodule=data)


def make_callback(entry: dict[str, Any]) -> Callback:
    module, _, name = entry["class_path"].rpartition(".")
    callback: Callback = getattr(importlib.import_module(module), name)(**entry.get("init_args", {}))
    return callback


if __name__ == "__main__":
    main()
