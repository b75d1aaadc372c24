"""Surface slabs: any Miller indices, every termination."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import gcd

import numpy as np
from ase.geometry.minkowski_reduction import minkowski_reduce

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, check_apart, geometry, name_of
from aiida_mlip.kernel.generators.base import Generator, at_least
from aiida_mlip.kernel.supercells import repeat

#: Atoms whose heights differ by less (Å) are one plane.
PLANE_GAP = 0.1


@dataclass(frozen=True)
class Surface:
    """Keys of a surface step.

    :param per_parent: slabs made of each parent: Miller indices in turn, terminations in turn.
    :param miller: Miller indices (of the parent's cell as given), e.g. ``[[1, 0, 0], [1, 1, 1]]``.
    :param min_slab_ang: smallest thickness (Å) of the slab.
    :param vacuum_ang: empty layer (Å) between the slab and its image.
    :param min_width_ang: repeat the slab in its plane to this width (Å); None: the smallest cell.
    :param max_atoms: refuse larger slabs.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    """

    per_parent: int = 1
    miller: tuple[tuple[int, int, int], ...] = ((1, 0, 0), (1, 1, 0), (1, 1, 1))
    min_slab_ang: float = 8.0
    vacuum_ang: float = 10.0
    min_width_ang: float | None = None
    max_atoms: int = 500
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        for indices in self.miller:
            check_miller(indices)
        if not self.miller:
            raise InvalidInputError("miller: no indices given")
        for name in ("min_slab_ang", "vacuum_ang"):
            if not 0 < getattr(self, name) < np.inf:
                raise InvalidInputError(f"{name}: must be positive, got {getattr(self, name)}")
        if self.min_width_ang is not None and not 0 < self.min_width_ang < np.inf:
            raise InvalidInputError(f"min_width_ang: must be positive, got {self.min_width_ang}")
        pair_limits(self.min_distance_ang)


def check_miller(indices: tuple[int, int, int]) -> None:
    """Refuse anything but three integers, not all zero.

    :raises InvalidInputError: naming ``miller``.
    """
    if len(indices) != 3 or not any(indices):
        raise InvalidInputError(f"miller: expected three integers, not all zero, got {indices}")


def surface(parents: Frames, parameters: Surface, rng: np.random.Generator) -> Frames:
    """``per_parent`` slabs of every parent; periodic in the plane, the cell's third vector holds the vacuum.

    Composition: whole layers of the parent's cell, so that of the parent. Which termination comes first is random.
    Equal structures share a split group.

    :raises InvalidInputError: a parent without three periodic directions, a slab with more than ``max_atoms`` atoms.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made, rows = [], []
    for row in range(len(parents)):
        part = geometry(parents, row)
        what = f"surface of frame {name_of(parents, row)}"
        if not part.pbc.all():
            raise InvalidInputError(f"{what}: the parent must be periodic in three directions")
        layers = [oriented(part, indices) for indices in parameters.miller]
        starts = [int(rng.integers(len(terminations(layer)))) for layer in layers]
        for k in range(parameters.per_parent):
            which, turn = k % len(layers), k // len(layers)
            layer = layers[which]
            heights = terminations(layer)
            cut = heights[(starts[which] + turn) % len(heights)]
            slab = _slab(layer, float(cut), parameters, f"{what} {parameters.miller[which]}")
            check_apart(slab, limits, what)
            made.append(slab)
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def oriented(part: Geometry, miller: tuple[int, int, int]) -> Geometry:
    """The crystal in a cell whose first two vectors span the plane (hkl), with its normal along z.

    The cell has as many atoms as the given one; the two vectors are the shortest of the plane, at an angle of at most
    90°, and the third reaches the next equal layer.
    """
    divisor = gcd(*miller)
    h, k, l = (index // divisor for index in miller)  # noqa: E741  # the field's letters
    matrix = plane_basis((h, k, l))
    numbers, positions, cell = repeat(part.numbers, part.positions, part.cell, matrix)
    plane = minkowski_reduce(np.vstack([cell[:2], np.cross(cell[0], cell[1])]), pbc=[True, True, False])[0][:2]
    # shortest third vector: it may be moved by vectors of the plane
    shift = np.rint(np.linalg.lstsq(plane.T, cell[2], rcond=None)[0])
    cell = np.vstack([plane, cell[2] - shift @ plane])
    if np.linalg.det(cell) < 0:
        cell[1] = -cell[1]
    if cell[0] @ cell[1] < -1e-9:  # an acute angle: that of most tables, hexagonal planes at 60°
        cell[:2] = np.array([-cell[1], cell[0]])
    z = np.cross(cell[0], cell[1])
    x = cell[0] / np.linalg.norm(cell[0])
    z /= np.linalg.norm(z)
    rotation = np.array([x, np.cross(z, x), z]).T
    scaled = positions @ np.linalg.inv(cell)
    scaled -= np.floor(scaled + 1e-9)
    cell = cell @ rotation
    cell[np.abs(cell) < 1e-12] = 0.0
    return Geometry(numbers, scaled @ cell, cell, part.pbc)


def plane_basis(miller: tuple[int, int, int]) -> np.ndarray:
    """(3, 3) integer rows u, v, w with u·hkl = v·hkl = 0, w·hkl = 1, of determinant ±1.

    >>> plane_basis((1, 1, 1)) @ np.array([1, 1, 1])
    array([0, 0, 1])
    """
    span = max(abs(index) for index in miller) + 1
    vectors = np.array(list(product(range(-span, span + 1), repeat=3)))
    vectors = vectors[np.argsort((vectors**2).sum(axis=1), kind="stable")]
    steps = vectors @ np.array(miller)
    flat = vectors[(steps == 0) & vectors.any(axis=1)]
    w = vectors[steps == 1][0]
    for u in flat[:50]:
        for v in flat[:200]:
            if abs(round(float(np.linalg.det(np.array([u, v, w]))))) == 1:
                return np.array([u, v, w])
    raise InvalidInputError(f"miller: no lattice basis found for {miller}")


def terminations(layer: Geometry) -> np.ndarray:
    """(t,) heights (Å) between the planes of an oriented cell at which a slab can begin."""
    period = layer.cell[2, 2]
    heights = np.sort(layer.positions[:, 2] % period)
    gaps = np.diff(np.append(heights, heights[0] + period))
    cuts = heights + gaps / 2.0
    open_cuts = cuts[gaps > PLANE_GAP]
    return np.asarray(open_cuts if len(open_cuts) else cuts[[int(np.argmax(gaps))]]) % period


def _slab(layer: Geometry, cut: float, parameters: Surface, what: str) -> Geometry:
    period = layer.cell[2, 2]
    copies = max(1, int(np.ceil((parameters.min_slab_ang - 1e-6) / period)))
    widths = np.linalg.norm(np.cross(layer.cell[[1, 0]], [0.0, 0.0, 1.0]), axis=1)
    area = float(np.linalg.norm(np.cross(layer.cell[0], layer.cell[1])))
    wide = [1, 1]
    if parameters.min_width_ang is not None:
        wide = [int(np.ceil((parameters.min_width_ang - 1e-6) / (area / width))) for width in widths]
    n_atoms = len(layer.numbers) * copies * wide[0] * wide[1]
    if n_atoms > parameters.max_atoms:
        raise InvalidInputError(f"max_atoms: {what} has {n_atoms} atoms, allowed are {parameters.max_atoms}")
    # move the cut to the bottom of the cell, then stack
    scaled = (layer.positions - [0.0, 0.0, cut]) @ np.linalg.inv(layer.cell)
    scaled -= np.floor(scaled + 1e-9)
    numbers, positions, cell = repeat(layer.numbers, scaled @ layer.cell, layer.cell, np.diag([*wide, copies]))
    height = np.ptp(positions[:, 2]) + parameters.vacuum_ang
    positions[:, 2] -= positions[:, 2].min()
    order = np.lexsort((numbers, np.round(positions[:, 2], 6)))
    cell[2] = [0.0, 0.0, height]
    positions[:, 2] += parameters.vacuum_ang / 2.0
    return Geometry(numbers[order], positions[order], cell, np.array([True, True, False]))


GENERATOR = Generator(
    name="surface",
    parameters=Surface,
    run=surface,
    needs_parents=True,
    example={"per_parent": 4, "miller": ((1, 0, 0), (1, 1, 1)), "min_slab_ang": 5.0},
    draws="discrete",
)
