"""Small runs of the real DQN under safeguards, whole or with one line broken."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.algorithms import DQN
from rlmods.callbacks.detectors import Severity, Verdict
from rlmods.callbacks.safeguard import Safeguard
from rlmods.data import ReplayDataModule
from rlmods.types import Transition

WARN, ACT = Severity.WARN, Severity.ACT


def small_data(data_class: type[ReplayDataModule] = ReplayDataModule, **settings: Any) -> ReplayDataModule:
    """CartPole, 16 environment steps and 4 updates an iteration, without evaluations before the end."""
    defaults: dict[str, Any] = {
        "total_env_steps": 640,
        "learning_starts": 64,
        "steps_per_iteration": 16,
        "updates_per_iteration": 4,
        "batch_size": 16,
        "buffer_size": 1_000,
        "eval_episodes": 2,
        "eval_every": 100_000,
    }
    return data_class("CartPole-v1", **(defaults | settings))


def fit_small(
    folder: Path,
    *callbacks: Callback,
    model_class: type[DQN] = DQN,
    data_class: type[ReplayDataModule] = ReplayDataModule,
    arguments: dict[str, Any] | None = None,
    ckpt_path: Path | None = None,
    max_steps: int = -1,
    seed: int = 0,
    logger: Any = True,
    **settings: Any,
) -> Trainer:
    """A run to its end. `arguments` are those of the algorithm, `settings` those of the data module."""
    seed_everything(seed)
    data = small_data(data_class, **settings)
    defaults: dict[str, Any] = {"hidden_sizes": [32], "target_update_interval": 20, "exploration_fraction": 0.5}
    model = model_class(spec=data.spec, **(defaults | (arguments or {})))
    trainer = make_trainer(folder, *callbacks, max_steps=max_steps, logger=logger)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer


def warnings_of(guard: Safeguard) -> list[str]:
    """The causes that it raised with WARN or more, in order."""
    return [cause for cause, severity in guard.raised if severity >= WARN]


def causes(verdicts: Iterable[Verdict], severity: Severity = WARN) -> list[str]:
    """The causes of these verdicts, from a severity on."""
    return [verdict.cause for verdict in verdicts if verdict.severity >= severity]


def events(trainer: Trainer, kind: str = "alarm") -> list[dict[str, Any]]:
    """The events of a run of one kind."""
    path = Path(str(trainer.log_dir)) / "events.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [event for line in lines if (event := json.loads(line))["kind"] == kind]


class Stranger(LightningModule):
    """Knows nothing of rlmods: regresses a network's value on what its target network says, in manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.critic = torch.nn.Linear(2, 1)
        self.target_net = torch.nn.Linear(2, 1).requires_grad_(False)
        self.targets: list[Tensor] = []

    def training_step(self, batch: Transition, batch_idx: int) -> dict[str, Tensor]:
        optimizer: Any = self.optimizers()
        target = batch.reward + batch.discount * self.target_net(batch.next_observation).squeeze(-1)
        q_value = self.critic(batch.observation).squeeze(-1)
        loss = (q_value - target).square().mean()
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        self.targets.append(target.detach())
        return {}

    def configure_optimizers(self) -> Optimizer:
        return SGD(self.critic.parameters(), lr=0.01)


def transitions(reward: float = 1.0, discount: float = 0.5, size: int = 8) -> Transition:
    """A batch of equal transitions but for their observations."""
    generator = torch.Generator().manual_seed(0)
    return Transition(
        observation=torch.randn(size, 2, generator=generator),
        action=torch.zeros(size, dtype=torch.int64),
        reward=torch.full((size,), reward),
        discount=torch.full((size,), discount),
        next_observation=torch.randn(size, 2, generator=generator),
        terminated=torch.zeros(size, dtype=torch.bool),
        truncated=torch.zeros(size, dtype=torch.bool),
    )


def fit_stranger(
    folder: Path, model: LightningModule, batches: list[Any], *callbacks: Callback, **options: Any
) -> Trainer:
    """Batches from a plain list, a batch an iteration."""
    defaults: dict[str, Any] = {"max_epochs": 1, "logger": True}
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=list(callbacks),
        **(defaults | options),
    )
    loader: Any = torch.utils.data.DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(model, loader)
    return trainer


def as_lists(state: Any) -> Any:
    """A state with its tensors as lists, so that two of them can be compared."""
    if isinstance(state, dict):
        return {key: as_lists(value) for key, value in state.items()}
    if isinstance(state, (list, tuple)):
        return [as_lists(value) for value in state]
    return state.tolist() if isinstance(state, Tensor) else state
