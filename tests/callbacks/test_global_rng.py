import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from rlmods.callbacks import GlobalRNG
from rlmods.callbacks.global_rng import get_rng_state, set_rng_state

pytestmark = pytest.mark.filterwarnings("ignore:.*(num_workers|isinstance|not empty|ended before the epoch)")


def draw() -> tuple[float, ...]:
    numpy = np.random.normal(), np.random.random()  # noqa: NPY002
    return (torch.rand(()).item(), torch.randn(()).item(), *numpy, random.random(), random.gauss(0, 1))


def test_state_round_trip_through_a_file(tmp_path: Path) -> None:
    draw()  # leaves the second halves of the normal pairs behind
    torch.save(get_rng_state(), tmp_path / "state.pt")
    expected = draw()
    assert draw() != expected
    set_rng_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


class Drawing(BoringModel):
    """Notes what it draws in each step."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn: list[tuple[float, ...]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.drawn.append(draw())
        return super().training_step(batch, batch_idx)


def fit(folder: Path, steps: int, ckpt_path: Path | None, callbacks: list[Any]) -> Drawing:
    model = Drawing()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=callbacks,
    )
    trainer.fit(model, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / f"{steps}.ckpt", weights_only=False)
    return model


@pytest.mark.parametrize("with_callback", [True, False])
def test_a_resumed_run_draws_the_same_numbers(with_callback: bool, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [GlobalRNG()] if with_callback else []

    torch.manual_seed(0)
    fit(tmp_path, 3, None, callbacks())
    expected = [draw() for _ in range(2)]
    torch.manual_seed(1)
    resumed = fit(tmp_path, 5, tmp_path / "3.ckpt", callbacks())
    assert (resumed.drawn == expected) == with_callback


def test_another_number_of_processes_is_refused(tmp_path: Path) -> None:
    two = GlobalRNG()
    two.load_state_dict({"processes": [get_rng_state()] * 2})
    with pytest.raises(ValueError, match=r"got 1 processes, .* written by 2: type --trainer\.devices 2"):
        fit(tmp_path, 3, None, [two])
