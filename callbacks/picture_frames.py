"""Images as frames of a film: what came, what was foreseen, and the difference, above each other."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rlmods.functional.open_loop import OpenLoop

_SMALLEST = 128  # pixels of an image in a film
_GAP = 2  # pixels between images
_MARK = 4  # height of the bar that says who sees
_GREY = 0.5
_SEES = (0.04, 0.41, 0.85)  # blue: the model sees the row
_ALONE = (0.81, 0.13, 0.18)  # red: it goes on alone


class Picture(NamedTuple):
    """A file of an image, or of a film."""

    data: bytes
    suffix: str  # png or gif
    height: int
    width: int


def open_loop_film(record: OpenLoop, key: str) -> Tensor:
    """What came, what the model foresaw, and the difference, of sequences side by side.

    A blue bar stands above the context, a red one above what the model foresees alone. Grey is no difference, and
    where the episode has ended.

    Args:
        record: of B sequences.
        key: of an image.

    Returns:
        Frames `[T, H, W, 3]` uint8.
    """
    truth, predicted = record.truth[key], record.prediction.observation[key]
    counts = record.counts.view(*record.counts.shape, 1, 1, 1)
    lines = [_blank(line, counts) for line in (truth, predicted, difference(predicted, truth))]
    film = torch.cat([_side_by_side(line) for line in lines], -2)
    bar = torch.tensor(_ALONE).view(1, 3, 1, 1).repeat(len(film), 1, _MARK, film.shape[-1])
    bar[: record.context] = torch.tensor(_SEES).view(3, 1, 1)
    return _uint8(torch.cat([bar.to(film), film], -2))


def dream_film(record: OpenLoop, key: str) -> Tensor:
    """Dreams side by side, frames `[H + 1, H, W, 3]` uint8."""
    return _uint8(_side_by_side(record.dream.observation[key]))


def difference(predicted: Tensor, truth: Tensor) -> Tensor:
    """Grey where both are alike, brighter where the prediction is."""
    return (predicted - truth + 1.0) / 2.0


def encode(frames: Tensor, frames_per_second: float) -> Picture:
    """Frames `[T, H, W, 3]` uint8 as an animated GIF, which browsers and TensorBoard show."""
    # Late: importing the command line must stay quick.
    from PIL import Image

    images: Sequence[Any] = [Image.fromarray(frame) for frame in frames.cpu().numpy()]
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="GIF", save_all=True, append_images=images[1:], duration=round(1000 / frames_per_second), loop=0
    )
    return Picture(buffer.getvalue(), "gif", *frames.shape[1:3])


def _blank(images: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts, images, torch.full_like(images, _GREY))


def _side_by_side(images: Tensor) -> Tensor:
    """`[T, B, C, H, W]` in [0, 1] to `[T, 3, H', W']`, enlarged by a whole factor where they are small."""
    factor = -(-_SMALLEST // min(images.shape[-2:]))
    large = images.repeat_interleave(factor, -2).repeat_interleave(factor, -1)
    framed = F.pad(colours(large).flatten(0, 1), (_GAP, _GAP, _GAP, _GAP), value=_GREY)
    return torch.cat(framed.unflatten(0, images.shape[:2]).unbind(1), -1)  # type: ignore[no-untyped-call]


def colours(images: Tensor) -> Tensor:
    """`[..., C, H, W]` to `[..., 3, H, W]`: three channels are colours, of others the mean is a grey."""
    return images if images.shape[-3] == 3 else images.mean(-3, keepdim=True).expand(*images.shape[:-3], 3, -1, -1)


def _uint8(images: Tensor) -> Tensor:
    """`[T, 3, H, W]` in [0, 1] to `[T, H, W, 3]`; what is not a number is black."""
    return (images.nan_to_num(0.0).clamp(0.0, 1.0) * 255.0).round().byte().movedim(1, -1)
