"""What is drawn from a replay, and what is imitated of it, against what is configured: identities of a mini-batch."""

from collections.abc import Mapping
from math import ceil
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.failure_bundle import minibatch_of
from rlmods.types import ReplayBatch

_ROUNDING = 1e-5  # of a loss


def stratum_members(batch: ReplayBatch, sizes: Mapping[str, int], added: int, capacity: int) -> dict[str, Tensor]:
    """Which of the transitions of a batch belong to the strata that a batch shows, `[K, B]` bool by name.

    Args:
        batch: as it was drawn.
        sizes: of the strata at that time.
        added: transitions ever put into the replay by then; number r lies in slot r mod `capacity`.
        capacity: slots.
    """
    age = (added - 1 - batch.index) % capacity
    return {"recent": age < sizes.get("recent", 0), "before_end": batch.transition.terminated}


def strata_not_drawn(
    members: Mapping[str, Tensor], sizes: Mapping[str, int], shares: Mapping[str, float]
) -> Verdict | None:
    """Whether a mini-batch holds fewer transitions of a stratum than its share says, which holds to within one.

    Args:
        members: of each stratum that can be told from a batch, `[K, B]` bool.
        sizes: transitions in each stratum; an empty one has no share.
        shares: as configured.
    """
    for name, inside in members.items():
        share = shares.get(name, 0.0)
        if share <= 0.0 or not sizes.get(name) or inside.numel() == 0:
            continue
        least, drawn = ceil(share * inside.shape[1] - 1e-6) - 1, int(inside.sum(-1).amin())
        if drawn < least:
            message = (
                f"a mini-batch of {inside.shape[1]} transitions holds {drawn} of the stratum {name}, expected at least "
                f"{least} with its share of {share:g}: something else is drawn in its place. Look how its members are "
                "found, above all after the replay has wrapped around"
            )
            evidence = {"stratum": name, "share": share, "drawn": drawn, "least": least, "batch_size": inside.shape[1]}
            return Verdict("strata_mismatch", Severity.ACT, message, evidence)
    return None


def imitation_of_nobody(pl_module: LightningModule, batch: Any) -> float | None:
    """By how much the loss of a mini-batch without any action of an expert differs from one that knows of no expert.

    Both are the same sum, without imitation. None where the module has no `losses(batch)`, or batches no flags.
    """
    losses = getattr(pl_module, "losses", None)
    if not callable(losses) or not isinstance(batch, ReplayBatch) or batch.by_expert is None or not batch.num_updates:
        return None
    first = minibatch_of(batch, 0)
    nobody = first._replace(by_expert=torch.zeros_like(first.by_expert))
    in_use: list[Any] = getattr(pl_module, "target_transforms", [])
    transforms = list(in_use)
    in_use.clear()  # some count what they are given
    try:
        with isolate_rng(), torch.no_grad():
            with_flags, without = losses(nobody), losses(first._replace(by_expert=None))
    finally:
        in_use.extend(transforms)
    apart = [(with_flags[name] - loss).abs() / loss.abs().clamp(min=1.0) for name, loss in without.items()]
    return float(torch.stack(apart).amax())


def clones_itself(difference: float | None) -> Verdict | None:
    """Whether actions that nobody flagged are imitated."""
    if difference is None or not difference > _ROUNDING:
        return None
    message = (
        f"with no action flagged as the expert's the loss differs by {difference:.3g} from that without an expert, "
        "expected 0: actions of the network itself are imitated, which makes it surer of whatever it does; weight each "
        "transition's imitation with by_expert"
    )
    return Verdict("clones_itself", Severity.ACT, message, {"difference": difference, "tolerance": _ROUNDING})
