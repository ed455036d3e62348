"""Plots of what a world model foresees: lines, heat maps, strips of images. matplotlib is imported late: it is slow."""

import io
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from rlmods.callbacks.picture_frames import Picture, colours, difference
from rlmods.functional.open_loop import OpenLoop

_DPI = 80
_PANEL = (3.6, 1.5)  # inches
_MOST_ENTRIES = 8  # of a vector
_MOST_IMAGES = 12  # of a strip
_TRUTH, _SEEN, _FORESEEN = "#24292f", "#0969da", "#cf222e"

Lines = Mapping[str, Sequence[float]]  # by colour


def open_loop_plot(record: OpenLoop) -> Picture:
    """Each entry of the vectors, reward, discount and value, over the rows; a column for each sequence.

    Black is what came, blue the reconstruction in the context, red what the model foresees after the dashed line. What
    came ends where the episode does.
    """
    rows: list[tuple[str, list[Lines]]] = []
    count = record.counts
    for name, truth, predicted in [
        *_entries(record.truth, record.prediction.observation),
        ("reward", record.reward, record.prediction.reward),
        ("discount", record.discount, record.prediction.discount),
        ("value", None, record.prediction.value),
    ]:
        known = {} if truth is None else {_TRUTH: truth.where(count, torch.nan)}
        seen = predicted.clone()
        seen[record.context :] = torch.nan
        foreseen = predicted.clone()
        foreseen[: record.context - 1] = torch.nan
        rows.append((name, _columns(known | {_SEEN: seen, _FORESEEN: foreseen})))
    return _lines(rows, "row of the sequence", mark=record.context - 1)


def dream_plot(record: OpenLoop) -> Picture:
    """The same of the dreams, in which the actor chooses the actions."""
    dream = record.dream
    named = [(name, predicted) for name, _, predicted in _entries(dream.observation, dream.observation)]
    named += [("reward", dream.reward), ("discount", dream.discount), ("value", dream.value)]
    return _lines([(name, _columns({_FORESEEN: values})) for name, values in named], "step of the dream", mark=None)


def latent_plot(record: OpenLoop) -> Picture:
    """How probable each class of each latent is, over the rows of the first sequence: a line for each class.

    Of the posterior, of the prior that was made of the same h, and of the prior along what the model foresees alone.
    """
    maps = {
        "posterior, which sees every row": record.posterior,
        "prior of the same state": record.prior,
        "prior, alone from the dashed line on": record.foreseen,
    }
    canvas, axes = _canvas(len(maps), 1, (2.6 * _PANEL[0], len(maps) * 1.4 * _PANEL[1]), is_shared=True)
    canvas.subplots_adjust(0.07, 0.07, 0.92, 0.95, 0.0, 0.22)
    num_latents, num_classes = record.posterior.shape[2:]
    for (title, probabilities), (panel,) in zip(maps.items(), axes, strict=True):
        heat = probabilities[:, 0].flatten(1).T.cpu().numpy()
        image = panel.imshow(heat, aspect="auto", interpolation="nearest", vmin=0.0, vmax=1.0, cmap="viridis")
        panel.grid(visible=False)
        panel.set_title(title, fontsize=8)
        panel.set_ylabel(f"{num_latents} latents of {num_classes} classes", fontsize=7)
        panel.axvline(record.context - 0.5, color="white", linestyle="--", linewidth=1.0)
    axes[-1][0].set_xlabel("row of the sequence", fontsize=7)
    canvas.colorbar(image, cax=canvas.add_axes((0.94, 0.3, 0.015, 0.4))).ax.tick_params(labelsize=7)
    return _png(canvas)


def error_plot(errors: Mapping[str, Sequence[float]]) -> Picture:
    """Error against horizon: of the model, of copying the last row that it saw; 1 is predicting the mean.

    Args:
        errors: by what predicts, from horizon 1 on.
    """
    canvas, ((axes,),) = _canvas(1, 1, (1.4 * _PANEL[0], 2.0 * _PANEL[1]))
    canvas.subplots_adjust(left=0.12, right=0.97, bottom=0.16, top=0.92)
    for (name, values), colour in zip(errors.items(), (_FORESEEN, "#8c959f"), strict=True):
        axes.plot(range(1, len(values) + 1), values, label=name, color=colour, linewidth=1.2)
    axes.axhline(1.0, color=_TRUTH, linestyle=":", linewidth=0.9, label="the mean")
    axes.set_yscale("log")
    axes.tick_params(which="both", labelsize=7)
    axes.set_xlabel("steps ahead", fontsize=7)
    axes.set_title("unexplained share of the variance", fontsize=8)
    axes.legend(fontsize=7)
    return _png(canvas)


def strip_plot(record: OpenLoop, key: str, *, sees_everything: bool) -> Picture:
    """Images of the first sequence over time: what came, what was predicted, the difference (grey is none).

    Args:
        record: of B sequences.
        key: of an image.
        sees_everything: the reconstruction of the posterior, else what the model foresees after the context.
    """
    predicted = record.reconstruction[key] if sees_everything else record.prediction.observation[key]
    first, guess = (0, "reconstruction") if sees_everything else (record.context - 1, "prediction")
    rows = int(record.counts[:, 0].sum())
    chosen = sorted({round(float(row)) for row in torch.linspace(first, rows - 1, min(_MOST_IMAGES, rows - first))})
    truth, prediction = record.truth[key][chosen, 0], predicted[chosen, 0]
    lines = [colours(line) for line in (truth, prediction, difference(prediction, truth))]
    height, width = truth.shape[-2:]
    image = torch.cat([torch.cat(line.unbind(), -1) for line in lines], -2).movedim(0, -1)
    inches = (0.95 * len(chosen) + 1.0, 0.95 * len(lines) * height / width + 0.75)
    canvas, ((axes,),) = _canvas(1, 1, inches)
    canvas.subplots_adjust(0.85 / inches[0], 0.45 / inches[1], 1.0 - 0.05 / inches[0], 1.0 - 0.3 / inches[1])
    axes.imshow(image.nan_to_num(0.0).clamp(0.0, 1.0).cpu().numpy(), interpolation="nearest", aspect="auto")
    axes.set_xticks([(position + 0.5) * width for position in range(len(chosen))], [str(row) for row in chosen])
    axes.set_yticks([(line + 0.5) * height for line in range(len(lines))], ["truth", guess, "difference"])
    for edge in range(1, max(len(chosen), len(lines))):
        axes.axvline(edge * width - 0.5, color="white", linewidth=0.8)
    for line in range(1, len(lines)):
        axes.axhline(line * height - 0.5, color="white", linewidth=0.8)
    for position, row in enumerate(chosen):
        was_seen = sees_everything or row < record.context
        axes.get_xticklabels()[position].set_color(_SEEN if was_seen else _FORESEEN)
    seen = "all were seen" if sees_everything else "blue ones were seen, red ones foreseen"
    axes.set_xlabel(f"row of the sequence: {seen}", fontsize=7)
    axes.grid(visible=False)
    return _png(canvas)


def _entries(truth: Mapping[str, Tensor], predicted: Mapping[str, Tensor]) -> list[tuple[str, Tensor | None, Tensor]]:
    """The first entries of each vector, `[T, B]`."""
    return [
        (f"{key or 'x'}[{entry}]", array[..., entry], predicted[key][..., entry])
        for key, array in truth.items()
        if array.ndim == 3
        for entry in range(min(array.shape[-1], _MOST_ENTRIES))
    ]


def _columns(lines: Mapping[str, Tensor]) -> list[Lines]:
    """`[T, B]` by colour to lines by colour, for each of the B sequences."""
    values = {colour: line.float().T.tolist() for colour, line in lines.items()}
    num_columns = len(next(iter(values.values())))
    return [{colour: line[column] for colour, line in values.items()} for column in range(num_columns)]


def _lines(rows: Sequence[tuple[str, list[Lines]]], time: str, *, mark: int | None) -> Picture:
    num_columns = len(rows[0][1])
    canvas, axes = _canvas(len(rows), num_columns, (num_columns * _PANEL[0], len(rows) * _PANEL[1]), is_shared=True)
    width, height = canvas.get_size_inches()
    canvas.subplots_adjust(0.5 / width, 0.4 / height, 1.0 - 0.1 / width, 1.0 - 0.25 / height, 0.12, 0.28)
    for (name, columns), panels in zip(rows, axes, strict=True):
        for panel, lines in zip(panels, columns, strict=True):
            for colour, values in lines.items():
                panel.plot(values, color=colour, linewidth=1.8 if colour == _TRUTH else 1.1)
            if mark is not None:
                panel.axvline(mark, color="#8c959f", linestyle="--", linewidth=0.8)
        panels[0].set_title(name, fontsize=8, loc="left", pad=3.0)
        _widen(panels[0])
    for panel in axes[-1]:
        panel.set_xlabel(time, fontsize=7)
    return _png(canvas)


def _widen(axes: Any) -> None:
    """A tenth of the values at least, so that what is nearly constant looks it."""
    low, high = axes.get_ylim()
    least = 0.1 * max(abs(low), abs(high))
    if high - low < least:
        axes.set_ylim(0.5 * (low + high - least), 0.5 * (low + high + least))


def _canvas(
    num_rows: int, num_columns: int, inches: tuple[float, float], *, is_shared: bool = False
) -> tuple[Any, Any]:
    """A figure, and its axes as a grid."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=inches, dpi=_DPI)
    share: Literal["all", "none"] = "all" if is_shared else "none"
    axes = canvas.subplots(num_rows, num_columns, squeeze=False, sharex=share, sharey="row" if is_shared else "none")
    for panel in axes.flat:
        panel.tick_params(labelsize=7)
        panel.locator_params(nbins=4)
        panel.grid(visible=True, color="#eaeef2", linewidth=0.6)
    return canvas, axes


def _png(canvas: Any) -> Picture:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    width, height = canvas.canvas.get_width_height()
    return Picture(buffer.getvalue(), "png", height, width)
