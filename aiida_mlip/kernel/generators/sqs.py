"""Special quasirandom structures: small cells that imitate the random alloy (by icet)."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import pair_limits
from aiida_mlip.kernel.frames import Frames
from aiida_mlip.kernel.generators.assembly import (
    Geometry,
    assemble,
    atomic_number,
    check_apart,
    enlarged,
    formula,
    geometry,
    name_of,
    sites_of,
)
from aiida_mlip.kernel.generators.base import Generator, at_least
from aiida_mlip.kernel.generators.decoration import check_fractions, check_species, site_counts, volume_scale

if TYPE_CHECKING:
    from ase import Atoms

#: The exhaustive search is used up to this many sites unless the method is given.
_ENUMERATE_UP_TO: Final[int] = 8


@dataclass(frozen=True)
class Sqs:
    """Keys of an sqs step.

    :param fractions: share of each element on the sublattice, ``{element: share}``, at least two.
    :param n_atoms: atoms of the SQS; its cell's shape is part of the search. This or ``min_image_distance_ang``.
    :param min_image_distance_ang: decorate the smallest supercell of the parent that keeps this distance (Å).
    :param sites: elements of the parent that form the sublattice; None: all its atoms.
    :param cutoffs_ang: radii (Å) up to which pairs, triplets, ... are to look random.
    :param method: ``enumerate``: the best of all cells of ``n_atoms`` (exact, small cells only); ``monte_carlo``:
        simulated annealing; ``auto``: enumerate up to 8 sites.
    :param n_steps: Monte-Carlo steps.
    :param per_parent: SQS made of each parent, by annealing with different random numbers.
    :param scale_volume: scale the cell so that its volume follows the elements' crystals (Zen's law).
    :param min_distance_ang: see :func:`~aiida_mlip.kernel.distances.pair_limits`.
    """

    fractions: Mapping[str, float]
    n_atoms: int | None = None
    min_image_distance_ang: float | None = None
    sites: tuple[str, ...] | None = None
    cutoffs_ang: tuple[float, ...] = (7.0, 4.0)
    method: Literal["auto", "enumerate", "monte_carlo"] = "auto"
    n_steps: int = 3000
    per_parent: int = 1
    scale_volume: bool = False
    min_distance_ang: float | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        check_species(tuple(self.fractions))
        check_fractions(self.fractions)
        at_least(self.per_parent, 1, "per_parent")
        at_least(self.n_steps, 1, "n_steps")
        if (self.n_atoms is None) == (self.min_image_distance_ang is None):
            raise InvalidInputError("n_atoms: give either n_atoms or min_image_distance_ang")
        if self.n_atoms is not None:
            at_least(self.n_atoms, 2, "n_atoms")
        elif self.method == "enumerate":
            raise InvalidInputError("method: enumerate searches over cells, it needs n_atoms")
        if not self.cutoffs_ang or min(self.cutoffs_ang) <= 0:
            raise InvalidInputError(f"cutoffs_ang: expected positive radii, got {self.cutoffs_ang}")
        pair_limits(self.min_distance_ang)


def sqs(parents: Frames, parameters: Sqs, rng: np.random.Generator) -> Frames:
    """``per_parent`` special quasirandom structures (doi:10.1103/PhysRevLett.65.353) on the lattice of every parent.

    The cluster vector of the cell is brought as close as possible to that of the random alloy, short distances first
    (doi:10.1016/j.calphad.2013.06.006); the numbers of atoms are exactly those asked for.

    :raises InvalidInputError: icet is not installed, a parent that is not periodic, shares that ``n_atoms`` cannot
        hold, or the decorated lattice breaks a minimum distance.
    """
    limits = pair_limits(parameters.min_distance_ang)
    made, rows = [], []
    for row in range(len(parents)):
        what = f"sqs of frame {name_of(parents, row)}"
        part = geometry(parents, row)
        if not part.pbc.all():
            raise InvalidInputError(f"{what}: the parent must be periodic in three directions")
        sites = sites_of(part, parameters.sites, "sites")
        host = enlarged(part, parameters.min_image_distance_ang)
        wanted = _counts(part, host, sites, parameters)
        seeds = rng.integers(2**31 - 1, size=parameters.per_parent)
        for atoms in _search(part, host, sites, wanted, seeds, parameters):
            found = Geometry(
                atoms.numbers.astype(np.uint8), atoms.positions, np.array(atoms.cell.array), np.ones(3, dtype=bool)
            )
            _check_counts(found, part, sites, wanted, what)
            if parameters.scale_volume:
                before = np.repeat(part.numbers, len(found.numbers) // len(part.numbers) + 1)[: len(found.numbers)]
                scale = volume_scale(before, found.numbers)
                found = found._replace(positions=scale * found.positions, cell=scale * found.cell)
            check_apart(found, limits, what)
            made.append(found)
            rows.append(row)
    return assemble(made, parents=parents, rows=rows, by_structure=True)


def _counts(part: Geometry, host: Geometry, sites: np.ndarray, parameters: Sqs) -> dict[str, int]:
    """Atoms of each element on the sublattice of the SQS."""
    n_atoms = len(host.numbers) if parameters.n_atoms is None else parameters.n_atoms
    exact = n_atoms * len(sites) / len(part.numbers)
    if abs(exact - round(exact)) > 1e-9:
        raise InvalidInputError(f"n_atoms: {n_atoms} atoms are no supercell of a parent of {formula(part.numbers)}")
    counts = site_counts(parameters.fractions, round(exact))
    asked = {symbol: share * exact for symbol, share in parameters.fractions.items()}
    if any(abs(counts[symbol] - asked[symbol]) > 1e-6 for symbol in counts):
        raise InvalidInputError(
            f"fractions: {dict(parameters.fractions)} are no whole numbers of atoms on {round(exact)} sites; "
            f"the nearest are {counts}"
        )
    return counts


def _search(
    part: Geometry,
    host: Geometry,
    sites: np.ndarray,
    wanted: Mapping[str, int],
    seeds: np.ndarray,
    parameters: Sqs,
) -> Iterator[Atoms]:
    """SQS by icet, one for each seed."""
    from ase import Atoms
    from ase.data import chemical_symbols

    allowed = [[chemical_symbols[z]] for z in part.numbers]
    for site in sites:
        allowed[site] = sorted(parameters.fractions)
    total = sum(wanted.values())
    shares = {symbol: count / total for symbol, count in wanted.items()}
    method = parameters.method
    if method == "auto":
        small = parameters.n_atoms is not None and total <= _ENUMERATE_UP_TO
        method = "enumerate" if small else "monte_carlo"
    lattice = Atoms(numbers=part.numbers, positions=part.positions, cell=part.cell, pbc=True)
    with _icet() as (cluster_space, generation):
        space = cluster_space(lattice, list(parameters.cutoffs_ang), allowed)
        for seed in seeds.tolist():
            if method == "enumerate":
                yield generation.generate_sqs_by_enumeration(
                    space, _primitive_cells(space, parameters), shares, include_smaller_cells=False
                )
            elif parameters.n_atoms is not None:
                yield generation.generate_sqs(
                    space,
                    _primitive_cells(space, parameters),
                    shares,
                    include_smaller_cells=False,
                    n_steps=parameters.n_steps,
                    random_seed=seed,
                )
            else:
                cell = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
                yield generation.generate_sqs_from_supercells(
                    space, [cell], shares, n_steps=parameters.n_steps, random_seed=seed
                )


def _primitive_cells(space: Any, parameters: Sqs) -> int:
    """Primitive cells in ``n_atoms``; ``space`` is an icet ClusterSpace (untyped)."""
    primitive = len(space.primitive_structure)
    n_atoms = parameters.n_atoms or 0
    if n_atoms % primitive:
        raise InvalidInputError(f"n_atoms: {n_atoms} is no multiple of the {primitive} atoms of the primitive cell")
    return n_atoms // primitive


@contextmanager
def _icet() -> Iterator[tuple[Any, Any]]:
    """ClusterSpace and the search functions of icet (untyped); the global random numbers it seeds are put back."""
    try:
        from icet import ClusterSpace
        from icet.tools import structure_generation
    except ImportError as error:
        raise InvalidInputError(
            "generator sqs: icet is not installed; pip install 'aiida-mlip-workchains[generators]'"
        ) from error
    state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield ClusterSpace, structure_generation
    finally:
        random.setstate(state)
        np.random.set_state(numpy_state)


def _check_counts(found: Geometry, part: Geometry, sites: np.ndarray, wanted: Mapping[str, int], what: str) -> None:
    """Refuse an SQS that does not have the atoms asked for (never trust a search blindly)."""
    n_cells = sum(wanted.values()) / len(sites)
    expected = np.zeros(119)
    fixed = np.delete(np.arange(len(part.numbers)), sites)
    np.add.at(expected, part.numbers[fixed], n_cells)
    for symbol, count in wanted.items():
        expected[atomic_number(symbol, "fractions")] += count
    if not np.allclose(np.bincount(found.numbers, minlength=119), expected):
        raise InvalidInputError(f"{what}: the search returned {formula(found.numbers)} instead of {dict(wanted)}")


GENERATOR = Generator(
    name="sqs",
    parameters=Sqs,
    run=sqs,
    needs_parents=True,
    example={"fractions": {"Si": 0.5, "Ge": 0.5}, "n_atoms": 8, "cutoffs_ang": (5.0,)},
    composition="asked",
    draws="discrete",
)
