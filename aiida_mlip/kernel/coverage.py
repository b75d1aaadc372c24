"""Coverage: which part of a reference set's environments a set of frames reaches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from ase.data import chemical_symbols

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.descriptors import DEFAULT_CUTOFF, SIZE, atomic_descriptors
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import Frames

#: Directions with less spread than this (descriptor units) are noise and are not whitened.
_SPREAD_FLOOR: Final[float] = 1e-3


@dataclass(frozen=True)
class ElementSpace:
    """Whitened principal axes of one element's environments and the grid cells the reference occupies.

    :param mean: (d,) of the descriptors.
    :param axes: (d, c) columns: principal axes over their standard deviation.
    :param cells: (m, c) occupied cells, sorted.
    """

    mean: np.ndarray
    axes: np.ndarray
    cells: np.ndarray


@dataclass(frozen=True)
class ReferenceSpace:
    """The environments of a reference set, on a grid.

    :param width: edge of a grid cell, in standard deviations of the reference.
    :param cutoff: of the descriptor (Å).
    :param elements: space of each atomic number.
    """

    width: float
    cutoff: float
    elements: Mapping[int, ElementSpace]


@dataclass(frozen=True)
class Coverage:
    """What a set of frames reaches of a reference space.

    :param fraction: share of the reference's cells that is reached, all elements together.
    :param per_element: the same by chemical symbol.
    :param volume: cells the frames occupy, within the reference or not.
    :param novel: those of them outside the reference.
    """

    fraction: float
    per_element: Mapping[str, float]
    volume: int
    novel: int


def reference_space(
    blocks: Sequence[Frames] | Callable[[], Iterable[Frames]],
    *,
    n_components: int = 3,
    width: float = 1.0,
    cutoff: float = DEFAULT_CUTOFF,
) -> ReferenceSpace:
    """Fit the space of a reference set: per element, whitened principal components on a cubic grid.

    The covariance of :func:`~aiida_mlip.kernel.descriptors.atomic_descriptors` over the atoms of an element gives its
    principal axes; the leading ``n_components``, each divided by its standard deviation, span the grid, whose cells
    have the edge ``width``. Memory does not grow with the number of frames, but with the number of occupied cells.

    :param blocks: frames in blocks, or a function that starts to read them (they are run through twice).
    :raises InvalidInputError: no frames, or values that are not positive.
    """
    if n_components < 1 or width <= 0 or cutoff <= 0:
        raise InvalidInputError(
            f"n_components, width, cutoff: must be positive, got {n_components}, {width:g}, {cutoff:g}"
        )
    read = blocks if callable(blocks) else lambda: blocks
    sums: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
    for values, numbers in _environments(read(), cutoff):
        for z in np.unique(numbers):
            own = values[numbers == z]
            n, total, square = sums.get(int(z), (0, np.zeros(SIZE), np.zeros((SIZE, SIZE))))
            sums[int(z)] = (n + len(own), total + own.sum(axis=0), square + own.T @ own)
    if not sums:
        raise InvalidInputError("reference: there are no frames")
    frame = {z: (total / n, _whitening(n, total, square, n_components)) for z, (n, total, square) in sums.items()}
    cells = _occupied(read(), frame, width, cutoff)
    return ReferenceSpace(
        width=width,
        cutoff=cutoff,
        elements={z: ElementSpace(mean, axes, cells[z]) for z, (mean, axes) in frame.items()},
    )


def coverage(blocks: Iterable[Frames], reference: ReferenceSpace) -> Coverage:
    """How much of a reference space frames reach; elements the reference does not have are left out.

    :param blocks: frames, in blocks.
    """
    frame = {z: (space.mean, space.axes) for z, space in reference.elements.items()}
    cells = _occupied(blocks, frame, reference.width, reference.cutoff)
    reached = {z: len(_common(cells[z], space.cells)) for z, space in reference.elements.items()}
    total = sum(len(space.cells) for space in reference.elements.values())
    volume = sum(len(found) for found in cells.values())
    return Coverage(
        fraction=sum(reached.values()) / total,
        per_element={chemical_symbols[z]: n / len(reference.elements[z].cells) for z, n in reached.items()},
        volume=volume,
        novel=volume - sum(reached.values()),
    )


def _environments(blocks: Iterable[Frames], cutoff: float) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Descriptors and atomic numbers, frame by frame."""
    for frames in blocks:
        for row in range(len(frames)):
            part = geometry(frames, row)
            yield atomic_descriptors(*part, cutoff=cutoff), part[0]


def _whitening(n: int, total: np.ndarray, square: np.ndarray, n_components: int) -> np.ndarray:
    """(d, c) leading principal axes over their standard deviation (at least the floor)."""
    covariance = square / n - np.outer(total, total) / n**2
    variances, vectors = np.linalg.eigh(covariance)
    leading = np.argsort(variances)[::-1][:n_components]
    # eigh leaves the sign open; fix it so that the grid does not depend on the LAPACK build
    chosen = vectors[:, leading]
    chosen = chosen * np.sign(chosen[np.abs(chosen).argmax(axis=0), np.arange(len(leading))])
    return np.asarray(chosen / np.maximum(np.sqrt(np.maximum(variances[leading], 0.0)), _SPREAD_FLOOR))


def _occupied(
    blocks: Iterable[Frames], frame: Mapping[int, tuple[np.ndarray, np.ndarray]], width: float, cutoff: float
) -> dict[int, np.ndarray]:
    """Occupied grid cells (m, c) of each element, sorted, each once."""
    found: dict[int, list[np.ndarray]] = {
        z: [np.zeros((0, axes.shape[1]), dtype=int)] for z, (_, axes) in frame.items()
    }
    for values, numbers in _environments(blocks, cutoff):
        for z in np.unique(numbers):
            if int(z) in frame:
                mean, axes = frame[int(z)]
                found[int(z)].append(np.floor((values[numbers == z] - mean) @ axes / width + 0.5).astype(int))
                if len(found[int(z)]) > 1000:
                    found[int(z)] = [np.unique(np.concatenate(found[int(z)]), axis=0)]
    return {z: np.unique(np.concatenate(parts), axis=0) for z, parts in found.items()}


def _common(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rows that two arrays of distinct rows share."""
    both, counts = np.unique(np.concatenate([first, second]), axis=0, return_counts=True)
    return np.asarray(both[counts == 2])
