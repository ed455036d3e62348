"""From environments with an image and a vector to mini-batches: every stack is the one that the vector names."""

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor

from rlmods.data import ReplayBuffer, ReplayDataModule
from rlmods.data.collector import Collector
from rlmods.envs.environments import Environments
from rlmods.envs.images import StackFrames
from rlmods.envs.make import env_spec
from rlmods.types import Observation, ReplayBatch, Transition

STACK, SIDE, LENGTH = 3, 6, 12
MARKS = ("environment", "episode", "step")


class Marked(gym.Env[Any, Any]):
    """Both image and vector name the environment, the episode and the step; an episode has 10 to 12 steps."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Dict(
            image=Box(0, 255, (1, SIDE, SIDE), np.uint8), vector=Box(0, 255, (len(MARKS),), np.float32)
        )
        self.action_space = Box(-1, 1, (2,), np.float32)
        self.marks = [0, 0, 0]
        self.length = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.marks = [int(self.np_random.integers(256)), -1, 0]
        self.marks = [self.marks[0], self.marks[1] + 1, 0]
        self.length = int(self.np_random.integers(10, LENGTH + 1))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.marks[2] += 1
        ended = self.marks[2] == self.length
        return self.observe(), float(self.marks[2]), ended and self.length % 2 == 0, ended and self.length % 2 == 1, {}

    def observe(self) -> dict[str, Any]:
        image = np.zeros((1, SIDE, SIDE), np.uint8)
        image[0, 0, : len(MARKS)] = self.marks
        return {"image": image, "vector": np.array(self.marks, np.float32)}


gym.register("Marked-v0", lambda **_: Marked())


def assert_stacks(observation: Observation) -> None:
    """Stacks `[..., S, H, W]` hold the frames that lead to the step in the vector, padded by the episode's first."""
    assert isinstance(observation, dict)
    image, vector = observation["image"], observation["vector"]
    assert image.dtype == torch.uint8
    expected = vector.unsqueeze(-2).repeat_interleave(STACK, -2)
    expected[..., 2] = (expected[..., 2] - torch.arange(STACK - 1, -1, -1)).clamp(min=0)
    assert torch.equal(image[..., 0, : len(MARKS)].float(), expected)


def assert_transitions(transition: Transition, n_steps: int) -> None:
    assert_stacks(transition.observation)
    assert_stacks(transition.next_observation)
    assert isinstance(transition.observation, dict)
    assert isinstance(transition.next_observation, dict)
    before, after = transition.observation["vector"], transition.next_observation["vector"]
    assert torch.equal(before[..., :2], after[..., :2])
    steps = after[..., 2] - before[..., 2]
    ended = transition.terminated | transition.truncated
    assert bool(((steps == n_steps) | (ended & (steps < n_steps))).all())


class Idle:
    """Does nothing."""

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        assert_stacks(observation)
        assert isinstance(observation, dict)
        return torch.zeros(len(observation["vector"]), 2)


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
@pytest.mark.parametrize(("num_envs", "n_steps"), [(1, 1), (3, 1), (2, 4)])
def test_stacks_that_were_collected_come_back(mode: AutoresetMode, num_envs: int, n_steps: int) -> None:
    spec = env_spec("Marked-v0", frame_stack=STACK)
    vector_env = SyncVectorEnv([lambda: StackFrames(Marked(), "image", STACK)] * num_envs, autoreset_mode=mode)
    collector = Collector(Environments(vector_env, spec), gamma=0.9, n_steps=n_steps, seed=0)
    buffer = ReplayBuffer(spec, 150, seed=0)
    for until in range(20, 400, 20):
        buffer.extend(collector.collect(Idle(), until, num_processes=1, device=torch.device("cpu")).transition)
        assert_transitions(buffer.sample(2, 32, 0.0).transition, n_steps)
    assert_transitions(buffer.rows(buffer.oldest, buffer.inserted), n_steps)
    assert len(buffer) == 150


class Keeper(LightningModule):
    """Learns nothing, keeps its batches, and gives the replay TD errors that depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.batches: list[ReplayBatch] = []

    def act(self, observation: Observation, *, env_steps: int, deterministic: bool = False) -> Tensor:
        return Idle().act(observation, env_steps=env_steps)

    def training_step(self, batch: ReplayBatch, batch_idx: int) -> None:
        self.batches.append(copy.deepcopy(batch))
        self.optimizers().step()  # type: ignore[union-attr]
        if batch.num_updates:
            assert isinstance(batch.transition.observation, dict)
            td_error = batch.transition.observation["vector"].sum(-1)
            self.trainer.datamodule.feedback(batch.index, td_error=td_error)  # type: ignore[attr-defined]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        batch.run(self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, *, ckpt_path: Path | None = None, max_steps: int = -1) -> tuple[Keeper, ReplayDataModule, Path]:
    seed_everything(0)
    data = ReplayDataModule(
        "Marked-v0",
        400,
        num_envs=2,
        n_steps=3,
        buffer_size=130,
        batch_size=8,
        learning_starts=60,
        steps_per_iteration=20,
        updates_per_iteration=2,
        eval_episodes=1,
        eval_every=200,
        prioritized_replay=True,
        frame_stack=STACK,
        vectorization="sync",
    )
    model = Keeper()
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        max_epochs=1,
        max_steps=max_steps,
    )
    trainer.fit(model, datamodule=data, ckpt_path=ckpt_path)
    (checkpoint,) = folder.glob("lightning_logs/*/checkpoints/*.ckpt")
    return model, data, checkpoint


def test_a_resumed_run_draws_what_the_run_that_was_never_stopped_draws(tmp_path: Path) -> None:
    whole, whole_data, whole_end = fit(tmp_path / "whole")
    _, _, half = fit(tmp_path / "half", max_steps=11)
    resumed, data, end = fit(tmp_path / "resumed", ckpt_path=half)
    assert len(whole.batches) == 20
    for batch in whole.batches:
        assert_transitions(batch.transition, 3)
    torch.testing.assert_close(resumed.batches, whole.batches[11:], rtol=0, atol=0)
    assert data.replay is not None
    assert whole_data.replay is not None
    held = (data.replay.oldest, data.replay.inserted)
    torch.testing.assert_close(data.replay.rows(*held), whole_data.replay.rows(*held), rtol=0, atol=0)
    states = [torch.load(file, weights_only=True)["ReplayDataModule"]["processes"][0] for file in (end, whole_end)]
    for name in ("inserted", "oldest", "frames", "generator"):
        assert states[0]["replay"][name] == states[1]["replay"][name]
    assert {name.rpartition(".")[0].partition(".")[2] for name in states[0]["files"]} == {"", "frames0"}
