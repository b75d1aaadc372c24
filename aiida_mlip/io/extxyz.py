"""Extended XYZ text, the exchange format of the field, to and from :class:`~aiida_mlip.kernel.frames.Frames`.

Conventions: eV, Å, eV/Å; ``stress`` in eV/Å³, tension positive, nine numbers (or six in Voigt order xx yy zz yz xz xy).
``virial`` has two sign conventions in circulation, so a file that has only that is refused until one is named.
Numbers are written with every digit they have: a frame keeps its id through the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from ase.data import atomic_numbers, chemical_symbols

from aiida_mlip.errors import FileFormatError, FrameError, InvalidInputError
from aiida_mlip.io.documents import plain_text
from aiida_mlip.kernel.frames import ID_BYTES, NONE, Failure, Frames, digest, from_arrays, id_bytes, id_hex

#: Sign of ``stress`` relative to ``virial / volume``; "negative" is the convention of ASE and GAP (virial = -V·stress).
VIRIAL_SIGNS: Final[Mapping[str, float]] = {"negative": -1.0, "positive": 1.0}
#: Names under which labels are looked for, most trusted first: forces are the derivative of the free energy.
ENERGY_KEYS: Final[tuple[str, ...]] = ("free_energy", "energy", "Energy")
FORCES_KEYS: Final[tuple[str, ...]] = ("forces", "force")
_LINEAGE_IDS: Final[tuple[str, ...]] = ("parent_id", "group_id", "geometry_uuid", "label_uuid")
_OPTIONAL: Final[tuple[str, ...]] = ("region", "parent_atom")
_KEY: Final[re.Pattern[str]] = re.compile(r"""([^\s=,"'{}\[\]]+|"[^"]*")(\s*=\s*)?""")
_QUOTED: Final[re.Pattern[str]] = re.compile(r"""(?:[^"\\]|\\.)*""")
_BARE: Final[re.Pattern[str]] = re.compile(r"\S+")
#: What a value may begin with, and what it then ends with.
_CLOSING: Final[Mapping[str, str]] = {'"': '"', "'": "'", "{": "}", "[": "]"}
#: Names of levels of theory, or of generators, in one file.
_MOST_NAMES: Final[int] = 10_000
#: Columns of one property.
_MOST_COLUMNS: Final[int] = 10_000
#: Atoms of one frame at most: what an index of the interpreter holds.
_MOST_ATOMS: Final[int] = 2**31 - 1
_FAILURES: Final[Mapping[str, int]] = {failure.label: int(failure) for failure in Failure}


@dataclass(frozen=True)
class LabelKeys:
    """Where the labels of a foreign file are.

    :param energy: info key of the total energy (eV); None: ``free_energy``, else ``energy``; "": there is none.
    :param forces: per-atom property of the forces (eV/Å); None: ``forces``, else ``force``; "": there is none.
    :param stress: info key of the stress (eV/Å³, tension positive).
    :param virial: info key of the virial (eV).
    :param virial_sign: ``"negative"`` (stress = -virial/V) or ``"positive"``; None refuses a file with only a virial.
    :param group: info key whose value names the split group of a frame; ``"frame"``: each frame is its own.
    """

    energy: str | None = None
    forces: str | None = None
    stress: str = "stress"
    virial: str = "virial"
    virial_sign: str | None = None
    group: str = "frame"

    def __post_init__(self) -> None:
        """Check the sign's name."""
        if self.virial_sign is not None and self.virial_sign not in VIRIAL_SIGNS:
            raise InvalidInputError(f"virial_sign {self.virial_sign!r}; allowed are {sorted(VIRIAL_SIGNS)}")


# -- reading ---------------------------------------------------------------------------------------------------


def read_extxyz(
    source: str | Path | IO[str],
    *,
    fidelity: str | None = None,
    keys: LabelKeys | None = None,
    name: str | None = None,
) -> Frames:
    r"""Frames of an extended XYZ file.

    :param source: path, or an open text stream.
    :param fidelity: level of theory of labelled frames that do not state theirs (info key ``fidelity``).
    :param keys: names of the label columns, where they are not the usual ones.
    :param name: what to call the file in messages.
    :returns: one row per frame; lineage info keys written by :func:`write_extxyz` are restored.
    :raises FileFormatError: truncated, or not extended XYZ.
    :raises FrameError: a frame that cannot be understood without guessing: unknown species, a virial of unknown sign,
        labels under unknown names, labels without a fidelity, a frame id that does not match its geometry.

    >>> import io
    >>> text = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3 energy=-1.5\nCu 0 0 0\n'
    >>> float(read_extxyz(io.StringIO(text), fidelity="pbe").energy[0])
    -1.5
    """
    if isinstance(source, str | Path):
        try:
            with Path(source).open(encoding="utf-8") as stream:
                return read_extxyz(stream, fidelity=fidelity, keys=keys, name=name or str(source))
        except OSError as error:
            raise FileFormatError(f"{source}: cannot be read ({error.strerror or error})") from error
    where = name or getattr(source, "name", None) or "extxyz"
    table = _Table(keys or LabelKeys(), fidelity, str(where))
    try:
        for index, (info, columns, kinds) in enumerate(_iter_raw(source, table.name)):
            table.add(index, info, columns, kinds)
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{where}: not a text file ({error})") from error
    return table.frames()


def _iter_raw(stream: Iterable[str], where: str) -> Iterator[tuple[dict[str, str], np.ndarray, dict[str, slice]]]:
    """Per frame: info strings, tokens (atoms, columns), and the columns of each property."""
    lines = iter(stream)
    index = -1
    for line in lines:
        if not line.strip():
            continue
        index += 1
        try:
            natoms = int(line)
        except ValueError:
            natoms = _MOST_ATOMS + 1
        if natoms > _MOST_ATOMS:
            raise FileFormatError(f"{where}, frame {index}: expected a number of atoms, got {line.strip()[:60]!r}")
        if natoms < 1:
            raise FrameError(index, f"has {natoms} atoms", source=where)
        comment = next(lines, None)
        body = list(islice(lines, natoms))
        if comment is None or len(body) < natoms:
            raise FileFormatError(f"{where}, frame {index}: truncated, {len(body)} of {natoms} atoms are there")
        info = parse_comment(comment)
        kinds, width = parse_properties(info.pop("Properties", "species:S:1:pos:R:3"), where, index)
        tokens = "".join(body).split()
        if len(tokens) != natoms * width:
            bad = next((i for i, row in enumerate(body) if len(row.split()) != width), 0)
            raise FileFormatError(
                f"{where}, frame {index}, atom {bad}: {len(body[bad].split())} columns, Properties promises {width}"
            )
        yield info, np.array(tokens, dtype=object).reshape(natoms, width), kinds


def parse_comment(comment: str) -> dict[str, str]:
    """Key-value pairs of a comment line as text; a key without value is true."""
    info: dict[str, str] = {}
    # where a bracket closes for the last time: none is looked for behind that, so that the time is linear
    last = {mark: comment.rfind(mark) for mark in _CLOSING.values()}
    place = 0
    while match := _KEY.search(comment, place):
        place = match.end()
        value = ""
        if match.group(2):
            value, place = _value(comment, place, last)
            if not value:
                place = match.end(1)  # an equals sign with nothing behind it
        info[match.group(1).strip('"')] = value or "T"
    return info


def _value(comment: str, place: int, last: dict[str, int]) -> tuple[str, int]:
    """The value that begins at a place of a comment, and where it ends."""
    mark = comment[place : place + 1]
    closing = _CLOSING.get(mark)
    if closing is not None and last[closing] > place:
        inside = _QUOTED.match(comment, place + 1) if mark == '"' else None
        end = comment.find(closing, place + 1) if inside is None else inside.end()
        if comment[end : end + 1] == closing:
            return comment[place + 1 : end].replace('\\"', '"') or "T", end + 1
        last[closing] = -1
    bare = _BARE.match(comment, place)
    return ("", place) if bare is None else (bare.group(), bare.end())


def parse_properties(text: str, where: str, index: int) -> tuple[dict[str, slice], int]:
    """Columns of each property, and their number in all.

    :raises FileFormatError: not a list of name:kind:count, or no species or positions in it.
    """
    fields = text.split(":")
    kinds: dict[str, slice] = {}
    width = 0
    try:
        for name, _, count in zip(fields[::3], fields[1::3], fields[2::3], strict=True):
            if not 1 <= int(count) <= _MOST_COLUMNS:
                raise ValueError
            kinds[name] = slice(width, width + int(count))
            width += int(count)
    except ValueError:
        raise FileFormatError(f"{where}, frame {index}: cannot read Properties={text[:200]!r}") from None
    given = {name: part.stop - part.start for name, part in kinds.items()}
    if given.get("pos") != 3 or 1 not in (given.get("species"), given.get("Z")):
        raise FileFormatError(f"{where}, frame {index}: Properties={text[:200]!r} has no species or no pos column")
    return kinds, width


class _Table:
    """Columns under construction, one :meth:`add` per frame."""

    def __init__(self, keys: LabelKeys, fidelity: str | None, name: str) -> None:
        self.keys, self.fidelity, self.name = keys, fidelity, name
        self.rows: dict[str, list[Any]] = {
            key: [] for key in ("natoms", "cell", "pbc", "energy", "stress", "fidelity", "generator", "failure", "cost")
        }
        self.rows |= {key: [] for key in (*_LINEAGE_IDS, "label_row", "stated_id")}
        self.atoms: dict[str, list[np.ndarray | None]] = {
            key: [] for key in ("numbers", "positions", "forces", *_OPTIONAL)
        }
        self.names: dict[str, dict[str, int]] = {"fidelity": {}, "generator": {}}

    def add(self, index: int, info: dict[str, str], columns: np.ndarray, kinds: dict[str, slice]) -> None:
        """Append one frame."""
        try:
            self._add(index, info, columns, kinds)
        except FrameError:
            raise
        except (ValueError, OverflowError) as error:
            raise FrameError(index, str(error), source=self.name) from error

    def _add(self, index: int, info: dict[str, str], columns: np.ndarray, kinds: dict[str, slice]) -> None:
        rows = self.rows
        rows["natoms"].append(len(columns))
        self.atoms["numbers"].append(_numbers(columns, kinds))
        positions = columns[:, kinds["pos"]].astype(float)
        self.atoms["positions"].append(positions)
        for name in _OPTIONAL:
            self.atoms[name].append(_integers(columns[:, kinds[name]], name) if name in kinds else None)
        cell = parse_floats(info["Lattice"], 9).reshape(3, 3) if "Lattice" in info else np.zeros((3, 3))
        if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
            raise ValueError("has positions or a cell that are not finite")
        rows["cell"].append(cell)
        rows["pbc"].append(parse_booleans(info["pbc"]) if "pbc" in info else ["Lattice" in info] * 3)
        forces_key = self._find(index, kinds, self.keys.forces, FORCES_KEYS, "forc")
        shape = (len(columns), 3)
        forces = columns[:, kinds[forces_key]].astype(float) if forces_key else np.full(shape, np.nan)
        self.atoms["forces"].append(forces.reshape(shape))
        energy_key = self._find(index, info, self.keys.energy, ENERGY_KEYS, "energy")
        energy = float(info[energy_key]) if energy_key else np.nan
        rows["energy"].append(energy)
        stress = self._stress(index, info, cell)
        rows["stress"].append(stress)
        if np.isinf(energy) or np.isinf(forces).any() or np.isinf(stress).any():
            raise ValueError("has infinite labels; what is missing is nan")
        labelled = bool(np.isfinite(energy) or np.isfinite(forces).any() or np.isfinite(stress).all())
        rows["fidelity"].append(self._fidelity(index, info.get("fidelity"), labelled))
        rows["generator"].append(self._index("generator", info.get("generator")))
        rows["failure"].append(_failure(info.get("failure")))
        rows["cost"].append(float(info.get("cost", "nan")))
        rows["label_row"].append(_integer(info.get("label_row", str(NONE)), "label_row", 2**31 - 1))
        for name in _LINEAGE_IDS:
            value = info.get(name)
            rows[name].append(id_bytes([value])[0] if value else np.zeros(ID_BYTES, dtype=np.uint8))
        if self.keys.group != "frame":
            if self.keys.group not in info:
                raise FrameError(
                    index, f"has no info key {self.keys.group!r} to group by; it has {sorted(info)}", source=self.name
                )
            rows["group_id"][-1] = digest(self.keys.group, info[self.keys.group])
        rows["stated_id"].append(info.get("frame_id"))

    def _find(
        self, index: int, present: Mapping[str, Any], given: str | None, usual: tuple[str, ...], word: str
    ) -> str | None:
        """Key of a label; names that look like one but are not known are never passed over in silence."""
        if given == "":
            return None
        if given is not None:
            if given not in present:
                raise FrameError(index, f"has no {given!r}; it has {sorted(present)}", source=self.name)
            return given
        for key in usual:
            if key in present:
                return key
        if similar := [key for key in present if word in key.lower()]:
            raise FrameError(
                index, f"labels are not under {usual}, but there is {similar}: name the one to use", source=self.name
            )
        return None

    def _stress(self, index: int, info: Mapping[str, str], cell: np.ndarray) -> np.ndarray:
        keys = self.keys
        stress = _tensor(info[keys.stress]) if keys.stress in info else np.full((3, 3), np.nan)
        if keys.virial not in info:
            return stress
        volume = abs(np.linalg.det(cell))
        if volume == 0:
            raise FrameError(index, "has a virial but no cell volume", source=self.name)
        virial = _tensor(info[keys.virial])
        if np.isfinite(stress).all():
            if keys.virial_sign is None:
                return stress
        elif keys.virial_sign is None:
            raise FrameError(
                index,
                f"has {keys.virial!r} but no {keys.stress!r}; say whether stress = -virial/V (virial_sign 'negative') "
                "or +virial/V ('positive')",
                source=self.name,
            )
        derived = VIRIAL_SIGNS[keys.virial_sign] * virial / volume
        if np.isfinite(stress).all() and not np.allclose(stress, derived, rtol=1e-3, atol=1e-5):
            raise FrameError(
                index,
                f"{keys.stress!r} and {keys.virial!r} (virial_sign {keys.virial_sign!r}) contradict each other",
                source=self.name,
            )
        return derived if not np.isfinite(stress).all() else stress

    def _fidelity(self, index: int, stated: str | None, labelled: bool) -> int:
        if labelled and stated is None and self.fidelity is None:
            raise FrameError(index, "has labels, but no fidelity name was given", source=self.name)
        if stated is not None and self.fidelity is not None and stated != self.fidelity:
            raise FrameError(
                index, f"states fidelity {stated!r}, asked to import as {self.fidelity!r}", source=self.name
            )
        return self._index("fidelity", stated if stated is not None else (self.fidelity if labelled else None))

    def _index(self, table: str, name: str | None) -> int:
        if name is None:
            return NONE
        if len(self.names[table]) > _MOST_NAMES:
            raise ValueError(f"more than {_MOST_NAMES} names of a {table}")
        return self.names[table].setdefault(plain_text(name), len(self.names[table]))

    def frames(self) -> Frames:
        """All rows; stated frame ids are compared with the geometry's."""
        rows, natoms = self.rows, self.rows.pop("natoms")
        stated = rows.pop("stated_id")
        if not natoms:
            raise FileFormatError(f"{self.name}: there are no frames in it")
        for name, (dtype, absent) in {"region": ("|u1", 0), "parent_atom": ("<i4", NONE)}.items():
            parts = self.atoms[name]
            if all(part is None for part in parts):
                del self.atoms[name]
            else:
                self.atoms[name] = [
                    np.full(n, absent, dtype=dtype) if part is None else part
                    for n, part in zip(natoms, parts, strict=True)
                ]
        columns = {name: np.array(values) for name, values in rows.items()}
        columns |= {name: np.concatenate([p for p in parts if p is not None]) for name, parts in self.atoms.items()}
        frames = from_arrays(
            natoms=np.array(natoms),
            fidelities=tuple(self.names["fidelity"]),
            generators=tuple(self.names["generator"]),
            **columns,
        )
        for index, (is_, says) in enumerate(zip(frames.ids(), stated, strict=True)):
            if says is not None and says != is_:
                raise FrameError(
                    index, f"states frame_id {says}, but its geometry has {is_}: edited?", source=self.name
                )
        return frames


def _numbers(columns: np.ndarray, kinds: Mapping[str, slice]) -> np.ndarray:
    if "species" in kinds:
        symbols = columns[:, kinds["species"]].reshape(-1).tolist()
        try:
            numbers = [atomic_numbers[symbol] for symbol in symbols]
        except KeyError as error:
            raise ValueError(f"unknown chemical symbol {error.args[0]!r}") from None
    else:
        numbers = columns[:, kinds["Z"]].reshape(-1).astype(int).tolist()
    if min(numbers) < 1 or max(numbers) >= len(chemical_symbols):
        raise ValueError(f"atomic numbers must be 1..{len(chemical_symbols) - 1}, got {min(numbers)}..{max(numbers)}")
    return np.array(numbers, dtype=np.uint8)


def parse_floats(text: str, count: int) -> np.ndarray:
    """``count`` numbers of a value.

    :raises ValueError: another number of them.
    """
    values = np.array(text.replace(",", " ").split(), dtype=float)
    if values.size != count:
        raise ValueError(f"expected {count} numbers, got {values.size}: {text!r}")
    return values


def _tensor(text: str) -> np.ndarray:
    """3×3 symmetric tensor from nine numbers, or six in Voigt order (xx yy zz yz xz xy)."""
    values = np.array(text.replace(",", " ").replace("[", " ").replace("]", " ").split(), dtype=float)
    if values.size == 6:
        values = values[[0, 5, 4, 5, 1, 3, 4, 3, 2]]
    if values.size != 9:
        raise ValueError(f"a stress or virial has 9 or 6 numbers, got {values.size}: {text!r}")
    tensor = values.reshape(3, 3)
    if np.isfinite(tensor).all() and not np.allclose(tensor, tensor.T, rtol=1e-3, atol=1e-4 * np.abs(tensor).max()):
        raise ValueError(f"stress or virial is not symmetric: {tensor.tolist()}")
    return tensor


def parse_booleans(text: str) -> list[bool]:
    """Three truth values.

    :raises ValueError: anything else.
    """
    words = text.replace(",", " ").split()
    values = {"t": True, "true": True, "1": True, "f": False, "false": False, "0": False}
    if len(words) != 3 or any(word.lower() not in values for word in words):
        raise ValueError(f"pbc must be three of T or F, got {text!r}")
    return [values[word.lower()] for word in words]


def _integers(columns: np.ndarray, name: str) -> np.ndarray:
    """(a,) small integers of one column of words."""
    if columns.shape[1] != 1:
        raise ValueError(f"{name} has {columns.shape[1]} columns, expected one")
    most = 255 if name == "region" else 2**31 - 1
    return np.array([_integer(word, name, most) for word in columns[:, 0]])


def _integer(text: str, name: str, most: int) -> int:
    value = int(text)
    if not NONE <= value <= most or (value < 0 and most == 255):
        raise ValueError(f"{name} {text[:40]!r} is no integer of -1..{most}")
    return value


def _failure(text: str | None) -> int:
    if text is not None and text not in _FAILURES:
        raise ValueError(f"unknown failure {text!r}; known are {sorted(_FAILURES)}")
    return 0 if text is None else _FAILURES[text]


# -- writing ---------------------------------------------------------------------------------------------------


def write_extxyz(
    frames: Frames,
    target: str | Path | IO[str],
    *,
    nan_missing: bool = False,
    info: Mapping[str, Any] | None = None,
    columns: Mapping[str, np.ndarray] | None = None,
    lineage: bool = True,
) -> None:
    """Write frames as extended XYZ that ASE, and through it NequIP, reads back.

    :param frames: rows in order.
    :param target: path, or an open text stream.
    :param nan_missing: write a missing energy, force or stress as ``nan`` so that all frames have the same keys
        (masked training); otherwise it is left out.
    :param info: further values per row: name -> sequence of n numbers, strings or booleans.
    :param columns: further values per atom: name -> (a,) integers.
    :param lineage: also write frame id, parent, group, process uuids, generator, failure, cost.
    :raises InvalidInputError: an ``info`` or a column of the wrong length, or that collides with a key written anyway.
    """
    if isinstance(target, str | Path):
        with Path(target).open("w", encoding="utf-8") as stream:
            write_extxyz(frames, stream, nan_missing=nan_missing, info=info, columns=columns, lineage=lineage)
        return
    extra = {key: list(values) for key, values in (info or {}).items()}
    for key, values in extra.items():
        if len(values) != len(frames):
            raise InvalidInputError(f"info {key!r} has {len(values)} values for {len(frames)} frames")
        if key in ("Lattice", "Properties", "pbc", "energy", "stress"):
            raise InvalidInputError(f"info {key!r} is written from the frames themselves")
    further = _further_columns(frames, columns or {})
    writers = _lineage_writers(frames) if lineage else {}
    for row in range(len(frames)):
        part = frames.atom_slice(row)
        table, format_, properties = _atom_columns(frames, part, nan_missing, further)
        pairs = _comment(frames, row, properties, nan_missing)
        pairs += [f"{key}={value}" for key, get in writers.items() if (value := get(row)) is not None]
        pairs += [f"{key}={_text(values[row])}" for key, values in extra.items()]
        target.write(f"{frames.natoms[row]}\n{' '.join(pairs)}\n")
        target.write("".join([format_ % line for line in zip(*table, strict=True)]))


def _comment(frames: Frames, row: int, properties: str, nan_missing: bool) -> list[str]:
    pairs = []
    if frames.cell[row].any():
        pairs.append(f'Lattice="{_join(frames.cell[row])}"')
    pairs += [f"Properties={properties}", 'pbc="{} {} {}"'.format(*("T" if p else "F" for p in frames.pbc[row]))]
    if nan_missing or np.isfinite(frames.energy[row]):
        pairs.append(f"energy={float(frames.energy[row])!r}")
    if nan_missing or np.isfinite(frames.stress[row]).any():
        pairs.append(f'stress="{_join(frames.stress[row])}"')
    return pairs


def _further_columns(frames: Frames, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Integers per atom: those that the frames have, and those that are given."""
    own = {name: value for name in _OPTIONAL if (value := getattr(frames, name)) is not None}
    for name, values in columns.items():
        if len(values) != frames.n_atoms:
            raise InvalidInputError(f"column {name!r} has {len(values)} values for {frames.n_atoms} atoms")
        if name in (*_OPTIONAL, "species", "pos", "forces"):
            raise InvalidInputError(f"column {name!r} is written from the frames themselves")
    return {**own, **columns}


def _atom_columns(
    frames: Frames, part: slice, nan_missing: bool, further: Mapping[str, np.ndarray]
) -> tuple[list[list[Any]], str, str]:
    symbols = [chemical_symbols[z] for z in frames.numbers[part]]
    columns: list[list[Any]] = [symbols, *frames.positions[part].T.tolist()]
    format_, properties = "%s %r %r %r", "species:S:1:pos:R:3"
    if nan_missing or np.isfinite(frames.forces[part]).any():
        columns += frames.forces[part].T.tolist()
        format_, properties = format_ + " %r %r %r", properties + ":forces:R:3"
    for name, value in further.items():
        columns.append(value[part].tolist())
        format_, properties = format_ + " %d", f"{properties}:{name}:I:1"
    return columns, format_ + "\n", properties


def _lineage_writers(frames: Frames) -> dict[str, Callable[[int], str | None]]:
    """Info key -> text of a row, None where the row has nothing to say."""
    ids = {name: id_hex(getattr(frames, name)) for name in ("frame_id", *_LINEAGE_IDS)}
    has = {name: getattr(frames, name).any(axis=1) for name in ids}

    def named(table: tuple[str, ...], column: np.ndarray) -> Callable[[int], str | None]:
        return lambda row: _text(table[column[row]]) if column[row] != NONE else None

    def identifier(name: str) -> Callable[[int], str | None]:
        return lambda row: ids[name][row] if has[name][row] else None

    return {
        "fidelity": named(frames.fidelities, frames.fidelity),
        "generator": named(frames.generators, frames.generator),
        "failure": lambda row: Failure(int(frames.failure[row])).label if frames.failure[row] else None,
        "cost": lambda row: repr(float(frames.cost[row])) if np.isfinite(frames.cost[row]) else None,
        "label_row": lambda row: str(frames.label_row[row]) if frames.label_row[row] != NONE else None,
        **{name: identifier(name) for name in ids},
    }


def _join(values: np.ndarray) -> str:
    return " ".join(map(repr, values.reshape(-1).tolist()))


def _text(value: Any) -> str:
    """One info value; text with a blank is quoted."""
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, str):
        return '"{}"'.format(value.replace('"', "'")) if not re.fullmatch(r"[\w.+:/-]+", value) else value
    return repr(value)
