"""Environment steps per second of linear off-policy TD at the published size, and seconds of its probes.

`OMP_NUM_THREADS=1 python benchmarks/linear_td.py [--threads 1|2] [--repeats 5]` measures whole iterations of
`Trainer.fit` (collecting, ratios, update; no evaluation, no probes, no logger) with 2,048 and 512 features in float32,
beside the straightforward loop of `linear_td_loop.py`, which is numpy in float64:

    published   16 trajectories of 200 steps, projected actions, four sampled actions of the target policy in a state
    closed form the same with raw actions, whose bootstrap is exact
    64 at once  the latter with 64 trajectories

Then one firing of each probe at the published size (4,096 transitions, eight batches for the stability): "published"
with its definitions (one chain, eight sampled actions), "better" with many chains, raw actions and the exact bootstrap.
Both compute all columns, the better ones too.

Minimum, median and maximum are over the repetitions, of which none runs beside another. The published program made
1,450 steps per second and took 98 s for a firing of its three probes, on another machine: these ratios are rough ones.
"""

import argparse
import logging
import os
import warnings
from collections.abc import Callable
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from linear_td_loop import Loop, LoopSettings

from rlmods.algorithms import LinearTD
from rlmods.callbacks import DistributionProbe, FixedPointProbe, Probe, StabilityProbe
from rlmods.data import RolloutDataModule

PUBLISHED_RATE, PUBLISHED_FIRING = 1450.0, 98.0
SETTINGS = LoopSettings()
WARM_UP = 2  # iterations


class Clock(Callback):
    """Seconds of each iteration, from the end of one to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the time."""
        self.ends.append(perf_counter())

    @property
    def seconds(self) -> list[float]:
        """Of the iterations after the warm-up."""
        ends = self.ends[WARM_UP - 1 :]
        return [after - before for before, after in pairwise(ends)]


class Firings(Callback):
    """Measures each probe some times after the first iteration, apart from the training's randomness."""

    def __init__(self, probes: list[Probe], repeats: int) -> None:
        self.probes, self.repeats = probes, repeats
        self.seconds: dict[str, list[float]] = {}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Fire, once more than is counted."""
        for probe in self.probes:
            each = []
            for repeat in range(self.repeats + 1):
                begin = perf_counter()
                with isolate_rng(), torch.no_grad():
                    probe.measure(trainer, pl_module, outputs, batch, repeat)
                each.append(perf_counter() - begin)
            self.seconds[probe.name] = each[1:]


def train(num_iterations: int, callback: Callback, *, action_mode: str, num_envs: int) -> None:
    """Whole iterations of the published configuration."""
    seed_everything(0, verbose=False)
    data = RolloutDataModule(
        "rlmods/TorusGobletGhost-v0",
        num_iterations * num_envs * SETTINGS.horizon,
        num_envs=num_envs,
        n_steps=SETTINGS.horizon,
        gamma=SETTINGS.gamma,
        env_kwargs={
            "max_episode_steps": SETTINGS.horizon,
            "p_mix": SETTINGS.p_mix,
            "action_mode": action_mode,
            "feature_dim": SETTINGS.feature_dim,
            "actor_feature_dim": SETTINGS.actor_feature_dim,
        },
    )
    model = LinearTD(
        data.spec,
        learning_rate=SETTINGS.learning_rate,
        actor_learning_rate=SETTINGS.actor_learning_rate,
        beta=SETTINGS.beta,
        behaviour_std=SETTINGS.behaviour_std,
        target_std=SETTINGS.target_std,
        num_bootstrap_samples=None if action_mode == "raw" else SETTINGS.num_bootstrap_samples,
        theta_radius=SETTINGS.theta_radius,
        theta_init_scale=SETTINGS.initial_scale,
        w_init_scale=SETTINGS.initial_scale,
    )
    Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    ).fit(model, datamodule=data)


def rates_of_training(repeats: int, *, action_mode: str, num_envs: int) -> list[float]:
    """Environment steps per second."""
    clock = Clock()
    train(WARM_UP + repeats, clock, action_mode=action_mode, num_envs=num_envs)
    return [num_envs * SETTINGS.horizon / seconds for seconds in clock.seconds]


def rates_of_loop(repeats: int) -> list[float]:
    """The same of the loop, of a fifth of an iteration each."""
    settings = LoopSettings(num_trajectories=4, horizon=160)
    loop = Loop(settings)
    rates = []
    for _ in range(1 + repeats):
        begin = perf_counter()
        loop.iterate()
        rates.append(settings.num_trajectories * settings.horizon / (perf_counter() - begin))
    return rates[1:]


def seconds_of_probes(repeats: int, *, published: bool) -> dict[str, list[float]]:
    """One firing of each at 4,096 transitions, by name."""
    chains: dict[str, Any] = {"num_chains": 1} if published else {}
    samples: dict[str, Any] = {"num_bootstrap_samples": 8 if published else None}
    probes: list[Probe] = [
        FixedPointProbe(seed=0, **chains, **samples),
        StabilityProbe(seed=0, num_batches=8, **chains, **samples),
        DistributionProbe(seed=0, **chains),
    ]
    firings = Firings(probes, repeats)
    train(1, firings, action_mode="ball_clip" if published else "raw", num_envs=SETTINGS.num_trajectories)
    return firings.seconds


def spread(numbers: list[float], form: str) -> str:
    return f"{min(numbers):{form}} / {median(numbers):{form}} / {max(numbers):{form}}"


def load() -> str:
    return " ".join(f"{average:.2f}" for average in os.getloadavg()) if hasattr(os, "getloadavg") else "unknown"


def compare_rates(repeats: int) -> None:
    """A table of environment steps per second."""
    contenders: dict[str, Callable[[], list[float]]] = {
        "loop": lambda: rates_of_loop(repeats),
        "published": lambda: rates_of_training(repeats, action_mode="ball_clip", num_envs=16),
        "closed form": lambda: rates_of_training(repeats, action_mode="raw", num_envs=16),
        "64 at once": lambda: rates_of_training(repeats, action_mode="raw", num_envs=64),
    }
    print(f"{'':14s}{'steps/s: min / median / max':>34s}{'of the loop':>14s}{'of 1,450':>10s}{'load':>18s}")
    of_loop = 0.0
    for name, measure in contenders.items():
        rates = measure()
        of_loop = of_loop or median(rates)
        ratios = f"{median(rates) / of_loop:>14.1f}{median(rates) / PUBLISHED_RATE:>10.1f}"
        print(f"{name:14s}{spread(rates, ',.0f'):>34s}{ratios}{load():>18s}", flush=True)


def compare_probes(repeats: int) -> None:
    """A table of seconds for a firing."""
    print(f"\n{'':26s}{'seconds: min / median / max':>34s}{'98 s / it':>12s}{'load':>18s}")
    for name, published in (("published", True), ("better", False)):
        seconds = seconds_of_probes(repeats, published=published)
        total = [sum(each) for each in zip(*seconds.values(), strict=True)]
        for probe, each in seconds.items():
            print(f"{name + ', ' + probe:26s}{spread(each, '.2f'):>34s}")
        ratio = f"{PUBLISHED_FIRING / median(total):>12.1f}"
        print(f"{name + ', all three':26s}{spread(total, '.2f'):>34s}{ratio}{load():>18s}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, choices=[1, 2], default=1, help="of torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--without-probes", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    print(f"torch threads {arguments.threads}, repetitions {arguments.repeats}, load average {load()}")
    compare_rates(arguments.repeats)
    if not arguments.without_probes:
        compare_probes(arguments.repeats)


if __name__ == "__main__":
    main()
