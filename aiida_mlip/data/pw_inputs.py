"""Inputs of pw.x for a frame: structure, mesh, namelists, and the file that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from aiida import orm
from aiida.plugins import CalculationFactory

from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.kpoints import mesh_from_distance
from aiida_mlip.protocols.fidelity import QeFidelity

#: Part of the walltime after which pw.x stops by itself, as ``PwBaseWorkChain`` sets it.
MAX_SECONDS_FACTOR: Final[float] = 0.95


def frame_structure(frame: Frames, spec: QeFidelity, *, isolated: bool) -> orm.StructureData:
    """Unstored StructureData of a frame of one row, in a box where the frame has no cell.

    :param isolated: the frame is an isolated atom.
    """
    padding = spec.box_ang / 2 if isolated else spec.padding_ang
    positions, cell = boxed(frame.positions, frame.cell[0], frame.pbc[0], padding=padding)
    atoms = frame.to_ase(0)
    structure = orm.StructureData(cell=cell.tolist(), pbc=frame.pbc[0].tolist())
    for symbol, position in zip(atoms.get_chemical_symbols(), positions, strict=True):
        structure.append_atom(symbols=symbol, position=position.tolist())
    return structure


def mesh_of(structure: orm.StructureData, spec: QeFidelity) -> tuple[int, int, int]:
    """Points of the k-point mesh of a structure along its three reciprocal vectors."""
    return mesh_from_distance(np.array(structure.cell), np.array(structure.pbc), spec.kpoints_distance_inv_ang)


def pw_input(
    frame: Frames,
    spec: QeFidelity,
    pseudos: Mapping[str, Any],
    *,
    isolated: bool = False,
    max_wallclock_seconds: int | None = None,
) -> tuple[str, list[tuple[str, str, str]]]:
    """Input file of a frame, to the byte what ``PwBaseWorkChain`` gives to pw.x, and the files it needs.

    :param frame: one row.
    :param pseudos: pseudopotential nodes per chemical symbol.
    :param isolated: the frame is an isolated atom.
    :param max_wallclock_seconds: walltime of the job.
    :returns: the text, and (uuid of the node, name in it, path beside the input) of each pseudopotential.
    :raises KeyError: no pseudopotential for a species.
    """
    structure = frame_structure(frame, spec, isolated=isolated)
    symbols = sorted(structure.get_symbols_set())
    parameters = spec.namelists(symbols, len(structure.sites), isolated=isolated)
    if max_wallclock_seconds is not None:
        parameters["CONTROL"].setdefault("max_seconds", max_wallclock_seconds * MAX_SECONDS_FACTOR)
    kpoints = orm.KpointsData()
    kpoints.set_kpoints_mesh(mesh_of(structure, spec))
    text, files = CalculationFactory("quantumespresso.pw")._generate_pwcp_inputdata(
        orm.Dict(parameters), {}, {symbol: pseudos[symbol] for symbol in symbols}, structure, kpoints
    )
    return str(text), list(files)
