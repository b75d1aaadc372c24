"""One frame of up to tens of millions of atoms from a file of many, without holding the file.

Text formats are read in blocks of lines; frames in front of the wanted one are passed over, not parsed. Memory: the
arrays of one frame, and a block of text.
"""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np

from aiida_mlip.errors import FileFormatError, InvalidInputError
from aiida_mlip.io.ase_files import MAX_RATIO, MIN_INFLATED, read_images
from aiida_mlip.io.documents import brief
from aiida_mlip.io.extxyz import parse_booleans, parse_comment, parse_floats, parse_properties
from aiida_mlip.io.lammps_text import RawAtoms, read_count, read_data_file, read_dump_atoms, read_dump_header
from aiida_mlip.io.line_reader import LineReader
from aiida_mlip.kernel.frames import Frames, from_arrays

Format: TypeAlias = Literal["extxyz", "lammps-dump", "lammps-data", "ase"]
FORMATS: Final[tuple[str, ...]] = get_args(Format)

#: Characters of a line by which a format is told.
_HEAD_CHARACTERS: Final[int] = 1000
_SUFFIXES: Final[dict[str, Format]] = {
    ".xyz": "extxyz", ".extxyz": "extxyz", ".dump": "lammps-dump", ".lammpstrj": "lammps-dump",
    ".lmp": "lammps-data", ".data": "lammps-data", ".traj": "ase",
}  # fmt: skip


@dataclass(frozen=True)
class LargeFrame:
    """One frame of a file.

    :param numbers: (a,) atomic numbers, in the order of the file.
    :param positions: (a, 3) Å.
    :param cell: (3, 3) Å, rows are lattice vectors; zeros where there is none.
    :param pbc: (3,) periodicity.
    :param ids: (a,) identifiers of the file; None where it has none.
    :param index: number of the frame in the file, from 0.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    ids: np.ndarray | None
    index: int

    def to_frames(self) -> Frames:
        """The same as one unlabelled row."""
        return from_arrays(
            natoms=np.array([len(self.numbers)]),
            numbers=self.numbers,
            positions=self.positions,
            cell=self.cell[None],
            pbc=self.pbc[None],
        )


def read_large_frame(
    path: str | Path,
    *,
    frame: int = -1,
    species: Sequence[str] | None = None,
    file_format: Format | None = None,
    atom_style: str | None = None,
) -> LargeFrame:
    """Read one frame.

    :param path: extended XYZ, LAMMPS dump or data file (each also with ``.gz``), or an ASE trajectory.
    :param frame: its number from 0; negative: counted from the end, which reads the file twice.
    :param species: chemical symbols of the atom types 1, 2, ... of a LAMMPS file; before those its masses suggest.
    :param file_format: where neither the name nor the first lines of the file tell.
    :param atom_style: of a LAMMPS data file that does not name it.
    :raises FileFormatError: missing, truncated or malformed; names the file, the frame and the line.
    :raises InvalidInputError: no such frame, or species that are needed and were not given.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    kind = file_format or detect_format(path)
    if kind == "ase":
        return _read_ase(path, frame)
    if kind == "lammps-data":
        if frame not in (0, -1):
            raise InvalidInputError(f"{path}: a data file has one frame, there is no frame {frame}")
        with _reader(path) as reader:
            return _complete(read_data_file(reader, style=atom_style), reader, species)
    index = frame
    if frame < 0:
        count = count_frames(path, file_format=kind)
        index += count
        if index < 0:
            raise InvalidInputError(f"{path}: there is no frame {frame}, it has {count}")
    with _reader(path) as reader:
        return _seek_extxyz(reader, index) if kind == "extxyz" else _seek_dump(reader, index, species)


def count_frames(path: str | Path, *, file_format: Format | None = None) -> int:
    """Frames of a file, without parsing their atoms.

    :raises FileFormatError: missing, truncated or malformed.
    """
    path = Path(path)
    kind = file_format or detect_format(path)
    if kind == "lammps-data":
        return 1
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    if kind == "ase":
        from ase.io import Trajectory

        with _foreign(path), Trajectory(str(path)) as images:
            return len(images)
    with _reader(path) as reader:
        while (natoms := _pass_head(reader, kind)) is not None:
            reader.skip(natoms)
            reader.frame += 1
        return reader.frame


def detect_format(path: str | Path) -> Format:
    """Format by the name of a file, or by what it begins with.

    :raises FileFormatError: neither tells.
    """
    path = Path(path)
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
    if suffixes and suffixes[-1] in _SUFFIXES:
        return _SUFFIXES[suffixes[-1]]
    with path.open("rb") as stream:
        if stream.read(8) == b"- of Ulm":
            return "ase"
    with _opened(path) as text:
        try:
            head = [text.readline(_HEAD_CHARACTERS) for _ in range(30)]
        except (UnicodeDecodeError, OSError, EOFError, zlib.error) as error:
            raise FileFormatError(f"{path}: neither its name nor its content tells the format ({error})") from error
    if head[0].startswith("ITEM:"):
        return "lammps-dump"
    if head[0].strip().isdigit():
        return "extxyz"
    if any(line.split("#")[0].split()[-2:] == ["xlo", "xhi"] for line in head):
        return "lammps-data"
    raise FileFormatError(f"{path}: neither its name nor its content tells the format; give one of {FORMATS}")


def _pass_head(reader: LineReader, kind: Format) -> int | None:
    """Rows of atoms of the next frame; None at the end."""
    if kind == "lammps-dump":
        header = read_dump_header(reader)
        return None if header is None else header.natoms
    natoms = _xyz_natoms(reader)
    if natoms is not None:
        reader.expect("a comment")
    return natoms


def _seek_dump(reader: LineReader, index: int, species: Sequence[str] | None) -> LargeFrame:
    while (header := read_dump_header(reader)) is not None:
        if reader.frame == index:
            return _complete(read_dump_atoms(reader, header), reader, species)
        reader.skip(header.natoms)
        reader.frame += 1
    raise InvalidInputError(f"{reader.source}: there is no frame {index}, it has {reader.frame}")


def _seek_extxyz(reader: LineReader, index: int) -> LargeFrame:
    while (natoms := _xyz_natoms(reader)) is not None:
        comment = reader.expect("a comment")
        if reader.frame == index:
            return _complete(_xyz_atoms(reader, natoms, comment), reader, None)
        reader.skip(natoms)
        reader.frame += 1
    raise InvalidInputError(f"{reader.source}: there is no frame {index}, it has {reader.frame}")


def _xyz_natoms(reader: LineReader) -> int | None:
    line = reader.next()
    while line is not None and not line.strip():
        line = reader.next()
    if line is None:
        return None
    return read_count(reader, line)


def _xyz_atoms(reader: LineReader, natoms: int, comment: str) -> RawAtoms:
    info = parse_comment(comment)
    kinds, _ = parse_properties(info.get("Properties", "species:S:1:pos:R:3"), reader.source, reader.frame)
    try:
        cell = parse_floats(info["Lattice"], 9).reshape(3, 3) if "Lattice" in info else np.zeros((3, 3))
        pbc = parse_booleans(info["pbc"]) if "pbc" in info else ["Lattice" in info] * 3
    except ValueError as error:
        raise reader.error(f"malformed comment: {error}") from error
    named = "species" in kinds
    numbers = [*range(kinds["pos"].start, kinds["pos"].stop), *([] if named else [kinds["Z"].start])]
    values, words = reader.table(natoms, numbers, [kinds["species"].start] if named else [])
    symbols = words[:, 0] if named else _symbols_of_numbers(reader, values[:, 3])
    return RawAtoms(values[:, :3].copy(), cell, np.array(pbc), None, symbols, None, {})


def _symbols_of_numbers(reader: LineReader, values: np.ndarray) -> np.ndarray:
    from ase.data import chemical_symbols

    numbers = np.nan_to_num(values, nan=0, posinf=0, neginf=0).clip(0, len(chemical_symbols)).astype(int)
    if numbers.min() < 1 or numbers.max() >= len(chemical_symbols) or (numbers != values).any():
        raise reader.error(f"atomic numbers must be 1..{len(chemical_symbols) - 1}, got {values.min()}..{values.max()}")
    return np.array(chemical_symbols)[numbers]


def _complete(raw: RawAtoms, reader: LineReader, species: Sequence[str] | None) -> LargeFrame:
    """Frame with atomic numbers, after the last checks."""
    from ase.data import atomic_numbers

    if not np.isfinite(raw.cell).all():
        raise reader.error(f"the cell is not finite: {raw.cell.tolist()}")
    if raw.symbols is not None:
        kinds, inverse = np.unique(raw.symbols, return_inverse=True)
        names = {index: str(symbol) for index, symbol in enumerate(kinds)}
    else:
        inverse = cast(np.ndarray, raw.types)
        names = {kind: symbol for kind, symbol in raw.type_symbols.items() if symbol}
        names.update(enumerate(species or (), start=1))
        kinds = np.unique(inverse)
        if missing := [int(kind) for kind in kinds if int(kind) not in names]:
            more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
            raise InvalidInputError(f"{reader.source}: give the species of the atom types {missing[:20]}{more}")
    table = np.zeros(max(names) + 1 if names else 1, dtype=np.uint8)
    for kind, symbol in names.items():
        if kind >= 0 and not atomic_numbers.get(symbol):
            raise reader.error(f"unknown chemical symbol {symbol!r}")
        table[kind] = atomic_numbers[symbol]
    if not np.isfinite(raw.positions).all():
        row = int(np.argmin(np.isfinite(raw.positions).all(axis=1)))
        first = reader.line - len(raw.positions) + 1
        raise reader.error(f"the position of atom {row} is not finite: {raw.positions[row].tolist()}", line=first + row)
    return LargeFrame(table[inverse], raw.positions, raw.cell, raw.pbc, raw.ids, reader.frame)


def _read_ase(path: Path, frame: int) -> LargeFrame:
    """One frame of an ASE trajectory, or of any other file that ASE reads."""
    try:
        (atoms,) = read_images(path, index=frame)
    except IndexError as error:
        raise InvalidInputError(f"{path}: there is no such frame") from error
    return LargeFrame(
        atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array, np.array(atoms.pbc), None, frame
    )


@contextmanager
def _foreign(path: Path) -> Iterator[None]:
    """Errors of ASE's readers as errors of the file."""
    try:
        yield
    except (IndexError, StopIteration) as error:
        raise InvalidInputError(f"{path}: there is no such frame") from error
    except Exception as error:  # each of ASE's many readers fails in its own way
        raise FileFormatError(f"{path}: ASE cannot read it ({type(error).__name__}: {brief(error)})") from error


class _Inflated(io.RawIOBase):
    """Bytes of a packed file; an error once it inflates to more than :data:`MAX_RATIO` times its size."""

    def __init__(self, packed: gzip.GzipFile, path: Path) -> None:
        self._packed = packed
        self._left = max(MAX_RATIO * path.stat().st_size, MIN_INFLATED)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # Python 3.11 has no name for what holds bytes
        view = memoryview(buffer)
        data = self._packed.read1(len(view))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"it inflates to more than {MAX_RATIO} times its size")
        view[: len(data)] = data
        return len(data)


@contextmanager
def _reader(path: Path) -> Iterator[LineReader]:
    with _opened(path) as stream:
        yield LineReader(stream, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[IO[str]]:
    if path.suffix.lower() == ".gz":
        with gzip.open(path, "rb") as packed, io.BufferedReader(_Inflated(packed, path)) as inflated:
            yield io.TextIOWrapper(inflated, encoding="utf-8")
        return
    with path.open(encoding="utf-8", buffering=1 << 20) as stream:
        yield stream
