"""What makes a frame unusable before any label is computed."""

from __future__ import annotations

from typing import Final

import numpy as np

from aiida_mlip.errors import FrameError
from aiida_mlip.kernel.cells import ZERO, boxed
from aiida_mlip.kernel.frames import Frames

#: Atoms closer than this fraction of the sum of their covalent radii overlap.
OVERLAP_FRACTION: Final[float] = 0.5


def check_geometries(
    frames: Frames, *, overlap_fraction: float = OVERLAP_FRACTION, source: str = "dataset", first: int = 0
) -> None:
    """Refuse frames that no level of theory can label.

    :param frames: rows to look at.
    :param overlap_fraction: smallest allowed pair distance, in units of the sum of the covalent radii.
    :param source: what to call the frames in messages.
    :param first: number of the first row in that source.
    :raises FrameError: a number is not finite, a periodic cell has no volume, or two atoms overlap.
    """
    for row in range(len(frames)):
        if reason := _problem(frames, row, overlap_fraction):
            raise FrameError(first + row, reason, source=source)


def _problem(frames: Frames, row: int, fraction: float) -> str | None:
    from ase.data import chemical_symbols, covalent_radii
    from matscipy.neighbours import neighbour_list

    part = frames.atom_slice(row)
    positions, numbers = frames.positions[part], frames.numbers[part]
    cell, pbc = frames.cell[row], frames.pbc[row]
    if len(numbers) == 0:
        return "has no atoms"
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        return "has positions or a cell that are not finite numbers"
    if (np.linalg.norm(cell[pbc], axis=1) < ZERO).any():
        return f"is periodic along a direction without a cell vector (cell {cell.tolist()}, pbc {pbc.tolist()})"
    rows = np.linalg.norm(cell, axis=1) >= ZERO
    if _volume(cell, rows) < ZERO:
        return f"has a cell without volume: {cell.tolist()}"
    radii = covalent_radii[numbers]
    # the box only serves the neighbour search, which wants a cell with volume
    moved, box = boxed(positions, cell, pbc, padding=1.0)
    i, j, d = neighbour_list(
        "ijd", positions=moved, cell=box, pbc=pbc, numbers=numbers.astype(np.int32), cutoff=2 * fraction * radii.max()
    )
    close = d < fraction * (radii[i] + radii[j])
    if close.any():
        k = np.flatnonzero(close)[np.argmin(d[close])]
        pair = f"{chemical_symbols[numbers[i[k]]]} {i[k]} and {chemical_symbols[numbers[j[k]]]} {j[k]}"
        allowed = fraction * (radii[i[k]] + radii[j[k]])
        return f"atoms {pair} overlap: {d[k]:.3f} Å apart, at least {allowed:.3f} Å is allowed"
    return None


def _volume(cell: np.ndarray, rows: np.ndarray) -> float:
    """Volume spanned by the cell vectors that are there (length, area); 1 if there is none."""
    present = cell[rows]
    return float(np.sqrt(max(np.linalg.det(present @ present.T), 0.0))) if len(present) else 1.0
