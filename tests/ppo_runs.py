"""Small runs of the real PPO under safeguards, whole or with one line broken."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer, seed_everything
from test_skeleton import make_trainer

from rlmods.algorithms import PPO
from rlmods.data import RolloutDataModule

PENDULUM: dict[str, Any] = {"env_id": "Pendulum-v1", "num_envs": 2, "env_kwargs": {"max_episode_steps": 20}}


def fit_ppo(
    folder: Path,
    *callbacks: Callback,
    model_class: type[PPO] = PPO,
    data_class: type[RolloutDataModule] = RolloutDataModule,
    arguments: dict[str, Any] | None = None,
    rollouts: int = 6,
    ckpt_path: Path | None = None,
    max_steps: int = -1,
    seed: int = 0,
    **settings: Any,
) -> Trainer:
    """A run of some rollouts of 4 · 32 steps of CartPole, 2 epochs on each, with one evaluation at its end.

    `arguments` are those of the algorithm, `settings` those of the data module.
    """
    seed_everything(seed, verbose=False)
    defaults: dict[str, Any] = {"env_id": "CartPole-v1", "num_envs": 4, "n_steps": 32, "eval_episodes": 1}
    merged = defaults | {"eval_every": 10**9} | settings
    data = data_class(total_env_steps=rollouts * merged["num_envs"] * merged["n_steps"], **merged)
    small: dict[str, Any] = {"hidden_sizes": [16], "batch_size": 32, "n_epochs": 2}
    model = model_class(data.spec, **(small | (arguments or {})))
    trainer = make_trainer(folder, *callbacks, max_steps=max_steps)
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    return trainer
