"""What safeguards of world models ask of a batch."""

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback

from rlmods.callbacks.safeguard import MissingInputError


def require_fields(safeguard: Callback, batch: Any, names: Iterable[str]) -> None:
    """Raise where a batch does not have the fields that a safeguard reads.

    Raises:
        MissingInputError: naming the missing ones and the batch.
    """
    missing = [name for name in names if not hasattr(batch, name)]
    if missing:
        raise MissingInputError(
            f"{type(safeguard).__name__} needs batches of rlmods.types.SequenceBatch, but got a {type(batch).__name__} "
            f"without {missing}: give it these fields, or leave this callback out"
        )
