"""Properties: what the potential says about the physics, against its reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiida_mlip.report.content import Fact, Number, Section, Table, Tone
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.sections.property_curves import figures
from aiida_mlip.report.tree import ProcessTree

_WORDS: Final[Mapping[str, tuple[str, Tone]]] = {
    "passed": ("passed", "good"), "failed": ("failed", "bad"), "not_judged": ("not judged", "")
}  # fmt: skip
#: Numbers so much smaller than the largest of their list are zero: acoustic modes at Γ.
_NOISE: Final[float] = 1e-4


def section(tree: ProcessTree) -> Section:
    """One table per structure of all properties with their verdicts, and the curves behind them."""
    title = "Properties"
    validations = tree.find("ValidateWorkChain")
    node = next((found for one in reversed(validations) if (found := tree.output(one, "properties")) is not None), None)
    if node is None:
        wanted = is_expected(tree, "properties") or bool(validations)
        return Section("properties", title, missing=(f"no properties: {reason(tree, 'properties')}",) if wanted else ())
    process = next(one for one in reversed(validations) if tree.outputs(one).get("properties") == node.uuid)
    later = [one for one in validations if one.pk > process.pk]
    curves = tree.namespace(process, "curves")
    notes = ("Error bars are the standard deviation over the committee.",)
    return Section(
        "properties",
        title,
        intro=f"From {process.name}: each source is looked at at its own lattice constant."
        if process.pk != tree.root.pk
        else "Each source is looked at at its own lattice constant.",
        facts=tuple(verdict_facts(tree)),
        figures=tuple(figures(curves)),
        tables=tuple(_tables(node["entries"], (node.uuid,))),
        missing=tuple(
            f"the validation {one.name} (process {one.pk}) left no properties: {one.outcome}" for one in later
        ),
        notes=notes if any(entry.get("error_bar") is not None for entry in node["entries"]) else (),
    )


def verdict_facts(tree: ProcessTree) -> Iterator[Fact]:
    """The verdict of the last validation, and how many properties passed."""
    for process in reversed(tree.find("ValidateWorkChain")):
        node = tree.output(process, "verdict")
        if node is not None:
            content, source = node.get_dict(), (node.uuid,)
            word, tone = _WORDS.get(content["verdict"], (str(content["verdict"]), ""))
            yield Fact("properties", Number(word, uuids=source, tone=tone))
            for key in ("passed", "failed", "not_judged"):
                if content[f"n_{key}"]:
                    yield Fact(f"properties {_WORDS[key][0]}", Number(content[f"n_{key}"], uuids=source))
            return


def _tables(entries: list[dict[str, Any]], source: tuple[str, ...]) -> Iterator[Table]:
    columns = ("property", "value", "± (committee)", "reference", "difference", "unit", "allowed", "verdict", "remark")
    for structure in sorted({entry["structure"] for entry in entries}):
        mine = [entry for entry in entries if entry["structure"] == structure]
        title = f"Structure {structure}" if structure >= 0 else "Of no one structure"
        yield Table(title, columns, tuple(_row(entry, source) for entry in mine))


def _row(entry: Mapping[str, Any], source: tuple[str, ...]) -> tuple[Number, ...]:
    word, tone = _WORDS[{True: "passed", False: "failed", None: "not_judged"}[entry["passed"]]]
    values = [_number(entry[key], source) for key in ("value", "error_bar", "reference", "difference")]
    return (
        Number(_readable(entry), uuids=source),
        *values,
        Number(entry["unit"], uuids=source),
        Number(_allowed(entry["threshold"]), uuids=source),
        Number(word, uuids=source, tone=tone),
        Number(entry["reason"] or entry["definition"] or "", uuids=source),
    )


def _readable(entry: Mapping[str, Any]) -> str:
    return str(entry["name"]).replace("_", " ")


def _number(value: Any, source: tuple[str, ...]) -> Number:
    if isinstance(value, list):
        size = max((abs(one) for one in value if one is not None), default=0.0)
        texts = ["–" if one is None else "0" if abs(one) < _NOISE * size else f"{one:.4g}" for one in value]
        return Number(", ".join(texts).replace("-", "−"), uuids=source)
    return Number(value, uuids=source)


def _allowed(threshold: Mapping[str, float] | None) -> str:
    words = {"absolute": "±{:g}", "relative": "±{:.3g} %", "at_least": "≥ {:g}", "at_most": "≤ {:g}"}
    found = []
    for key, value in (threshold or {}).items():
        if value is not None and key in words:
            found.append(words[key].format(100 * value if key == "relative" else value))
    return " or ".join(found) or "–"
