"""The dataset: composition, labels, and a map of its environments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from aiida import orm

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import MlipError
from aiida_mlip.kernel.environment_map import EnvironmentMap, environment_maps, spread_rows
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.expected import is_expected, reason
from aiida_mlip.report.tree import ProcessTree

#: Environments on the map, of all elements together.
_MAP_ATOMS: Final[int] = 4000
#: Elements that get a map.
_MOST_MAPS: Final[int] = 6
#: What attributes of a dataset call frames without a generator.
_IMPORTED: Final[str] = "import"
#: Ranges of a dataset: attribute -> name and unit.
_RANGES: Final[dict[str, tuple[str, str]]] = {
    "natoms": ("atoms per frame", ""),
    "energy_ev_per_atom": ("energy", "eV/atom"),
    "force_norm_ev_per_ang": ("force on an atom", "eV/Å"),
    "volume_ang3_per_atom": ("volume", "Å³/atom"),
}


def latest_dataset(tree: ProcessTree) -> DatasetData | None:
    """The dataset that the process returned, else the last that one of its stages made, else the one it was given."""
    found = tree.output(tree.root, "dataset")
    if isinstance(found, DatasetData):
        return found
    for process in reversed(tree.find("merge_datasets", "LabelWorkChain", "GenerateWorkChain")):
        for label in ("dataset", "result"):
            node = tree.output(process, label)
            if isinstance(node, DatasetData):
                return node
    given = tree.input(tree.root, "dataset")
    return given if isinstance(given, DatasetData) else None


def section(tree: ProcessTree) -> Section:
    """Composition, ranges, and maps."""
    title = "Dataset"
    node = latest_dataset(tree)
    if node is None:
        none = (f"no dataset: {reason(tree, 'dataset')}",) if is_expected(tree, "dataset") else ()
        return Section("dataset", title, missing=none)
    attributes, source = node.base.attributes.all, (node.uuid,)
    facts = [
        Fact("rows", Number(attributes["n_rows"], uuids=source)),
        Fact("atoms", Number(attributes["n_atoms"], uuids=source)),
        Fact("elements", Number(" ".join(attributes["species"]), uuids=source)),
    ]
    for key, (name, unit) in _RANGES.items():
        if key in attributes["ranges"]:
            low, high = attributes["ranges"][key]
            if key != "force_norm_ev_per_ang":  # the least is that of a perfect crystal: zero
                facts.append(Fact(f"{name}, least", Number(low, unit, source)))
            facts.append(Fact(f"{name}, most", Number(high, unit, source)))
    figures, missing = _figures(node)
    if not any(entry["labelled"] for entry in attributes["fidelities"].values()) and tree.find("LabelWorkChain"):
        missing = (f"no labels: {_progress(tree)}", *missing)
    return Section(
        "dataset",
        title,
        intro="A row is a frame with its labels at one level of theory.",
        facts=tuple(facts),
        figures=figures,
        tables=tuple(_tables(attributes, source)),
        missing=missing,
    )


def _progress(tree: ProcessTree) -> str:
    """Why there are no labels yet, and how many calls of the labelling have ended."""
    calls = tree.children.get(tree.find("LabelWorkChain")[-1].pk, [])
    labels = [call for call in calls if call.name.startswith(("label_", "atom_"))]
    ended = [call for call in labels if call.has_ended]
    done = f"; {len(ended)} calls of it have ended, {len(labels) - len(ended)} are alive" if labels else ""
    return f"{reason(tree, 'labels')}{done}"


def _tables(attributes: dict[str, Any], source: tuple[str, ...]) -> Iterator[Table]:
    if attributes["fidelities"]:
        rows = tuple(
            (
                Number(name),
                Number(entry["labelled"], uuids=source),
                Number(entry["failed"], uuids=source, tone="warn" if entry["failed"] else ""),
                Number(entry["settings"][:12] or "unknown (imported)", uuids=source),
            )
            for name, entry in attributes["fidelities"].items()
        )
        columns = ("level of theory", "labelled rows", "failed rows", "hash of settings")
        yield Table("Labels", columns, rows)
    if attributes["generators"]:
        made = tuple(
            (Number(name), Number(count, uuids=source))
            for name, count in sorted(attributes["generators"].items(), key=lambda item: -item[1])
        )
        yield Table("What made the frames", ("generator", "rows"), made)
    energies = [
        (Number(fidelity), Number(symbol), Number(value, uuids=source))
        for fidelity, table in attributes["reference_energies"].items()
        for symbol, value in table.items()
    ]
    if energies:
        yield Table("Isolated atoms", ("level of theory", "element", "energy (eV)"), tuple(energies))


def _figures(node: DatasetData) -> tuple[tuple[Figure, ...], tuple[str, ...]]:
    natoms = node.column("natoms").astype(int)
    kinds = node.column("generator").astype(str)
    rows = spread_rows(natoms, kinds, max_atoms=_MAP_ATOMS)
    try:
        maps = environment_maps(_taken(node, rows))
    except (MlipError, np.linalg.LinAlgError) as error:
        return (), (f"no map of the environments: {error}",)
    figures = [_map_figure(one, node, len(rows)) for one in maps[:_MOST_MAPS]]
    return tuple(figures), ()


def _taken(node: DatasetData, rows: np.ndarray) -> Iterator[Frames]:
    """The rows, shard by shard."""
    start = 0
    for frames in node.iter_shards():
        inside = rows[(rows >= start) & (rows < start + len(frames))] - start
        start += len(frames)
        if len(inside):
            yield frames.take(inside)


def _map_figure(one: EnvironmentMap, node: orm.Data, n_rows: int) -> Figure:
    names = np.array([name or _IMPORTED for name in one.generators])
    series = [
        {"name": str(name), "x": one.coordinates[names == name, 0], "y": one.coordinates[names == name, 1]}
        for name in sorted(set(names.tolist()), key=lambda name: -int((names == name).sum()))
    ]
    return Figure(
        key=f"map-{one.symbol}",
        title=f"Coverage map: environments of {one.symbol}",
        kind="scatter",
        data={"x_label": "principal axis 1", "y_label": "principal axis 2", "series": series},
        alt=f"Environments of {one.symbol} on the plane of their two principal axes, by what made the frame.",
        uuids=(node.uuid,),
        caption=f"{len(names)} environments of {n_rows} of {len(node)} rows. The plane holds "
        f"{one.explained:.0%} of the variance of the descriptor.",
    )
