"""Figures of a report as SVG: one function per kind, each of plain data.

Colours are those of Okabe and Ito, which people with any colour vision tell apart; series differ by marker or line
style as well. A panel is as wide as a phone, so that its letters are read there without zooming.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from aiida_mlip.report.content import Figure
from aiida_mlip.report.drawing import charts, distributions, fragment_picture
from aiida_mlip.report.drawing.canvas import as_svg

#: Kind of a figure -> what draws its data onto axes.
KINDS: Final[Mapping[str, Callable[[Any, Mapping[str, Any]], None]]] = {
    "lines": charts.lines,
    "bars": charts.bars,
    "shares": charts.shares,
    "scatter": distributions.scatter,
    "parity": distributions.parity,
    "histograms": distributions.histograms,
    "fragment": fragment_picture.fragment,
}


def draw(figure: Figure) -> bytes:
    """SVG of a figure."""
    return as_svg(KINDS[figure.kind], figure.data)
