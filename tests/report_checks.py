"""What every report must be: each uuid in it a node, each figure there, nothing that a browser would load or run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from aiida import orm

from aiida_mlip.report.content import Report
from aiida_mlip.report.write import write_report

UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
#: Elements without an end.
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Elements of a page; well formed or an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.text: list[str] = []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        assert not [name for name in found if name.startswith("on")], (tag, found)
        if "id" in found:
            self.ids.append(str(found["id"]))
        if tag == "a":
            self.links.append(str(found["href"]))
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check_report(node: orm.ProcessNode, folder: Path) -> tuple[Report, Page, dict[str, Any]]:
    """Write the report of a process and check what holds for all of them."""
    html, plain = folder / f"{node.pk}.html", folder / f"{node.pk}.json"
    report = write_report(node, html, json_path=plain)
    text, content = html.read_text(encoding="utf-8"), json.loads(plain.read_text(encoding="utf-8"))
    page = Page(text)
    _check_uuids(text, plain.read_text(encoding="utf-8"), content)
    _check_links(page)
    _check_numbers(content)
    figures = [figure for section in content["sections"] for figure in section["figures"]]
    assert len(page.images) == len(figures)
    for image in page.images:
        assert str(image["src"]).startswith("data:image/svg+xml;base64,")
        assert image["alt"]
    assert not {"script", "iframe", "object", "form", "base"} & page.tags
    assert "http" not in re.sub(r'http-equiv|data:[^"]*', "", text.lower()), "nothing to load"
    return report, page, content


def _check_uuids(html: str, plain: str, content: dict[str, Any]) -> None:
    """Every uuid in both files is a node, and both name the same ones."""
    images_out = re.sub(r"data:image[^\"]*", "", html)
    named = set(UUID.findall(images_out))
    assert named == set(UUID.findall(plain)) == set(content["nodes"])
    found = orm.QueryBuilder().append(orm.Node, filters={"uuid": {"in": list(named)}}, project="uuid").all(flat=True)
    assert set(found) == named
    for uuid, told in content["nodes"].items():
        assert orm.load_node(uuid).pk == told["pk"]


def _check_links(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids)), "an id twice"
    for link in page.links:
        assert link.startswith("#"), link
        assert link[1:] in page.ids, link


def _check_numbers(content: dict[str, Any]) -> None:
    """Every number and every figure says which node it comes from."""
    numbers = [*content["headline"]]
    for section in content["sections"]:
        numbers += section["facts"]
        numbers += [cell for table in section["tables"] for row in table["rows"] for cell in row]
        for figure in section["figures"]:
            assert figure["uuids"], figure["key"]
            numbers += figure["facts"]
    without = [number for number in numbers if not isinstance(number["value"], str | None) and not number["uuids"]]
    assert not without
