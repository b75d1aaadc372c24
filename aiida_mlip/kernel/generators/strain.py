"""Strain and volume: homogeneous deformations of the cell, atoms carried along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import geometry, pair_limits
from aiida_mlip.kernel.frames import Frames, frame_ids, id_hex
from aiida_mlip.kernel.generators.base import (
    Generator,
    at_least,
    redraw_until_apart,
    stratified,
    strip_labels,
    window,
)


@dataclass(frozen=True)
class Strain:
    """Keys of a strain step.

    :param per_parent: strained cells made from each parent.
    :param linear: largest |ε_xx|, |ε_yy|, |ε_zz| (dimensionless).
    :param shear: largest |ε_xy|, |ε_yz|, |ε_xz|; None: half of ``linear``.
    :param volume: window of V/V₀, stratified over a parent's cells; None: whatever the strain gives. Only for cells
        that are periodic in three directions.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: redraws of one cell before giving up.
    """

    per_parent: int = 1
    linear: float = 0.06
    shear: float | None = None
    volume: tuple[float, float] | None = None
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 100

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.max_attempts, 1, "max_attempts")
        for name, value in (("linear", self.linear), ("shear", self.shear)):
            if value is not None and not 0.0 <= value < 0.5:
                raise InvalidInputError(f"{name}: a strain must be in 0..0.5, got {value}")
        if self.volume is not None:
            window(self.volume, "volume", smallest=0.1)
        pair_limits(self.min_distance_ang)


def strain(parents: Frames, parameters: Strain, rng: np.random.Generator) -> Frames:
    """``per_parent`` deformed copies of every parent: x → F x, F = (V/V₀)^⅓ (1 + ε)/det(1 + ε)^⅓ with a symmetric ε.

    Components of ε are uniform in ±``linear`` and ±``shear``; without ``volume`` F = 1 + ε. Directions without
    periodicity are not strained. Every strained cell is a split group of its own.

    :raises InvalidInputError: a parent without a periodic direction, a minimum distance that cannot be kept.
    """
    limits = pair_limits(parameters.min_distance_ang)
    copies = parents.take(np.repeat(np.arange(len(parents)), parameters.per_parent))
    positions, cells = copies.positions.copy(), copies.cell.copy()
    for parent in range(len(parents)):
        numbers, start, cell, pbc = geometry(parents, parent)
        name = id_hex(parents.frame_id[parent : parent + 1])[0][:8]
        if not pbc.any() or abs(np.linalg.det(cell)) < 1e-9:
            raise InvalidInputError(f"strain of frame {name}: it has no periodic cell (pbc {pbc.tolist()})")
        if parameters.volume is not None and not pbc.all():
            raise InvalidInputError(f"strain of frame {name}: volume needs three periodic directions")
        ratios = _volume_ratios(parameters, rng)
        for k in range(parameters.per_parent):

            def draw(
                start: np.ndarray = start, cell: np.ndarray = cell, pbc: np.ndarray = pbc, ratio: float = ratios[k]
            ) -> tuple[np.ndarray, np.ndarray]:
                gradient = deformation(parameters.linear, _shear(parameters), rng, cell=cell, pbc=pbc, ratio=ratio)
                return start @ gradient.T, cell @ gradient.T

            row = parent * parameters.per_parent + k
            positions[copies.atom_slice(row)], cells[row] = redraw_until_apart(
                draw, numbers, pbc, limits, attempts=parameters.max_attempts, what=f"strain of frame {name}"
            )
    frames = strip_labels(copies, parents=copies).with_columns(positions=positions, cell=cells)
    return frames.with_columns(group_id=frame_ids(frames))


def deformation(
    linear: float, shear: float, rng: np.random.Generator, *, cell: np.ndarray, pbc: np.ndarray, ratio: float
) -> np.ndarray:
    """(3, 3) deformation gradient F of :func:`strain`; ``ratio`` is V/V₀, NaN for "as it comes"."""
    diagonal, off = rng.uniform(-linear, linear, 3), rng.uniform(-shear, shear, 3)
    epsilon = np.diag(diagonal)
    epsilon[[0, 1, 0], [1, 2, 2]] = epsilon[[1, 2, 2], [0, 1, 0]] = off
    if not pbc.all():
        basis = np.linalg.qr(cell[pbc].T)[0]
        projector = basis @ basis.T
        epsilon = projector @ epsilon @ projector
    gradient = np.eye(3) + epsilon
    if np.isfinite(ratio):
        gradient *= (ratio / np.linalg.det(gradient)) ** (1.0 / 3.0)
    return np.asarray(gradient)


def _shear(parameters: Strain) -> float:
    return parameters.linear / 2 if parameters.shear is None else parameters.shear


def _volume_ratios(parameters: Strain, rng: np.random.Generator) -> np.ndarray:
    if parameters.volume is None:
        return np.full(parameters.per_parent, np.nan)
    return stratified(*window(parameters.volume, "volume"), parameters.per_parent, rng)


GENERATOR = Generator(
    name="strain",
    parameters=Strain,
    run=strain,
    needs_parents=True,
    example={"per_parent": 5, "linear": 0.05, "volume": (0.85, 1.15), "min_distance_ang": 1.7},
)
