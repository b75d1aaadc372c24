"""Atoms of LAMMPS text files: dumps of trajectories and data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.io.line_reader import LineReader

#: Column names of positions in a dump, in order of preference, and whether they are fractions of the box.
_POSITIONS: Final[tuple[tuple[tuple[str, str, str], bool], ...]] = (
    (("xu", "yu", "zu"), False), (("x", "y", "z"), False), (("xsu", "ysu", "zsu"), True), (("xs", "ys", "zs"), True),
)  # fmt: skip
#: Where a data file's atom style has the type and x; the identifier comes first.
_STYLES: Final[dict[str, tuple[int, int]]] = {
    "atomic": (1, 2), "charge": (1, 3), "molecular": (2, 3), "bond": (2, 3), "angle": (2, 3), "full": (2, 4),
}  # fmt: skip
#: Styles that a number of columns (without and with image flags) can only mean.
_BY_WIDTH: Final[dict[int, str]] = {5: "atomic", 8: "atomic", 7: "full", 10: "full"}
_SECTIONS: Final[tuple[str, ...]] = ("Atoms", "Masses")
#: Most atoms, and most types of them, of a file; largest identifier that a float holds exactly.
_MOST: Final[int] = 2**31 - 1
_MOST_TYPES: Final[int] = 10_000
_LARGEST_ID: Final[int] = 2**53
#: Largest difference (u) of a mass to that of the element it stands for.
_MASS_TOLERANCE: Final[float] = 0.3


@dataclass(frozen=True)
class RawAtoms:
    """What a file says of the atoms of one frame, in its order.

    :param positions: (a, 3) Å, relative to the corner of the box.
    :param cell: (3, 3) Å.
    :param pbc: (3,).
    :param ids: (a,) identifiers; None: the file has none.
    :param symbols: (a,) chemical symbols; None: the file has types.
    :param types: (a,) numbers from 1.
    :param type_symbols: symbols of types that the file names itself.
    """

    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    ids: np.ndarray | None
    symbols: np.ndarray | None
    types: np.ndarray | None
    type_symbols: Mapping[int, str]


@dataclass(frozen=True)
class DumpHeader:
    """Head of one frame of a dump.

    :param natoms: rows that follow.
    :param cell: (3, 3) Å.
    :param origin: (3,) Å, corner of the box.
    :param pbc: (3,).
    :param columns: names of the columns.
    """

    natoms: int
    cell: np.ndarray
    origin: np.ndarray
    pbc: np.ndarray
    columns: tuple[str, ...]


def read_dump_header(reader: LineReader) -> DumpHeader | None:
    """Head of the next frame of a dump; None at the end of the file.

    :raises FileFormatError: not a dump, or truncated.
    """
    natoms: int | None = None
    box: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    started = False
    while True:
        line = reader.next()
        if line is None:
            if started:
                raise reader.error("truncated in the head of a frame")
            return None
        if not line.strip() and not started:
            continue
        started = True
        if not line.startswith("ITEM:"):
            raise reader.error(f"expected 'ITEM: ...', got {line[:60]!r}")
        item = line[5:].strip()
        if item.startswith("NUMBER OF ATOMS"):
            natoms = read_count(reader, reader.expect("the number of atoms"))
        elif item.startswith("BOX BOUNDS"):
            box = _box(reader, item.split()[2:])
        elif item.startswith("ATOMS"):
            if natoms is None or box is None:
                raise reader.error("ITEM: ATOMS before the number of atoms or the box")
            return DumpHeader(natoms, box[0], box[1], box[2], tuple(item.split()[1:]))
        else:  # TIMESTEP, UNITS, TIME: one line each
            reader.expect(f"the value of {item!r}")


def read_dump_atoms(reader: LineReader, header: DumpHeader) -> RawAtoms:
    """Atoms of a frame of a dump, after its head.

    :raises FileFormatError: no columns of positions or species, truncated, or a malformed line.
    """
    names = {name: index for index, name in enumerate(header.columns)}
    found = next(((keys, scaled) for keys, scaled in _POSITIONS if set(keys) <= set(names)), None)
    if found is None:
        raise reader.error(f"no columns of positions (x y z, xu yu zu, xs ys zs) among {list(names)}")
    keys, scaled = found
    named = "element" in names
    if not named and "type" not in names:
        raise reader.error(f"no column 'element' or 'type' among {list(names)}")
    extra = [name for name in ("id", "type") if name in names]
    words = [names["element"]] if named else []
    values, texts = reader.table(header.natoms, [names[key] for key in (*keys, *extra)], words)
    most = {"id": _LARGEST_ID, "type": _MOST_TYPES}
    columns = {
        name: _integers(reader, values[:, 3 + index], f"{name}s", most[name]) for index, name in enumerate(extra)
    }
    positions = values[:, :3] @ header.cell if scaled else values[:, :3] - header.origin
    symbols = texts[:, 0] if named else None
    return RawAtoms(positions, header.cell, header.pbc, columns.get("id"), symbols, columns.get("type"), {})


def read_data_file(reader: LineReader, *, style: str | None = None) -> RawAtoms:
    """Atoms of a LAMMPS data file; its box is taken to be periodic.

    :param style: atom style, where the file does not name it after ``Atoms #`` and the columns leave it open.
    :raises FileFormatError: not a data file, truncated, or a malformed line.
    :raises InvalidInputError: an atom style that is not known.
    """
    head: dict[str, list[float]] = {}
    masses: dict[int, str] = {}
    atoms: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    reader.next()  # a title
    while (line := reader.next()) is not None:
        text, _, comment = line.partition("#")
        words = text.split()
        if not words:
            continue
        if words[0] == "Masses":
            masses = _masses(reader, _head_count(reader, head, "atom types", _MOST_TYPES))
        elif words[0] == "Atoms":
            count = _head_count(reader, head, "atoms", _MOST)
            atoms = _atoms_section(reader, count, style or comment.strip() or None)
        elif words[0][0].isalpha():
            if atoms is not None:
                break  # velocities, bonds, ...: not needed, except for masses that come late
            raise reader.error(f"section {words[0]!r} before 'Atoms': only {', '.join(_SECTIONS)} may come first")
        else:
            _head_line(reader, head, words)
    if atoms is None:
        raise reader.error("the file has no section 'Atoms'")
    low_high = [_head(reader, head, f"{axis}lo {axis}hi", 2) for axis in "xyz"]
    xy, xz, yz = _head(reader, head, "xy xz yz", 3) if "xy xz yz" in head else (0.0, 0.0, 0.0)
    (xlo, xhi), (ylo, yhi), (zlo, zhi) = low_high
    cell = np.array([[xhi - xlo, 0, 0], [xy, yhi - ylo, 0], [xz, yz, zhi - zlo]])
    ids, types, positions = atoms
    return RawAtoms(positions - np.array([xlo, ylo, zlo]), cell, np.ones(3, dtype=bool), ids, None, types, masses)


def read_count(reader: LineReader, text: str) -> int:
    """Number of atoms of a line.

    :raises FileFormatError: no number, or not of 1 to two thousand million.
    """
    try:
        count = int(text)
    except ValueError:
        count = _MOST + 1
    if count > _MOST:
        raise reader.error(f"expected a number of atoms, got {text.strip()[:60]!r}")
    if count < 1:
        raise reader.error(f"expected at least one atom, got {text.strip()[:60]!r}")
    return count


def _integers(reader: LineReader, values: np.ndarray, what: str, most: int) -> np.ndarray:
    """(a,) whole numbers of a table."""
    if not ((values == np.floor(values)) & (np.abs(values) <= most)).all():  # NaN equals nothing
        raise reader.error(f"{what} that are no whole numbers up to {most}")
    return values.astype(np.int64)


def _box(reader: LineReader, words: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell, origin and periodicity from the box of a dump."""
    kind = words[0] if words and words[0] in ("xy", "abc") else ""
    values, _ = reader.table(3, range({"": 2, "xy": 3, "abc": 4}[kind]))
    flags = [word for word in words if word not in ("xy", "xz", "yz", "abc", "origin")]
    pbc = np.array([flag[0] == "p" for flag in flags]) if len(flags) == 3 else np.ones(3, dtype=bool)
    if kind == "abc":
        return values[:, :3].copy(), values[:, 3].copy(), pbc
    xy, xz, yz = values[:, 2] if values.shape[1] == 3 else (0.0, 0.0, 0.0)
    low, high = values[:, 0].copy(), values[:, 1].copy()
    # the bounds of a tilted box are those of its bounding box
    low[0] -= min(0.0, xy, xz, xy + xz)
    high[0] -= max(0.0, xy, xz, xy + xz)
    low[1] -= min(0.0, yz)
    high[1] -= max(0.0, yz)
    lengths = high - low
    if not (lengths > 0).all():
        raise reader.error(f"the box has no volume: {values.tolist()}")
    return np.array([[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]]), low, pbc


def _head_line(reader: LineReader, head: dict[str, list[float]], words: Sequence[str]) -> None:
    numbers = []
    for word in words:
        try:
            numbers.append(float(word))
        except ValueError:
            break
    key = " ".join(words[len(numbers) :])
    if not key:
        raise reader.error(f"expected a head such as '8 atoms', got {' '.join(words)[:60]!r}")
    head[key] = numbers


def _head(reader: LineReader, head: Mapping[str, list[float]], key: str, count: int) -> list[float]:
    if len(head.get(key, [])) != count:
        raise reader.error(f"the head has no line '... {key}' before it is needed; it has {sorted(head)}")
    return head[key]


def _head_count(reader: LineReader, head: Mapping[str, list[float]], key: str, most: int) -> int:
    value = _head(reader, head, key, 1)[0]
    if not (1 <= value <= most and value == int(value)):
        raise reader.error(f"expected 1 to {most} {key}, got {value:g}")
    return int(value)


def _masses(reader: LineReader, count: int) -> dict[int, str]:
    """Symbol of each type: from the comment behind its mass, else the element of that mass."""
    from ase.data import atomic_masses, chemical_symbols

    result: dict[int, str] = {}
    while len(result) < count:
        line = reader.expect("a mass")
        text, _, comment = line.partition("#")
        words = text.split()
        if not words:
            continue
        try:
            kind, mass = int(words[0]), float(words[1])
        except (ValueError, IndexError):
            raise reader.error(f"expected a type and its mass, got {line.strip()[:60]!r}") from None
        if not 1 <= kind <= count:
            raise reader.error(f"mass of the type {kind}, there are {count}")
        nearest = int(np.argmin(np.abs(atomic_masses[1:] - mass))) + 1
        named = comment.split()[:1]
        if named and named[0] in chemical_symbols:
            result[kind] = named[0]
        else:
            result[kind] = chemical_symbols[nearest] if abs(atomic_masses[nearest] - mass) < _MASS_TOLERANCE else ""
    return result


def _atoms_section(reader: LineReader, natoms: int, style: str | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Identifiers, types and positions."""
    reader.expect("an empty line")
    first = reader.peek("the first atom")
    width = len(first.partition("#")[0].split())
    name = style or _BY_WIDTH.get(width)
    if name is None:
        raise reader.error(f"{width} columns can mean several atom styles; name it as in 'Atoms # charge'")
    if name not in _STYLES:
        raise InvalidInputError(f"{reader.source}: unknown atom style {name!r}; known are {', '.join(_STYLES)}")
    if width <= _STYLES[name][1] + 2:
        raise reader.error(f"{width} columns are too few for the atom style {name!r}")
    kind, x = _STYLES[name]
    values, _ = reader.table(natoms, [0, kind, x, x + 1, x + 2])
    ids = _integers(reader, values[:, 0], "identifiers", _LARGEST_ID)
    return ids, _integers(reader, values[:, 1], "types", _MOST_TYPES), values[:, 2:].copy()
