"""KLSpikePause on the algorithm that it was made for."""

from pathlib import Path
from typing import Any

import torch
from guarding import events
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from ppo_runs import fit_ppo
from torch import Tensor

from rlmods.algorithms import PPO
from rlmods.callbacks.kl_spike_pause import KLSpikePause

ROLLOUTS, UPDATES = 16, 8


class Spike(PPO):
    """In the ninth and the tenth rollout the learning rate is thirty times what it was."""

    rollouts = 0

    def set_learning_rate(self, optimizer: LightningOptimizer, learning_rate: float) -> float:
        self.rollouts += 1
        return super().set_learning_rate(optimizer, learning_rate * (30.0 if self.rollouts in (9, 10) else 1.0))


class Trace(Callback):
    """Weights of actor and critic, and the mean KL, after each rollout."""

    def __init__(self) -> None:
        self.weights: dict[str, list[Tensor]] = {"actor": [], "critic": []}
        self.kl: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        for group in trainer.optimizers[0].param_groups:
            self.weights[group["name"]].append(torch.cat([p.detach().flatten() for p in group["params"]]))
        self.kl.append(outputs["approx_kl"].mean().item())

    def still(self, name: str) -> list[int]:
        """Rollouts, from 1, that left the weights of a group bit-identical."""
        weights = self.weights[name]
        return [i + 1 for i in range(1, len(weights)) if torch.equal(weights[i], weights[i - 1])]


def guarded(folder: Path, model_class: type[PPO], *, mode: Any = "act") -> tuple[KLSpikePause, Trace, Trainer]:
    guard = KLSpikePause(["actor"], pause_updates=UPDATES, warmup_windows=6, mode=mode)
    trace = Trace()
    trainer = fit_ppo(folder, guard, trace, model_class=model_class, rollouts=ROLLOUTS)
    return guard, trace, trainer


def test_a_spike_pauses_the_actor_for_one_rollout_and_is_over(tmp_path: Path) -> None:
    guard, trace, trainer = guarded(tmp_path, Spike)
    assert [cause for cause, _ in guard.raised] == ["kl_spike"]
    assert guard.pauses == 1
    assert [event["iteration"] for event in events(trainer, "action")] == [10]
    assert trace.still("actor") == [11]
    assert trace.still("critic") == []
    calm = max(trace.kl[:8])
    assert min(trace.kl[8:10]) > 3.0 * calm
    assert trace.kl[10] < 1e-8  # nothing moved
    assert max(trace.kl[11:]) < 3.0 * calm
    assert (guard.is_armed, guard.is_paused, guard.active) == (True, False, {})


def test_in_mode_observe_the_actor_goes_on(tmp_path: Path) -> None:
    guard, trace, _ = guarded(tmp_path, Spike, mode="observe")
    assert [cause for cause, _ in guard.raised] == ["kl_spike"]
    assert (guard.pauses, trace.still("actor")) == (0, [])


def test_a_healthy_run_is_left_alone(tmp_path: Path) -> None:
    guard, trace, _ = guarded(tmp_path, PPO)
    assert (guard.raised, guard.pauses, trace.still("actor")) == ([], 0, [])
