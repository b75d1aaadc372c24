"""The kept neighbour list is the one that a search would give, whatever the atoms and the cell do."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry import complete_cell
from hypothesis import given
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import closest_pair, pair_limits
from aiida_mlip.kernel.pair_list import PairList, Pairs


def as_set(pairs: Pairs) -> set[tuple[int, ...]]:
    rows = {
        (int(i), int(j), *shift.astype(int).tolist()) for i, j, shift in zip(*pairs.index, pairs.shift, strict=True)
    }
    assert len(rows) == pairs.index.shape[1]
    return rows


def searched(atoms: Atoms, cutoff: float) -> set[tuple[int, ...]]:
    i, j, shift = neighbour_list(
        "ijS", positions=atoms.positions, cell=complete_cell(atoms.cell), pbc=atoms.pbc, cutoff=cutoff
    )
    return {(int(a), int(b), *s.tolist()) for a, b, s in zip(i, j, shift, strict=True)}


@given(
    seed=st.integers(0, 2**32 - 1),
    step=st.floats(0.0, 0.3),
    strain=st.floats(0.0, 0.05),
    kind=st.sampled_from(["crystal", "small", "slab", "molecule"]),
    skin=st.sampled_from([0.0, 0.2, 0.7]),
)
def test_it_is_what_a_search_gives(seed: int, step: float, strain: float, kind: str, skin: float) -> None:
    rng = np.random.default_rng(seed)
    atoms = {
        "crystal": lambda: bulk("Cu", cubic=True).repeat((3, 2, 2)),
        "small": lambda: bulk("Cu"),  # more than one image of a neighbour
        "slab": lambda: Atoms(bulk("Si", cubic=True), pbc=(True, True, False)),
        "molecule": lambda: molecule("C6H6"),
    }[kind]()
    kept = PairList(3.7, skin=skin)
    for _ in range(6):
        atoms.positions += rng.normal(0.0, step, atoms.positions.shape)
        if atoms.pbc.all():
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + rng.normal(0, strain, (3, 3)) / 3), scale_atoms=True)
        pairs = kept.pairs(atoms.positions, atoms.cell.array, atoms.pbc)
        assert as_set(pairs) == searched(atoms, 3.7)
        fresh = PairList(3.7, skin=0.4).pairs(atoms.positions, atoms.cell.array, atoms.pbc)
        np.testing.assert_array_equal(pairs.index, fresh.index)  # in the same order, whatever came before
        np.testing.assert_array_equal(pairs.shift, fresh.shift)
        i, j = pairs.index
        vectors = atoms.positions[j] - atoms.positions[i] + pairs.shift @ atoms.cell.array
        np.testing.assert_allclose(pairs.distance, np.linalg.norm(vectors, axis=1), atol=1e-12)


def test_atoms_that_stay_are_not_searched_again() -> None:
    atoms = bulk("Cu", cubic=True).repeat(3)
    kept = PairList(4.0, skin=0.6)
    for _ in range(5):
        atoms.rattle(0.02, seed=1)
        kept.pairs(atoms.positions, atoms.cell.array, atoms.pbc)
    assert kept.n_searches == 1
    wrapped = atoms.positions.copy()
    wrapped[0] += atoms.cell.array[0]  # the same crystal, another image: the shifts are others
    kept.pairs(wrapped, atoms.cell.array, atoms.pbc)
    assert kept.n_searches == 2
    kept.pairs(wrapped[:-1], atoms.cell.array, atoms.pbc)
    kept.pairs(wrapped[:-1], atoms.cell.array, [True, True, False])
    assert kept.n_searches == 4


@given(seed=st.integers(0, 2**32 - 1), amplitude=st.floats(0.05, 0.8))
def test_closest_pair_is_that_of_the_kernel(seed: int, amplitude: float) -> None:
    atoms = bulk("SiC", crystalstructure="zincblende", a=4.4, cubic=True)
    atoms.positions += np.random.default_rng(seed).normal(0, amplitude, atoms.positions.shape)
    limits = pair_limits({"Si-C": 1.5}, scale=0.8)
    geometry = (atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    reference = closest_pair(*geometry, limits)
    found = PairList(4.0).pairs(*geometry[1:]).closest(atoms.numbers, limits)
    assert found[0] == pytest.approx(reference[0], abs=1e-9)
    assert {found[1], found[2]} == {reference[1], reference[2]}


def test_limits_of_the_settings() -> None:
    for cutoff, skin in ((0.0, 0.5), (-1.0, 0.5), (float("nan"), 0.5), (4.0, -0.1)):
        with pytest.raises(InvalidInputError, match="cutoff must be positive"):
            PairList(cutoff, skin=skin)
