"""What is true of Lightning and not obvious, and what we build on: if a new version changes it, one of these fails."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim import SGD, Optimizer


class Manual(LightningModule):
    """Two optimisers; `raw` says which of them step without Lightning's wrapper."""

    def __init__(self, *, raw: tuple[bool, bool] = (False, False), through_lightning: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer_one, self.layer_two = nn.Linear(1, 1), nn.Linear(1, 1)
        self.raw = raw
        self.through_lightning = through_lightning
        self.trained_on: list[int] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        self.trained_on.append(int(batch))
        optimizers: Any = self.optimizers()
        for optimizer, layer, raw in zip(optimizers, (self.layer_one, self.layer_two), self.raw, strict=True):
            optimizer.zero_grad()
            loss = layer(torch.ones(1, 1)).sum()
            if self.through_lightning:
                self.manual_backward(loss)
            else:
                loss.backward()
            (optimizer.optimizer if raw else optimizer).step()

    def configure_optimizers(self) -> list[Optimizer]:
        return [SGD(self.layer_one.parameters(), 0.1), SGD(self.layer_two.parameters(), 0.1)]


class Numbers:
    """Yields 0, 1, 2 … and notes when."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def __iter__(self) -> Iterator[Tensor]:
        for number in range(4):
            self.events.append(f"collect {number}")
            yield torch.tensor(number)


class SizedNumbers(Numbers):
    def __len__(self) -> int:
        return 4


class Notes(Callback):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.events.append(f"train {batch_idx}")

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.events.append("after backward")


def make_trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **({"max_epochs": 1} | options),
    )


def test_a_sized_loader_is_not_read_ahead(tmp_path: Path) -> None:
    events: list[str] = []
    make_trainer(tmp_path, Notes(events)).fit(Manual(), SizedNumbers(events))
    order = [event for event in events if event != "after backward"]
    assert order == [f"{what} {i}" for i in range(4) for what in ("collect", "train")]


def test_an_unsized_loader_is_read_one_batch_ahead(tmp_path: Path) -> None:
    events: list[str] = []
    make_trainer(tmp_path, Notes(events)).fit(Manual(), Numbers(events))
    assert events.index("collect 1") < events.index("train 0")


def test_global_step_counts_the_steps_through_the_wrapper_over_all_optimisers(tmp_path: Path) -> None:
    counted = {}
    for raw in ((False, False), (True, False), (True, True)):
        trainer = make_trainer(tmp_path)
        trainer.fit(Manual(raw=raw), SizedNumbers([]))
        counted[raw] = trainer.global_step
    assert counted == {(False, False): 8, (True, False): 4, (True, True): 0}


def test_a_backward_that_is_not_lightnings_is_not_seen(tmp_path: Path) -> None:
    for through_lightning, expected in ((True, 8), (False, 0)):
        events: list[str] = []
        make_trainer(tmp_path, Notes(events)).fit(Manual(through_lightning=through_lightning), SizedNumbers([]))
        assert events.count("after backward") == expected


def test_the_trainers_clip_is_refused_under_manual_optimisation(tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="Automatic gradient clipping is not supported"):
        make_trainer(tmp_path, gradient_clip_val=1.0).fit(Manual(), SizedNumbers([]))


class State(LightningDataModule):
    """Saves what it is told to."""

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state
        self.restored: Any = None

    def train_dataloader(self) -> SizedNumbers:
        return SizedNumbers([])

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.restored = state_dict["state"]


def resume(folder: Path, state: Any) -> Any:
    trainer = make_trainer(folder, max_steps=4)
    trainer.fit(Manual(), datamodule=State(state))
    trainer.save_checkpoint(folder / "x.ckpt")
    data = State(None)
    make_trainer(folder, max_steps=12, max_epochs=-1).fit(Manual(), datamodule=data, ckpt_path=folder / "x.ckpt")
    return data.restored


def test_the_state_of_a_data_module_is_restored(tmp_path: Path) -> None:
    generator = np.random.default_rng(0).bit_generator.state
    state: dict[str, Any] = {
        "tensor": torch.ones(2),
        "python": random.getstate(),
        "pcg64": str(generator),
        "list": [1, "a", None],
    }
    restored = resume(tmp_path, state)
    assert torch.equal(restored.pop("tensor"), state.pop("tensor"))
    assert restored == state


def test_numpy_arrays_in_a_state_do_not_load(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"[Ww]eights.only"):
        resume(tmp_path, np.ones(2))


def test_checkpoints_hold_no_random_state(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_steps=4)
    trainer.fit(Manual(), SizedNumbers([]))
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert not [key for key in checkpoint if "rng" in key.lower() or "random" in key.lower()]


def test_outputs_reach_the_callback_detached_and_with_the_same_memory(tmp_path: Path) -> None:
    class Returns(Manual):
        def training_step(self, batch: Tensor, batch_idx: int) -> dict[str, Tensor]:
            super().training_step(batch, batch_idx)
            self.returned = {"q_value": torch.ones(2, 3)}
            return self.returned

    class Keep(Callback):
        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
        ) -> None:
            assert isinstance(pl_module, Returns)
            assert outputs["q_value"].data_ptr() == pl_module.returned["q_value"].data_ptr()

    make_trainer(tmp_path, Keep()).fit(Returns(), SizedNumbers([]))
