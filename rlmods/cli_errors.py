"""What goes wrong on the command line, as a sentence and an exit code; and what is kept back as noise."""

import errno
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from lightning.fabric.utilities.exceptions import MisconfigurationException

from rlmods.beginning import Beginning
from rlmods.callbacks.safeguard import MissingInputError
from rlmods.checkpoint_io import CheckpointWriteError
from rlmods.manifest import DamagedCheckpointError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FREE_SPACE = "The checkpoints written before are intact: free some space, then go on with --ckpt_path last"


@contextmanager
def errors_as_sentences(beginning: Beginning) -> Iterator[None]:
    """Leave with a sentence where the user has to correct something; what did not begin leaves nothing behind.

    Args:
        beginning: told when the work begins.

    Raises:
        SystemExit: 2 where the user has to correct something, 1 where a checkpoint could not be written.
    """
    try:
        yield
    except CheckpointWriteError as error:
        fail(str(error), code=1)
    except MissingInputError as error:
        if not beginning.begun:
            beginning.undo()
        fail(str(error))
    except (ValueError, TypeError, OSError, ImportError, MisconfigurationException, DamagedCheckpointError) as error:
        if beginning.begun:
            if isinstance(error, OSError) and error.errno in _FULL:
                fail(
                    f"could not write {error.filename or 'to the run folder'}: {error.strerror}. {_FREE_SPACE}", code=1
                )
            raise
        beginning.undo()
        fail(_sentence(error))


def fail(message: str, code: int = 2) -> NoReturn:
    """Print the sentence and leave."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(code)


def silence_noise() -> None:
    """Keep back what Lightning says in every run and no user of rlmods can act upon."""
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    # A resumed run goes on in its own folder.
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
    # One that continues another has a folder of its own.
    warnings.filterwarnings("ignore", message=r"The dirpath has changed from")
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero"):
        logging.getLogger(name).addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()


def _sentence(error: BaseException) -> str:
    """What was wrong; jsonargparse buries what a constructor raises among the other types that it tried."""
    while "of the Union subtypes" in str(error) and error.__cause__ is not None:
        error = error.__cause__
    return str(error)
