"""A canvas of the size of a panel, and how everything on it looks."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any, Final

#: Width and height of a panel (inch); 96 of the browser's pixels are one.
SIZE: Final[tuple[float, float]] = (3.75, 3.05)
#: Okabe and Ito, doi:10.1038/nmeth.1618, without yellow, which is too pale for lines on white.
COLOURS: Final[tuple[str, ...]] = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#5b5b5b", "#7b3294"
)  # fmt: skip
MARKERS: Final[tuple[str, ...]] = ("o", "s", "^", "D", "v", "P", "X", "*")
GREY: Final[str] = "#767676"
#: Dots per inch of what is drawn as pixels inside the SVG.
_DPI: Final[int] = 180
_STYLE: Final[dict[str, Any]] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.limits": (-3, 4),
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "aiida-mlip",
    "savefig.facecolor": "white",
}


def as_svg(paint: Callable[[Any, Mapping[str, Any]], None], data: Mapping[str, Any]) -> bytes:
    """SVG of what ``paint`` puts onto axes; the same data give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **_STYLE}):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot(), data)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", dpi=_DPI, metadata={"Date": None, "Creator": "aiida-mlip"})
    return buffer.getvalue()


def colour(index: int) -> str:
    """Colour of a series."""
    return COLOURS[index % len(COLOURS)]


def marker(index: int) -> str:
    """Marker of a series."""
    return MARKERS[index % len(MARKERS)]


def sequence(n: int) -> list[Any]:
    """Colours, n of them, from dark to light for things that follow one another."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * place / max(n - 1, 1)) for place in range(n)]


def label_axes(axes: Any, data: Mapping[str, Any]) -> None:  # Any: matplotlib ships no strict types
    """Labels, scales and ranges that the data ask for."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(data.get("x_label", ""))
    axes.set_ylabel(data.get("y_label", ""))
    for name in ("x", "y"):
        if data.get(f"{name}_log"):
            getattr(axes, f"set_{name}scale")("log")
            _plain_powers(getattr(axes, f"{name}axis"))
        else:
            getattr(axes, f"{name}axis").set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        if (limits := data.get(f"{name}_range")) is not None:
            getattr(axes, f"set_{name}lim")(*limits)


def _plain_powers(axis: Any) -> None:
    """Numbers such as 0.05 in place of 5×10⁻², and few of them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if 1e-4 < value < 1e5 else f"{value:.0e}"))
    axis.set_minor_formatter(NullFormatter())


def legend(axes: Any, n_columns: int = 2, **options: Any) -> None:
    """Legend above the axes, where it hides nothing; none for a single nameless series."""
    handles, names = axes.get_legend_handles_labels()
    if names:
        axes.figure.legend(
            handles, names, loc="outside upper center", ncols=min(n_columns, len(names)), handlelength=1.6,
            columnspacing=1.2, borderpad=0.0, **options,
        )  # fmt: skip


def short(name: str, most: int = 22) -> str:
    """A name that fits into a legend; `$` would start a formula."""
    text = str(name).replace("$", r"\$")
    return text if len(text) <= most else f"{text[: most - 1]}…"
