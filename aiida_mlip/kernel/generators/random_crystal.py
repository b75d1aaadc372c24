"""Random crystals: random Wyckoff positions of a space group (by pyxtal)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
from ase.data import chemical_symbols

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import Geometry, assemble, formula, is_apart
from aiida_mlip.kernel.generators.base import Generator, at_least, stratified
from aiida_mlip.kernel.generators.random_structure import check_packing, parse_composition, volume_window
from aiida_mlip.kernel.symmetry import has_operations, primitive_of_centring

#: A structure that keeps its symmetry does so to this distance (Å): it is made from exact operations.
_SYMMETRY_TOLERANCE: Final[float] = 1e-4
#: Atoms a general position may multiply to, above which the search for Wyckoff positions is not started.
_MOST_ATOMS: Final[int] = 400


@dataclass(frozen=True)
class RandomCrystal:
    """Keys of a random_crystal step.

    :param composition: formula of the unit, e.g. ``SiO2``; or a list, taken in turn.
    :param count: crystals made, all compositions together.
    :param formula_units: units in the cell that is returned, a number or several, taken in turn.
    :param space_groups: numbers (1..230) to draw from; None: all that can hold the composition.
    :param primitive: return the primitive cell of the space group's lattice; ``composition`` times ``formula_units`` is
        always the content of the cell that is returned.
    :param exact: refuse crystals whose symmetry is accidentally higher than that of the group drawn.
    :param volume_ang3_per_atom: window of the volume (Å³ per atom), stratified; None: 0.8 to 1.4 times that of the
        elements' crystals.
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    :param max_attempts: draws (of a space group, volume, cell and positions) for one crystal before giving up.
    """

    composition: str | tuple[str, ...]
    count: int = 1
    formula_units: int | tuple[int, ...] = (1, 2, 4)
    space_groups: int | tuple[int, ...] | None = None
    primitive: bool = False
    exact: bool = False
    volume_ang3_per_atom: tuple[float, float] | None = None
    min_distance_ang: float | Mapping[str, float] | None = None
    max_attempts: int = 200

    def __post_init__(self) -> None:
        """Check the values, and that the space groups asked for can hold the composition (this loads pyxtal)."""
        at_least(self.count, 1, "count")
        at_least(self.max_attempts, 1, "max_attempts")
        for units in self.units:
            at_least(units, 1, "formula_units")
        for number in self.groups or ():
            if not 1 <= number <= 230:
                raise InvalidInputError(f"space_groups: expected numbers in 1..230, got {number}")
        if not self.units or self.groups == ():
            raise InvalidInputError("formula_units, space_groups: an empty list")
        pair_limits(self.min_distance_ang)
        for text in self.formulas:
            check_packing(text, self.volume_ang3_per_atom, self.min_distance_ang)
            if self.groups is not None:
                for units in self.units:
                    compatible_groups(text, units, self)

    @property
    def formulas(self) -> tuple[str, ...]:
        """Compositions as a tuple."""
        return (self.composition,) if isinstance(self.composition, str) else tuple(self.composition)

    @property
    def units(self) -> tuple[int, ...]:
        """Formula units as a tuple."""
        return (self.formula_units,) if isinstance(self.formula_units, int) else tuple(self.formula_units)

    @property
    def groups(self) -> tuple[int, ...] | None:
        """Space groups as a tuple."""
        return (self.space_groups,) if isinstance(self.space_groups, int) else self.space_groups


def random_crystal(_parents: Frames, parameters: RandomCrystal, rng: np.random.Generator) -> Frames:
    """``count`` random crystals (doi:10.1016/j.cpc.2020.107810), each a split group of its own.

    Every one has the composition asked for, keeps the minimum distances, lies in the volume window, and has all
    operations of the space group drawn for it (it may have more, unless ``exact``).

    :raises InvalidInputError: pyxtal is not installed, no space group holds the composition, or no crystal that keeps
        the distances was found.
    """
    limits = pair_limits(parameters.min_distance_ang)
    variants = [(text, units) for units in parameters.units for text in parameters.formulas]
    choices = [compatible_groups(text, units, parameters) for text, units in variants]
    strata = stratified(0.0, 1.0, parameters.count, rng)
    made = []
    for k in range(parameters.count):
        text, units = variants[k % len(variants)]
        numbers = np.sort(np.tile(parse_composition(text), units))
        low, high = volume_window(numbers, parameters.volume_ang3_per_atom)
        volume = float(low + strata[k] * (high - low))
        for _ in range(parameters.max_attempts):
            group = int(rng.choice(choices[k % len(variants)]))
            part = draw_crystal(numbers, group, volume, limits, rng, primitive=parameters.primitive)
            if part is not None and is_apart(part, limits) and _fits(part, group, parameters):
                break
        else:
            raise InvalidInputError(
                f"min_distance_ang: no crystal of {formula(numbers)} in {volume:.2f} Å³ per atom among "
                f"{len(choices[k % len(variants)])} space groups in {parameters.max_attempts} draws; lower it or raise "
                "volume_ang3_per_atom"
            )
        made.append(part)
    return assemble(made)


def compatible_groups(text: str, units: int, parameters: RandomCrystal) -> np.ndarray:
    """(g,) space groups, of those allowed, whose Wyckoff positions can hold a composition.

    :raises InvalidInputError: one that was asked for cannot, or none can.
    """
    species, counts = np.unique(np.tile(parse_composition(text), units), return_counts=True)
    wanted = range(1, 231) if parameters.groups is None else parameters.groups
    found = [n for n in wanted if _holds(n, tuple(counts.tolist()), parameters.primitive)]
    if parameters.groups is not None and (missing := [n for n in wanted if n not in found]):
        names = ", ".join(f"{n} {chemical_symbols[z]}" for z, n in zip(species, counts, strict=True))
        raise InvalidInputError(
            f"space_groups: {missing} cannot hold {names} ({units} x {text}"
            f"{', primitive cell' if parameters.primitive else ''}) on their Wyckoff positions; change formula_units "
            "or leave space_groups out"
        )
    return np.array(found)


@cache
def _holds(number: int, counts: tuple[int, ...], primitive: bool) -> bool:
    group = _group(number)
    size = np.array(counts) * (_centring(number) if primitive else 1)
    return bool(size.sum() <= _MOST_ATOMS and group.check_compatible(size)[0])


def draw_crystal(
    numbers: np.ndarray,
    number: int,
    volume_per_atom: float,
    limits: np.ndarray,
    rng: np.random.Generator,
    *,
    primitive: bool,
) -> Geometry | None:
    """One crystal of a space group, or None when the draw failed.

    :param numbers: (a,) atomic numbers of the cell that is returned.
    :param number: space group.
    :param volume_per_atom: Å³.
    """
    from pyxtal import pyxtal
    from pyxtal.lattice import Lattice
    from pyxtal.msg import Error, VolumeError
    from pyxtal.tolerance import Tol_matrix

    group = _group(number)
    factor = _centring(number) if primitive else 1
    species, counts = np.unique(numbers, return_counts=True)
    symbols = [chemical_symbols[z] for z in species]
    pairs = [(a, b, float(limits[i, j])) for i, a in zip(species, symbols, strict=True)
             for j, b in zip(species, symbols, strict=True)]  # fmt: skip
    crystal = pyxtal()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns about volumes that it cannot keep: those draws are dropped below
        try:
            lattice = Lattice(group.lattice_type, volume_per_atom * len(numbers) * factor, random_state=rng)
            crystal.from_random(
                3, group, symbols, (counts * factor).tolist(), lattice=lattice, tm=Tol_matrix(*pairs), max_count=1,
                random_state=rng,
            )  # fmt: skip
        except (RuntimeError, Error, VolumeError):
            return None
    if not crystal.valid:
        return None
    atoms = crystal.to_ase(resort=False)
    cell, scaled, found = np.array(atoms.cell.array), atoms.get_scaled_positions(), atoms.numbers.astype(np.uint8)
    if primitive:
        cell, scaled, found = primitive_of_centring(cell, scaled, found, group.symbol[0])
    order = np.argsort(found, kind="stable")
    part = Geometry(found[order], scaled[order] @ cell, cell, np.ones(3, dtype=bool))
    scale = (volume_per_atom * len(numbers) / abs(np.linalg.det(cell))) ** (1.0 / 3.0)
    part = part._replace(positions=scale * part.positions, cell=scale * part.cell)
    return part if np.array_equal(part.numbers, np.sort(numbers)) else None


def _fits(part: Geometry, number: int, parameters: RandomCrystal) -> bool:
    """Whether the crystal has the operations of its group and, for ``exact``, no more."""
    rotations, translations = _operations(number, parameters.primitive)
    if not has_operations(part.numbers, part.positions, part.cell, rotations, translations, _SYMMETRY_TOLERANCE):
        return False
    if not parameters.exact:
        return True
    import spglib

    scaled = part.positions @ np.linalg.inv(part.cell)
    found = spglib.get_symmetry_dataset((part.cell, scaled, part.numbers), symprec=_SYMMETRY_TOLERANCE)
    return found is not None and int(found.number) == number


@cache
def _operations(number: int, primitive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (m, 3, 3) and translations (m, 3) of a group in fractional coordinates of the cell returned."""
    operations = _group(number)[0].ops
    matrices = np.array([op.affine_matrix for op in operations])
    rotations, translations = matrices[:, :3, :3], matrices[:, :3, 3]
    if primitive:
        cell, _, _ = primitive_of_centring(np.eye(3), np.zeros((1, 3)), np.ones(1), _group(number).symbol[0])
        # x' = x · P⁻¹ for row vectors, hence W' = P⁻ᵀ W Pᵀ
        inverse = np.linalg.inv(cell)
        rotations = inverse.T @ rotations @ cell.T
        translations = translations @ inverse
    return rotations, translations


def _centring(number: int) -> int:
    """Lattice points in the conventional cell."""
    return {"P": 1, "R": 3, "F": 4}.get(_group(number).symbol[0], 2)


@cache
def _group(number: int) -> Any:
    """Group of pyxtal (untyped).

    :raises InvalidInputError: pyxtal is not installed.
    """
    try:
        from pyxtal.symmetry import Group
    except ImportError as error:
        raise InvalidInputError(
            "generator random_crystal: pyxtal is not installed; pip install 'aiida-mlip-workchains[generators]'"
        ) from error
    return Group(number)


def space_groups_of(frames: Frames, *, tolerance: float = 1e-3) -> Sequence[int]:
    """Space-group number of every row by spglib (doi:10.1080/27660400.2024.2384822).

    :param tolerance: Å.
    :raises InvalidInputError: a row without three periodic directions, or without a symmetry that spglib finds.
    """
    import spglib

    numbers = []
    for row in range(len(frames)):
        part = frames.atom_slice(row)
        if not frames.pbc[row].all():
            raise InvalidInputError(f"frame {row}: a space group needs three periodic directions")
        scaled = frames.positions[part] @ np.linalg.inv(frames.cell[row])
        found = spglib.get_symmetry_dataset((frames.cell[row], scaled, frames.numbers[part]), symprec=tolerance)
        if found is None:
            raise InvalidInputError(f"frame {row}: spglib finds no symmetry")
        numbers.append(int(found.number))
    return numbers


GENERATOR = Generator(
    name="random_crystal",
    parameters=RandomCrystal,
    run=random_crystal,
    needs_parents=False,
    example={"composition": ("Si", "SiO2"), "count": 4, "formula_units": (2, 4), "min_distance_ang": 1.4},
    draws="discrete",
)
