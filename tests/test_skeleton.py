"""The walking skeleton: the contracts that everything else stands on, with the real parts."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.optim import Optimizer

from rlmods.algorithms import DQN
from rlmods.callbacks import GlobalRNG
from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.data import ReplayDataModule

K = 4


def make_data(**settings: Any) -> ReplayDataModule:
    defaults: dict[str, Any] = {
        "total_env_steps": 80,
        "learning_starts": 20,
        "steps_per_iteration": 10,
        "updates_per_iteration": K,
        "batch_size": 8,
        "buffer_size": 64,
        "eval_episodes": 2,
        "eval_every": 40,
    }
    return ReplayDataModule("CartPole-v1", **(defaults | settings))


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GlobalRNG(), *callbacks],
        plugins=[AtomicCheckpointIO()],
        **options,
    )


def weights(model: torch.nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Witness(Callback):
    """Sees each update where a stranger's callback would."""

    def __init__(self) -> None:
        self.backwards = 0
        self.raw_and_wrapped_steps = 0
        self.wrapped_steps = 0
        self.outputs: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._count)

    def _count(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self.raw_and_wrapped_steps += 1

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.backwards += 1

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.wrapped_steps += 1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.outputs.append(outputs)


def test_k_updates_in_one_training_step_of_which_one_is_wrapped(tmp_path: Path) -> None:
    seed_everything(0)
    data = make_data()
    model = DQN(spec=data.spec)
    witness = Witness()
    trainer = make_trainer(tmp_path, witness)
    trainer.fit(model, datamodule=data)
    iterations, warm_up = 8, 1
    assert trainer.global_step == iterations
    assert witness.wrapped_steps == iterations
    assert witness.backwards == (iterations - warm_up) * K == model.update_steps
    assert witness.raw_and_wrapped_steps == model.update_steps + warm_up
    assert witness.outputs[0] == {}
    shapes = {name: tuple(signal.shape) for name, signal in witness.outputs[-1].items()}
    assert shapes["q_value"] == shapes["td_target"] == shapes["td_error"] == (K, 8)
    assert shapes["loss"] == shapes["grad_norm/q"] == (K,)
    assert not any(signal.requires_grad for signal in witness.outputs[-1].values())


class CollectionOrder(Callback):
    """Notes how many environment steps were collected when a batch arrives."""

    def __init__(self) -> None:
        self.env_steps: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.env_steps.append((batch.env_steps, trainer.datamodule.env_steps))  # type: ignore[attr-defined]


def test_nothing_is_collected_ahead_of_the_update(tmp_path: Path) -> None:
    order = CollectionOrder()
    data = make_data()
    make_trainer(tmp_path, order).fit(DQN(spec=data.spec), datamodule=data)
    assert order.env_steps == [(steps, steps) for steps in range(10, 90, 10)]


class Pause(Callback):
    """Pauses the group `q` from the second half on, in torch's hook."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_pre_hook(self._pause)
        if isinstance(pl_module, DQN):
            self.module = pl_module

    def _pause(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.module.update_steps < 2 * K:
            return
        for group in optimizer.param_groups:
            if group["name"] == "q":
                for parameter in group["params"]:
                    parameter.grad = None
        self.seen.append(torch.cat([parameter.detach().flatten() for parameter in group["params"]]))


def test_a_pause_in_the_torch_hook_leaves_the_weights_bit_identical(tmp_path: Path) -> None:
    seed_everything(0)
    data = make_data()
    model = DQN(spec=data.spec, target_update_interval=1000)
    before = weights(model.q_network)
    pause = Pause()
    make_trainer(tmp_path, pause).fit(model, datamodule=data)
    paused = weights(model.q_network)
    assert len(pause.seen) == model.update_steps - 2 * K
    assert all(torch.equal(seen, paused) for seen in pause.seen)
    assert not torch.equal(before, paused)


def test_a_resumed_run_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    def fit(folder: Path, ckpt_path: Path | None, limit: int | None) -> DQN:
        seed_everything(0)
        data = make_data()
        model = DQN(spec=data.spec)
        trainer = make_trainer(folder, max_steps=-1 if limit is None else limit)
        trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(folder / "checkpoints" / "end.ckpt")
        return model

    whole = fit(tmp_path / "whole", None, None)
    fit(tmp_path / "half", None, 4)
    (half,) = (tmp_path / "half").glob("lightning_logs/*/checkpoints/*.ckpt")
    resumed = fit(tmp_path / "resumed", half, None)
    assert whole.update_steps == resumed.update_steps
    assert torch.equal(weights(whole), weights(resumed))


DDP = """
import sys, torch, torch.distributed
from pathlib import Path
from lightning.pytorch import seed_everything
sys.path.insert(0, sys.argv[1])
from test_skeleton import make_data, make_trainer, weights
from rlmods.algorithms import DQN
torch.set_num_threads(1)
seed_everything(0)
data = make_data(total_env_steps=160)
model = DQN(spec=data.spec)
trainer = make_trainer(Path(sys.argv[2]), strategy="ddp", devices=2)
trainer.fit(model, datamodule=data)
gathered = [None, None]
mine = (weights(model), data.replay.rows(20, 40).observation, data.env_steps, model.update_steps, trainer.global_step)
torch.distributed.all_gather_object(gathered, mine)
if trainer.is_global_zero:
    torch.save({"ranks": gathered}, Path(sys.argv[2]) / "ranks.pt")
"""


def test_two_ranks_explore_apart_and_learn_together(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(DDP)
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path)]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert completed.returncode == 0, completed.stderr
    ranks = torch.load(tmp_path / "ranks.pt", weights_only=True)["ranks"]
    (weights_0, data_0, env_steps, updates, iterations), (weights_1, data_1, *_) = ranks
    assert torch.equal(weights_0, weights_1)
    assert not torch.equal(data_0, data_1)
    assert (env_steps, updates, iterations) == (160, 8 * K, 8)


def test_fp16_is_refused(tmp_path: Path) -> None:
    """True half precision; on a CPU Lightning itself turns 16-mixed into bf16-mixed."""
    data = make_data()
    with pytest.raises(ValueError, match="bf16-mixed"):
        make_trainer(tmp_path, precision="16-true").fit(DQN(spec=data.spec), datamodule=data)
