"""Fragments: how many were cut and accepted, pictures of the worst, and the embedding error."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.kernel.fragments.fragment import GENERATOR, Region
from aiida_mlip.kernel.frames import Frames, id_keys
from aiida_mlip.report.content import Fact, Figure, Number, Section, Table
from aiida_mlip.report.sections.dataset import latest_dataset
from aiida_mlip.report.tree import Process, ProcessTree, step_name

_MAKERS: Final[tuple[str, ...]] = ("carve_fragments", "RelaxFragmentsCalculation", "ScanCalculation")
#: Pictures.
_MOST_PICTURES: Final[int] = 3
#: Atoms of one picture.
_MOST_ATOMS: Final[int] = 2000
#: Steps that cut only to measure: their fragments are not those of the process.
_LADDER: Final[str] = "relax_ladder"


@dataclass(frozen=True)
class _Shown:
    """A fragment to draw, and the node it is a row of."""

    frames: Frames
    row: int
    novelty: float
    uuids: tuple[str, ...]


@dataclass(frozen=True)
class _Summary:
    """What a step said about its fragments."""

    process: Process
    content: dict[str, Any]
    uuid: str

    @property
    def tested(self) -> bool:
        """Whether it says which were accepted."""
        return "n_accepted" in self.content


def section(tree: ProcessTree) -> Section:
    """Counts, pictures and embedding errors."""
    summaries = list(_summaries(tree))
    shown = sorted(_candidates(tree), key=lambda one: -one.novelty)[:_MOST_PICTURES]
    embedding = list(_embeddings(tree))
    wanted = _is_wanted(tree)
    missing: list[str] = []
    notes: tuple[str, ...] = ()
    if wanted and not summaries and not shown:
        missing.append("no fragment was cut: no exploration found a surrounding worth a label, or it was not reached")
    if (summaries or shown) and not embedding:
        notes = ("The embedding error was not measured by this process.",)
    return Section(
        "fragments",
        "Fragments",
        intro="Small pieces cut out of large frames around the atoms that the potential is least certain of."
        if summaries or shown
        else "",
        facts=tuple(_facts(summaries)),
        figures=(
            *(_picture(one, place) for place, one in enumerate(shown)),
            *(one for one, _ in embedding if one is not None),
        ),
        tables=(*_tables(tree, summaries), *(table for _, table in embedding)),
        missing=tuple(missing),
        notes=notes,
    )


def _is_wanted(tree: ProcessTree) -> bool:
    for process in tree.find("ActiveLearningWorkChain"):
        settings = tree.input(process, "settings")
        if settings is not None and settings.get_dict().get("mode") == "fragments":
            return True
    return False


def _summaries(tree: ProcessTree) -> Iterator[_Summary]:
    for process in tree.find(*_MAKERS):
        node = tree.output(process, "summary")
        if node is None or process.name == _LADDER:
            continue
        content = node.get_dict()
        content = content.get("fragments") if process.kind == "ScanCalculation" else content
        if isinstance(content, dict) and "n_fragments" in content:
            yield _Summary(process, content, node.uuid)


def _facts(summaries: list[_Summary]) -> Iterator[Fact]:
    cut = [one for one in summaries if one.process.kind != "RelaxFragmentsCalculation"]
    tested = [one for one in summaries if one.tested]
    if cut:
        uuids = tuple(one.uuid for one in cut)
        yield Fact("fragments cut", Number(sum(one.content["n_fragments"] for one in cut), uuids=uuids))
        refused = sum(len(one.content.get("refused", ())) for one in cut)
        yield Fact("centres without a fragment", Number(refused, uuids=uuids))
    if tested:
        uuids = tuple(one.uuid for one in tested)
        yield Fact("tested with the potential", Number(sum(one.content["n_fragments"] for one in tested), uuids=uuids))
        yield Fact("accepted", Number(sum(one.content["n_accepted"] for one in tested), uuids=uuids))


def _tables(tree: ProcessTree, summaries: list[_Summary]) -> list[Table]:
    rows: list[tuple[Number, ...]] = []
    for one in summaries:
        content, source = one.content, (one.uuid,)
        each = content.get("fragments", [])
        refused = [entry.get("reason", "") for entry in content.get("refused", [])]
        refused += [entry.get("reason", "") for entry in each if entry.get("accepted") is False]
        sizes = content.get("natoms") or [entry["natoms"] for entry in each if "natoms" in entry]
        how = ", ".join(f"{count} {kind}" for kind, count in content.get("completion", {}).items())
        why = "; ".join(f"{count}× {reason}" for reason, count in Counter(refused).most_common(3))
        rows.append(
            (
                Number(step_name(tree, one.process)),
                Number(content["n_fragments"], uuids=source),
                Number(content.get("n_accepted"), uuids=source),
                Number(f"{min(sizes)} to {max(sizes)}" if sizes else "", uuids=source),
                Number(how, uuids=source),
                Number(len(refused), uuids=source),
                Number(why, uuids=source),
            )
        )
    columns = ("step", "fragments", "accepted", "atoms", "completed as", "refused", "reasons")
    return [Table("Cutting and testing", columns, tuple(rows))] if rows else []


# -- pictures --------------------------------------------------------------------------------------------------


def _candidates(tree: ProcessTree) -> Iterator[_Shown]:
    """Fragments with the novelty of their centre: those that were accepted, else those that were cut."""
    for kinds in (("RelaxFragmentsCalculation",), ("carve_fragments", "ScanCalculation")):
        found = [one for process in tree.find(*kinds) if process.name != _LADDER
                 for one in _of_process(tree, process)]  # fmt: skip
        if found:
            yield from found
            return
    node = latest_dataset(tree)
    if node is not None and GENERATOR in node.base.attributes.get("generators"):
        frames = node.filter(generator=GENERATOR)
        if frames.region is not None:
            yield from (_Shown(frames, row, 0.0, (node.uuid,)) for row in range(min(_MOST_PICTURES, len(frames))))


def _of_process(tree: ProcessTree, process: Process) -> Iterator[_Shown]:
    node = tree.output(process, "fragments")
    grades = tree.output(process, "fragment_grades" if process.kind == "ScanCalculation" else "grades")
    if not isinstance(node, DatasetData):
        return
    frames = node.frames()
    novelty, source = _centres(frames, grades), (node.uuid,)
    for row in range(len(frames)):
        yield _Shown(frames, row, float(novelty[row]), source if grades is None else (*source, grades.uuid))


def _centres(frames: Frames, grades: Any | None) -> np.ndarray:  # Any: ArrayData
    """(n,) γ of the atom each fragment was cut around, its first; 0 where it is not known."""
    result = np.zeros(len(frames))
    if grades is None or not {"frame_id", "novelty"} <= set(grades.get_arraynames()):
        return result
    keys = id_keys(np.ascontiguousarray(grades.get_array("frame_id"), dtype=np.uint8)).tolist()
    place = {key: row for row, key in enumerate(id_keys(frames.frame_id).tolist())}
    if any(key not in place for key in keys):
        return result
    sizes = [int(frames.natoms[place[key]]) for key in keys]
    values = np.asarray(grades.get_array("novelty"), dtype=float)
    if sum(sizes) != len(values):
        return result
    for key, part in zip(keys, np.split(values, np.cumsum(sizes)[:-1]), strict=True):
        result[place[key]] = part[0] if np.isfinite(part[0]) else 0.0
    return result


def _picture(one: _Shown, place: int) -> Figure:
    atoms = one.frames.atom_slice(one.row)
    region = one.frames.region
    regions = np.full(one.frames.natoms[one.row], int(Region.BUFFER)) if region is None else region[atoms]
    keep = np.argsort(regions, kind="stable")[:_MOST_ATOMS]
    counts = {name.name.lower(): int((regions == name).sum()) for name in Region}
    said = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    formula = one.frames.to_ase(one.row).get_chemical_formula()
    facts = [Fact("atoms", Number(int(one.frames.natoms[one.row]), uuids=one.uuids))]
    if one.novelty:
        facts.insert(0, Fact("γ of its centre", Number(one.novelty, uuids=one.uuids)))
    cell = one.frames.cell[one.row]
    return Figure(
        key=f"fragment-{place}",
        title=f"Fragment {one.frames.ids()[one.row][:8]}: {formula}",
        kind="fragment",
        data={
            "positions": one.frames.positions[atoms][keep],
            "numbers": one.frames.numbers[atoms][keep],
            "regions": regions[keep],
            "cell": cell if one.frames.pbc[one.row].any() else None,
        },
        alt=f"Picture of a fragment, {formula}, seen from the side: {said}.",
        uuids=one.uuids,
        caption=f"{said}. Far atoms are paler.",
        facts=tuple(facts),
    )


# -- embedding error -------------------------------------------------------------------------------------------


def _embeddings(tree: ProcessTree) -> Iterator[tuple[Figure | None, Table]]:
    """Embedding errors that were measured, or why they could not be."""
    for process in tree.find("measure_embedding"):
        node = tree.output(process, "embedding")
        if node is not None:
            content = node.get_dict()
            measured = content.get("measured_ev_per_ang") is not None
            name = step_name(tree, process)
            yield (_decay(content, node.uuid, name) if measured else None), _embedding_table(content, node.uuid, name)


def _decay(content: dict[str, Any], uuid: str, name: str) -> Figure:
    buffers, errors = content["buffers_ang"], content["errors_ev_per_ang"]
    series = [{"name": "measured", "x": buffers[: len(errors)], "y": errors, "markers": True}]
    length, amplitude = content["decay_length_ang"], content["amplitude_ev_per_ang"]
    if length:
        x = np.linspace(buffers[0], buffers[-1], 50)
        series.append({"name": "A·exp(−b/ℓ)", "x": x, "y": amplitude * np.exp(-x / length), "style": "dashed"})
    chosen = content["chosen_ang"]
    return Figure(
        key=f"embedding-{uuid[:8]}",
        title=f"Embedding error: {name}",
        kind="lines",
        data={
            "x_label": "buffer b (Å)",
            "y_label": "error of the core forces (eV/Å)",
            "y_log": True,
            "series": series,
            "horizontals": [{"name": "allowed", "y": content["tolerance_ev_per_ang"]}],
            "verticals": [] if chosen is None else [{"name": "chosen", "x": chosen}],
        },
        alt="Error of the forces in the core of fragments against the thickness of their buffer, and what is allowed.",
        uuids=(uuid,),
        caption="Against the forces at the largest buffer.",
    )


def _embedding_table(content: dict[str, Any], uuid: str, name: str) -> Table:
    names = {
        "n_fragments": "places measured",
        "chosen_ang": "buffer taken (Å)",
        "measured_ev_per_ang": "embedding error there (eV/Å)",
        "tolerance_ev_per_ang": "allowed (eV/Å)",
        "decay_length_ang": "decay length ℓ (Å)",
        "amplitude_ev_per_ang": "amplitude A (eV/Å)",
        "reason": "remark",
    }
    rows = tuple((Number(text), Number(content[key], uuids=(uuid,))) for key, text in names.items() if content.get(key))
    return Table(f"Embedding error: {name}", ("quantity", "value"), rows)
