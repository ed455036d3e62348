"""`python -m rlmods replay FOLDER`: repeats the update that a failure bundle was left for, and says what it finds."""

import json
import logging
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rlmods.callbacks.failure_bundle import BATCH, FAILURE, RNG, STATE, import_class, unpack
from rlmods.callbacks.global_rng import set_rng_state
from rlmods.callbacks.non_finite_detector import GRADIENT, Finding
from rlmods.callbacks.non_finite_guard import NonFiniteGuard

USAGE = """\
usage: python -m rlmods replay FOLDER

Repeats the update for which a safeguard left FOLDER (failures/… of a run), on the CPU, and says what is not finite.
Leaves with 0 where the same cause is found again, with 1 where it is not, with 2 where the folder cannot be used.
"""


class BundleError(ValueError):
    """A folder that cannot be replayed; the message says why, and what to do."""


class Bundle(NamedTuple):
    """A failure bundle, loaded."""

    failure: dict[str, Any]
    batch: Any
    state: dict[str, Any]
    rng: dict[str, Any]


class OneBatch:
    """A loader of one batch; it has a length, so that Lightning does not fetch ahead."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Any]:
        yield self.batch


class Restore(Callback):
    """Sets the optimisers and the randomness to where they were."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The optimisers are there."""
        for optimizer, state in zip(trainer.optimizers, self.bundle.state["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Nothing draws between this and the training step."""
        set_rng_state(self.bundle.rng)


def load_bundle(folder: Path) -> Bundle:
    """Read a bundle; nothing in it is run, but the classes that it names are imported.

    Raises:
        BundleError: where a file is missing or damaged, or a class cannot be imported.
    """
    if not (folder / FAILURE).is_file():
        raise BundleError(
            f"got {folder}, expected the folder of a failure, with a {FAILURE}: they lie in failures/ of a run folder"
        )
    try:
        failure = json.loads((folder / FAILURE).read_text())
        contents = [torch.load(folder / name, map_location="cpu", weights_only=True) for name in (BATCH, STATE, RNG)]
        bundle = Bundle(failure, unpack(contents[0]), unpack(contents[1]), contents[2])
        missing = {"cause", "message"} - failure.keys() | {"class_path", "state_dict"} - bundle.state.keys()
    except ImportError as error:
        raise BundleError(f"{folder} needs a class that cannot be imported: {error}. {_IMPORTABLE}") from error
    except (OSError, ValueError, RuntimeError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder} is damaged, it cannot be read: {_first_line(error)}") from error
    except pickle.UnpicklingError as error:
        raise BundleError(f"{folder} is damaged, or holds more than numbers: {_first_line(error)}") from error
    if missing:
        raise BundleError(f"{folder} is damaged: {sorted(missing)} are missing")
    return bundle


_IMPORTABLE = "Start the command where it can: in the folder of its file, or with that folder in PYTHONPATH"


def build_module(state: dict[str, Any]) -> LightningModule:
    """The module as it was before the failed update.

    Raises:
        BundleError: where its class cannot be imported, or does not take what was saved.
    """
    path = state["class_path"]
    try:
        module_class = import_class(path)
    except ImportError as error:
        raise BundleError(f"the module {path} cannot be imported: {error}. {_IMPORTABLE}") from error
    if not issubclass(module_class, LightningModule):
        raise BundleError(f"got {path} as the module's class, expected a LightningModule")
    hyper_parameters = state.get(LightningModule.CHECKPOINT_HYPER_PARAMS_KEY, {})
    try:
        module = module_class(**hyper_parameters)
        module.load_state_dict(state["state_dict"])
        module.on_load_checkpoint(state)
    except Exception as error:  # whatever a stranger's constructor raises
        left_out = f"; of its arguments {state['left_out']} could not be saved" if state.get("left_out") else ""
        raise BundleError(
            f"{path} could not be built again from its hyper-parameters {sorted(hyper_parameters)}{left_out}: "
            f"{_first_line(error)}. Call save_hyperparameters() in its constructor, with plain values"
        ) from error
    return module


def replay(bundle: Bundle, *, detect_anomaly: bool = False) -> Finding | None:
    """Repeat the update; what was not finite, or None.

    Raises:
        BundleError: where the module raises, and nothing was found.
    """
    guard = NonFiniteGuard(mode="observe", max_bundles=0)
    precision = bundle.state.get("precision")
    trainer = Trainer(
        fast_dev_run=True,  # one batch; leaves nothing behind
        accelerator="cpu",
        devices=1,
        precision=precision if precision in ("bf16-mixed", "64-true") else "32-true",
        callbacks=[Restore(bundle), guard],
        enable_progress_bar=False,
        enable_model_summary=False,
        detect_anomaly=detect_anomaly,
    )
    try:
        trainer.fit(build_module(bundle.state), train_dataloaders=OneBatch(bundle.batch))
    except BundleError:
        raise
    except Exception as error:  # whatever a stranger's module raises
        if guard.finding is None:
            raise BundleError(f"the module raised {type(error).__name__}: {error}") from error
    return guard.finding


def origin_of_gradient(bundle: Bundle) -> str | None:
    """The operation whose backward made the first NaN, as torch's anomaly detection names it; None for infinity."""
    try:
        replay(bundle, detect_anomaly=True)
    except BundleError as error:
        return _first_line(error)
    return None


def main(arguments: list[str]) -> int:
    """Run the command.

    Args:
        arguments: what follows `replay`.

    Returns:
        The exit status.
    """
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    if len(arguments) != 1:
        print(f"error: got {len(arguments)} arguments, expected one folder\n{USAGE}", file=sys.stderr, end="")
        return 2
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "rlmods.callbacks.safeguard"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        bundle = load_bundle(Path(arguments[0]))
        finding = replay(bundle)
    except BundleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"then: {bundle.failure['cause']}: {bundle.failure['message']}")
    if finding is None:
        print("now:  everything is finite: not reproduced")
        return 1
    print(f"now:  {finding.cause}: {finding.message}")
    origin = origin_of_gradient(bundle) if finding.cause == GRADIENT else None
    if origin is not None:
        print(f"      {origin}")
    if finding.cause != bundle.failure["cause"]:
        print("another cause: not reproduced")
        return 1
    print("reproduced")
    return 0


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
