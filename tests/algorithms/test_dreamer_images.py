"""DreamerV3 on images of real environments: alone, beside a vector, and those that it cannot learn from."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete
from lightning.pytorch import seed_everything
from test_skeleton import make_trainer
from torch import Tensor, nn

from rlmods.algorithms import DreamerV3
from rlmods.data import SequenceDataModule

SIDE = 48
DOT = "rlmods/DotTracking-v0"


def make_data(env_id: str = DOT, **settings: Any) -> SequenceDataModule:
    """Two updates in two iterations."""
    defaults: dict[str, Any] = {
        "total_env_steps": 32,
        "num_envs": 2,
        "batch_size": 2,
        "batch_length": 4,
        "train_ratio": 0.5,
        "steps_per_iteration": 16,
        "buffer_size": 200,
        "eval_episodes": 1,
        "eval_every": 100_000,
    }
    return SequenceDataModule(env_id, **(defaults | settings))


def weights_of(module: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.mark.parametrize(
    ("env_kwargs", "settings", "kinds"),
    [
        ({"image_size": 100}, {"resize": (SIDE, SIDE)}, ["vectors", "images"]),
        ({"image_size": SIDE}, {"frame_stack": 2}, ["vectors", "images"]),
        ({"image_size": SIDE, "dict_observation": False}, {}, ["images"]),
    ],
)
def test_two_updates_move_everything(
    env_kwargs: dict[str, Any], settings: dict[str, Any], kinds: list[str], tmp_path: Path
) -> None:
    seed_everything(0)
    data = make_data(env_kwargs=env_kwargs, **settings)
    model = DreamerV3(data.spec, size="cpu", num_bins=9, imagination_horizon=2, learning_rate_warmup=0)
    assert model.world_model.decoder.kinds == kinds
    before = weights_of(model.world_model.encoder), weights_of(model.world_model.decoder)
    make_trainer(tmp_path).fit(model, datamodule=data)
    assert model.update_steps == 2
    after = weights_of(model.world_model.encoder), weights_of(model.world_model.decoder)
    for old, new in zip(before, after, strict=True):
        assert not any(torch.equal(one, other) for one, other in zip(old, new, strict=True))


# What is refused


class Images(gym.Env[Any, Any]):
    """Shows noise in a space that a test wants."""

    def __init__(self, space: Any, low: float = 0.0, high: float = 1.0) -> None:
        self.observation_space = space
        self.action_space = Discrete(2)
        self.low, self.high = low, high

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), 0.0, False, False, {}

    def _observe(self) -> Any:
        shape = self.observation_space.shape
        return self.np_random.uniform(self.low, self.high, shape).astype(self.observation_space.dtype)


gym.register("test/Images-v0", "test_dreamer_images:Images", max_episode_steps=10)


def pixels(height: int, width: int) -> Box:
    return Box(0, 255, (height, width, 3), np.uint8)


def floats(low: float, high: float) -> Box:
    return Box(low, high, (SIDE, SIDE, 3), np.float32)


def images_of(space: Any, **settings: Any) -> SequenceDataModule:
    low, high = settings.pop("low", 0.0), settings.pop("high", 1.0)
    return make_data("test/Images-v0", env_kwargs={"space": space, "low": low, "high": high}, **settings)


@pytest.mark.parametrize(
    ("space", "got", "remedy"),
    [
        (pixels(100, 64), "100x64", r"--data.init_args.resize '\[64, 64\]'"),
        (pixels(42, 42), "42x42", r"--data.init_args.resize '\[64, 64\]'"),
        (
            Dict(left=pixels(48, 48), right=pixels(64, 64)),
            "48x48, 64x64",
            "environment itself .* left, right alike",
        ),
    ],
)
def test_images_of_another_shape_are_refused_with_what_helps(space: Any, got: str, remedy: str) -> None:
    expected = rf"got images of {got} in test/Images-v0.*{remedy}"
    with pytest.raises(ValueError, match=expected):
        DreamerV3(images_of(space).spec, size="cpu")


def test_that_option_helps() -> None:
    data = images_of(pixels(100, 64), resize=(64, 64))
    keys = DreamerV3(data.spec, size="cpu").world_model.encoder.keys
    assert (keys.size, keys.images) == ((64, 64), {"": 3})


def test_images_become_grey_for_who_asks() -> None:
    data = images_of(pixels(100, 64), resize=(64, 64), grayscale=True)
    assert data.spec["observation"] == {"shape": [1, 64, 64], "dtype": "uint8"}


def test_floats_in_their_stated_range_are_pixels(tmp_path: Path) -> None:
    data = images_of(floats(0.0, 1.0))
    assert data.spec["observation"] == {"shape": [3, SIDE, SIDE], "dtype": "uint8"}


def test_floats_outside_their_stated_range_are_refused(tmp_path: Path) -> None:
    data = images_of(floats(0.0, 1.0), high=255.0)
    model = DreamerV3(data.spec, size="cpu", num_bins=9)
    with pytest.raises(ValueError, match=r"got an image with values .*expected \[0, 1\].*type the range"):
        make_trainer(tmp_path).fit(model, datamodule=data)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (torch.rand(2, 1, SIDE, SIDE), r"\(1, 48, 48\) torch.float32"),
        (torch.zeros(2, SIDE, SIDE, 1, dtype=torch.uint8), r"\(48, 48, 1\) torch.uint8"),
        (torch.zeros(2, 1, 64, 64, dtype=torch.uint8), r"\(1, 64, 64\) torch.uint8"),
    ],
)
def test_a_policy_that_is_given_other_images_says_so(image: Tensor, got: str) -> None:
    model = DreamerV3(make_data(env_kwargs={"image_size": SIDE}).spec, size="cpu")
    with pytest.raises(
        ValueError, match=rf"got images 'image' {got}, expected \(1, 48, 48\) torch.uint8 from 0 to 255"
    ):
        model.act({"image": image, "vector": torch.zeros(2, 2)}, env_steps=0)
    with pytest.raises(ValueError, match=r"the keys \['vector'\], expected also \['image'\]"):
        model.act({"vector": torch.zeros(2, 2)}, env_steps=0)
