"""Where a clip's verifier can look: the order of Lightning's hooks around a clip, and that looking changes nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torch import Tensor
from torch.optim import SGD, Optimizer

from rlmods.callbacks.clip_samples import WatchedOptimizer
from rlmods.callbacks.gradient_clip_verifier import GradientClipVerifier


class Automatic(BoringModel):
    """Notes when its clip runs; `is_wild` multiplies the loss of the third batch by infinity."""

    is_wild = False

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.gradients: list[Tensor] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.events.append("training_step")
        return self.loss(self(batch)) * (math.inf if self.is_wild and batch_idx == 2 else 1.0)

    def clip_gradients(self, *arguments: Any, **options: Any) -> None:
        self.events.append("clip")
        super().clip_gradients(*arguments, **options)

    def configure_optimizers(self) -> Optimizer:  # type: ignore[override]
        optimizer = SGD(self.parameters(), lr=0.01)
        optimizer.register_step_pre_hook(lambda *_: self.events.append("torch before step"))
        optimizer.register_step_post_hook(self._after_step)
        return optimizer

    def _after_step(self, *_: Any) -> None:
        self.events.append("torch after step")
        self.gradients += [p.grad.clone() for p in self.parameters() if p.grad is not None]


class Manual(Automatic):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, 0.1, "norm")
        optimizer.step()


class Notes(Callback):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.events.append("zero_grad")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.events.append("after backward")

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.events.append("before step")


def fit(folder: Path, model: Automatic, *callbacks: Callback, batches: int = 1, **options: Any) -> None:
    seed_everything(0, verbose=False)
    trainer = Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        limit_train_batches=batches,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(model)


def events_of(folder: Path, model: Automatic, **options: Any) -> list[str]:
    fit(folder, model, Notes(model.events), **options)
    return model.events


def test_automatic_optimisation_shows_callbacks_the_gradients_before_the_clip(tmp_path: Path) -> None:
    assert events_of(tmp_path, Automatic(), gradient_clip_val=0.1) == [
        "torch before step",  # the gradients of the batch before
        "training_step",
        "zero_grad",
        "after backward",
        "before step",
        "clip",
        "torch after step",
    ]


def test_manual_optimisation_shows_them_the_gradients_after_the_clip(tmp_path: Path) -> None:
    assert events_of(tmp_path, Manual()) == [
        "training_step",
        "after backward",
        "clip",
        "torch before step",
        "before step",
        "torch after step",
    ]


def test_accumulation_clips_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batches": 2, "gradient_clip_val": 0.1, "accumulate_grad_batches": 2}
    assert events_of(tmp_path, Automatic(), **options) == [
        "training_step",
        "zero_grad",
        "after backward",
        "torch before step",
        "training_step",
        "after backward",
        "before step",
        "clip",
        "torch after step",
    ]


@pytest.mark.parametrize("model_class", [Automatic, Manual])
@pytest.mark.parametrize("is_wild", [False, True])
def test_measuring_leaves_gradients_bit_for_bit(model_class: type[Automatic], is_wild: bool, tmp_path: Path) -> None:
    """Also infinite ones, which a clip at infinity, the usual way to measure, would turn into NaN everywhere."""
    options: dict[str, Any] = {"gradient_clip_val": 0.1} if model_class is Automatic else {}
    runs: list[list[Tensor]] = []
    guards: list[list[Callback]] = [[], [GradientClipVerifier(every_n_iterations=1)]]
    for callbacks in guards:
        model = model_class()
        model.is_wild = is_wild
        fit(tmp_path, model, *callbacks, batches=5, **options)
        runs.append(model.gradients)
    assert len(runs[0]) == 10
    assert all(torch.equal(*map(_bits, pair)) for pair in zip(*runs, strict=True))
    assert all(gradient.isfinite().all() for gradient in runs[0]) is not is_wild


def _bits(gradient: Tensor) -> Tensor:
    return gradient.view(torch.int32)


# Gradients of another optimiser's loss, number by number


@pytest.mark.parametrize(
    ("order", "dangling"),
    [
        ("oz wW", 0.0),  # zeroed in time
        ("o wW", 4.0),
        ("oo wW", 8.0),
        ("oO wW", 4.0),  # o, its step, and a backward pass that W sees
        ("wW", None),  # no other step at all
        ("w O W", None),  # one loss for both: no backward pass follows the other's step
        ("w n O w W", 0.0),  # its own gradients accumulate while another optimiser steps
    ],
)
def test_what_another_loss_left(order: str, dangling: float | None) -> None:
    """o: the other's pass and step, which leave 4; O its step; n: a pass that leaves nothing; w, W: its own."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    watch = WatchedOptimizer(SGD([parameter], lr=0.1), {"w": [0]})
    found: list[float | None] = []
    amounts = {"o": 4.0, "n": 0.0, "w": 1.0}
    for letter in order.replace(" ", ""):
        if letter in amounts:
            watch.measure_leftover()
            parameter.grad = (torch.zeros(1) if parameter.grad is None else parameter.grad) + amounts[letter]
            watch.measure_before()
            if letter == "o":
                watch.other_steps()
        elif letter == "O":
            watch.other_steps()
        elif letter == "z":
            parameter.grad = None
        else:
            seen = watch.dangling.get("w")
            found.append(None if seen is None else float(seen))
            watch.forget()
    assert found == [dangling]
