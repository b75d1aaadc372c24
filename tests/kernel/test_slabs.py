"""Slabs: every atom once, every neighbour there, at its distance; any cell, any periodicity, any number of pieces."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.cells import boxed
from aiida_mlip.kernel.slabs import SlabDecomposition

CUTOFF = 3.2


def crystal(seed: int, repeat: tuple[int, int, int], pbc: tuple[bool, bool, bool], triclinic: bool) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = bulk("Cu", cubic=True) * repeat
    if triclinic:
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.3 * rng.uniform(-1, 1, (3, 3))), scale_atoms=True)
    atoms.rattle(0.1, rng=rng)
    atoms.pbc = pbc
    atoms.positions += rng.uniform(-30, 30, 3)
    del atoms[rng.choice(len(atoms), len(atoms) // 5, replace=False)]
    return atoms


def layered(positions, cell, pbc, layers, n_centres=None):
    """Message passing in miniature: L rounds of sums over neighbours of the centres."""
    moved, box = boxed(positions, cell, pbc, padding=1.0)
    i, j, d = neighbour_list("ijd", positions=moved, cell=box, pbc=pbc, numbers=np.ones(len(positions), np.int32),
                             cutoff=CUTOFF)  # fmt: skip
    if n_centres is not None:
        keep = i < n_centres
        i, j, d = i[keep], j[keep], d[keep]
    values = np.zeros(len(positions))
    for _ in range(layers):
        result = 0.5 * values
        np.add.at(result, i, np.cos(values[j] * 1.7) * (CUTOFF - d))
        values = result
    return values


@given(
    st.integers(0, 10_000),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.tuples(*[st.booleans()] * 3),
    st.booleans(),
    st.sampled_from([1, 40, 150, 100_000]),
    st.integers(1, 3),
)
@settings(max_examples=60)
def test_pieces_say_what_the_whole_says(seed, repeat, pbc, triclinic, max_atoms, layers):
    atoms = crystal(seed, repeat, pbc, triclinic)
    whole = layered(atoms.positions, atoms.cell.array, atoms.pbc, layers)
    found, times = np.zeros(len(atoms)), np.zeros(len(atoms), dtype=int)
    slabs = SlabDecomposition(
        atoms.positions, atoms.cell.array, atoms.pbc, cutoff=CUTOFF, layers=layers, max_atoms=max_atoms
    )
    for slab in slabs:
        assert slab.n_core >= 1
        part = layered(slab.positions, np.zeros((3, 3)), np.zeros(3, bool), layers, slab.n_centres)
        own = slab.atoms[: slab.n_core]
        found[own] = part[: slab.n_core]
        times[own] += 1
    assert (times == 1).all()
    np.testing.assert_allclose(found, whole, rtol=1e-9, atol=1e-9)


@given(st.integers(0, 1000), st.tuples(*[st.integers(1, 3)] * 3), st.tuples(*[st.booleans()] * 3), st.booleans())
@settings(max_examples=20)
def test_around_finds_what_a_neighbour_list_finds(seed, repeat, pbc, triclinic):
    atoms = crystal(seed, repeat, pbc, triclinic)
    slabs = SlabDecomposition(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=CUTOFF, layers=1, max_atoms=50)
    i, j, vectors = neighbour_list("ijD", atoms, 4.1)
    atom = seed % len(atoms)
    found, to = slabs.around(atom, 4.1)
    assert found[0] == atom
    assert sorted(found[1:]) == sorted(j[i == atom])
    key = np.lexsort(vectors[i == atom].round(6).T)
    np.testing.assert_allclose(to[1:][np.lexsort(to[1:].round(6).T)], vectors[i == atom][key], atol=1e-6)


def test_a_thinner_halo_would_be_noticed():
    """The law above is not true by accident: without the outer zone it fails."""
    atoms = crystal(0, (4, 4, 4), (True, True, True), triclinic=False)
    whole = layered(atoms.positions, atoms.cell.array, atoms.pbc, 2)
    found = np.zeros(len(atoms))
    for slab in SlabDecomposition(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=CUTOFF, layers=2, max_atoms=150):
        part = layered(slab.positions[: slab.n_centres], np.zeros((3, 3)), np.zeros(3, bool), 2)
        found[slab.atoms[: slab.n_core]] = part[: slab.n_core]
    assert np.abs(found - whole).max() > 0.1


def test_pieces_keep_their_size_and_waste_little():
    atoms = bulk("Cu", cubic=True) * (14, 14, 14)
    slabs = SlabDecomposition(atoms.positions, atoms.cell.array, atoms.pbc, cutoff=4.5, layers=2, max_atoms=4000)
    pieces = list(slabs)
    assert len(pieces) == len(slabs)
    assert max(len(slab.atoms) for slab in pieces) < 1.2 * 4000
    assert sum(slab.n_centres for slab in pieces) < 0.65 * sum(len(slab.atoms) for slab in pieces)


def test_crowded_pieces_are_halved_and_empty_ones_left_out():
    rng = np.random.default_rng(0)
    dense = rng.uniform(0, 20, (4000, 3))
    positions = np.concatenate([dense, [[195.0, 195.0, 195.0]]])
    slabs = SlabDecomposition(positions, 200 * np.eye(3), np.ones(3, bool), cutoff=1.0, layers=1, max_atoms=500)
    pieces = list(slabs)
    assert max(len(slab.atoms) for slab in pieces) <= 750
    assert np.array_equal(
        np.sort(np.concatenate([slab.atoms[: slab.n_core] for slab in pieces])), np.arange(len(positions))
    )


def test_atoms_on_top_of_one_another_end():
    slabs = SlabDecomposition(np.zeros((50, 3)), 10 * np.eye(3), np.ones(3, bool), cutoff=2.0, layers=1, max_atoms=10)
    assert sum(slab.n_core for slab in slabs) == 50


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "must be positive"),
        ({"layers": 0}, "must be positive"),
        ({"max_atoms": 0}, "must be positive"),
        ({"positions": np.array([[0.0, 0, 0], [0, np.nan, 0]])}, "atom 1 is not finite"),
        ({"cell": np.ones((3, 3))}, "no volume"),
        ({"cell": np.zeros((3, 3))}, "no cell vector"),
    ],
)
def test_bad_input_is_refused(change, message):
    values = {"positions": np.zeros((2, 3)), "cell": 5 * np.eye(3), "pbc": np.ones(3, bool), "cutoff": 1.0,
              "layers": 1, "max_atoms": 10, **change}  # fmt: skip
    with pytest.raises(InvalidInputError, match=message):
        SlabDecomposition(values.pop("positions"), values.pop("cell"), values.pop("pbc"), **values)
