"""Frames: an ordered, columnar collection of atomic configurations, each row labelled at most at one fidelity.

A *frame* is a geometry: species, positions, cell, periodicity. A *row* is a frame together with its labels at one
fidelity (level of theory), or without labels. The same frame labelled at two fidelities is two rows with one frame id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt8

from aiida_mlip.errors import FrameError, InvalidInputError

if TYPE_CHECKING:
    from ase import Atoms

Ids: TypeAlias = UInt8[np.ndarray, "n 16"]

#: Positions, cells: digits after the decimal point (Å) that make a frame's identity; also what extxyz text keeps.
ID_DECIMALS: Final[int] = 8
#: Bytes of an identifier (frame id, uuid).
ID_BYTES: Final[int] = 16
#: Value of ``fidelity`` and ``generator`` for "none".
NONE: Final[int] = -1


class Failure(IntEnum):
    """Why a label is missing although it was asked for."""

    NONE = 0
    SCF_NOT_CONVERGED = 1
    WALLTIME = 2
    OUT_OF_MEMORY = 3
    CRASHED = 4
    PARSE = 5
    SUBMISSION = 6
    KILLED = 7
    IMPLAUSIBLE = 8
    INTERRUPTED = 9  # its job ended before it was done, and nothing says why

    @property
    def label(self) -> str:
        """Lower-case name shown to people and stored in attributes."""
        return self.name.lower()


#: Columns with one entry per row: name -> (dtype, shape of one entry, value when absent).
ROW_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...], float]]] = {
    "cell": ("<f8", (3, 3), 0.0),
    "pbc": ("|b1", (3,), 0),
    "energy": ("<f8", (), np.nan),
    "stress": ("<f8", (3, 3), np.nan),
    "fidelity": ("<i2", (), NONE),
    "generator": ("<i2", (), NONE),
    "failure": ("|u1", (), 0),
    "cost": ("<f4", (), np.nan),
    "frame_id": ("|u1", (ID_BYTES,), 0),
    "parent_id": ("|u1", (ID_BYTES,), 0),
    "group_id": ("|u1", (ID_BYTES,), 0),
    "geometry_uuid": ("|u1", (ID_BYTES,), 0),
    "label_uuid": ("|u1", (ID_BYTES,), 0),
    "label_row": ("<i4", (), NONE),
}
#: Columns with one entry per atom.
ATOM_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...], float]]] = {
    "numbers": ("|u1", (), 0),
    "positions": ("<f8", (3,), 0.0),
    "forces": ("<f8", (3,), np.nan),
}
#: Per-atom columns that exist only where something needs them (fragments).
OPTIONAL_ATOM_COLUMNS: Final[dict[str, tuple[str, tuple[int, ...], float]]] = {
    "region": ("|u1", (), 0),
    "parent_atom": ("<i4", (), NONE),
}


@dataclass(frozen=True)
class Frames:
    """Columnar frames: flat arrays over rows and over atoms.

    Totals, not per atom; eV, Å, eV/Å, stress in eV/Å³ (tension positive). A missing label is NaN; a force masked out
    is NaN in that row of ``forces``.

    :param natoms: (n,) atoms per row.
    :param numbers: (a,) atomic numbers, a = sum of ``natoms``.
    :param positions: (a, 3) Å.
    :param cell: (n, 3, 3) Å, rows are lattice vectors; zeros where not periodic.
    :param pbc: (n, 3) periodicity.
    :param energy: (n,) eV: the energy whose derivative the forces are (with smearing: the free energy).
    :param forces: (a, 3) eV/Å.
    :param stress: (n, 3, 3) eV/Å³.
    :param fidelity: (n,) index into ``fidelities``, -1 for an unlabelled row.
    :param generator: (n,) index into ``generators``, -1 for imported or unknown.
    :param failure: (n,) :class:`Failure` of the labelling.
    :param cost: (n,) core-seconds the label took, NaN when not known.
    :param frame_id: (n, 16) see :func:`frame_ids`.
    :param parent_id: (n, 16) frame id of the frame this one was made from; zeros for none.
    :param group_id: (n, 16) rows that must stay on one side of a split share it; zeros: the frame is its own group.
    :param geometry_uuid: (n, 16) process that made the geometry; zeros for user input.
    :param label_uuid: (n, 16) process that made the label; zeros for none or user input.
    :param label_row: (n,) row within that process, -1 when it made one.
    :param region: (a,) optional: 0 core, 1 trust, 2 buffer, 3 cap.
    :param parent_atom: (a,) optional: index of the atom in the parent frame, -1 for none.
    :param fidelities: names that ``fidelity`` indexes.
    :param generators: names that ``generator`` indexes.
    """

    natoms: Int[np.ndarray, "n"]
    numbers: UInt8[np.ndarray, "a"]
    positions: Float64[np.ndarray, "a 3"]
    cell: Float64[np.ndarray, "n 3 3"]
    pbc: Bool[np.ndarray, "n 3"]
    energy: Float64[np.ndarray, "n"]
    forces: Float64[np.ndarray, "a 3"]
    stress: Float64[np.ndarray, "n 3 3"]
    fidelity: Int[np.ndarray, "n"]
    generator: Int[np.ndarray, "n"]
    failure: UInt8[np.ndarray, "n"]
    cost: np.ndarray
    frame_id: Ids
    parent_id: Ids
    group_id: Ids
    geometry_uuid: Ids
    label_uuid: Ids
    label_row: Int[np.ndarray, "n"]
    region: UInt8[np.ndarray, "a"] | None = None
    parent_atom: Int[np.ndarray, "a"] | None = None
    fidelities: tuple[str, ...] = ()
    generators: tuple[str, ...] = ()
    offsets: Int[np.ndarray, "n+1"] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check the shapes against one another and compute the offsets."""
        offsets = np.zeros(len(self.natoms) + 1, dtype=np.int64)
        np.cumsum(self.natoms, out=offsets[1:])
        object.__setattr__(self, "offsets", offsets)
        n, a = len(self.natoms), int(offsets[-1])
        for name in (*ROW_COLUMNS, *ATOM_COLUMNS, *OPTIONAL_ATOM_COLUMNS):
            value = getattr(self, name)
            if value is None:
                continue
            spec = ROW_COLUMNS.get(name) or ATOM_COLUMNS.get(name) or OPTIONAL_ATOM_COLUMNS[name]
            expected = ((n if name in ROW_COLUMNS else a), *spec[1])
            if value.shape != expected:
                raise InvalidInputError(f"column {name!r} has shape {value.shape}, expected {expected}")
        for name, table in (("fidelity", self.fidelities), ("generator", self.generators)):
            column = getattr(self, name)
            if n and (column.min() < NONE or column.max() >= len(table)):
                raise InvalidInputError(
                    f"column {name!r} has indices {column.min()}..{column.max()}, but only {len(table)} names: {table}"
                )

    # -- size and identity -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.natoms)

    @property
    def n_atoms(self) -> int:
        """Atoms in all rows together."""
        return int(self.offsets[-1])

    @property
    def species(self) -> tuple[str, ...]:
        """Chemical symbols present, by atomic number."""
        from ase.data import chemical_symbols

        return tuple(chemical_symbols[z] for z in np.unique(self.numbers))

    def ids(self) -> list[str]:
        """Frame ids as 32 hexadecimal digits each."""
        return id_hex(self.frame_id)

    def fidelity_index(self, name: str) -> int:
        """Index of a fidelity name.

        :raises InvalidInputError: no row carries that fidelity.
        """
        if name not in self.fidelities:
            raise InvalidInputError(f"no fidelity {name!r} in these frames; there are {list(self.fidelities)}")
        return self.fidelities.index(name)

    @property
    def labelled(self) -> Bool[np.ndarray, "n"]:
        """(n,) rows that carry an energy, or forces: those of a cluster fragment have no energy."""
        energy = np.isfinite(self.energy)
        if energy.all():
            return energy
        known = np.isfinite(self.forces).all(axis=1)
        return np.asarray(energy | (np.bincount(self.atom_rows()[known], minlength=len(self)) > 0))

    # -- rows --------------------------------------------------------------------------------------------------

    @property
    def isolated(self) -> Bool[np.ndarray, "n"]:
        """(n,) rows of one atom without any periodic direction."""
        return np.asarray((self.natoms == 1) & ~self.pbc.any(axis=1))

    def atom_slice(self, row: int) -> slice:
        """Slice of the per-atom columns that belongs to a row."""
        return slice(int(self.offsets[row]), int(self.offsets[row + 1]))

    def atom_rows(self) -> Int[np.ndarray, "a"]:
        """(a,) row each atom belongs to."""
        return np.repeat(np.arange(len(self)), self.natoms)

    def take(self, rows: Sequence[int] | np.ndarray) -> Frames:
        """Rows by index (any order, repeats allowed) or by boolean mask; name tables are kept."""
        index = np.asarray(rows)
        if index.dtype == bool:
            if index.shape != (len(self),):
                raise InvalidInputError(f"mask has shape {index.shape}, expected {(len(self),)}")
            index = np.flatnonzero(index)
        index = index.astype(np.int64).reshape(-1)
        natoms = self.natoms[index]
        starts = np.repeat(self.offsets[index] - np.concatenate([[0], np.cumsum(natoms)[:-1]]), natoms)
        atoms = np.arange(int(natoms.sum())) + starts.astype(np.int64)
        values = {name: getattr(self, name)[index] for name in ("natoms", *ROW_COLUMNS)}
        for name in (*ATOM_COLUMNS, *OPTIONAL_ATOM_COLUMNS):
            value = getattr(self, name)
            values[name] = None if value is None else value[atoms]
        return Frames(**values, fidelities=self.fidelities, generators=self.generators)

    def with_columns(self, **columns: np.ndarray | tuple[str, ...] | None) -> Frames:
        """Copy with some columns replaced; frame ids are recomputed when a geometry column is among them."""
        known = {f.name for f in fields(self) if f.init}
        if unknown := set(columns) - known:
            raise InvalidInputError(f"unknown columns {sorted(unknown)}; known are {sorted(known)}")
        result = replace(self, **columns)  # type: ignore[arg-type]  # names checked just above
        if {"numbers", "positions", "cell", "pbc"} & set(columns) and "frame_id" not in columns:
            result = replace(result, frame_id=frame_ids(result))
        return result

    # -- ASE ---------------------------------------------------------------------------------------------------

    def to_ase(self, row: int) -> Atoms:
        """Row as :class:`ase.Atoms`; labels sit in a :class:`SinglePointCalculator`, lineage in ``info``."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator
        from ase.stress import full_3x3_to_voigt_6_stress

        part = self.atom_slice(row)
        atoms = Atoms(
            numbers=self.numbers[part], positions=self.positions[part], cell=self.cell[row], pbc=self.pbc[row]
        )
        results: dict[str, float | np.ndarray] = {}
        if np.isfinite(self.energy[row]):
            results["energy"] = float(self.energy[row])
        if np.isfinite(self.forces[part]).any():
            results["forces"] = self.forces[part].copy()
        if np.isfinite(self.stress[row]).all():
            results["stress"] = full_3x3_to_voigt_6_stress(self.stress[row])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        atoms.info["frame_id"] = id_hex(self.frame_id[row : row + 1])[0]
        if self.fidelity[row] != NONE:
            atoms.info["fidelity"] = self.fidelities[self.fidelity[row]]
        if self.generator[row] != NONE:
            atoms.info["generator"] = self.generators[self.generator[row]]
        for name in ("parent_id", "group_id"):
            value = getattr(self, name)[row]
            if value.any():
                atoms.info[name] = id_hex(value[None])[0]
        if self.failure[row]:
            atoms.info["failure"] = Failure(int(self.failure[row])).label
        return atoms

    def iter_ase(self) -> Iterator[Atoms]:
        """Rows one by one as :class:`ase.Atoms`."""
        return (self.to_ase(row) for row in range(len(self)))


def id_hex(ids: Ids) -> list[str]:
    """(n, 16) identifiers as hexadecimal strings of 32 digits."""
    blob = np.ascontiguousarray(ids).tobytes().hex()
    return [blob[i : i + 2 * ID_BYTES] for i in range(0, len(blob), 2 * ID_BYTES)]


def id_bytes(names: Sequence[str]) -> Ids:
    """Identifiers from hexadecimal strings or uuids (dashes are ignored); the inverse of :func:`id_hex`.

    :raises InvalidInputError: a string is not 32 hexadecimal digits.
    """
    try:
        blob = b"".join(bytes.fromhex(name.replace("-", "")) for name in names)
    except ValueError as error:
        raise InvalidInputError(f"not a hexadecimal identifier: {error}") from error
    if len(blob) != ID_BYTES * len(names):
        raise InvalidInputError(f"identifiers must have {2 * ID_BYTES} hexadecimal digits, got {list(names)[:3]}")
    return np.frombuffer(blob, dtype=np.uint8).reshape(len(names), ID_BYTES).copy()


def id_keys(ids: Ids) -> np.ndarray:
    """(n,) view of identifiers as opaque scalars, for ``np.isin``, ``np.unique`` and sorting."""
    return np.ascontiguousarray(ids).view(f"V{ID_BYTES}").reshape(-1)


def digest(*parts: str | bytes) -> np.ndarray:
    """(16,) identifier of arbitrary text, e.g. a group name. Each part is length-prefixed before hashing."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little") + data)
    return np.frombuffer(sha.digest()[:ID_BYTES], dtype=np.uint8).copy()


def frame_id(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> bytes:
    """Identity of one geometry: first 16 bytes of SHA-256 over (numbers, cell, pbc, positions).

    Positions and cell enter rounded to 1e-8 Å (:data:`ID_DECIMALS`), so that a frame keeps its identity through
    a text file. The order of atoms matters; a translated copy is another frame.
    """
    sha = hashlib.sha256()
    sha.update(len(numbers).to_bytes(8, "little"))
    sha.update(np.ascontiguousarray(numbers, dtype="|u1").tobytes())
    # "+ 0.0" turns -0.0 into 0.0
    sha.update((np.round(np.asarray(cell, dtype="<f8"), ID_DECIMALS) + 0.0).tobytes())
    sha.update(np.ascontiguousarray(pbc, dtype="|b1").tobytes())
    sha.update((np.round(np.asarray(positions, dtype="<f8"), ID_DECIMALS) + 0.0).tobytes())
    return sha.digest()[:ID_BYTES]


def frame_ids(frames: Frames) -> Ids:
    """(n, 16) :func:`frame_id` of every row."""
    blob = b"".join(
        frame_id(frames.numbers[part], frames.positions[part], frames.cell[row], frames.pbc[row])
        for row, part in ((row, frames.atom_slice(row)) for row in range(len(frames)))
    )
    return np.frombuffer(blob, dtype=np.uint8).reshape(len(frames), ID_BYTES).copy()


def from_arrays(
    *,
    natoms: np.ndarray,
    numbers: np.ndarray,
    positions: np.ndarray,
    fidelities: Sequence[str] = (),
    generators: Sequence[str] = (),
    **columns: np.ndarray | None,
) -> Frames:
    """Frames from whatever columns exist; the others take their "absent" value, frame ids are computed."""
    n, a = len(natoms), int(np.sum(natoms))
    values: dict[str, np.ndarray | None] = {"natoms": np.asarray(natoms, dtype="<i4")}
    given = {"numbers": numbers, "positions": positions, **columns}
    for name, (dtype, shape, absent) in {**ROW_COLUMNS, **ATOM_COLUMNS}.items():
        value = given.pop(name, None)
        size = n if name in ROW_COLUMNS else a
        values[name] = (
            np.full((size, *shape), absent, dtype=dtype)
            if value is None
            else np.ascontiguousarray(value, dtype=dtype).reshape(size, *shape)
        )
    for name, (dtype, _, _) in OPTIONAL_ATOM_COLUMNS.items():
        value = given.pop(name, None)
        values[name] = None if value is None else np.ascontiguousarray(value, dtype=dtype)
    if given:
        raise InvalidInputError(f"unknown columns {sorted(given)}")
    frames = Frames(**values, fidelities=tuple(fidelities), generators=tuple(generators))  # type: ignore[arg-type]
    if columns.get("frame_id") is None:
        frames = replace(frames, frame_id=frame_ids(frames))
    return frames


def from_ase(
    images: Sequence[Atoms],
    *,
    fidelity: str | None = None,
    generator: str | None = None,
    group: str | None = None,
    source: str = "input",
) -> Frames:
    """Frames from ASE structures; labels are taken from an attached calculator's stored results.

    :param images: structures; an energy, forces and stress already computed become labels (nothing is computed here).
    :param fidelity: name of the level of theory of the labels; required when any image has labels.
    :param generator: name of what made the geometries.
    :param group: rows share this group (for leakage-safe splits); by default each frame is its own.
    :param source: what to call the origin in error messages.
    :raises FrameError: an image has no atoms, or labels without a fidelity name.

    >>> from ase.build import bulk
    >>> len(from_ase([bulk("Si"), bulk("Cu")]))
    2
    """
    from ase.stress import voigt_6_to_full_3x3_stress

    natoms = np.array([len(atoms) for atoms in images], dtype=np.int32)
    if (natoms == 0).any():
        raise FrameError(int(np.flatnonzero(natoms == 0)[0]), "has no atoms", source=source)
    n, a = len(images), int(natoms.sum())
    energy = np.full(n, np.nan)
    stress = np.full((n, 3, 3), np.nan)
    forces = np.full((a, 3), np.nan)
    start = 0
    for i, atoms in enumerate(images):
        results = getattr(atoms.calc, "results", None) or {}
        if "energy" in results or "free_energy" in results:
            # the energy whose derivative the forces are
            energy[i] = float(results["free_energy"] if "free_energy" in results else results["energy"])
        if "forces" in results:
            forces[start : start + len(atoms)] = results["forces"]
        if "stress" in results:
            value = np.asarray(results["stress"], dtype=float)
            stress[i] = value if value.shape == (3, 3) else voigt_6_to_full_3x3_stress(value)
        start += len(atoms)
    labelled = np.isfinite(energy)
    if labelled.any() and fidelity is None:
        raise FrameError(int(np.flatnonzero(labelled)[0]), "has labels, but no fidelity name was given", source=source)
    group_id = np.zeros((n, ID_BYTES), dtype=np.uint8)
    if group is not None:
        group_id[:] = digest(group)
    return from_arrays(
        natoms=natoms,
        numbers=np.concatenate([atoms.numbers for atoms in images]) if n else np.zeros(0),
        positions=np.concatenate([atoms.positions for atoms in images]) if n else np.zeros((0, 3)),
        cell=np.array([atoms.cell.array for atoms in images]).reshape(n, 3, 3),
        pbc=np.array([atoms.pbc for atoms in images], dtype=bool).reshape(n, 3),
        energy=energy,
        forces=forces,
        stress=stress,
        fidelity=np.where(labelled, 0, NONE) if fidelity else None,
        generator=np.zeros(n) if generator else None,
        group_id=group_id,
        fidelities=(fidelity,) if fidelity else (),
        generators=(generator,) if generator else (),
    )


def concatenate(parts: Sequence[Frames]) -> Frames:
    """Rows of several frame collections in order; name tables are united in order of first appearance.

    :raises InvalidInputError: nothing to concatenate.
    """
    if not parts:
        raise InvalidInputError("nothing to concatenate")
    if len(parts) == 1:
        return parts[0]
    tables = {
        "fidelity": tuple(dict.fromkeys(name for part in parts for name in part.fidelities)),
        "generator": tuple(dict.fromkeys(name for part in parts for name in part.generators)),
    }
    columns: dict[str, np.ndarray | None] = {}
    for name in ("natoms", *ROW_COLUMNS, *ATOM_COLUMNS):
        if name in tables:
            olds = [part.fidelities if name == "fidelity" else part.generators for part in parts]
            columns[name] = np.concatenate(
                [_remap(getattr(p, name), old, tables[name]) for p, old in zip(parts, olds, strict=True)]
            )
        else:
            columns[name] = np.concatenate([getattr(part, name) for part in parts])
    for name, (dtype, shape, absent) in OPTIONAL_ATOM_COLUMNS.items():
        if all(getattr(part, name) is None for part in parts):
            columns[name] = None
            continue
        columns[name] = np.concatenate(
            [
                np.full((part.n_atoms, *shape), absent, dtype=dtype)
                if getattr(part, name) is None
                else getattr(part, name)
                for part in parts
            ]
        )
    return Frames(**columns, fidelities=tables["fidelity"], generators=tables["generator"])  # type: ignore[arg-type]


def _remap(column: np.ndarray, old: Sequence[str], new: Sequence[str]) -> np.ndarray:
    """Indices into one name table, rewritten for another that contains it (-1 stays -1)."""
    lookup = np.array([new.index(name) for name in old] + [NONE], dtype=column.dtype)
    return lookup[column]


def row_keys(frames: Frames) -> np.ndarray:
    """(n,) identity of rows: frame id and fidelity name. Two rows with one key are the same label of the same frame."""
    return label_keys(frames.frame_id, frames.fidelity, frames.fidelities)


def label_keys(ids: Ids, fidelity: np.ndarray, fidelities: Sequence[str]) -> np.ndarray:
    """(n,) :func:`row_keys` from the columns ``frame_id`` and ``fidelity`` and the names that the latter indexes."""
    names = np.array([digest(name) for name in fidelities] + [np.zeros(ID_BYTES, dtype=np.uint8)])
    both = np.concatenate([ids, names[fidelity]], axis=1)
    return np.ascontiguousarray(both).view(f"V{2 * ID_BYTES}").reshape(-1)


def reference_energies(frames: Frames) -> Mapping[str, dict[str, float]]:
    """Energies (eV) of isolated atoms per fidelity and chemical symbol, from rows of one atom without periodicity."""
    from ase.data import chemical_symbols

    found: dict[str, dict[str, float]] = {}
    isolated = frames.isolated & np.isfinite(frames.energy) & (frames.fidelity != NONE)
    for row in np.flatnonzero(isolated):
        symbol = chemical_symbols[frames.numbers[frames.offsets[row]]]
        found.setdefault(frames.fidelities[frames.fidelity[row]], {})[symbol] = float(frames.energy[row])
    return found
