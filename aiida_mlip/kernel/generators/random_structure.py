"""Random structures (P1): random cells and positions with pair-wise minimum distances in a volume window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from ase.data import atomic_numbers, covalent_radii, reference_states
from ase.formula import Formula
from ase.geometry import cellpar_to_cell
from ase.geometry.minkowski_reduction import minkowski_reduce

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import DEFAULT_SCALE, pair_limits
from aiida_mlip.kernel.frames import Frames, frame_ids, from_arrays
from aiida_mlip.kernel.generators.base import Generator, at_least, stratified, window

#: Default window of the volume relative to that of the elements' ground-state crystals.
_RELATIVE_VOLUME: Final[tuple[float, float]] = (0.8, 1.4)
#: Volume per atom of the crystals that ASE tabulates, in units of a³ (c = (c/a)·a where there is one).
_CELL_FRACTION: Final[dict[str, float]] = {
    "fcc": 1 / 4,
    "bcc": 1 / 2,
    "diamond": 1 / 8,
    "sc": 1.0,
    "hcp": np.sqrt(3) / 4,
}
#: No arrangement of equal spheres fills more (Kepler; doi:10.4007/annals.2005.162.1065).
_DENSEST: Final[float] = np.pi / np.sqrt(18.0)
_TRIES_PER_ATOM: Final[int] = 2000
_ANGLES: Final[tuple[float, float]] = (60.0, 120.0)


@dataclass(frozen=True)
class RandomStructure:
    """Keys of a random_structure step.

    :param composition: formula of the cell's content, e.g. ``Si8`` or ``Na4Cl4``; or a list, taken in turn.
    :param count: structures made, all compositions together.
    :param volume_ang3_per_atom: window of the volume (Å³ per atom), stratified; None: 0.8 to 1.4 times that of the
        elements' crystals.
    :param max_aspect: largest ratio of two cell lengths.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: cells tried for one structure before giving up.
    """

    composition: str | tuple[str, ...]
    count: int = 1
    volume_ang3_per_atom: tuple[float, float] | None = None
    max_aspect: float = 2.0
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 100

    def __post_init__(self) -> None:
        """Check the values, and that the densest packing could hold the requested distances at all."""
        at_least(self.count, 1, "count")
        at_least(self.max_attempts, 1, "max_attempts")
        if self.max_aspect < 1.0:
            raise InvalidInputError(f"max_aspect: must be at least 1, got {self.max_aspect}")
        for formula in self.formulas:
            check_packing(formula, self.volume_ang3_per_atom, self.min_distance_ang)

    @property
    def formulas(self) -> tuple[str, ...]:
        """Compositions as a tuple."""
        return (self.composition,) if isinstance(self.composition, str) else tuple(self.composition)


def parse_composition(formula: str) -> np.ndarray:
    """Atomic numbers (a,) of a formula, in its order.

    :raises InvalidInputError: not a formula, or of unknown elements.

    >>> parse_composition("Si2O").tolist()
    [14, 14, 8]
    """
    try:
        counts = Formula(formula).count()
    except (ValueError, KeyError) as error:
        raise InvalidInputError(f"composition: cannot read {formula!r} ({error})") from error
    if not counts or any(symbol not in atomic_numbers or symbol == "X" for symbol in counts):
        raise InvalidInputError(f"composition: {formula!r} has no atoms or unknown elements")
    return np.array([atomic_numbers[s] for s, n in counts.items() for _ in range(n)], dtype=np.uint8)


def volume_window(numbers: np.ndarray, given: tuple[float, float] | None) -> tuple[float, float]:
    """Window of the volume (Å³ per atom): the given one, or one around the mean of the elements' crystals."""
    if given is not None:
        return window(given, "volume_ang3_per_atom", smallest=0.1)
    volume = float(np.mean([crystal_volume(int(z)) for z in numbers]))
    return _RELATIVE_VOLUME[0] * volume, _RELATIVE_VOLUME[1] * volume


def check_packing(
    formula: str, volume_ang3_per_atom: tuple[float, float] | None, min_distance_ang: float | Mapping[str, float] | None
) -> None:
    """Refuse distances that not even the densest packing of spheres could keep in the largest volume.

    :raises InvalidInputError: naming ``min_distance_ang``; an unreadable formula or window.
    """
    numbers = parse_composition(formula)
    _, high = volume_window(numbers, volume_ang3_per_atom)
    shortest = float(np.mean(np.diag(pair_limits(min_distance_ang))[numbers] ** 3))
    if np.pi / 6.0 * shortest > _DENSEST * high:
        raise InvalidInputError(
            f"min_distance_ang: {min_distance_ang} cannot be kept by {formula} in {high:.2f} Å³ per atom "
            "(denser than the densest packing of spheres): lower it or raise volume_ang3_per_atom"
        )


def crystal_volume(number: int) -> float:
    """Volume (Å³ per atom) of an element's crystal as ASE tabulates it, else four times its sphere of covalent radius.

    >>> round(crystal_volume(14), 1)
    20.0
    """
    state = reference_states[number] or {}
    fraction = _CELL_FRACTION.get(state.get("symmetry", ""))
    if fraction is None:
        return float(4.0 * 4.0 / 3.0 * np.pi * covalent_radii[number] ** 3)
    return float(fraction * state["a"] ** 3 * state.get("c/a", 1.0))


def random_structure(_parents: Frames, parameters: RandomStructure, rng: np.random.Generator) -> Frames:
    """``count`` random structures; each is a split group of its own and has no parent.

    The cell has lengths within ``max_aspect`` and angles of 60° to 120°; atoms are placed one after another at uniform
    random positions, rejecting those that come too close to one placed already (random sequential addition).

    :raises InvalidInputError: the minimum distances cannot be kept at this volume.
    """
    limits = pair_limits(parameters.min_distance_ang, scale=DEFAULT_SCALE)
    formulas = parameters.formulas
    numbers = [parse_composition(formulas[k % len(formulas)]) for k in range(parameters.count)]
    strata = stratified(0.0, 1.0, parameters.count, rng)
    positions, cells = [], []
    for species, fraction in zip(numbers, strata, strict=True):
        low, high = volume_window(species, parameters.volume_ang3_per_atom)
        volume = (low + fraction * (high - low)) * len(species)
        for _ in range(parameters.max_attempts):
            cell = random_cell(volume, parameters.max_aspect, rng)
            placed = place_atoms(species, cell, limits, rng)
            if placed is not None:
                break
        else:
            raise InvalidInputError(
                f"min_distance_ang: no arrangement of {len(species)} atoms in {volume / len(species):.2f} Å³ per atom "
                f"in {parameters.max_attempts} cells; lower it or raise volume_ang3_per_atom"
            )
        positions.append(placed)
        cells.append(cell)
    frames = from_arrays(
        natoms=np.array([len(species) for species in numbers]),
        numbers=np.concatenate(numbers),
        positions=np.concatenate(positions),
        cell=np.array(cells),
        pbc=np.ones((len(cells), 3), dtype=bool),
    )
    return frames.with_columns(group_id=frame_ids(frames))


def random_cell(volume: float, max_aspect: float, rng: np.random.Generator) -> np.ndarray:
    """(3, 3) random cell (Å, reduced) of a volume (Å³)."""
    while True:
        lengths = rng.uniform(1.0, max_aspect, 3) if max_aspect > 1.0 else np.ones(3)
        angles = np.degrees(np.arccos(rng.uniform(np.cos(np.radians(_ANGLES[1])), np.cos(np.radians(_ANGLES[0])), 3)))
        cosines = np.cos(np.radians(angles))
        # squared volume of the unit parallelepiped: flat ones are drawn again
        if 1.0 + 2.0 * cosines.prod() - (cosines**2).sum() > 0.25:
            break
    cell = cellpar_to_cell([*lengths, *angles])
    cell *= (volume / abs(np.linalg.det(cell))) ** (1.0 / 3.0)
    return np.asarray(minkowski_reduce(cell)[0])


def place_atoms(
    numbers: np.ndarray, cell: np.ndarray, limits: np.ndarray, rng: np.random.Generator
) -> np.ndarray | None:
    """Random positions (a, 3) Å in a cell that keep the limits, by random sequential addition; None when jammed."""
    species = np.unique(numbers)
    reach = float(limits[np.ix_(species, species)].max())
    heights = abs(np.linalg.det(cell)) / np.linalg.norm(np.cross(cell[[1, 2, 0]], cell[[2, 0, 1]]), axis=1)
    n_images = np.ceil(reach / heights).astype(int) + 1
    grid = np.stack(np.meshgrid(*(np.arange(-n, n + 1) for n in n_images), indexing="ij"), axis=-1).reshape(-1, 3)
    images = grid @ cell
    own = np.linalg.norm(images[grid.any(axis=1)], axis=1).min()
    if (own < np.diag(limits)[species]).any():
        return None
    placed = np.zeros((len(numbers), 3))
    for k, z in enumerate(numbers):
        for batch in rng.random((_TRIES_PER_ATOM // 50, 50, 3)):
            trial = batch @ cell
            if k == 0:
                placed[0] = trial[0]
                break
            vectors = trial[:, None, None] - placed[None, :k, None] - images[None, None]
            distances = np.sqrt((vectors**2).sum(axis=-1)).min(axis=2)
            apart = np.flatnonzero((distances >= limits[z, numbers[:k]]).all(axis=1))
            if len(apart):
                placed[k] = trial[apart[0]]
                break
        else:
            return None
    return placed


GENERATOR = Generator(
    name="random_structure",
    parameters=RandomStructure,
    run=random_structure,
    needs_parents=False,
    example={
        "composition": ("Si8", "Si4Ge4"),
        "count": 5,
        "volume_ang3_per_atom": (15.0, 28.0),
        "min_distance_ang": 1.9,
    },
)
