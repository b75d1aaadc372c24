"""What a report holds: numbers with their unit and the nodes they come from, tables, figures, sections.

HTML and JSON are two renderings of this one thing: nothing is said in the one that is not in the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, TypeAlias

#: What a cell may hold.
Value: TypeAlias = float | int | str | bool | None
#: How a number or a verdict is to be taken.
Tone = Literal["", "good", "warn", "bad", "running"]

FORMAT: Final[str] = "aiida-mlip report"
VERSION: Final[int] = 1


@dataclass(frozen=True)
class Number:
    """A number (or word) as people read it.

    :param value: None: there is none.
    :param unit: empty for counts and words.
    :param uuids: nodes it was read from; several for a sum over nodes.
    :param tone: how it is to be taken.
    """

    value: Value
    unit: str = ""
    uuids: tuple[str, ...] = ()
    tone: Tone = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"value": plain(self.value), "unit": self.unit, "uuids": list(self.uuids), "tone": self.tone}


@dataclass(frozen=True)
class Fact:
    """A named number."""

    name: str
    number: Number

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"name": self.name, **self.number.as_dict()}


@dataclass(frozen=True)
class Table:
    """Rows of numbers.

    :param columns: headings, with the unit where a whole column has one.
    :param collapsed: shown when asked for; always printed.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Number, ...], ...]
    caption: str = ""
    collapsed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        rows = [[cell.as_dict() for cell in row] for row in self.rows]
        return {"title": self.title, "columns": list(self.columns), "rows": rows, "caption": self.caption}


@dataclass(frozen=True)
class Figure:
    """One panel.

    :param kind: a function of :mod:`aiida_mlip.report.drawing`.
    :param data: what it draws, plain JSON; the axes' labels carry the units.
    :param alt: for those who cannot see it.
    :param uuids: nodes it was drawn from.
    :param facts: numbers that belong to it.
    """

    key: str
    title: str
    kind: str
    data: Mapping[str, Any]
    alt: str
    uuids: tuple[str, ...]
    caption: str = ""
    facts: tuple[Fact, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON: the numbers that were drawn in place of the picture."""
        texts = {name: getattr(self, name) for name in ("key", "title", "kind", "alt", "caption")}
        facts = [fact.as_dict() for fact in self.facts]
        return {**texts, "uuids": list(self.uuids), "facts": facts, "data": plain(self.data)}


@dataclass(frozen=True)
class Section:
    """One part of the report.

    :param missing: what it should hold and does not, with the reason.
    :param notes: what a reader should know about what it holds.
    """

    key: str
    title: str
    intro: str = ""
    facts: tuple[Fact, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show, not even that something is missing."""
        return not (self.facts or self.figures or self.tables or self.missing or self.notes)

    def numbers(self) -> Iterator[Number]:
        """All numbers of its facts, tables and figures."""
        yield from (fact.number for fact in self.facts)
        for table in self.tables:
            for row in table.rows:
                yield from row
        for figure in self.figures:
            yield from (fact.number for fact in figure.facts)

    def uuids(self) -> Iterator[str]:
        """Nodes it rests on, with repetitions."""
        for number in self.numbers():
            yield from number.uuids
        for figure in self.figures:
            yield from figure.uuids

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "key": self.key,
            "title": self.title,
            "intro": self.intro,
            "facts": [fact.as_dict() for fact in self.facts],
            "figures": [figure.as_dict() for figure in self.figures],
            "tables": [table.as_dict() for table in self.tables],
            "missing": list(self.missing),
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class NodeReference:
    """A node that something in the report comes from."""

    uuid: str
    pk: int
    kind: str
    label: str
    made: datetime
    maker: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "pk": self.pk,
            "kind": self.kind,
            "label": self.label,
            "made": self.made.isoformat(),
            "maker": self.maker,
        }


@dataclass(frozen=True)
class Verdict:
    """How it went, in a word and a sentence."""

    word: str
    sentence: str
    tone: Tone
    uuids: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"word": self.word, "sentence": self.sentence, "tone": self.tone, "uuids": list(self.uuids)}


@dataclass(frozen=True)
class Report:
    """Everything there is to say about a process.

    :param headline: the few numbers that come first.
    :param nodes: what the uuids of all numbers and figures stand for.
    """

    title: str
    pk: int
    uuid: str
    made: datetime
    description: str
    verdict: Verdict
    headline: tuple[Fact, ...]
    sections: tuple[Section, ...]
    nodes: Mapping[str, NodeReference] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """What is missing, of all sections."""
        return tuple(f"{section.title}: {text}" for section in self.sections for text in section.missing)

    def uuids(self) -> list[str]:
        """Nodes it rests on, each once, in order of appearance."""
        found = [self.uuid, *self.verdict.uuids]
        found += [uuid for fact in self.headline for uuid in fact.number.uuids]
        found += [uuid for section in self.sections for uuid in section.uuids()]
        return list(dict.fromkeys(found))

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "title": self.title,
            "process": {"pk": self.pk, "uuid": self.uuid, "description": self.description},
            "made": self.made.isoformat(),
            "verdict": self.verdict.as_dict(),
            "headline": [fact.as_dict() for fact in self.headline],
            "missing": list(self.missing),
            "sections": [section.as_dict() for section in self.sections],
            "nodes": {uuid: node.as_dict() for uuid, node in self.nodes.items()},
        }


def plain(value: Any) -> Any:
    """``value`` for JSON: floats with six digits, None for those that JSON lacks, lists for tuples and arrays."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value
