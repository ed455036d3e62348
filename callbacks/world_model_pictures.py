"""Pictures of what a world model foresees and an actor dreams, of sequences that training has just learned from."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.seed import isolate_rng

from rlmods.callbacks.events import run_folder
from rlmods.callbacks.picture_album import album, open_loop_errors
from rlmods.callbacks.picture_frames import Picture
from rlmods.callbacks.safeguard import MissingInputError, clock
from rlmods.functional.open_loop import OpenLoop
from rlmods.types import SequenceBatch, Sequences, SequenceSource

_HORIZONS = (1, 5, 15, 50)  # steps ahead, of the curves


@runtime_checkable
class ShowsItsModel(Protocol):
    """A module with a model of the world that people may look at."""

    def open_loop(self, sequences: Sequences, *, context: int, horizon: int) -> OpenLoop:
        """What it makes of sequences `[T, B, ...]` of which it sees `context` rows, and a dream of `horizon` steps.

        May draw from torch's global generator.
        """
        ...


class WorldModelPictures(Callback):
    """Draws what the model makes of the sequences that the training has just learned from.

    Every few evaluations, from the last mini-batch: the model sees the first rows of a sequence, its context, and then
    goes on alone with the actions that were taken. The pictures go to TensorBoard under `stability/<name>/…` and as
    files to `pictures/env_steps=N/` of the run folder:

    - `open_loop.png`: every entry of the vectors, reward, discount and value, what came against what was foreseen;
    - `open_loop_<key>.png` and `open_loop_<key>_film.gif`, of images: what came, what was foreseen, the difference,
      above each other; `reconstruction_<key>.png` is the same of the posterior, which sees every row;
    - `dream.png` and `dream_<key>_film.gif`: where the actor goes in a dream from the last row of the context;
    - `latents.png`: the probabilities of the latents, of posterior and prior;
    - `open_loop_error.png`: the error against the steps ahead, with the curves `open_loop_error_<steps>` and
      `copy_error_<steps>`, of all sequences of the mini-batch.

    Errors are shares of the variance that are not explained, the mean over the entries of vectors, and of all pixels of
    images together: 1 is no better than predicting the mean of what came. `copy_error` is that of repeating the last
    row that was seen: a model that only copies has no less.

    Drawn are the sequences whose episode lasts longest after the context, so that there is something to compare. The
    training is bit for bit the one without the pictures.

    Args:
        every_n_evaluations: between two drawings.
        context: rows that the model sees.
        horizon: steps of the dreams.
        num_sequences: that are drawn.
        name: of the instance, in the curves.

    Raises:
        ValueError: where an argument is outside its range, or sequences are too short for the context.
        MissingInputError: where the module has no `open_loop`.
    """

    def __init__(
        self,
        *,
        every_n_evaluations: int = 5,
        context: int = 5,
        horizon: int = 30,
        num_sequences: int = 3,
        name: str = "world_model",
    ) -> None:
        arguments = {
            "every_n_evaluations": every_n_evaluations,
            "context": context,
            "horizon": horizon,
            "num_sequences": num_sequences,
        }
        for argument, value in arguments.items():
            if value < 1:
                raise ValueError(f"WorldModelPictures got {argument} = {value}, expected at least 1")
        if not name or "/" in name:
            raise ValueError(f"WorldModelPictures got name = {name!r}, expected a word without a slash")
        self.every_n_evaluations = every_n_evaluations
        self.context = context
        self.horizon = horizon
        self.num_sequences = num_sequences
        self.name = name
        self._evaluations = 0
        self._folder: Path | None = None
        self._sequences: Sequences | None = None

    @property
    def state_key(self) -> str:
        """Several instances live side by side under different names."""
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot be looked at, and sequences that are all context."""
        if not isinstance(pl_module, ShowsItsModel):
            raise MissingInputError(
                f"WorldModelPictures needs a module with open_loop(sequences, *, context, horizon), got "
                f"{type(pl_module).__name__} without it: use it with rlmods.algorithms.DreamerV3, or leave it out"
            )
        source = trainer.datamodule  # type: ignore[attr-defined]
        if isinstance(source, SequenceSource):
            self._check_length(source.batch_length)

    def _check_length(self, rows: int) -> None:
        if rows <= self.context:
            raise ValueError(
                f"WorldModelPictures got context = {self.context} for sequences of {rows} rows, expected fewer, so "
                f"that something is left to foresee: type a context of 1 to {rows - 1}"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run folder, which all processes must do."""
        self._folder = run_folder(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the last mini-batch, as views."""
        if isinstance(batch, SequenceBatch) and batch.num_updates:
            self._sequences = batch.minibatches()[-1]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw where it is due."""
        if trainer.sanity_checking or trainer.state.fn != TrainerFn.FITTING:
            return
        self._evaluations += 1
        is_due = self._evaluations % self.every_n_evaluations == 0
        if is_due and trainer.is_global_zero and self._sequences is not None and isinstance(pl_module, ShowsItsModel):
            self._draw(trainer, pl_module, self._sequences)

    def _draw(self, trainer: Trainer, model: ShowsItsModel, sequences: Sequences) -> None:
        self._check_length(len(sequences.reward))
        with isolate_rng(), torch.no_grad():
            record = model.open_loop(sequences, context=self.context, horizon=self.horizon)
        step = clock(trainer)
        pictures = album(record, self.num_sequences)
        if self._folder is not None:
            folder = self._folder / "pictures" / f"env_steps={step}"
            folder.mkdir(parents=True, exist_ok=True)
            for name, picture in pictures.items():
                (folder / f"{name}.{picture.suffix}").write_bytes(picture.data)
        curves = {f"stability/{self.name}/{name}": value for name, value in _curves(open_loop_errors(record)).items()}
        for logger in trainer.loggers:
            logger.log_metrics(curves, step=step)
            if isinstance(logger, TensorBoardLogger):
                for name, picture in pictures.items():
                    _show(logger, f"stability/{self.name}/{name}", picture, step)

    def state_dict(self) -> dict[str, Any]:
        """How many evaluations there were."""
        return {"evaluations": self._evaluations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._evaluations = state_dict["evaluations"]


def _curves(errors: Mapping[str, Sequence[float]]) -> dict[str, float]:
    names = {"model": "open_loop_error", "copy": "copy_error"}
    return {
        f"{names[name]}_{steps}": of_horizon[steps - 1]
        for name, of_horizon in errors.items()
        for steps in _HORIZONS
        if steps <= len(of_horizon) and math.isfinite(of_horizon[steps - 1])
    }


def _show(logger: TensorBoardLogger, tag: str, picture: Picture, step: int) -> None:
    """As the encoded file: its writer would need another package for films."""
    # Late: importing the command line must stay quick.
    from tensorboard.compat.proto.summary_pb2 import Summary

    image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=picture.data)
    writer = logger.experiment.file_writer
    if writer is not None:
        writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
