"""Figures of the off-policy laboratory: learning curves, core metrics with their numbers, probes."""

import math
from typing import Any

from rlmods.reports.document import Figure
from rlmods.reports.plots import Draw, grid, legend, line
from rlmods.reports.run_data import RunData, Series
from rlmods.reports.run_report import LAB_METRICS
from rlmods.reports.stability_rules import RADIUS
from rlmods.reports.summary import number, summarize

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
        title = "spectral radius" if _radius(run) is not None else "published stability proxy, mis-scaled"
        panels.insert(0, (f"TD loss (blue), {title} (orange)", _loss_and_stability(run)))
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


def _radius(run: RunData) -> Series | None:
    """The judgement of stability; None where it was not measured."""
    if "stability_probe" not in run.probes:
        return None
    series = _probe_series(run, "stability_probe", RADIUS)
    return series if any(map(math.isfinite, series.values)) else None


def _loss_and_stability(run: RunData) -> Draw:
    def draw(axes: Any) -> None:
        line(axes, run.curve("td_loss"), color="#0969da")
        radius = _radius(run)
        if radius is not None or _has_values(run, "stability_proxy"):
            twin = axes.twinx()
            line(twin, radius if radius is not None else run.curve("stability_proxy"), color="#bc4c00")
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
    probed = {time for probe in run.probes.values() for time in probe.times if math.isfinite(time)}

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
        legend(axes, ncols=2)
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
        legend(axes)

    return [_wide("fixed_point_probe: distance to the fixed point, and its drift", draw)]


def stability_figure(run: RunData) -> list[Figure]:
    """The spectral radius, by which stability is judged; and the proxy of the published runs with its spread."""
    panels = [("published stability_proxy (V1): mis-scaled, no judgement of stability", _proxy(run))]
    radius = _radius(run)
    if radius is not None:
        panels.insert(0, ("spectral_radius: above 1 an error of the critic grows", _around_dashed_one(radius)))
    width = 2.0 if len(panels) == 1 else 1.3
    return [grid("stability_probe", panels, panel_width=width)]


def _around_dashed_one(series: Series) -> Draw:
    def draw(axes: Any) -> None:
        line(axes, series, color="#bc4c00")
        axes.axhline(1.0, color="#57606a", linestyle="--", linewidth=0.9)
        _around_one(axes)

    return draw


def _proxy(run: RunData) -> Draw:
    columns = run.probes["stability_probe"].columns
    name = "stability_proxy_mean" if "stability_proxy_mean" in columns else "stability_proxy"
    mean = _probe_series(run, "stability_probe", name)
    std = _probe_series(run, "stability_probe", "stability_proxy_std")
    band = [point for point in zip(*mean, std.values, strict=True) if all(map(math.isfinite, point))]

    def draw(axes: Any) -> None:
        line(axes, mean, color="#bc4c00", label=name)
        if band:
            times = [time for time, _, _ in band]
            low, high = [m - s for _, m, s in band], [m + s for _, m, s in band]
            axes.fill_between(times, low, high, color="#bc4c00", alpha=0.2, linewidth=0, label="± std")
        legend(axes)
        _around_one(axes)

    return draw


def _wide(title: str, draw: Draw) -> Figure:
    return grid(title, [("", draw)], panel_width=2.0)


PROBE_FIGURES = {
    "distribution_probe": distribution_figure,
    "fixed_point_probe": fixed_point_figure,
    "stability_probe": stability_figure,
}
