"""Frames from files that other programs wrote: extended XYZ, whatever ASE reads, directories of pw.x outputs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from aiida_mlip.errors import FileFormatError, FrameError, InvalidInputError, MlipError
from aiida_mlip.io.ase_files import read_images, what_is_wrong
from aiida_mlip.io.documents import brief
from aiida_mlip.io.extxyz import LabelKeys, read_extxyz
from aiida_mlip.kernel.cells import has_vacuum
from aiida_mlip.kernel.frames import Failure, Frames, concatenate, digest, from_ase

if TYPE_CHECKING:
    from ase import Atoms

#: What ``--group`` may say besides an info key: each frame for itself, or all frames of a file together.
GROUPS: Final[tuple[str, ...]] = ("frame", "file")
_EXTXYZ: Final[tuple[str, ...]] = (".xyz", ".extxyz")
_HEAD_BYTES: Final[int] = 4096
#: Volume (Å³) below which a cell has none.
_FLAT: Final[float] = 1e-6
#: Largest output of pw.x that is read (bytes).
MAX_TEXT: Final[int] = 2 * 1024**3
_SCF_END: Final[re.Pattern[str]] = re.compile(r"convergence (has been achieved|NOT achieved)")


@dataclass(frozen=True)
class FileFrames:
    """What one file held.

    :param path: the file.
    :param frames: its usable frames.
    :param unconverged: frames left out because their SCF did not converge: never labels.
    """

    path: Path
    frames: Frames
    unconverged: int = 0


def read_path(
    path: str | Path,
    *,
    fidelity: str | None,
    keys: LabelKeys | None = None,
    group: str = "frame",
    file_format: str | None = None,
) -> list[FileFrames]:
    """Frames of a file, or of all pw.x outputs below a directory.

    :param path: extended XYZ (``.xyz``, ``.extxyz``), a file that ASE reads, or a directory.
    :param fidelity: name of the level of theory of the labels.
    :param keys: see :class:`~aiida_mlip.io.extxyz.LabelKeys`; for extended XYZ only.
    :param group: ``frame`` (each its own), ``file``, or an info key whose value names the split group.
    :param file_format: ASE's name of the format, if the file name does not tell.
    :raises FileFormatError: a file that cannot be read, a directory without pw.x outputs.
    :raises FrameError: a frame that cannot be used.
    """
    path = Path(path)
    if path.is_dir():
        return _read_directory(path, fidelity=fidelity, group=group)
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file or directory")
    if file_format in (None, "extxyz") and (file_format or path.suffix.lower() in _EXTXYZ):
        by_key = replace(keys or LabelKeys(), group=group if group not in GROUPS else "frame")
        frames = read_extxyz(path, fidelity=fidelity, keys=by_key)
        return [FileFrames(path, _group_by_file(frames, path) if group == "file" else frames)]
    if file_format is None and is_pw_output(path):
        return [_read_pw(path, fidelity=fidelity, group=group)]
    return [FileFrames(path, _from_images(_read_ase(path, file_format), path, fidelity=fidelity, group=group))]


def is_pw_output(path: Path) -> bool:
    """Whether a file is the text output of pw.x."""
    with path.open("rb") as handle:
        return b"Program PWSCF" in handle.read(_HEAD_BYTES)


def _read_directory(path: Path, *, fidelity: str | None, group: str) -> list[FileFrames]:
    """All pw.x outputs below a directory, in the order of their paths."""
    found = [file for file in sorted(path.rglob("*")) if file.is_file() and is_pw_output(file)]
    if not found:
        raise FileFormatError(f"{path}: there are no outputs of pw.x in this directory")
    return [_read_pw(file, fidelity=fidelity, group=group) for file in found]


def _read_pw(path: Path, *, fidelity: str | None, group: str) -> FileFrames:
    """Frames of a pw.x output; those of one run are one group unless each shall be its own.

    ASE translates (total energy of the ``!`` line, forces, stress with tension positive). Positions of a single-point
    run have the seven digits (of the lattice parameter) that pw.x prints. An unconverged SCF is never a label: a single
    point that did not converge stays as a failed row, unconverged steps of a trajectory are left out.
    """
    if group not in GROUPS:
        raise InvalidInputError(f"group {group!r}: outputs of pw.x have no info keys; allowed are {GROUPS}")
    if fidelity is None:
        raise InvalidInputError(f"{path}: labels of pw.x need the name of a fidelity")
    if (size := path.stat().st_size) > MAX_TEXT:
        raise FileFormatError(f"{path}: {size} bytes, more than {MAX_TEXT}")
    text = path.read_text(errors="replace")
    ends = [match.group(1) == "has been achieved" for match in _SCF_END.finditer(text)]
    if ends == [False]:
        failed = _from_images([_start_geometry(text, path)], path, fidelity=fidelity, group=group).with_columns(
            fidelity=np.zeros(1, dtype="<i2"), failure=np.array([Failure.SCF_NOT_CONVERGED], dtype=np.uint8)
        )
        return FileFrames(path, failed, unconverged=1)
    images = _read_ase(path, "espresso-out")
    if not all(ends) and len(ends) != len(images):
        raise FileFormatError(
            f"{path}: {ends.count(False)} SCF cycles did not converge, and it cannot be told which of "
            f"{len(images)} frames they belong to"
        )
    sure = ends if len(ends) == len(images) else [True] * len(images)
    good = [image for image, ok in zip(images, sure, strict=True) if ok and _has_energy(image)]
    if not good:
        raise FileFormatError(f"{path}: no frame with a converged SCF in it")
    return FileFrames(path, _from_images(good, path, fidelity=fidelity, group=group), len(images) - len(good))


def _start_geometry(text: str, path: Path) -> Atoms:
    """Geometry at the head of a pw.x output: what ran, also when nothing came of it."""
    from ase.io.espresso import parse_pwo_start

    lines = text.splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if "Program PWSCF" in line)
    try:
        atoms = parse_pwo_start(lines, first)["atoms"]
    except Exception as error:
        raise FileFormatError(f"{path}: no geometry in it ({type(error).__name__}: {brief(error)})") from error
    atoms.calc = None
    if wrong := what_is_wrong(atoms.numbers, atoms.positions, atoms.cell.array):
        raise FileFormatError(f"{path}: {wrong}")
    return atoms


def _has_energy(image: Atoms) -> bool:
    return image.calc is not None and "energy" in image.calc.results


def _read_ase(path: Path, file_format: str | None) -> list[Atoms]:
    try:
        images = read_images(path, file_format=file_format)
    except IndexError as error:
        raise FileFormatError(f"{path}: ASE cannot read it (IndexError: {error})") from error
    if not images:
        raise FileFormatError(f"{path}: there are no frames in it")
    return images


def _from_images(images: list[Atoms], path: Path, *, fidelity: str | None, group: str) -> Frames:
    try:
        frames = from_ase(images, fidelity=fidelity, source=str(path))
    except MlipError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise FileFormatError(f"{path}: labels that do not fit the atoms ({brief(error)})") from error
    if any(np.isinf(values).any() for values in (frames.energy, frames.forces, frames.stress)):
        raise FileFormatError(f"{path}: infinite labels")
    stress = frames.stress.copy()
    for row in _stressed(frames):
        # the stress of a cell with vacuum is a property of the box, not of the material
        if frames.pbc[row].all() and abs(np.linalg.det(frames.cell[row])) < _FLAT:
            raise FileFormatError(f"{path}, frame {row}: a stress, and a periodic cell without a volume")
        if not frames.pbc[row].all() or has_vacuum(frames.positions[frames.atom_slice(row)], frames.cell[row]):
            stress[row] = np.nan
    frames = frames.with_columns(stress=stress)
    if group == "file":
        return _group_by_file(frames, path)
    if group == "frame":
        return frames
    ids = []
    for index, image in enumerate(images):
        if group not in image.info:
            raise FrameError(index, f"has no info key {group!r}; it has {sorted(image.info)}", source=str(path))
        ids.append(digest(group, str(image.info[group])))
    return frames.with_columns(group_id=np.array(ids))


def _stressed(frames: Frames) -> Iterator[int]:
    return (int(row) for row in np.flatnonzero(np.isfinite(frames.stress).all(axis=(1, 2))))


def _group_by_file(frames: Frames, path: Path) -> Frames:
    """One group per content of a file, wherever it lies."""
    group = digest("file", hashlib.sha256(path.read_bytes()).digest())
    return frames.with_columns(group_id=np.tile(group, (len(frames), 1)))


def join(parts: list[FileFrames]) -> Frames:
    """All frames of several files in order."""
    return concatenate([part.frames for part in parts])
