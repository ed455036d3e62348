"""The dynamics KL of a world model pauses actor and critic, and the model goes on."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from dreaming import Sayer, Signals, sequences
from guarding import events, fit_stranger
from lightning.pytorch import Callback, LightningModule, Trainer

from rlmods.callbacks.kl_spike_pause import KLSpikePause
from rlmods.types import SequenceBatch


class Weights(Callback):
    """Those of both groups after each iteration."""

    def __init__(self) -> None:
        self.after: list[tuple[float, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, Sayer)
        self.after.append((pl_module.world_model.bias.item(), pl_module.actor.bias.item()))


@pytest.mark.parametrize(("spike", "paused"), [(30.0, 3), (1.2, 0)])
def test_actor_and_critic_wait_while_the_model_catches_up(tmp_path: Path, spike: float, paused: int) -> None:
    """Two of three windows confirm it; then three updates are left out."""

    def say(batch: SequenceBatch, batch_idx: int) -> Signals:
        level = spike if batch_idx in (12, 13) else 1.0
        return {"kl_dynamics": torch.full((2, 3, 4), level)}

    weights = Weights()
    guard = KLSpikePause(["actor"], signal="kl_dynamics", pause_updates=3, warmup_windows=10)
    model = Sayer(say)
    trainer = fit_stranger(tmp_path, model, [sequences(torch.zeros(2, 3, 4))] * 20, weights, guard)
    moved = [[a != b for a, b in zip(now, then, strict=True)] for then, now in pairwise(weights.after)]
    assert all(model_moved for model_moved, _ in moved)
    still = [iteration + 1 for iteration, (_, actor_moved) in enumerate(moved) if not actor_moved]
    assert still == list(range(14, 14 + paused))
    assert [event["message"].count("its model foresees it") for event in events(trainer)] == [1] * bool(paused)


def test_iterations_without_an_update_are_no_calm_ones(tmp_path: Path) -> None:
    """Every second iteration makes none: a spike in two of those that do is still confirmed."""

    def say(batch: SequenceBatch, batch_idx: int) -> Signals:
        level = 30.0 if batch_idx in (24, 26) else 1.0
        return {} if batch_idx % 2 else {"kl_dynamics": torch.full((2, 3, 4), level)}

    guard = KLSpikePause(["actor"], signal="kl_dynamics", pause_updates=3, warmup_windows=10)
    fit_stranger(tmp_path, Sayer(say), [sequences(torch.zeros(2, 3, 4))] * 40, guard)
    assert [cause for cause, _ in guard.raised] == ["kl_spike"]
    assert guard.pauses == 1
