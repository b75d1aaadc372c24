"""The specification of biased dynamics, checked against the structures before anything is submitted.

::

    engine: environment          # or colvars, plumed, uncertainty
    forces: {calculator: ase.calculators.emt.EMT}   # left out when a potential is given
    temperature_k: 600
    n_steps: 5000
    record_every: 50
    hills: {height_ev: 0.02, every: 20, bias_factor: 20}
    walls: {min_distance_ang: 1.8, max_temperature_k: 2000}

Keys are those of :class:`aiida_mlip.io.metadynamics.MetadynamicsSpec`; what is not given comes from the protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from aiida_mlip.errors import InvalidInputError, ProtocolError
from aiida_mlip.io.colvars import check_colvars_input, colvars_input
from aiida_mlip.io.metadynamics import MetadynamicsSpec
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.protocols.model import deep_merge, merged_protocol, validate_spec


def parse_metadynamics(data: Any, *, where: str = "spec") -> MetadynamicsSpec:
    """Validated specification.

    :param data: plain mapping; every key without a default must be there (see :func:`resolved_spec`).
    :raises ProtocolError: an unknown key (with the nearest valid one), a value that is not allowed, keys that do not go
        together.
    """
    spec = validate_spec(MetadynamicsSpec, data, where=where)
    try:
        pair_limits(spec.walls.min_distance_ang, where=f"{where}.walls.min_distance_ang")
    except InvalidInputError as error:
        raise ProtocolError(str(error)) from error
    return spec


def resolved_spec(overrides: Mapping[str, Any], *, protocol: str | None = None, where: str = "spec") -> dict[str, Any]:
    """Plain values of a protocol with overrides merged in; defaults of the engine that is not used are left out.

    :param overrides: at least ``engine`` and, without a potential, ``forces``.
    :raises ProtocolError: unknown protocol, key or value.
    """
    engine = overrides.get("engine", "environment")
    merged = merged_protocol("metadynamics", protocol)
    per_engine = merged.pop("engines")
    own = per_engine.get(engine, {}) if isinstance(engine, str) else {}
    values = deep_merge(deep_merge(merged, own), overrides)
    parse_metadynamics(values, where=where)
    return values


def check_against_structures(
    spec: MetadynamicsSpec, natoms: Sequence[int], *, engine_input: str | None = None, where: str = "spec"
) -> None:
    """What can only be checked with the structures at hand.

    :param natoms: atoms of each starting structure.
    :param engine_input: the person's own COLVARS or PLUMED input.
    :raises ProtocolError: an atom that a structure does not have; an input file that is missing, unwanted or wrong.
    """
    smallest = min(natoms)
    _check_atoms(spec.fixed_atoms, smallest, f"{where}.fixed_atoms")
    if len(set(spec.fixed_atoms)) >= smallest:
        raise ProtocolError(f"{where}.fixed_atoms: no atom is left to move")
    for index, variable in enumerate(spec.collective_variables):
        _check_atoms(variable.atoms, smallest, f"{where}.collective_variables.{index} ({variable.name})")
    if spec.engine in ("environment", "uncertainty") and engine_input is not None:
        raise ProtocolError(f"engine_input: the engine {spec.engine} takes none")
    if spec.engine == "plumed" and engine_input is None:
        raise ProtocolError("engine_input: missing, the engine plumed needs a plumed.dat")
    if spec.engine == "colvars":
        if (engine_input is None) == (not spec.collective_variables):
            raise ProtocolError(
                f"{where}.collective_variables: the engine colvars needs either them or an engine_input, not both"
            )
        try:
            if engine_input is not None:
                check_colvars_input(engine_input, n_atoms=smallest)
            elif spec.hills is not None:
                colvars_input(spec.collective_variables, spec.hills, temperature_k=spec.temperature_k, record_every=1)
        except InvalidInputError as error:
            raise ProtocolError(str(error)) from error


def _check_atoms(atoms: Sequence[int], n_atoms: int, where: str) -> None:
    if missing := sorted({atom for atom in atoms if atom >= n_atoms}):
        raise ProtocolError(
            f"{where}: atom {missing[0]} does not exist, the smallest structure has the atoms 0..{n_atoms - 1}"
        )
