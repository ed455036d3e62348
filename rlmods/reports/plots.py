"""Figures: curves with alarms, evaluations with their spread, probes. matplotlib is imported where it is needed."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlmods.reports.document import Figure
from rlmods.reports.run_data import RunData, Series
from rlmods.reports.run_rules import core_tags

_COLUMNS = 3
_PANEL = (4.3, 2.5)  # inches
_DPI = 80
_MOST_PANELS = 9
_MOST_OVERLAYS = 12
_COLOURS = {"info": "#8c959f", "warn": "#bf8700", "act": "#cf222e", "fatal": "#82071e"}
# What a person looks at first; the rest follows alphabetically, as far as there is room.
_FIRST = (
    *("eval/mean_reward", "rollout/ep_rew_mean", "train/loss", "train/q_mean", "eval/q_gap", "train/learning_rate"),
    *("rollout/exploration_rate", "eval/mean_ep_length", "train/td_error_abs"),
)
_NOT_DRAWN = ("eval/std_reward", "eval/episodes", "eval/q_gap_sem", "train/n_updates")

Draw = Callable[[Any], None]  # onto matplotlib axes


def in_reading_order(names: Sequence[str]) -> list[str]:
    """What is looked at first, then the rest as it comes; without what is no curve of its own."""
    tags = [name for name in _FIRST if name in names]
    own = [name for name in names if "/" not in name]
    return [*own, *tags, *(name for name in names if name not in {*own, *tags, *_NOT_DRAWN})]


def grid(title: str, panels: Sequence[tuple[str, Draw]], *, panel_width: float = 1.0) -> Figure:
    """One picture with a panel for each.

    Args:
        title: of the picture.
        panels: their titles, and what draws onto their axes.
        panel_width: as a multiple of the usual one.
    """
    # Late: importing the command line must stay quick.
    from matplotlib.figure import Figure as Canvas

    columns = min(_COLUMNS, len(panels))
    lines = math.ceil(len(panels) / columns)
    width, height = columns * _PANEL[0] * panel_width, lines * _PANEL[1] + 0.3
    canvas = Canvas(figsize=(width, height), dpi=_DPI)
    # By hand: the layout engines take longer than everything else.
    canvas.subplots_adjust(0.75 / width, 0.45 / height, 1.0 - 0.3 / width, 1.0 - 0.4 / height, 0.38, 0.45)
    for position, (name, draw) in enumerate(panels):
        axes = canvas.add_subplot(lines, columns, position + 1)
        draw(axes)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=7)
        # Ticks are what takes the time.
        axes.locator_params(axis="both" if axes.get_yscale() == "linear" else "x", nbins=5)
        axes.grid(visible=True, color="#eaeef2", linewidth=0.6)
        if hasattr(axes.yaxis.get_major_formatter(), "set_useOffset"):
            axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 4), useOffset=_offset(axes))
        axes.yaxis.get_offset_text().set_fontsize(7)
    buffer = io.BytesIO()
    canvas.savefig(buffer, format="png")
    return Figure(title, buffer.getvalue())


def _offset(axes: Any) -> bool:
    """Whether the values differ by so little of themselves that their ticks need an offset."""
    low, high = axes.get_ylim()
    return bool(high - low < 1e-3 * max(abs(low), abs(high)))


def line(axes: Any, series: Series, **style: Any) -> None:
    """The finite points of a curve; few of them get a mark, one would be invisible without."""
    points = [point for point in zip(*series, strict=True) if all(map(math.isfinite, point))]
    if points:
        times, values = zip(*points, strict=True)
        axes.plot(times, values, **({"marker": "." if len(points) < 40 else "", "linewidth": 1.1} | style))


def legend(axes: Any, **style: Any) -> None:
    """Of what was drawn; where nothing was, matplotlib would warn."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, **style)


def curves_figure(run: RunData) -> list[Figure]:
    """Evaluation with ± one standard deviation, roll-outs and training; alarms are vertical marks."""
    tags = [tag for tag in core_tags(run) if any(map(math.isfinite, run.curves[tag].values))]
    shown = in_reading_order(tags)[:_MOST_PANELS]
    if not shown:
        return []
    title = "Curves over environment steps"
    if run.alarms():
        title += "; vertical marks are alarms: grey info, amber warn, red act, dark red fatal"
    return [grid(title, [(tag, _panel(run, tag)) for tag in shown])]


def _panel(run: RunData, tag: str) -> Draw:
    def draw(axes: Any) -> None:
        line(axes, run.curves[tag], color="#0969da")
        if tag == "eval/mean_reward":
            _band(axes, run)
        for step, severity in alarm_marks(run):
            axes.axvline(step, color=_COLOURS.get(severity, _COLOURS["warn"]), linewidth=0.8, alpha=0.7)

    return draw


def _band(axes: Any, run: RunData) -> None:
    spread = dict(zip(*run.curves.get("eval/std_reward", Series([], [])), strict=True))
    points = [(t, v, spread[t]) for t, v in zip(*run.curves["eval/mean_reward"], strict=True) if t in spread]
    if points:
        times, means, stds = zip(*points, strict=True)
        low = [mean - std for mean, std in zip(means, stds, strict=True)]
        high = [mean + std for mean, std in zip(means, stds, strict=True)]
        axes.fill_between(times, low, high, color="#0969da", alpha=0.15, linewidth=0)


def alarm_marks(run: RunData) -> list[tuple[float, str]]:
    """When alarms were raised, and how severe."""
    marks = {
        (float(alarm["env_steps"]), str((alarm.get("evidence") or {}).get("severity")))
        for alarm in run.alarms()
        if isinstance(alarm.get("env_steps"), int | float)
    }
    return sorted(marks)


def probe_figures(run: RunData, known: Mapping[str, Callable[[RunData], list[Figure]]]) -> list[Figure]:
    """One for each probe: its own where it has one, else a panel for every column that changes."""
    figures = []
    for name, table in sorted(run.probes.items()):
        if name in known:
            figures += known[name](run)
            continue
        varying = [
            column
            for column, values in table.columns.items()
            if column != table.time_name and len({value for value in values if math.isfinite(value)}) > 1
        ]
        panels = [(column, _column(Series(table.times, table.columns[column]))) for column in varying[:_MOST_PANELS]]
        figures += [grid(name, panels)] if panels else []
    return figures


def _column(series: Series) -> Draw:
    return lambda axes: line(axes, series, color="#0969da")


def overlay_figure(runs: Mapping[str, RunData], names: Sequence[str]) -> list[Figure]:
    """The same curves of several runs, in one panel each."""
    shown = in_reading_order(names)[:_MOST_OVERLAYS]
    panels = [(name, _overlay(runs, name, with_legend=position == 0)) for position, name in enumerate(shown)]
    return [grid("The curves over each other", panels)] if panels else []


def _overlay(runs: Mapping[str, RunData], name: str, *, with_legend: bool) -> Draw:
    def draw(axes: Any) -> None:
        for position, (label, run) in enumerate(runs.items()):
            line(axes, run.curve(name), color=f"C{position % 10}", alpha=0.85)
            if with_legend:  # of all runs, also of those without this curve
                axes.plot([], [], label=label, color=f"C{position % 10}")
        if with_legend:
            axes.legend(fontsize=7)

    return draw
