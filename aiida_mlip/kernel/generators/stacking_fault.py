"""Stacking faults: crystals cut along a plane, one half moved along it (a γ-surface)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, geometry, is_apart, name_of
from aiida_mlip.kernel.generators.base import Generator, at_least, stratified, window
from aiida_mlip.kernel.generators.surface import check_miller, oriented, terminations
from aiida_mlip.kernel.supercells import repeat


@dataclass(frozen=True)
class StackingFault:
    """Keys of a stacking_fault step.

    :param per_parent: faults made of each parent.
    :param miller: plane of the fault (indices of the parent's cell as given).
    :param direction: displacement in units of the plane's two shortest vectors (at an angle of at most 90°), reached
        in ``per_parent`` steps from 0 (a γ-line); None: anywhere in the plane, at random (a γ-surface).
    :param min_layers_ang: smallest distance (Å) between a fault and its image.
    :param opening_ang: window of the extra gap (Å) at the fault, stratified.
    :param max_atoms: refuse larger cells.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: redraws of one fault before giving up.
    """

    per_parent: int = 5
    miller: tuple[int, int, int] = (1, 1, 1)
    direction: tuple[float, float] | None = None
    min_layers_ang: float = 10.0
    opening_ang: float | tuple[float, float] = 0.0
    max_atoms: int = 500
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 100

    def __post_init__(self) -> None:
        """Check the values."""
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.max_attempts, 1, "max_attempts")
        check_miller(self.miller)
        window(self.opening_ang, "opening_ang")
        if not 0 < self.min_layers_ang < np.inf:
            raise InvalidInputError(f"min_layers_ang: must be positive, got {self.min_layers_ang}")
        pair_limits(self.min_distance_ang)


def stacking_fault(parents: Frames, parameters: StackingFault, rng: np.random.Generator) -> Frames:
    """``per_parent`` faulted crystals of every parent: one fault per cell, periodic in three directions.

    The crystal is stacked along the normal; adding the displacement to the third vector of the cell moves each image
    against the next, without touching the atoms (doi:10.1080/14786436808227500). Equal structures share a split group.

    :raises InvalidInputError: a parent without three periodic directions, too many atoms, or a displacement that
        brings atoms closer than allowed.
    """
    limits = pair_limits(parameters.min_distance_ang)
    low, high = window(parameters.opening_ang, "opening_ang")
    made, rows = [], []
    for row in range(len(parents)):
        part = geometry(parents, row)
        what = f"stacking_fault in frame {name_of(parents, row)}"
        if not part.pbc.all():
            raise InvalidInputError(f"{what}: the parent must be periodic in three directions")
        stack = _stack(oriented(part, parameters.miller), parameters, what)
        openings = stratified(low, high, parameters.per_parent, rng)
        for k in range(parameters.per_parent):
            for _ in range(parameters.max_attempts):
                moved = _displace(stack, _displacement(parameters, k, rng), float(openings[k]))
                if is_apart(moved, limits):
                    break
                if parameters.direction is not None:
                    raise InvalidInputError(
                        f"direction: {what}: step {k} of {parameters.direction} breaks min_distance_ang; "
                        "raise opening_ang"
                    )
            else:
                raise InvalidInputError(
                    f"min_distance_ang: {what}: not kept in {parameters.max_attempts} draws; raise opening_ang"
                )
            made.append(moved)
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def _stack(layer: Geometry, parameters: StackingFault, what: str) -> Geometry:
    """Oriented cell repeated along its normal, cut at the widest gap between planes."""
    copies = max(1, int(np.ceil((parameters.min_layers_ang - 1e-6) / layer.cell[2, 2])))
    if len(layer.numbers) * copies > parameters.max_atoms:
        raise InvalidInputError(
            f"max_atoms: {what} has {len(layer.numbers) * copies} atoms, allowed are {parameters.max_atoms}"
        )
    heights = np.sort(layer.positions[:, 2] % layer.cell[2, 2])
    gaps = np.diff(np.append(heights, heights[0] + layer.cell[2, 2]))
    widest = float((heights + gaps / 2.0)[int(np.argmax(np.round(gaps, 6)))])
    cut = min(terminations(layer), key=lambda height: abs((height - widest) % layer.cell[2, 2]))
    scaled = (layer.positions - [0.0, 0.0, float(cut)]) @ np.linalg.inv(layer.cell)
    scaled -= np.floor(scaled + 1e-9)
    numbers, positions, cell = repeat(layer.numbers, scaled @ layer.cell, layer.cell, np.diag([1, 1, copies]))
    return Geometry(numbers, positions, cell, layer.pbc)


def _displacement(parameters: StackingFault, k: int, rng: np.random.Generator) -> np.ndarray:
    if parameters.direction is None:
        return rng.random(2)
    return np.array(parameters.direction) * k / max(parameters.per_parent - 1, 1)


def _displace(stack: Geometry, shift: np.ndarray, opening: float) -> Geometry:
    cell = stack.cell.copy()
    cell[2] += shift @ stack.cell[:2] + np.array([0.0, 0.0, opening])
    return stack._replace(cell=cell)


GENERATOR = Generator(
    name="stacking_fault",
    parameters=StackingFault,
    run=stacking_fault,
    needs_parents=True,
    example={"per_parent": 3, "min_layers_ang": 6.0, "min_distance_ang": 1.5},
)
