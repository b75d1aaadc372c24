"""The specification of runs with a potential, checked against the structures before anything is submitted.

::

    kind: md                     # or relax, monte_carlo, lammps
    forces: {calculator: ase.calculators.emt.EMT}   # left out when a potential is given
    record_every: 50
    md:
      schedule:
        - {ensemble: npt, n_steps: 5000, temperature_k: 300, end_temperature_k: 900}
    limits: {min_distance_ang: 1.8}

Keys are those of :class:`aiida_mlip.io.explore.ExploreSpec`; what is not given comes from the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.io.explore import ExploreSpec
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.protocols.model import deep_merge, merged_protocol, validate_spec

#: Words that begin a LAMMPS command which the program gives itself, or which would end its process.
_FORBIDDEN: Final[frozenset[str]] = frozenset(
    {"atom_modify", "atom_style", "boundary", "clear", "create_atoms", "create_box", "delete_atoms", "jump", "minimize"}
    | {"newton", "next", "partition", "processors", "quit", "read_data", "read_dump", "read_restart", "rerun", "run"}
    | {"replicate", "reset_timestep", "run_style", "shell", "suffix", "temper", "timestep", "units", "python", "label"}
)
_PAIR_WORDS: Final[frozenset[str]] = frozenset({"pair_style", "pair_coeff", "pair_modify", "neighbor", "neigh_modify"})


def parse_explore(data: Any, *, where: str = "spec") -> ExploreSpec:
    """Validated specification.

    :param data: plain mapping; every key without a default must be there (see :func:`resolved_spec`).
    :raises ProtocolError: an unknown key (with the nearest valid one), a value that is not allowed, keys that do not go
        together.
    """
    spec = validate_spec(ExploreSpec, data, where=where)
    try:
        pair_limits(spec.limits.min_distance_ang, where=f"{where}.limits.min_distance_ang")
    except InvalidInputError as error:
        raise ProtocolError(str(error)) from error
    if spec.monte_carlo is not None:
        for index, symbol in enumerate(spec.monte_carlo.elements):
            if symbol not in atomic_numbers or symbol == "X":
                raise ProtocolError(f"{where}.monte_carlo.elements.{index}: {symbol!r} is no chemical symbol")
    if spec.lammps is not None:
        _check_commands("\n".join(spec.lammps.commands), where=f"{where}.lammps.commands")
        for index, line in enumerate(spec.lammps.pair_commands):
            if line.split()[:1] and line.split()[0] not in _PAIR_WORDS:
                raise ProtocolError(
                    f"{where}.lammps.pair_commands.{index}: {line.split()[0]!r} does not belong here, "
                    f"only {', '.join(sorted(_PAIR_WORDS))}"
                )
    return spec


def resolved_spec(overrides: Mapping[str, Any], *, protocol: str | None = None, where: str = "spec") -> dict[str, Any]:
    """Plain values of a protocol with overrides merged in; sections of other kinds are left out.

    :param overrides: at least ``kind``, what its section needs, and without a potential ``forces``.
    :raises ProtocolError: unknown protocol, key or value.
    """
    kind = overrides.get("kind", "md")
    merged = merged_protocol("explore", protocol)
    per_kind = merged.pop("kinds")
    own = per_kind.get(kind, {}) if isinstance(kind, str) else {}
    values = deep_merge(deep_merge(merged, own), overrides)
    parse_explore(values, where=where)
    return values


def check_against_structures(
    spec: ExploreSpec, frames: Frames, *, engine_input: str | None = None, where: str = "spec"
) -> None:
    """What can only be checked with the structures at hand.

    :param frames: the structures to start from.
    :param engine_input: the person's own LAMMPS commands.
    :raises ProtocolError: an atom that a structure does not have; a cell that cannot change; swaps of one element; an
        input file that is unwanted or holds a command that the program gives itself.
    """
    smallest = int(frames.natoms.min())
    if missing := sorted({atom for atom in spec.fixed_atoms if atom >= smallest}):
        raise ProtocolError(
            f"{where}.fixed_atoms: atom {missing[0]} does not exist, the smallest structure has the atoms "
            f"0..{smallest - 1}"
        )
    if len(set(spec.fixed_atoms)) >= smallest:
        raise ProtocolError(f"{where}.fixed_atoms: no atom is left to move")
    if spec.changes_cell:
        _check_cell_may_change(spec, frames, where)
    if spec.monte_carlo is not None:
        _check_swaps(spec, frames, where)
    if engine_input is not None:
        if spec.lammps is None:
            raise ProtocolError(f"engine_input: only the kind lammps takes one, this one is {spec.kind}")
        _check_commands(engine_input, where="engine_input")


def _check_cell_may_change(spec: ExploreSpec, frames: Frames, where: str) -> None:
    field = f"{where}.{'md.schedule' if spec.md is not None else 'relax.cell'}"
    if len(rows := np.flatnonzero(~frames.pbc.all(axis=1))):
        raise ProtocolError(
            f"{field}: the cell of structure {rows[0]} cannot change, it is periodic along "
            f"{int(frames.pbc[rows[0]].sum())} of 3 directions"
        )
    if spec.fixed_atoms:
        raise ProtocolError(f"{where}.fixed_atoms: atoms cannot stay in place while the cell changes")


def _check_swaps(spec: ExploreSpec, frames: Frames, where: str) -> None:
    settings = spec.monte_carlo
    if settings is None or (settings.moves == "hybrid" and settings.swaps_per_cycle == 0):
        return
    wanted = {atomic_numbers[symbol] for symbol in settings.elements}
    for row in range(len(frames)):
        numbers = frames.numbers[frames.atom_slice(row)]
        sites = np.setdiff1d(np.arange(len(numbers)), spec.fixed_atoms)
        found = {int(z) for z in np.unique(numbers[sites])}
        if len(found & wanted if wanted else found) < 2:
            names = ", ".join(chemical_symbols[z] for z in sorted(found & wanted if wanted else found)) or "none"
            raise ProtocolError(
                f"{where}.monte_carlo.elements: a swap needs two elements that may move, structure {row} has: {names}"
            )
        if settings.n_shells and not frames.pbc[row].all():
            raise ProtocolError(
                f"{where}.monte_carlo.n_shells: structure {row} is not periodic in three directions, set it to 0"
            )


def _check_commands(text: str, *, where: str) -> None:
    """LAMMPS commands of a person: none that the program gives itself."""
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split("#")[0].split()
        if not words:
            continue
        if words[0] in _FORBIDDEN | _PAIR_WORDS - {"neigh_modify"}:
            raise ProtocolError(f"{where}: line {number}: the command {words[0]!r} is given by the program itself")
        if words[0] == "fix" and len(words) > 1 and words[1].startswith("aiida_mlip"):
            raise ProtocolError(f"{where}: line {number}: the fix {words[1]!r} is the program's own, take another name")
