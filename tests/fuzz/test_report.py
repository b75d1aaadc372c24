"""Reports show what people, programs and files are called, and run none of it."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiida import orm
from hypothesis import example, given, settings
from hypothesis import strategies as st
from report_checks import Page, check_report

from aiida_mlip.report.content import Fact, Figure, NodeReference, Number, Report, Section, Table, Verdict
from aiida_mlip.report.drawing import draw
from aiida_mlip.report.html import as_html

UUID = "11111111-1111-4111-8111-111111111111"
ATTACKS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)//",
    "</title></style><img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)" x="',
    "' onfocus='alert(1)' autofocus='",
    "javascript:alert(1)",
    "{{7*7}}{% include '/etc/passwd' %}{#",
    "<!--", "]]>", "&lt;script&gt;", "&#60;script&#62;", "\u2028<svg/onload=alert(1)>", "$\\frac{", "$(touch canary)",
    "<base href=//x><meta http-equiv=refresh content=0>", "\x00<b>", "\ufeff+ADw-script+AD4-",
)  # fmt: skip
#: What the template itself writes.
TAGS = {
    "html", "head", "meta", "title", "link", "style", "body", "header", "p", "h1", "h2", "h3", "a", "div", "span", "dl",
    "dt", "dd", "ul", "li", "nav", "main", "section", "figure", "figcaption", "b", "img", "details", "summary", "table",
    "thead", "tbody", "tr", "th", "td", "code",
}  # fmt: skip


def report_of(text: str, figures: tuple[Figure, ...] = ()) -> Report:
    """A report in which everything that has a name has this one."""
    number = Number(text, unit=text, uuids=(UUID,))
    table = Table(text, (text, text), ((number, Number(1.5)), (number, Number(None))), caption=text)
    facts = (Fact(text, number),)
    section = Section("key", text, text, facts, figures, (table,), missing=(text,), notes=(text,))
    node = NodeReference(UUID, 1, text, text, datetime(2026, 1, 1, tzinfo=UTC), maker=text)
    verdict = Verdict(text, text, "bad", (UUID,))
    made = datetime(2026, 1, 1, tzinfo=UTC)
    return Report(text, 1, UUID, made, text, verdict, facts, (section,), {UUID: node})


@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40))
@settings(max_examples=20, derandomize=True, database=None)
@example(text=ATTACKS[0])
@example(text="".join(ATTACKS))
def test_whatever_things_are_called_is_text(text: str) -> None:
    html = as_html(report_of(text))
    page = Page(html)  # asserts: no attribute that is a handler
    assert page.tags <= TAGS, page.tags - TAGS
    assert "script" not in page.tags
    assert html.count("<!--") == 0
    assert all(link.startswith("#") for link in page.links if link != "data:,")
    said = "".join(page.text)
    assert " ".join(text.split()) in " ".join(said.split())


@pytest.mark.parametrize("text", ATTACKS)
def test_each_attack_alone(text: str) -> None:
    page = Page(as_html(report_of(text)))
    assert page.tags <= TAGS, page.tags - TAGS


def test_the_test_can_fail() -> None:
    assert "script" in Page(f"<p>{ATTACKS[0]}</p>").tags - TAGS
    with pytest.raises(AssertionError):
        Page("<p " + ATTACKS[3].removeprefix('" ') + '"></p>')


def test_names_in_figures_are_drawn_not_run() -> None:
    """A figure is an image: even its labels as SVG text could run nothing, and they are outlines."""
    text = "".join(ATTACKS[:4])
    data = {"x": [0, 1], "series": [{"y": [0.0, 1.0], "name": text, "x": [0, 1]}], "xlabel": text, "ylabel": text}
    figure = Figure(text, text, "lines", data, text, (UUID,), caption=text)
    svg = draw(figure)
    assert b"<script" not in svg
    assert b"onmouseover" not in svg.replace(b"<!-- ", b"").split(b"<defs>")[0]
    html = as_html(report_of("plain", (figure,)))
    page = Page(html)
    assert page.images[0]["alt"] == text
    source = str(page.images[0]["src"])
    assert base64.b64decode(source.removeprefix("data:image/svg+xml;base64,")) == svg


@pytest.mark.parametrize("state", ["finished", "excepted"])
def test_messages_of_processes_are_text(state: str, aiida_profile, tmp_path: Path) -> None:
    text = " ".join(ATTACKS[:5])
    node = orm.WorkChainNode(process_type="aiida.workflows:aiida_mlip.develop", label=text, description=text)
    node.set_process_label(f"DevelopWorkChain{ATTACKS[0]}")
    node.set_process_state(state)
    if state == "finished":
        node.set_exit_status(300)
        node.set_exit_message(text)
    else:
        node.set_exception(f"Traceback\n{text}")
    node.store()
    _, page, content = check_report(node, tmp_path)
    assert page.tags <= TAGS
    assert text in "".join(page.text)
    assert text in json.dumps(content, ensure_ascii=False).encode().decode().replace('\\"', '"')
