"""What was asked: the inputs of the process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.data.potential import PotentialData
from aiida_mlip.report.content import Number, Section, Table, Value
from aiida_mlip.report.tree import ProcessTree

#: Values of one specification that are shown.
_MOST_VALUES: Final[int] = 200


def section(tree: ProcessTree) -> Section:
    """Inputs, one line each; specifications in tables of their own."""
    rows: list[tuple[Number, ...]] = []
    specifications: list[Table] = []
    for label, uuid in sorted(tree.inputs(tree.root).items()):
        name, node = label.replace("__", "."), orm.load_node(uuid)
        if isinstance(node, orm.Dict):
            values = list(flat(node.get_dict()))
            specifications.append(_specification(name, node, values))
            rows.append((Number(name), Number(f"{len(values)} values, see below", uuids=(uuid,))))
        else:
            rows.append((Number(name), Number(describe(node), uuids=(uuid,))))
    missing = () if rows else ("the process has no stored inputs",)
    tables = (Table("Inputs", ("input", "value"), tuple(rows)), *specifications) if rows else ()
    return Section("asked", "What was asked", tables=tables, missing=missing)


def describe(node: orm.Node) -> str:
    """A node in a few words."""
    if isinstance(node, DatasetData):
        return f"dataset of {len(node)} rows, {' '.join(node.species)}" + (f" ({node.label})" if node.label else "")
    if isinstance(node, PotentialData):
        return f"potential ({node.engine}) of {' '.join(node.species)}, cutoff {node.cutoff_ang:g} Å"
    if isinstance(node, orm.StructureData):
        return f"structure {node.get_formula()}, {len(node.sites)} atoms"
    if isinstance(node, orm.AbstractCode):
        return f"code {node.full_label}: {node.get_executable()}"
    if isinstance(node, orm.Int | orm.Float | orm.Str | orm.Bool):
        return str(node.value)
    if isinstance(node, orm.List):
        return ", ".join(map(str, node.get_list()))
    return f"{type(node).__name__}" + (f" ({node.label})" if node.label else "")


def flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Path and value of everything in nested mappings and lists; short lists of numbers stay together."""
    for key, value in data.items():
        yield from _flat(value, f"{prefix}{key}")


def _flat(value: Any, path: str) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping) and value:
        yield from flat(value, f"{path}.")
    elif isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    elif isinstance(value, list):
        yield path, ", ".join(map(str, value))
    elif isinstance(value, Mapping):
        yield path, "{}"
    else:
        yield path, value


def _specification(name: str, node: orm.Dict, values: list[tuple[str, Value]]) -> Table:
    shown = values[:_MOST_VALUES]
    rows = tuple(
        (Number(path), Number("none" if value is None else value, uuids=(node.uuid,))) for path, value in shown
    )
    caption = "" if len(values) == len(shown) else f"The first {len(shown)} of {len(values)} values."
    return Table(f"Specification: {name}", ("key", "value"), rows, caption, collapsed=True)
