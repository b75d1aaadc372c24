"""Points, densities of points, and histograms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from aiida_mlip.report.drawing.canvas import GREY, colour, label_axes, legend, marker, short
from aiida_mlip.report.drawing.charts import step_sequence

#: More points than these are pixels inside the SVG.
_MOST_VECTORS: Final[int] = 500
#: Names in the legend of a scatter; the rest is "other".
_MOST_NAMES: Final[int] = 7
_PARITY_COLOURS: Final[tuple[str, ...]] = ("#8fa3b0", "#D55E00")


def scatter(axes: Any, data: Mapping[str, Any]) -> None:  # Any: matplotlib ships no strict types
    """Points of several ``series`` of ``name``, ``x``, ``y``: the largest below."""
    label_axes(axes, data)
    series = list(data["series"])
    if len(series) > _MOST_NAMES + 1:
        rest = series[_MOST_NAMES:]
        joined = {key: np.concatenate([np.asarray(one[key], dtype=float) for one in rest]) for key in ("x", "y")}
        series = [*series[:_MOST_NAMES], {"name": f"{len(rest)} others", **joined}]
    total = sum(len(one["x"]) for one in series)
    for place, one in enumerate(series):
        axes.scatter(
            one["x"], one["y"], s=14 if total < _MOST_VECTORS else 7, color=colour(place), marker=marker(place),
            alpha=0.6, linewidths=0, label=short(one["name"]), rasterized=total > _MOST_VECTORS,
        )  # fmt: skip
    legend(axes, markerscale=1.6)


def parity(axes: Any, data: Mapping[str, Any]) -> None:
    """Clouds of points about the diagonal; a cloud with a ``density`` shows it, and its worst points.

    ``log``: the numbers are decimal logarithms.
    """
    label_axes(axes, data)
    for place, cloud in enumerate(data["clouds"]):
        shade = _PARITY_COLOURS[place % len(_PARITY_COLOURS)]
        if "density" in cloud:
            _density(axes, cloud["density"], shade)
        name = f"{short(cloud['name'], 26)} ({cloud['n']})"
        axes.scatter(
            cloud["x"], cloud["y"], s=9, color=shade, alpha=0.75, marker=marker(place), linewidths=0, label=name,
            rasterized=len(cloud["x"]) > _MOST_VECTORS,
        )  # fmt: skip
    low, high = _limits(data)
    axes.plot([low, high], [low, high], color="#333333", linewidth=0.9, linestyle="dashed")
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal", adjustable="box")
    if data.get("log"):
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
            axis.set_major_formatter(FuncFormatter(_power))
    else:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
    legend(axes, n_columns=1, markerscale=1.6)


def histograms(axes: Any, data: Mapping[str, Any]) -> None:
    """Histograms over the same ``edges``; with ``overflow`` the last bin holds all above the last edge."""
    label_axes(axes, data)
    edges = np.asarray(data["edges"], dtype=float)
    if data.get("overflow"):
        edges = np.append(edges, edges[-1] + 2 * (edges[-1] - edges[-2]))
    step_sequence(axes, edges, data["series"])
    shown = max((int(np.flatnonzero(np.asarray(one["y"], dtype=float))[-1]) for one in data["series"]), default=0)
    axes.set_xlim(0, float(edges[min(shown + 2, len(edges) - 1)]))
    axes.axvline(1.0, color=GREY, linestyle="dotted", linewidth=1.2)


def _density(axes: Any, density: Mapping[str, Any], shade: str) -> None:
    from matplotlib.colors import LinearSegmentedColormap, LogNorm

    bins = int(density["bins"])
    counts = np.full((bins, bins), np.nan)
    cells = np.asarray(density["cells"], dtype=int)
    counts[cells[:, 1], cells[:, 0]] = cells[:, 2]
    edges = []
    for name in ("x_range", "y_range"):
        low, high = density[name]
        edges.append(np.linspace(float(low), float(high), bins + 1))
    colours = LinearSegmentedColormap.from_list("density", ["#d9e2e8", shade, "#1d2a33"])
    top = float(cells[:, 2].max())
    axes.pcolormesh(*edges, counts, norm=LogNorm(1, max(top, 2.0)), cmap=colours, rasterized=True)


def _limits(data: Mapping[str, Any]) -> tuple[float, float]:
    values = [np.asarray(cloud[name], dtype=float) for cloud in data["clouds"] for name in ("x", "y")]
    for cloud in data["clouds"]:
        if "density" in cloud:
            values += [np.asarray(cloud["density"][name], dtype=float) for name in ("x_range", "y_range")]
    every = np.concatenate([*values, np.zeros(0)])
    every = every[np.isfinite(every)]
    if not len(every):
        return -1.0, 1.0
    low, high = float(every.min()), float(every.max())
    margin = 0.04 * (high - low) or 0.5 * abs(high) or 1.0
    return low - margin, high + margin


def _power(value: float, _: Any) -> str:
    return rf"$10^{{{value:.0f}}}$"
