"""Toy problems whose optimum is known by hand, and the real thresholds."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Trainer, seed_everything

from rlmods.algorithms import DQN
from rlmods.callbacks import GlobalRNG
from rlmods.cli import run
from rlmods.data import ReplayDataModule

GAMMA = 0.9
Array = npt.NDArray[np.float32]


class Loop(gymnasium.Env[Array, np.int64]):
    """One state, which only a time limit ends. Action 0 gives 1, action 1 nothing: Q* = 1/(1 − γ) and γ/(1 − γ)."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(action == 0), False, False, {}


class Chain(gymnasium.Env[Array, np.int64]):
    """States 0 to 3 in a row: action 1 goes on, action 0 ends with 0.1; beyond the last lies a reward of 1.

    Q*(s, 1) = γ^(3 − s), so that going on is right everywhere: γ³ = 0.729 against 0.1.
    """

    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)
    state = 0

    def observe(self) -> Array:
        observation: Array = np.eye(4, dtype=np.float32)[min(self.state, 3)]
        return observation

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        if action == 0:
            return self.observe(), 0.1, True, False, {}
        self.state += 1
        return self.observe(), float(self.state == 4), self.state == 4, False, {}


LOOP: Any = Loop
CHAIN: Any = Chain
gymnasium.register("Loop-v0", LOOP, max_episode_steps=5)
gymnasium.register("Chain-v0", CHAIN)

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {"double_q": False, "loss": "mse"}),
    "double": ({}, {}),
    "dueling": ({}, {"dueling": True}),
    "soft": ({}, {"tau": 0.1, "target_update_interval": 1}),
    "prioritised": ({"prioritized_replay": True}, {}),
    "three steps": ({"n_steps": 3}, {}),
    "distribution": ({"reward_bounds": [0.0, 1.0]}, {"num_atoms": 51, "v_min": 0.0, "v_max": 12.0}),
    "noisy": ({}, {"noisy": True}),
}


def learn(folder: Path, env_id: str, data_settings: dict[str, Any], model_settings: dict[str, Any]) -> DQN:
    seed_everything(100)
    settings: dict[str, Any] = {
        "total_env_steps": 1200,
        "num_envs": 4,
        "gamma": GAMMA,
        "batch_size": 32,
        "learning_starts": 100,
        "steps_per_iteration": 40,
        "updates_per_iteration": 20,
        "eval_every": 1200,
    }
    data = ReplayDataModule(env_id, **(settings | data_settings))
    defaults: dict[str, Any] = {"hidden_sizes": (32,), "learning_rate": 5e-3, "target_update_interval": 10}
    # Every action is explored for ever: the values of the wrong ones are known too.
    defaults |= {"exploration_final_eps": 0.5, "final_learning_rate": 1e-4}
    model = DQN(spec=data.spec, **(defaults | model_settings))
    trainer = Trainer(
        default_root_dir=folder,
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[GlobalRNG()],
    )
    trainer.fit(model, datamodule=data)
    return model


@pytest.mark.learning
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "three steps"])
def test_dqn_finds_the_value_of_an_endless_loop_behind_a_time_limit(tmp_path: Path, variant: str) -> None:
    """Cut at the time limit the value would be at most (1 − γ⁵)/(1 − γ) = 4.1."""
    model = learn(tmp_path, "Loop-v0", *VARIANTS[variant])
    q_values = model.action_values(torch.ones(1, 1)).detach()
    torch.testing.assert_close(q_values, torch.tensor([[10.0, 9.0]]), rtol=0.05, atol=0.0)


@pytest.mark.learning
@pytest.mark.parametrize("variant", VARIANTS)
def test_dqn_finds_the_end_of_a_chain(tmp_path: Path, variant: str) -> None:
    model = learn(tmp_path, "Chain-v0", *VARIANTS[variant])
    q_values = model.action_values(torch.eye(4)).detach()
    assert q_values.argmax(-1).tolist() == [1, 1, 1, 1]
    if variant != "three steps":  # its horizons see the explored actions of the behaviour policy
        expected = torch.tensor([[0.1, GAMMA ** (3 - state)] for state in range(4)])
        torch.testing.assert_close(q_values, expected, rtol=0.0, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [100, 101, 102])
def test_the_shipped_dqn_holds_cartpole_to_the_end(tmp_path: Path, seed: int) -> None:
    common = ["--config", "dqn_cartpole", "--trainer.default_root_dir", str(tmp_path), "--seed_everything", str(seed)]
    subprocess.run([sys.executable, "-m", "rlmods", "fit", *common], check=True)
    script = (
        "import json, sys; from rlmods.cli import RLModsCLI; cli = RLModsCLI(sys.argv[2:]); "
        "json.dump({k: float(v) for k, v in cli.trainer.callback_metrics.items()}, open(sys.argv[1], 'w'))"
    )
    result = tmp_path / "result.json"
    test = ["test", *common, "--ckpt_path", "last", "--data.init_args.eval_episodes", "100"]
    config = str(Path(__file__).parent.parent / "configs" / "dqn_cartpole.yaml")
    test[test.index("dqn_cartpole")] = config
    subprocess.run([sys.executable, "-c", script, str(result), *test], check=True)
    assert json.loads(result.read_text())["test/mean_reward"] >= 475.0


@pytest.mark.learning
def test_the_preset_is_silent_on_a_solved_task(tmp_path: Path) -> None:
    """CartPole is solved at a third of the budget: then returns are constant, and the critic has nothing to learn."""
    root = ["--trainer.default_root_dir", str(tmp_path), "--trainer.enable_progress_bar", "false"]
    run(["fit", "--config", "ppo_cartpole", "--config", "safeguards/ppo", *root])
    (folder,) = tmp_path.glob("lightning_logs/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["evaluation"]["last"]["mean"] == 500.0
    assert [alarm for alarm in summary["alarms"] if alarm["severity"] != "info"] == []
