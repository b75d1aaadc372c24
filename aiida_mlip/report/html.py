"""HTML of a report: one file that needs no network and runs no script."""

from __future__ import annotations

import base64
import math
import re
from datetime import datetime
from pathlib import Path
from typing import Final

from aiida_mlip.report.content import Figure, Number, Report, Table
from aiida_mlip.report.drawing import draw

TEMPLATES: Final[Path] = Path(__file__).parent / "templates"
_MARKS: Final[dict[str, str]] = {"good": "✓", "warn": "!", "bad": "✗", "running": "…", "": ""}
#: Letters of a word that may be broken, and of a text that gets a column of some width.
_LONG_WORD: Final[int] = 30
_SENTENCE: Final[int] = 40
_SUPERSCRIPT: Final[dict[int, int]] = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def as_html(report: Report) -> str:
    """HTML of a report; everything in it that people or programs named is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    groups = _groups(report)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        shown=shown,
        moment=lambda when: f"{when.astimezone():%Y-%m-%d %H:%M}" if isinstance(when, datetime) else "",
        mark=lambda tone: _MARKS.get(tone, ""),
        slug=lambda key: re.sub(r"[^A-Za-z0-9_-]+", "-", key),
        column_classes=lambda table: [column_class(table, column) for column in range(len(table.columns))],
        anchor=lambda uuids: anchor(tuple(uuids), groups),
        origin=lambda uuids: origin(tuple(uuids), report),
        image=image,
    )
    css = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))  # noqa: S704 - a file of this package
    named = [(name, uuids) for uuids, name in groups.items()]
    return environment.get_template("report.html.j2").render(report=report, css=css, groups=named)


def shown(number: Number) -> str:
    """A number as people read it, four digits.

    >>> [shown(Number(value)) for value in (0.0123456, 12345, 2.5e-7, None, True, "emt")]
    ['0.01235', '12\u202f345', '2.5×10⁻⁷', '–', 'yes', 'emt']
    """
    value = number.value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f")
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return "∞" if value > 0 else "–∞" if value < 0 else "–"
    if value and not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = (
            f"{value:.3g}".partition("e") if "e" in f"{value:.3g}" else f"{value:.3e}".partition("e")
        )
        return f"{_minus(f'{float(mantissa):.3g}')}×10{str(int(exponent)).translate(_SUPERSCRIPT)}"
    if abs(value) >= 1000:
        return _minus(f"{value:,.0f}".replace(",", "\u202f"))
    return _minus(f"{value:.4g}")


def column_class(table: Table, column: int) -> str:
    """How a column is set: ``r`` numbers, to the right; ``long`` words that may be broken; ``text`` sentences."""
    known = [value for row in table.rows if (value := row[column].value) is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return "r"
    texts = [value for value in known if isinstance(value, str)]
    if any(len(word) > _LONG_WORD for text in texts for word in text.split()):
        return "long"
    return "text" if any(len(text) > _SENTENCE for text in texts) else ""


def anchor(uuids: tuple[str, ...], groups: dict[tuple[str, ...], str]) -> str:
    """Place in the list of nodes that a number leads to."""
    return groups[uuids] if uuids in groups else f"node-{uuids[0]}"


def origin(uuids: tuple[str, ...], report: Report) -> str:
    """Where a number comes from, in a few words."""
    if len(uuids) > 1:
        return f"{len(uuids)} nodes"
    node = report.nodes.get(uuids[0])
    return uuids[0] if node is None else f"{node.kind} {node.pk}"


def image(figure: Figure) -> str:
    """A figure as the address of an image that holds it."""
    return f"data:image/svg+xml;base64,{base64.b64encode(draw(figure)).decode('ascii')}"


def _groups(report: Report) -> dict[tuple[str, ...], str]:
    """Names of the sets of several nodes that numbers lead to."""
    found: dict[tuple[str, ...], str] = {}
    wanted: list[tuple[str, ...]] = [report.verdict.uuids, *(fact.number.uuids for fact in report.headline)]
    for section in report.sections:
        wanted += [number.uuids for number in section.numbers()]
        wanted += [figure.uuids for figure in section.figures]
    for uuids in wanted:
        if len(uuids) > 1 and uuids not in found:
            found[uuids] = f"nodes-{len(found)}"
    return found


def _minus(text: str) -> str:
    return text.replace("-", "−", 1) if text.startswith("-") else text
