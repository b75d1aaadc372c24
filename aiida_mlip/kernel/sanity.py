"""Common filters of generated frames, with a record of what was dropped and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, describe_pair, geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, id_hex

Reason: TypeAlias = Literal["not_finite", "pair_distance", "volume", "force", "duplicate"]

REASONS: Final[tuple[Reason, ...]] = ("not_finite", "pair_distance", "volume", "force", "duplicate")


@dataclass(frozen=True)
class SanityLimits:
    """What a frame must keep to be worth a label; None switches a filter off.

    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`; None: 0.7 covalent radii' sum.
    :param volume_ang3_per_atom: window of the volume (Å³ per atom) of frames periodic in three directions.
    :param max_force_ev_per_ang: largest |F| of an atom, for rows that carry forces.
    """

    min_distance_ang: float | Mapping[str, float] | None = None
    volume_ang3_per_atom: tuple[float, float] | None = None
    max_force_ev_per_ang: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        pair_limits(self.min_distance_ang)
        if self.volume_ang3_per_atom is not None:
            low, high = self.volume_ang3_per_atom
            if not 0 <= low < high:
                raise InvalidInputError(f"volume_ang3_per_atom: expected 0 <= low < high, got {(low, high)}")
        if self.max_force_ev_per_ang is not None and not self.max_force_ev_per_ang > 0:
            raise InvalidInputError(f"max_force_ev_per_ang: must be positive, got {self.max_force_ev_per_ang}")


@dataclass(frozen=True)
class Dropped:
    """One frame that was left out.

    :param row: its number in what was given.
    :param frame_id: 32 hexadecimal digits.
    :param reason: which filter.
    :param detail: what was found and what is allowed.
    """

    row: int
    frame_id: str
    reason: Reason
    detail: str


def sift(frames: Frames, limits: SanityLimits, *, first: int = 0) -> tuple[Frames, tuple[Dropped, ...]]:
    """Frames that keep the limits, in order, and a record of the others. The cheapest filter that fails is recorded.

    :param first: number of the first row, when the frames come block by block.
    :returns: kept frames (possibly none), dropped ones; their lengths add up to ``len(frames)``.
    """
    table = pair_limits(limits.min_distance_ang)
    keep = np.ones(len(frames), dtype=bool)
    dropped = []
    for row in range(len(frames)):
        if (fault := _fault(frames, row, limits, table)) is not None:
            keep[row] = False
            name = id_hex(frames.frame_id[row : row + 1])[0]
            dropped.append(Dropped(first + row, name, *fault))
    return frames.take(keep), tuple(dropped)


def count_reasons(dropped: Sequence[Dropped]) -> dict[str, int]:
    """How many frames each filter dropped, every reason in a fixed order."""
    counts = Counter(entry.reason for entry in dropped)
    return {reason: counts.get(reason, 0) for reason in REASONS}


def _fault(frames: Frames, row: int, limits: SanityLimits, table: np.ndarray) -> tuple[Reason, str] | None:
    numbers, positions, cell, pbc = geometry(frames, row)
    if not (np.isfinite(positions).all() and np.isfinite(cell).all()):
        return "not_finite", "positions or cell are not finite numbers"
    if pbc.all():
        volume = abs(float(np.linalg.det(cell))) / len(numbers)
        low, high = limits.volume_ang3_per_atom or (1e-6, np.inf)
        if not low <= volume <= high:
            return "volume", f"{volume:.3f} Å³ per atom, allowed are {low:g} to {high:g}"
    if limits.max_force_ev_per_ang is not None:
        norms = np.linalg.norm(frames.forces[frames.atom_slice(row)], axis=1)
        known = norms[np.isfinite(norms)]
        if len(known) and known.max() > limits.max_force_ev_per_ang:
            return "force", f"|F| up to {known.max():.3f} eV/Å, allowed are {limits.max_force_ev_per_ang:g}"
    ratio, i, j, distance = closest_pair(numbers, positions, cell, pbc, table)
    if ratio < 1.0:
        allowed = table[numbers[i], numbers[j]]
        return "pair_distance", f"{describe_pair(numbers, i, j, distance)}, allowed are {allowed:.3f} Å"
    return None
