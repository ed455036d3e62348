"""Figures of the off-policy laboratory: learning curves, core metrics with their numbers, probes."""

import itertools
import math
from typing import Any

from rlmods.reports.document import Figure
from rlmods.reports.plots import Draw, grid, line
from rlmods.reports.run_data import RunData, Series
from rlmods.reports.run_report import LAB_METRICS
from rlmods.reports.summary import number, summarize

# Above it the critic's update is a candidate for instability; below, it may be noise.
_UNSTABLE_ABOVE = 1.001
_FEWEST_IN_BAND = 5

_PANELS = (
    ("critic teacher error", "critic_teacher_error"),
    ("tracking gap", "tracking_gap"),
    ("mean ρ²", "mean_rho2"),
    ("‖w‖", "w_norm"),
    ("‖w − w#‖", "fixed_point_gap"),
    ("MMD²", "dist_mmd2"),
)


def lab_figures(run: RunData) -> list[Figure]:
    """Learning curves, and the core metrics with their numbers."""
    panels = [(title, _plain(run.curve(name))) for title, name in _PANELS if _has_values(run, name)]
    figures = []
    if _has_values(run, "td_loss"):
        panels.insert(0, ("TD loss (blue), stability proxy (orange)", _loss_and_proxy(run)))
        figures.append(grid("Learning curves over iterations", panels))
    core = [name for name in LAB_METRICS if _has_values(run, name)]
    if core:
        title = "Core metrics; dashed lines mark iterations with a probe"
        figures.append(grid(title, [(name, _with_numbers(run, name)) for name in core]))
    return figures


def _has_values(run: RunData, name: str) -> bool:
    return any(map(math.isfinite, run.curve(name).values))


def _plain(series: Series) -> Draw:
    return lambda axes: line(axes, series, color="#0969da")


def _loss_and_proxy(run: RunData) -> Draw:
    def draw(axes: Any) -> None:
        line(axes, run.curve("td_loss"), color="#0969da")
        if _has_values(run, "stability_proxy"):
            twin = axes.twinx()
            line(twin, run.curve("stability_proxy"), color="#bc4c00")
            twin.axhline(1.0, color="#bc4c00", linestyle="--", linewidth=0.8)
            twin.tick_params(labelsize=7)
            _around_one(twin)

    return draw


def _around_one(axes: Any) -> None:
    """Ticks by their distance from 1, where all are close to it."""
    low, high = axes.get_ylim()
    if max(abs(low - 1.0), abs(high - 1.0)) < 1e-2:
        axes.yaxis.set_major_formatter(lambda value, _: "1" if abs(value - 1.0) < 1e-12 else f"1{value - 1.0:+.0e}")


def _with_numbers(run: RunData, name: str) -> Draw:
    series = run.curves[name]
    summary = summarize(*series)
    fields = ("last", "min", "max")
    text = [f"{field} {number(getattr(summary, field))}" for field in fields] + [
        f"slope {number(summary.slope_last_k)}"
    ]
    probed = {time for probe in run.probes.values() for time in probe.times}

    def draw(axes: Any) -> None:
        if len(probed) <= 0.5 * len(series.times):
            for time in probed:
                axes.axvline(time, color="#8c959f", linestyle="--", linewidth=0.4)
        line(axes, series, color="#0969da")
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "#d8dee4", "alpha": 0.85}
        axes.text(0.98, 0.96, "\n".join(text), transform=axes.transAxes, ha="right", va="top", fontsize=6.5, bbox=box)

    return draw


def _probe_series(run: RunData, probe: str, column: str) -> Series:
    table = run.probes[probe]
    return Series(table.times, table.columns.get(column, [math.nan] * len(table)))


def distribution_figure(run: RunData) -> list[Figure]:
    """How far apart the two policies' states and actions are."""
    columns = ("mmd2", "mean_l2", "dist_action_kl", "dist_action_tv")

    def draw(axes: Any) -> None:
        for position, name in enumerate(columns):
            line(axes, _probe_series(run, "distribution_probe", name), color=f"C{position}", label=name)
        axes.legend(fontsize=7, ncols=2)
        axes.set_yscale("symlog", linthresh=1e-3)

    return [_wide("distribution_probe: states (mmd2, mean_l2) and actions (KL, TV)", draw)]


def fixed_point_figure(run: RunData) -> list[Figure]:
    """How far the weights are from the fixed point, and how far that moves."""

    def draw(axes: Any) -> None:
        line(axes, _probe_series(run, "fixed_point_probe", "w_gap"), color="C0", label="w_gap")
        drifts = _probe_series(run, "fixed_point_probe", "w_sharp_drift")
        defined = _probe_series(run, "fixed_point_probe", "w_sharp_drift_defined").values
        known = [v if mark != 0.0 else math.nan for v, mark in zip(drifts.values, defined, strict=True)]
        line(axes, Series(drifts.times, known), color="C1", label="w_sharp_drift")
        axes.legend(fontsize=7)

    return [_wide("fixed_point_probe: distance to the fixed point, and its drift", draw)]


def stability_figure(run: RunData) -> list[Figure]:
    """The proxy of amplification with its spread; shaded where it stays above 1.001."""
    name = (
        "stability_proxy_mean" if "stability_proxy_mean" in run.probes["stability_probe"].columns else "stability_proxy"
    )
    mean = _probe_series(run, "stability_probe", name)
    std = _probe_series(run, "stability_probe", "stability_proxy_std")

    def draw(axes: Any) -> None:
        line(axes, mean, color="#bc4c00", label=name)
        if any(map(math.isfinite, std.values)):
            low = [m - s for m, s in zip(mean.values, std.values, strict=True)]
            high = [m + s for m, s in zip(mean.values, std.values, strict=True)]
            axes.fill_between(mean.times, low, high, color="#bc4c00", alpha=0.2, linewidth=0, label="± std")
        axes.axhline(1.0, color="#57606a", linestyle="--", linewidth=0.9, label="1")
        for first, last in unstable_stretches(mean):
            axes.axvspan(first, last, color="#fb8f44", alpha=0.3, linewidth=0)
        axes.legend(fontsize=7)
        _around_one(axes)

    return [_wide("stability_probe: above 1 the update amplifies a perturbation of the critic", draw)]


def unstable_stretches(series: Series) -> list[tuple[float, float]]:
    """Times of the first and the last of at least 5 points in a row above 1.001."""
    groups = itertools.groupby(zip(*series, strict=True), key=lambda point: point[1] > _UNSTABLE_ABOVE)
    stretches = [list(points) for above, points in groups if above]
    return [(points[0][0], points[-1][0]) for points in stretches if len(points) >= _FEWEST_IN_BAND]


def _wide(title: str, draw: Draw) -> Figure:
    return grid(title, [("", draw)], panel_width=2.0)


PROBE_FIGURES = {
    "distribution_probe": distribution_figure,
    "fixed_point_probe": fixed_point_figure,
    "stability_probe": stability_figure,
}
