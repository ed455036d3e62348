"""The published TD3 from pixels, replayed: its signature, what the safeguards say of it, and its silent twins."""

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from guarding import ACT, warnings_of
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from test_skeleton import make_trainer
from torch.optim import Optimizer

from rlmods.algorithms import TD3
from rlmods.callbacks import GradientPathProbe, PolicyValueGapGuard, SaturationGuard
from rlmods.configs import find_config
from rlmods.configs.postmortem.td3_shared_features import SharedFeatures
from rlmods.data import ReplayDataModule

CONFIG = yaml.safe_load(find_config("postmortem/td3_shared_features").read_text())
TWIN = yaml.safe_load(find_config("postmortem/td3_shared_features_twin").read_text())
# Small images and batches: a second where the configuration takes a minute.
SMALL = {
    "total_env_steps": 280,
    "learning_starts": 100,
    "batch_size": 16,
    "eval_every": 10_000,
    "eval_episodes": 1,
    "frame_stack": 2,
    "env_kwargs": {"image_size": 36, "reward_offset": 1.0},
}


class UsersMetrics(Callback):
    """What the run's author logged of the actor's gradient, after the clip: the sum of norms. Beside it the norm."""

    def __init__(self) -> None:
        self.sum_of_norms: list[float] = []
        self.norm: list[float] = []
        self.layers_norm: list[float] = []  # of the layers behind the convolutions
        self.q_value: list[float] = []
        self.q_policy: list[float] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model: Any = pl_module
        layers = list(model.actor.layers.parameters())

        def measure(optimizer: Optimizer, *_: Any) -> None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            norms = torch.stack([gradient.norm() for gradient in gradients])
            self.sum_of_norms.append(float(norms.sum()))
            self.norm.append(float(norms.norm()))
            self.layers_norm.append(sum(float(parameter.grad.norm()) for parameter in layers))

        trainer.optimizers[1].register_step_pre_hook(measure)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if outputs:
            self.q_value.append(float(outputs["q_value"].mean()))
            self.q_policy.append(float(outputs["q_policy"].mean()))


class Replayed(NamedTuple):
    metrics: UsersMetrics
    path: GradientPathProbe
    gap: PolicyValueGapGuard
    saturation: SaturationGuard


def replay(folder: Path, model_class: type[TD3], settings: dict[str, Any], **model_settings: Any) -> Replayed:
    seed_everything(100)
    data = ReplayDataModule(**settings)
    model = model_class(data.spec, **model_settings)
    replayed = Replayed(UsersMetrics(), GradientPathProbe(), PolicyValueGapGuard(), SaturationGuard())
    make_trainer(folder, *replayed, logger=False, enable_checkpointing=False).fit(model, datamodule=data)
    return replayed


def test_the_wrong_wiring_has_the_published_signature_and_is_named(tmp_path: Path) -> None:
    """Published: an actor's Q of 1.8 million over 15 at the data, a "norm" of 1.96 to 2.42 over a clip of 1."""
    settings = CONFIG["data"]["init_args"] | SMALL
    replayed = replay(tmp_path, SharedFeatures, settings, **CONFIG["model"]["init_args"])
    metrics = replayed.metrics
    assert metrics.q_policy[-1] > 100.0 * abs(metrics.q_value[-1])
    assert metrics.norm[-20:] == pytest.approx([1.0] * 20, abs=1e-5)  # the clip never failed
    assert all(1.5 < total < 8**0.5 for total in metrics.sum_of_norms[-20:])  # eight tensors
    assert metrics.layers_norm[-20:] == [0.0] * 20
    assert ("actor_loss_through_state", ACT) in replayed.path.raised
    assert "policy_value_gap" in warnings_of(replayed.gap)


def test_with_the_wiring_alone_put_right_q_stays_where_it_is(tmp_path: Path) -> None:
    """Unbounded features may still saturate the actor: another matter, of `SaturationGuard`."""
    settings = CONFIG["data"]["init_args"] | SMALL
    replayed = replay(tmp_path, TD3, settings, **CONFIG["model"]["init_args"])
    assert replayed.metrics.q_policy[-1] < 2.0 * replayed.metrics.q_value[-1]
    assert warnings_of(replayed.path) == warnings_of(replayed.gap) == []


def test_the_twin_is_silent(tmp_path: Path) -> None:
    replayed = replay(tmp_path, TD3, TWIN["data"]["init_args"] | SMALL, **TWIN["model"]["init_args"])
    assert min(replayed.metrics.layers_norm) > 0.0
    assert [warnings_of(guard) for guard in replayed[1:]] == [[], [], []]


def test_the_twin_differs_by_the_wiring_and_the_recipe() -> None:
    """One task, one budget, one clip."""
    differing = {"encoder_ownership", "features_dim", "random_shift"}
    assert CONFIG["data"] == TWIN["data"]
    kept = [{k: v for k, v in c["model"]["init_args"].items() if k not in differing} for c in (CONFIG, TWIN)]
    assert kept[0] == kept[1]


def test_td3_refuses_what_the_mistake_does() -> None:
    """Features of the actor's encoder, which say whose they are, in the critic."""
    data = ReplayDataModule(**(CONFIG["data"]["init_args"] | SMALL))
    model = TD3(data.spec, **CONFIG["model"]["init_args"])
    image, vector = torch.zeros(3, 2, 36, 36, dtype=torch.uint8), torch.zeros(3, 2)
    encoded = model.actor.encoded({"image": image, "vector": vector})
    with pytest.raises(ValueError, match="features of another network's encoder"):
        model.critic.first(encoded, torch.zeros(3, 2))
