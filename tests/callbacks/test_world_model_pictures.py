"""Pictures in real small runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import Stranger, fit_stranger, transitions
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_skeleton import make_trainer, weights

from rlmods.algorithms import DreamerV3
from rlmods.callbacks import WorldModelPictures
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.data import SequenceDataModule

PLOTS = ["dream", "latents", "open_loop", "open_loop_error"]
FILMS_AND_STRIPS = ["dream_image_film", "open_loop_image", "open_loop_image_film", "reconstruction_image"]


def fit(folder: Path, *callbacks: Callback, logger: Any = True, **settings: Any) -> tuple[Trainer, DreamerV3]:
    """CartPole, two evaluations, of which the second comes after a few updates."""
    seed_everything(0)
    defaults: dict[str, Any] = {
        "env_id": "CartPole-v1",
        "total_env_steps": 64,
        "num_envs": 2,
        "batch_size": 3,
        "batch_length": 6,
        "train_ratio": 2.0,
        "steps_per_iteration": 32,
        "buffer_size": 500,
        "learning_starts": 40,
        "eval_episodes": 1,
        "eval_every": 32,
    }
    data = SequenceDataModule(**(defaults | settings))
    model = DreamerV3(data.spec, size="cpu", num_bins=9, imagination_horizon=2)
    trainer = make_trainer(folder, *callbacks, logger=logger)
    trainer.fit(model, datamodule=data)
    return trainer, model


def pictures(**settings: Any) -> WorldModelPictures:
    return WorldModelPictures(**({"every_n_evaluations": 1, "context": 2, "horizon": 3, "num_sequences": 1} | settings))


def files(trainer: Trainer) -> dict[str, list[str]]:
    folder = Path(str(trainer.log_dir)) / "pictures"
    return {at.name: sorted(file.name for file in at.iterdir()) for at in sorted(folder.glob("*"))}


def test_the_training_is_the_same_and_the_pictures_are_there(tmp_path: Path) -> None:
    trainer, model = fit(tmp_path / "with", pictures())
    _, other = fit(tmp_path / "without")
    assert model.update_steps > 0
    assert torch.equal(weights(model), weights(other))
    ((at, names),) = files(trainer).items()
    assert names == [f"{name}.png" for name in PLOTS]
    accumulator = EventAccumulator(str(trainer.log_dir))
    accumulator.Reload()
    tags = accumulator.Tags()
    assert sorted(tags["images"]) == [f"stability/world_model/{name}" for name in PLOTS]
    shown = accumulator.Images("stability/world_model/open_loop")
    assert [f"env_steps={image.step}" for image in shown] == [at]
    saved = Path(str(trainer.log_dir)) / "pictures" / at / "open_loop.png"
    assert shown[0].encoded_image_string == saved.read_bytes()
    curves = [f"stability/world_model/{name}_1" for name in ("copy_error", "open_loop_error")]
    assert [tag for tag in sorted(tags["scalars"]) if tag.startswith("stability/world_model")] == curves


def test_images_and_vectors_together_with_another_logger(tmp_path: Path) -> None:
    """Every second evaluation; a dictionary of an image, shrunk at the environment, and a vector."""
    trainer, model = fit(
        tmp_path,
        pictures(every_n_evaluations=2, name="dot"),
        logger=CSVLogger(tmp_path),
        env_id="rlmods/DotTracking-v0",
        env_kwargs={"image_size": 100},
        resize=(48, 48),
    )
    assert model.update_steps >= 2
    assert model.world_model.decoder.kinds == ["vectors", "images"]
    ((at, names),) = files(trainer).items()
    assert at == "env_steps=64"
    assert [Path(name).stem for name in names] == sorted([*PLOTS, *FILMS_AND_STRIPS])
    table = (Path(str(trainer.log_dir)) / "metrics.csv").read_text().splitlines()
    assert "stability/dot/open_loop_error_1" in table[0]


def test_it_goes_on_counting() -> None:
    callback = pictures(every_n_evaluations=3)
    callback.load_state_dict({"evaluations": 2})
    assert callback.state_dict() == {"evaluations": 2}
    assert callback.state_key != pictures(name="other").state_key


@pytest.mark.parametrize("argument", ["every_n_evaluations", "context", "horizon", "num_sequences"])
def test_numbers_below_one_are_refused(argument: str) -> None:
    with pytest.raises(ValueError, match=f"got {argument} = 0, expected at least 1"):
        pictures(**{argument: 0})


def test_a_name_with_a_slash_is_refused() -> None:
    with pytest.raises(ValueError, match="got name = 'a/b', expected a word without a slash"):
        WorldModelPictures(name="a/b")


def test_sequences_that_are_all_context_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"context = 6 for sequences of 6 rows.*type a context of 1 to 5"):
        fit(tmp_path, pictures(context=6))
    assert not any(file.is_file() and "pictures" in str(file) for file in tmp_path.rglob("*"))


def test_a_module_that_cannot_be_looked_at_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"a module with open_loop\(sequences.*got Stranger"):
        fit_stranger(tmp_path, Stranger(), [transitions()], pictures())
