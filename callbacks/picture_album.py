"""All pictures of what a world model makes of sequences, and its error against the steps ahead."""

from collections.abc import Sequence

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from rlmods.callbacks.picture_frames import Picture, dream_film, encode, open_loop_film
from rlmods.callbacks.picture_plots import dream_plot, error_plot, latent_plot, open_loop_plot, strip_plot
from rlmods.functional.open_loop import OpenLoop, unexplained_variance

_FRAMES_PER_SECOND = 4.0


def album(record: OpenLoop, num_sequences: int) -> dict[str, Picture]:
    """Pictures by name, of at most so many sequences; the errors are those of all."""
    drawn = select(record, longest(record.counts, num_sequences))
    pictures = {
        "open_loop": open_loop_plot(drawn),
        "dream": dream_plot(drawn),
        "latents": latent_plot(drawn),
        "open_loop_error": error_plot(open_loop_errors(record)),
    }
    for key in (key for key, array in record.truth.items() if array.ndim == 5):
        name = key.replace("/", "_") or "image"
        pictures |= {
            f"open_loop_{name}_film": encode(open_loop_film(drawn, key), _FRAMES_PER_SECOND),
            f"open_loop_{name}": strip_plot(drawn, key, sees_everything=False),
            f"reconstruction_{name}": strip_plot(drawn, key, sees_everything=True),
            f"dream_{name}_film": encode(dream_film(drawn, key), _FRAMES_PER_SECOND),
        }
    return pictures


def open_loop_errors(record: OpenLoop) -> dict[str, list[float]]:
    """Unexplained shares of the variance 1, 2, … steps after the context, of the model and of copying its last row.

    Of vectors the mean over the entries, of images that of all pixels together; of several keys the mean. NaN where
    no episode lasts so long, or nothing varies.
    """
    last = record.context - 1
    counts = record.counts[record.context :]
    errors: dict[str, list[Tensor]] = {"model": [], "copy": []}
    for key, array in record.truth.items():
        truth = array[record.context :]
        predicted = record.prediction.observation[key][record.context :]
        for name, guess in (("model", predicted), ("copy", array[last].expand_as(truth))):
            errors[name].append(unexplained_variance(guess.flatten(2), truth.flatten(2), counts, apart=truth.ndim == 3))
    return {name: torch.stack(of_keys).nanmean(0).tolist() for name, of_keys in errors.items()}


def longest(counts: Tensor, num_sequences: int) -> list[int]:
    """The sequences with most rows that count, first ones first among equals.

    Args:
        counts: `[T, B]` bool.
        num_sequences: of which at most B are taken.
    """
    order: list[int] = counts.sum(0).sort(descending=True, stable=True).indices[:num_sequences].tolist()
    return order


def select(record: OpenLoop, sequences: Sequence[int]) -> OpenLoop:
    """Of some sequences alone."""
    chosen = list(sequences)
    selected: OpenLoop = apply_to_collection(record, Tensor, lambda part: part[:, chosen])
    return selected
