"""The command line: Lightning's own, with the parts of a reinforcement-learning run filled in."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from rlmods.algorithms.base import Algorithm
from rlmods.beginning import Beginning
from rlmods.best_checkpoint import BestCheckpoint
from rlmods.callbacks import Curves, EnvStepsProgressBar, GlobalRNG, GracefulStop, RunRecord
from rlmods.callbacks.safeguard import Safeguard
from rlmods.chain import (
    FROM,
    WEIGHTS_ONLY,
    Parent,
    changes_table,
    config_changes,
    origin_of,
    origin_on_resume,
    seeds_without_effect,
)
from rlmods.checkpoint_io import AtomicCheckpointIO
from rlmods.checks import (
    check_weights,
    check_writable,
    fit_to_spec,
    read_observations,
    refuse_failed_gates,
    refuse_unsupported,
)
from rlmods.cli_errors import errors_as_sentences, fail, silence_noise
from rlmods.cli_parser import ConciseParser, with_config_files, with_parent
from rlmods.data.experience import ExperienceDataModule
from rlmods.reports.fit_report import report_of_fit
from rlmods.reports.kept_checkpoints import health_of
from rlmods.resume import RUNS, ResumePoint, RunKind, find_checkpoint
from rlmods.saved_config import SavedConfig
from rlmods.warm_start import WarmStart, group_sizes, optimizers_of

SUBCOMMANDS = ("fit", "validate", "test", "predict")


class RLModsCLI(LightningCLI):
    """LightningCLI that knows what a run needs, and refuses what cannot work before anything is written.

    Args:
        arguments: the sub-command and its options.
        beginning: told when the work begins.
        parent: the run that is continued in a new one; its configuration is among the arguments.
    """

    def __init__(self, arguments: list[str], beginning: Beginning | None = None, parent: Parent | None = None) -> None:
        self.requested = next(argument for argument in arguments if argument in SUBCOMMANDS)
        self.beginning = beginning or Beginning()
        self.resume_point: ResumePoint | None = None
        self.parent = parent
        self.origin: dict[str, Any] = origin_of(parent, [])
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=SavedConfig,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"max_epochs": 1, "num_sanity_val_steps": 0},
            parser_class=type("Parser", (ConciseParser,), {"command": self.requested}),
            parser_kwargs={"prog": "python -m rlmods", "allow_abbrev": False},
            args=arguments,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Only the one asked for: building the parser of each takes a second."""
        return {self.requested: LightningCLI.subcommands()[self.requested]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what data and model share, and add our own options."""
        parser.link_arguments("data.spec", "model.init_args.spec", apply_on="instantiate")
        parser.add_argument(
            "--torch_threads",
            type=PositiveInt,
            default=1,
            help="Threads of torch on the CPU; small networks are slower with more.",
        )
        if self.requested == "fit":
            parser.add_argument(
                FROM,
                type=str | None,
                default=None,
                help="Continue in a new run: a run folder, a checkpoint, best, latest, or fresh for none. Its "
                "configuration is the base of this one's. On the command line only.",
            )
            parser.add_argument(
                WEIGHTS_ONLY, type=bool, default=False, help="Of that run take the weights alone; clocks begin anew."
            )
            parser.add_argument(
                "--force_gates", type=bool, default=False, help="Go on from a checkpoint that failed a stage gate."
            )
        if self.requested == "test":
            parser.add_argument(
                "--video", type=str | None, default=None, help="Folder for a video of the first episode."
            )
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
        refuse_unsupported(trainer)
        if trainer.default_root_dir is not None:
            trainer.default_root_dir = str(Path(trainer.default_root_dir).expanduser())
        root = Path(trainer.default_root_dir or ".")
        if self.requested == "fit" and not trainer.fast_dev_run:
            check_writable(root)
        ckpt_path = self._get(self.config, "ckpt_path")
        if self.requested == "fit" and self._get(self.config, "from") is not None:
            raise ValueError(f"got from in a configuration file, expected it on the command line: type {FROM} RUN")
        if self.parent is not None:
            self._begin_from(self.parent, root)
        elif ckpt_path is not None:
            self.resume_point = find_checkpoint(ckpt_path, root, self._run_kind(), exact=self.requested == "fit")
            for path, reason in self.resume_point.refused.items():
                rank_zero_warn(f"refused {path}: {reason}")
            rank_zero_info(f"checkpoint: {self.resume_point.checkpoint}")
            self.config[self.requested]["ckpt_path"] = str(self.resume_point.checkpoint)
            if self.requested == "fit" and self.resume_point.version is not None:
                folder = self.resume_point.checkpoint.resolve().parent.parent
                self.origin = origin_on_resume(folder, self._plain_config()) or self.origin

    def _begin_from(self, parent: Parent, root: Path) -> None:
        """Find the parent's checkpoint, and say and keep what is changed."""
        if self._get(self.config, "ckpt_path") is not None:
            raise ValueError(f"got --ckpt_path and {FROM}, expected one: {FROM} begins a new run, --ckpt_path goes on")
        for path, reason in parent.refused.items():
            rank_zero_warn(f"passed over {path}: {reason}")
        exact = parent.continued == "full"
        point = find_checkpoint(str(parent.checkpoint), root, self._run_kind(), exact=exact)
        self.resume_point = point._replace(version=None)  # a new run has a folder of its own
        changes = config_changes(self._plain_config(), parent)
        rank_zero_info(changes_table(parent, changes))
        for seed in seeds_without_effect(parent, changes):
            rank_zero_warn(
                f"{seed} changes nothing in the training: random numbers and environments go on with the full training "
                f"state. For another seed type {WEIGHTS_ONLY} true"
            )
        wrong = health_of(parent.checkpoint)
        if wrong:
            rank_zero_warn(f"{parent.checkpoint} is unhealthy ({', '.join(wrong)}), and was asked for by name")
        self.origin = origin_of(parent, changes)

    def _plain_config(self) -> dict[str, Any]:
        """The configuration of fit as `config.yaml` would hold it."""
        text = self._parser("fit").dump(self.config["fit"], skip_none=False, skip_validation=True)
        config: dict[str, Any] = yaml.safe_load(text)
        return config

    def _run_kind(self) -> RunKind:
        model, data = self._get(self.config, "model"), self._get(self.config, "data")
        return RunKind(
            model=model.class_path.rpartition(".")[2],
            data=data.class_path.rpartition(".")[2],
            env_id=data.get("init_args", {}).get("env_id"),
        )

    def after_instantiate_classes(self) -> None:
        """Look at the checkpoint before Lightning makes a folder."""
        if self.resume_point is None:
            if self.requested != "fit":
                rank_zero_warn(f"{self.requested} without --ckpt_path: the agent is untrained")
            return
        checkpoint = AtomicCheckpointIO().load_checkpoint(self.resume_point.checkpoint)
        if isinstance(self.model, Algorithm):
            self.model.check_checkpoint(checkpoint)
            check_weights(checkpoint["state_dict"], self.model)
        if self.parent is not None and self.parent.continued == "weights":
            self.model.load_state_dict(checkpoint["state_dict"])
            return
        if self.requested == "fit":
            force = self._get(self.config, "force_gates")
            refuse_failed_gates(checkpoint, self.trainer.callbacks, force=force)  # type: ignore[attr-defined]
        if self.requested == "fit" and isinstance(self.datamodule, ExperienceDataModule):
            self._check_state(checkpoint, self.datamodule)
        if self.parent is not None:
            self._check_optimizers(checkpoint)

    def _check_state(self, checkpoint: dict[str, Any], data: ExperienceDataModule) -> None:
        """Whether training can go on with the state of the data module."""
        state = checkpoint.get(type(data).__qualname__)
        if not state:
            path = None if self.resume_point is None else self.resume_point.checkpoint
            raise ValueError(
                f"got {path}, which holds no state of a {type(data).__name__}, "
                "expected one that fit has written: type --ckpt_path last"
            )
        try:
            data.check_checkpoint(state, self.trainer.num_devices * self.trainer.num_nodes)
        except ValueError as error:
            if self.parent is None:
                raise
            raise ValueError(f"{error}; or take the weights alone: type {WEIGHTS_ONLY} true") from error

    def _check_optimizers(self, checkpoint: dict[str, Any]) -> None:
        """Whether the state of the parent's optimisers is one of the child's."""
        saved = group_sizes(checkpoint["optimizer_states"])
        own = group_sizes([optimizer.state_dict() for optimizer in optimizers_of(self.model)])
        if saved != own:
            raise ValueError(
                f"got a parent whose optimisers have groups of {saved} parameters, expected {own} as configured: its "
                f"full training state does not fit another optimizer; type {WEIGHTS_ONLY} true"
            )

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the callbacks, the logger and the checkpoint plugin of a run, where the configuration names no others."""
        trainer = self._get(self.config_init, "trainer")
        is_run = self.requested == "fit" and not trainer.fast_dev_run
        if not is_run:
            self.save_config_callback = None
            # An evaluation needs none of the callbacks whose state the checkpoint holds.
            warnings.filterwarnings("ignore", message="Be aware that when using `ckpt_path`")
        self.trainer_defaults["callbacks"] = [*(self._run_callbacks(trainer) if is_run else []), self.beginning]
        plugins = trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        if trainer.logger in (None, True):
            kwargs["logger"] = self._logger(Path(trainer.default_root_dir or ".")) if is_run else False
        return super().instantiate_trainer(**kwargs)

    def _run_callbacks(self, trainer: Any) -> list[Callback]:
        configured = trainer.callbacks or []
        ours: list[tuple[type[Callback], list[Callback]]] = [
            (GlobalRNG, [GlobalRNG()]),
            (Curves, [Curves()]),
            (RunRecord, [RunRecord(self._get(self.config, "seed_everything"), self.origin, self._action_spec())]),
        ]
        if self.parent is not None:
            ours.insert(0, (WarmStart, [WarmStart()]))
        if trainer.enable_progress_bar is not False:
            ours.append((ProgressBar, [EnvStepsProgressBar()]))
        if trainer.enable_checkpointing is not False:
            ours += [(ModelCheckpoint, _checkpoints()), (GracefulStop, [GracefulStop()])]
        return [
            callback
            for kind, callbacks in ours
            if not any(isinstance(other, kind) for other in configured)
            for callback in callbacks
        ]

    def _action_spec(self) -> dict[str, Any] | None:
        """What kind of actions the environment takes, and how many."""
        if not isinstance(self.datamodule, ExperienceDataModule):
            return None
        action = self.datamodule.spec["action"].items()
        return {"action": {name: value for name, value in action if name in ("kind", "shape", "n", "nvec")}}

    def _logger(self, root: Path) -> TensorBoardLogger:
        """A new run folder, or the folder of the run that goes on, its curves cut after the checkpoint."""
        point = self.resume_point
        if point is None or point.version is None or point.manifest is None or point.manifest.env_steps is None:
            logger = TensorBoardLogger(root, name=RUNS, default_hp_metric=False)
            self.beginning.new_folder = Path(logger.log_dir)
            return logger
        purge_step = point.manifest.env_steps + 1
        return TensorBoardLogger(root, name=RUNS, version=point.version, default_hp_metric=False, purge_step=purge_step)

    def fit(self, **kwargs: Any) -> None:
        """Fit, and report what became of it."""
        if self.parent is not None and self.parent.continued == "full":
            # Not in the configuration: that file, run again, would go on in the parent's folder.
            kwargs["ckpt_path"] = str(self.parent.checkpoint)
        if self._get(self.config_init, "trainer").fast_dev_run:
            self.trainer.fit(**kwargs)
            return
        with report_of_fit(self.trainer, lambda: self.beginning.begun):
            self.trainer.fit(**kwargs)

    def after_fit(self) -> None:
        """Leave as a signal asked for, also where the run had come to its end by then, or with 3 after a safeguard."""
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, GracefulStop) and callback.received:
                raise SystemExit(128 + callback.received)
            if isinstance(callback, Safeguard) and callback.stopped is not None:
                fail(f"{type(callback).__name__} ended the training: {callback.stopped}", code=3)

    def before_test(self) -> None:
        """Hand over the folder for the video."""
        video = self._get(self.config, "video")
        if video is not None:
            self.datamodule.video_folder = Path(video)

    def before_predict(self) -> None:
        """Hand over the observations."""
        file = self._get(self.config, "observations")
        if file is not None:
            observations = read_observations(Path(file))
            if isinstance(self.datamodule, ExperienceDataModule):
                observations = fit_to_spec(observations, self.datamodule.spec["observation"])
            self.datamodule.observations = observations

    def predict(self, **kwargs: Any) -> None:
        """Predict, and write what comes out."""
        output = Path(self._get(self.config, "output")).with_suffix(".npz")
        (prediction,) = self.trainer.predict(**kwargs) or [None]
        arrays = {"action": prediction} if isinstance(prediction, torch.Tensor) else dict(prediction)
        output.parent.mkdir(parents=True, exist_ok=True)
        np.savez(output, **{name: array.cpu().numpy() for name, array in arrays.items()})  # type: ignore[arg-type]
        rank_zero_info(
            f"wrote {', '.join(f'{name} {tuple(array.shape)}' for name, array in arrays.items())} to {output}"
        )


def _checkpoints() -> list[Callback]:
    """The one that evaluated best, and the newest three, so that a damaged one has a predecessor."""
    # The newest last: each saves the state of those before it, so that a resume knows the best.
    return [
        BestCheckpoint(),
        ModelCheckpoint(monitor="step", mode="max", save_top_k=3, filename="{step}"),
    ]


def run(arguments: list[str]) -> None:
    """Run a command of the command line.

    Args:
        arguments: the sub-command and its options.

    Raises:
        SystemExit: 2 where the user has to correct something, 1 where a checkpoint could not be written, 3 where a
            safeguard ended the training.
    """
    beginning = Beginning()
    silence_noise()
    with errors_as_sentences(beginning):
        arguments, parent = with_parent(with_config_files(arguments))
        RLModsCLI(arguments, beginning, parent)
