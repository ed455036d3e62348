"""The command line: Lightning's own, with the parts of a reinforcement-learning run filled in."""

import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from rlmods.callbacks import Curves, EnvStepsProgressBar, GlobalRNG, GracefulStop, RunRecord
from rlmods.checkpoint_io import AtomicCheckpointIO, CheckpointWriteError
from rlmods.configs import find_config
from rlmods.manifest import DamagedCheckpointError
from rlmods.resume import RUNS, ResumePoint, RunKind, find_checkpoint

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class ConciseParser(LightningArgumentParser):
    """A parser whose errors are a sentence, without the eighty lines of usage before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the sentence and leave."""
        _fail(f"{message}\nThe options are explained by: {self.prog} --help")


class RLModsCLI(LightningCLI):
    """LightningCLI that knows what a run needs, and refuses what cannot work before anything is written."""

    def __init__(self, arguments: list[str]) -> None:
        self.requested = arguments[0]
        self.resume_point: ResumePoint | None = None
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 1, "num_sanity_val_steps": 0},
            parser_class=ConciseParser,
            parser_kwargs={"prog": "python -m rlmods"},
            args=arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one asked for: building the parser of each takes a second."""
        return {self.requested: LightningCLI.subcommands()[self.requested]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what data and model share, and add our own options."""
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")
        parser.add_argument(
            "--torch_threads", type=int, default=1, help="Threads of torch on the CPU; small networks are slower with more."
        )
        if self.requested == "test":
            parser.add_argument("--video", type=str | None, default=None, help="Folder for a video of the first episode.")
        if self.requested == "predict":
            parser.add_argument(
                "--observations",
                type=str | None,
                default=None,
                help="File of observations [B, ...], .npy, or .npz for a dict of them; without it episodes are played.",
            )
            parser.add_argument("--output", type=str, default="predictions.npz", help="File to write.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse what `run` was given; Lightning would warn that `sys.argv` is not used."""
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyper-parameters override the configuration; here the latter holds."""

    def before_instantiate_classes(self) -> None:
        """Refuse what cannot work; find the checkpoint."""
        torch.set_num_threads(self._get(self.config, "torch_threads"))
        trainer = self._get(self.config, "trainer")
        _refuse_unsupported(trainer)
        root = Path(trainer.default_root_dir or ".")
        if self.requested == "fit" and not trainer.fast_dev_run:
            _check_writable(root)
        ckpt_path = self._get(self.config, "ckpt_path")
        if ckpt_path is not None:
            self.resume_point = find_checkpoint(ckpt_path, root, self._run_kind())
            for path, reason in self.resume_point.refused.items():
                rank_zero_warn(f"refused {path}: {reason}")
            rank_zero_info(f"checkpoint: {self.resume_point.checkpoint}")
            self.config[self.requested]["ckpt_path"] = str(self.resume_point.checkpoint)

    def _run_kind(self) -> RunKind:
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        return RunKind(
            model=model.class_path.rpartition(".")[2],
            data=data.class_path.rpartition(".")[2],
            env_id=data.init_args.get("env_id"),
        )

    def after_instantiate_classes(self) -> None:
        """Let the model look at the checkpoint before Lightning makes a folder."""
        if self.resume_point is not None:
            self.model.on_load_checkpoint(AtomicCheckpointIO().load_checkpoint(self.resume_point.checkpoint))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks, the logger and the checkpoint plugin of a run, where the configuration names no others."""
        trainer = self._get(self.config_init, "trainer")
        is_run = self.requested == "fit" and not trainer.fast_dev_run
        if not is_run:
            self.save_config_callback = None
        self.trainer_defaults["callbacks"] = self._run_callbacks(trainer) if is_run else []
        plugins = trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if trainer.logger in (None, True):
            kwargs["logger"] = self._logger(Path(trainer.default_root_dir or ".")) if is_run else False
        return super().instantiate_trainer(**kwargs)

    def _run_callbacks(self, trainer: Any) -> list[Callback]:
        configured = trainer.callbacks or []
        callbacks: list[Callback] = [GlobalRNG(), Curves(), RunRecord(self._get(self.config, "seed_everything"))]
        if trainer.enable_progress_bar is not False:
            callbacks.append(EnvStepsProgressBar())
        if trainer.enable_checkpointing is not False:
            if not any(isinstance(callback, ModelCheckpoint) for callback in configured):
                callbacks += _checkpoints()
            callbacks.append(GracefulStop())
        return callbacks

    def _logger(self, root: Path) -> TensorBoardLogger:
        """A new run folder, or the folder of the run that goes on, its curves cut after the checkpoint."""
        point = self.resume_point
        if point is None or point.version is None or point.manifest is None or point.manifest.env_steps is None:
            return TensorBoardLogger(root, name=RUNS, default_hp_metric=False)
        purge_step = point.manifest.env_steps + 1
        return TensorBoardLogger(root, name=RUNS, version=point.version, default_hp_metric=False, purge_step=purge_step)

    def before_test(self) -> None:
        """Hand over the folder for the video."""
        video = self._get(self.config, "video")
        if video is not None:
            self.datamodule.video_folder = Path(video)

    def before_predict(self) -> None:
        """Hand over the observations."""
        file = self._get(self.config, "observations")
        if file is not None:
            self.datamodule.observations = _read_observations(Path(file))

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write what comes out."""
        output = Path(self._get(self.config, "output"))
        (prediction,) = self.trainer.predict(**kwargs) or [None]
        arrays = {"action": prediction} if isinstance(prediction, torch.Tensor) else dict(prediction)
        output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(output, **{name: array.cpu().numpy() for name, array in arrays.items()})
        rank_zero_info(f"wrote {', '.join(f'{name} {tuple(array.shape)}' for name, array in arrays.items())} to {output}")


def _checkpoints() -> list[Callback]:
    """The newest three, so that a damaged one has a predecessor, and the one that evaluated best."""
    return [
        ModelCheckpoint(monitor="step", mode="max", save_top_k=3, filename="{step}"),
        ModelCheckpoint(monitor="eval/mean_reward", mode="max", filename="best-{step}"),
    ]


def _refuse_unsupported(trainer: Any) -> None:
    if trainer.gradient_clip_val is not None:
        raise ValueError(
            f"got trainer.gradient_clip_val = {trainer.gradient_clip_val}, expected the model's own option, because the "
            f"model makes its updates itself: type --model.init_args.max_grad_norm {trainer.gradient_clip_val}"
        )
    if str(trainer.precision).startswith("16"):
        raise ValueError(
            f"got trainer.precision = {trainer.precision}, expected 32-true or bf16-mixed: raw optimiser steps would pass "
            "by the loss scaler of 16-bit training; type --trainer.precision bf16-mixed"
        )


@rank_zero_only
def _check_writable(root: Path) -> None:
    existing = next(folder for folder in (root / RUNS, *(root / RUNS).absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise ValueError(
            f"got trainer.default_root_dir = {root}, which cannot be written ({error.strerror}): type "
            "--trainer.default_root_dir FOLDER"
        ) from error


def _read_observations(file: Path) -> torch.Tensor | dict[str, torch.Tensor]:
    try:
        loaded = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"got --observations {file}, expected a .npy or .npz file of arrays [B, ...]: {error}") from error
    if isinstance(loaded, np.ndarray):
        return torch.from_numpy(loaded)
    return {name: torch.from_numpy(loaded[name]) for name in loaded.files}


def run(arguments: list[str]) -> None:
    """Run a command of the command line.

    Args:
        arguments: the sub-command and its options.
    """
    if arguments[0] not in SUBCOMMANDS:
        _fail(f"got the command {arguments[0]!r}, expected one of {', '.join(SUBCOMMANDS)}, configs")
    try:
        RLModsCLI(_with_config_files(arguments))
    except (ValueError, FileNotFoundError, DamagedCheckpointError, CheckpointWriteError) as error:
        _fail(str(error))


def _with_config_files(arguments: list[str]) -> list[str]:
    """Names of shipped configurations replaced by their files."""
    resolved = list(arguments)
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if option not in ("--config", "-c"):
            continue
        if equals:
            resolved[position] = f"{option}={find_config(value)}"
        elif position + 1 < len(arguments):
            resolved[position + 1] = str(find_config(arguments[position + 1]))
    return resolved


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
