"""Lines and bars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from aiida_mlip.report.drawing.canvas import GREY, colour, label_axes, legend, marker, sequence, short

#: Series that get a line of the legend each; of more a colour bar says which is which.
MOST_IN_LEGEND: Final[int] = 8


def lines(axes: Any, data: Mapping[str, Any]) -> None:  # Any: matplotlib ships no strict types
    """Series of x and y: ``name``, ``x``, ``y``, and ``label``, ``style``, ``colour``, ``markers``.

    Further keys: ``verticals`` and ``horizontals`` (``name`` and ``x`` or ``y``), ``diagonal``, ``x_whole``, ``ticks``
    (``x`` and ``names``).
    """
    label_axes(axes, data)
    for place, series in enumerate(data["series"]):
        index = int(series.get("colour", place))
        x, y = _numbers(series["x"]), _numbers(series["y"])
        if data.get("y_log"):
            y = np.where(y > 0, y, np.nan)
        axes.plot(
            x, y, color=colour(index), linestyle=series.get("style", "solid"),
            marker=marker(index) if series.get("markers") or len(x) == 1 else None, markersize=4.5,
            label=short(series.get("label", series["name"])) or None,
        )  # fmt: skip
    if data.get("diagonal"):
        axes.plot([0, 1], [0, 1], transform=axes.transAxes, color=GREY, linestyle="dashed", linewidth=1.0)
    for line in data.get("verticals", ()):
        axes.axvline(line["x"], color=GREY, linestyle="dotted", linewidth=1.2, label=short(line["name"], 30) or None)
    for line in data.get("horizontals", ()):
        axes.axhline(line["y"], color=GREY, linestyle="dashdot", linewidth=1.2, label=short(line["name"], 30) or None)
    _ticks(axes, data)
    legend(axes)


def bars(axes: Any, data: Mapping[str, Any]) -> None:
    """Groups of bars: ``categories`` and ``series`` of ``name`` and ``y``."""
    from matplotlib.ticker import MaxNLocator

    label_axes(axes, data)
    n, categories = len(data["series"]), [short(str(name), 12) for name in data["categories"]]
    width, x = 0.8 / max(n, 1), np.arange(len(categories))
    for place, series in enumerate(data["series"]):
        heights = np.nan_to_num(_numbers(series["y"]))
        axes.bar(x + (place - (n - 1) / 2) * width, heights, width, color=colour(place), label=short(series["name"]))
    step = max(1, int(np.ceil(len(categories) / 10)))
    axes.set_xticks(x[::step], categories[::step])
    if all(float(value or 0).is_integer() for one in data["series"] for value in one["y"]):
        axes.yaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="x")
    legend(axes)


def shares(axes: Any, data: Mapping[str, Any]) -> None:
    """Horizontal bars of ``names`` and ``values``, the largest on top, each with its number."""
    label_axes(axes, data)
    names, values = [short(name, 26) for name in data["names"]], _numbers(data["values"])
    order = np.argsort(values, kind="stable")[-12:]
    axes.barh(np.arange(len(order)), values[order], color=colour(0), height=0.65)
    axes.set_yticks(np.arange(len(order)), [names[i] for i in order])
    axes.grid(visible=False, axis="y")
    for place, value in enumerate(values[order]):
        axes.annotate(f" {value:.3g}", (value, place), va="center", fontsize=8)
    axes.margins(x=0.22)
    axes.set_xlim(left=0)
    if len(order) == 1:
        axes.set_ylim(-1, 1)


def step_sequence(axes: Any, edges: np.ndarray, series: list[Mapping[str, Any]]) -> None:
    """Steps of series that follow one another, dark to light; a colour bar where they are many."""
    colours = sequence(len(series))
    many = len(series) > MOST_IN_LEGEND
    for place, one in enumerate(series):
        y = _numbers(one["y"])
        heights = np.where(y > 0, y, np.nan)
        label = None if many else short(one["name"])
        axes.stairs(np.nan_to_num(heights), edges, color=colours[place], linewidth=1.4, label=label, baseline=None)
    if many:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize
        from matplotlib.ticker import MaxNLocator

        scale = ScalarMappable(Normalize(-0.5, len(series) - 0.5), ListedColormap(colours))
        axes.figure.colorbar(scale, ax=axes, label="round", aspect=30, pad=0.02, ticks=MaxNLocator(6, integer=True))
    legend(axes)


def _ticks(axes: Any, data: Mapping[str, Any]) -> None:
    if (ticks := data.get("ticks")) is not None:
        axes.set_xticks(_numbers(ticks["x"]), [short(name, 8) for name in ticks["names"]])
    elif data.get("x_whole"):
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def _numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)
