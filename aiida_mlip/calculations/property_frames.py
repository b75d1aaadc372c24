"""Frames of a validation: which ones each property needs, in which rows of a dataset they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from aiida import orm
from ase import Atoms

from aiida_mlip.data.dataset import DatasetData
from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.properties import defects, dimers, elastic, equation_of_state, phonons
from aiida_mlip.kernel.properties.crystal import Crystal, crystal_of, repeats
from aiida_mlip.kernel.properties.results import NotComputableError, Outcome, Results, results_of
from aiida_mlip.protocols.validate import ValidateSettings

#: Kinds of runs, by the section of the settings.
RUNS: Final[tuple[str, ...]] = ("dynamics", "expansion", "order")


@dataclass
class Group:
    """Frames of one kind, and which rows belong to what.

    :param rows: (structure, what) -> (first row, row after the last).
    """

    cells: list[Atoms] = field(default_factory=list)
    rows: dict[tuple[int, str], tuple[int, int]] = field(default_factory=dict)

    def add(self, structure: int, what: str, cells: Sequence[Atoms]) -> None:
        """Append frames."""
        self.rows[structure, what] = (len(self.cells), len(self.cells) + len(cells))
        self.cells += list(cells)


@dataclass
class PropertyFrames:
    """Everything that one source has to compute after its equation of state.

    :param static: single points.
    :param relax: to be relaxed.
    :param runs: starting structures by kind of run.
    :param skipped: (structure, what) -> why there are no frames for it.
    :param equations: of state of each structure: its outcome, and the crystal at its own volume or None.
    """

    static: Group = field(default_factory=Group)
    relax: Group = field(default_factory=Group)
    runs: dict[str, Group] = field(default_factory=dict)
    skipped: dict[tuple[int, str], str] = field(default_factory=dict)
    equations: list[tuple[Outcome | None, Crystal | None, float]] = field(default_factory=list)


def atoms_of(structures: orm.Data) -> list[Atoms]:
    """The structures of a dataset, or the one of a StructureData.

    :raises InvalidInputError: no structure.
    """
    if isinstance(structures, DatasetData):
        return list(structures.to_ase())
    return [structures.get_ase()]


def species_of(structures: orm.Data) -> list[str]:
    """Chemical symbols in the structures."""
    if isinstance(structures, DatasetData):
        return structures.species
    return sorted(structures.get_symbols_set())


def crystals_of(structures: orm.Data, settings: ValidateSettings) -> list[Crystal]:
    """The crystals of all structures.

    :raises InvalidInputError: one that is none; says which.
    """
    found = []
    for index, atoms in enumerate(atoms_of(structures)):
        try:
            found.append(crystal_of(atoms, symprec=settings.symprec_ang))
        except NotComputableError as error:
            raise InvalidInputError(f"structures: structure {index}: {error}") from error
    return found


def eos_cells(crystals: Sequence[Crystal], settings: ValidateSettings) -> list[list[Atoms]]:
    """Per structure the cells of its equation of state."""
    eos = settings.eos
    return [equation_of_state.strained_cells(crystal, strain=eos.strain, points=eos.points) for crystal in crystals]


def flat(parts: Sequence[Sequence[Atoms]]) -> Frames:
    """All frames in a row."""
    return from_ase([atoms for part in parts for atoms in part])


def property_frames(crystals: Sequence[Crystal], settings: ValidateSettings, eos: Results) -> PropertyFrames:
    """Frames at the own equilibrium volume of a source, from its energies of strained cells.

    :param eos: results for :func:`eos_cells`, flat.
    """
    made = PropertyFrames()
    start = 0
    for index, cells in enumerate(eos_cells(crystals, settings)):
        part = eos.part(start, start + len(cells))
        start += len(cells)
        try:
            outcome, found = equation_of_state.equation_of_state(
                crystals[index], cells, part, fit_strain=settings.eos.fit_strain
            )
        except NotComputableError as error:
            made.equations.append((None, None, np.nan))
            made.skipped[index, "eos"] = str(error)
            continue
        own = crystals[index].scaled(found.stretch)
        made.equations.append((outcome, own, found.energy))
        _add_static(made, index, own, settings)
        _add_relaxed(made, index, own, settings)
        for kind in RUNS:
            if (section := getattr(settings, kind)) is not None:
                cell = own.conventional
                whole = cell.repeat(repeats(cell.cell.array, section.min_length_ang))
                made.runs.setdefault(kind, Group()).add(index, kind, [whole])
    if settings.dimer is not None:
        species = tuple(sorted({symbol for crystal in crystals for symbol in crystal.primitive.get_chemical_symbols()}))
        for pair in dimers.dimer_pairs(species):
            made.static.add(-1, "dimer_" + "_".join(pair), dimers.dimers(pair, distances_of(pair, settings)))
    return made


def distances_of(pair: tuple[str, str], settings: ValidateSettings) -> np.ndarray:
    """Distances (Å) of the dimers of a pair.

    :raises InvalidInputError: dimers are not wanted.
    """
    if settings.dimer is None:
        raise InvalidInputError("dimer: not wanted")
    keys = settings.dimer
    return dimers.dimer_distances(pair, shortest=keys.shortest, longest=keys.longest, points=keys.points)


def phonon_cells(crystal: Crystal, settings: ValidateSettings) -> phonons.PhononCells:
    """Displaced supercells as the settings say.

    :raises InvalidInputError: phonons are not wanted.
    """
    if settings.phonons is None:
        raise InvalidInputError("phonons: not wanted")
    keys = settings.phonons
    return phonons.PhononCells(crystal, min_length=keys.min_length_ang, displacement=keys.displacement_ang)


def _add_static(made: PropertyFrames, index: int, own: Crystal, settings: ValidateSettings) -> None:
    made.static.add(index, "equilibrium", [own.primitive])
    if (keys := settings.elastic) is not None:
        cells = elastic.elastic_cells(own, strain=keys.strain, displacement=keys.displacement_ang)
        made.static.add(index, "elastic", cells)
    if settings.phonons is not None:
        made.static.add(index, "phonons", phonon_cells(own, settings).cells())


def _add_relaxed(made: PropertyFrames, index: int, own: Crystal, settings: ValidateSettings) -> None:
    if (vacancy := settings.vacancy) is not None:
        try:
            cells = defects.vacancy_cells(own, min_length=vacancy.min_length_ang, inward=vacancy.inward)
            made.relax.add(index, "vacancy", cells)
        except NotComputableError as error:
            made.skipped[index, "vacancy"] = str(error)
    if (surface := settings.surface) is not None:
        for miller in surface.miller:
            name = defects.surface_name(miller)[0]
            try:
                made.relax.add(
                    index,
                    name,
                    [defects.slab(own, miller, min_thickness=surface.min_thickness_ang, vacuum=surface.vacuum_ang)],
                )
            except NotComputableError as error:
                made.skipped[index, name] = str(error)


def results_from(frames: Frames, node: orm.Data) -> Results:
    """Results of frames from what computed them: labelled rows, or the parity arrays of an evaluation.

    :raises InvalidInputError: an evaluation of other frames.
    """
    if isinstance(node, DatasetData):
        return results_of(frames, node.filter(labelled=True))
    ids, natoms = node.get_array("frame_id"), node.get_array("natoms")
    if not np.array_equal(ids, frames.frame_id):
        raise InvalidInputError(f"<{node.uuid}> is an evaluation of other frames")
    forces = np.split(node.get_array("forces_predicted"), np.cumsum(natoms)[:-1])
    return Results(node.get_array("energy_predicted") * natoms, tuple(forces), node.get_array("stress_predicted"))


def relaxed_energies(node: orm.Data, frames: Frames, what: str) -> tuple[np.ndarray, list[str]]:
    """(n,) eV of relaxed frames and, where there is none, why.

    :param node: the summary of an exploration of the kind ``relax``, or labelled rows of ``frames``.
    :param what: for messages.
    """
    energies, reasons = np.full(len(frames), np.nan), ["not computed"] * len(frames)
    if isinstance(node, orm.Dict):
        for run in node["runs"]:
            row = run["structure"]
            if run["stopped_by"] == "converged" and run["energy_ev"] is not None:
                energies[row] = run["energy_ev"]
            else:
                reasons[row] = f"the relaxation ended: {run['stopped_by']} {run['message']}".strip()
        return energies, reasons
    found = results_of(frames, node.filter(labelled=True)).energy
    return found, [f"no {what} of this frame"] * len(frames)


def plain_layout(made: PropertyFrames) -> dict[str, Any]:
    """What a person may want to know of the rows: per group the first and last row of everything."""
    groups = {"static": made.static, "relax": made.relax, **made.runs}
    return {
        "rows": {
            name: [
                {"structure": structure, "what": what, "start": start, "stop": stop}
                for (structure, what), (start, stop) in group.rows.items()
            ]
            for name, group in groups.items()
        },
        "skipped": [
            {"structure": structure, "what": what, "reason": reason}
            for (structure, what), reason in made.skipped.items()
        ],
        "primitive_length_ang": [
            None if own is None else float(own.primitive.cell.lengths()[0]) for _, own, _ in made.equations
        ],
    }
