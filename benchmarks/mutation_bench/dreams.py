"""What tells a prior that dreams from one that has seen the answer: windows of a case of the dreamer's bench.

    python -m benchmarks.mutation_bench.dreams cartpole prior-sees-posterior kl-averaged

A line a case: the KL of the prior that dreams by that of the losses, on the rows of the last mini-batch, over all
windows of eight iterations and over those after 128 updates; and, after those, the error of dreams by that of an
observation that stands still.
"""

import argparse
import math
import tempfile
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rlmods.algorithms import DreamerV3
from rlmods.algorithms.sequence_rows import flat_rows
from rlmods.functional.open_loop import relative_error, same_episode
from rlmods.types import Sequences

from .dreamer_catalogue import BENCH
from .experiment import fit, quiet

WINDOW, LEARNED = 8, 128


def main() -> None:
    """Train, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", help="ids of the bench")
    parser.add_argument("--seed", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in arguments.cases:
        windows = Windows()
        with quiet(), tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=1,
                num_sanity_val_steps=0,
                limit_val_batches=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                callbacks=[windows],
            )
            fit(trainer, BENCH, BENCH.cases[name], arguments.seed, None)
        late = [row for row in windows.rows if row[0] > LEARNED]
        print(
            f"{name}: KL of the dreams by that of the losses {_range(windows.rows, 1)}, after {LEARNED} updates "
            f"{_range(late, 1)}; error by that of standing still {_range(late, 2)}; KL of the losses {_range(late, 3)}",
            flush=True,
        )


class Windows(Callback):
    """Updates, ratio of the KLs, ratio of the errors and KL at the end of each window."""

    def __init__(self) -> None:
        self.updates = 0
        self.rows: list[tuple[float, ...]] = []

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Dream."""
        if not outputs or not isinstance(pl_module, DreamerV3):
            return
        self.updates += outputs["kl_dynamics"].shape[0]
        if batch_idx % WINDOW != WINDOW - 1:
            return
        sequences, kl = batch.minibatches()[-1], outputs["kl_dynamics"][-1]
        with torch.random.fork_rng(devices=[]):
            check = pl_module.open_loop_check(sequences)
        counts = check.kl.isfinite()
        still = standing_still(pl_module, sequences, len(check.error))
        self.rows.append(
            (
                self.updates,
                float(check.kl[counts].mean() / kl[counts].mean()),
                float(check.error[1:].nanmean() / still[1:].nanmean()),
                float(kl.mean()),
            )
        )


def standing_still(model: DreamerV3, sequences: Sequences, rows: int) -> Tensor:
    """The error of the first observation as a prediction of all rows, `[T]`, relative to predicting the mean."""
    counts = same_episode(sequences.is_first[:rows])
    observation = sequences.observation
    if not isinstance(observation, Tensor):
        raise TypeError(f"got an observation of {sorted(observation)}, expected one array: choose a case of vectors")
    target = model.world_model.decoder.keys.vector(flat_rows(observation[:rows])).view(*counts.shape, -1)
    return relative_error((target - target[:1]).square().sum(-1), target, counts)


def _range(rows: list[tuple[float, ...]], column: int) -> str:
    values = [row[column] for row in rows if math.isfinite(row[column])]
    return f"{min(values):.2f} to {max(values):.2f}" if values else "none"


if __name__ == "__main__":
    main()
