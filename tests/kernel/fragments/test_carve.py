"""Fragments: exact where theory says exact, the same whatever the order of atoms, neutral, and honest refusals."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from scipy.spatial.distance import pdist
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.centres import choose_centres
from aiida_mlip.kernel.fragments.fragment import FragmentLimits, NoFragmentError, Region
from aiida_mlip.kernel.fragments.host import Host
from aiida_mlip.kernel.fragments.repair import charge

PERIODIC = np.ones(3, dtype=bool)
LATTICES = {
    "fcc": (bulk("Cu", cubic=True), 5.4),
    "bcc": (bulk("Fe", cubic=True), 5.4),
    "diamond": (bulk("Si", cubic=True), 5.4),
    "rocksalt": (bulk("NaCl", "rocksalt", a=5.64, cubic=True), 5.6),
    "hcp": (bulk("Mg"), 5.4),
}
IONS = {"Na": 1, "Cl": -1, "Mg": 2, "O": -2}


def host_of(atoms: Atoms) -> Host:
    return Host(atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array)


def arrays(atoms: Atoms):
    return atoms.numbers.astype(np.uint8), atoms.positions, atoms.cell.array, np.array(atoms.pbc)


def atoms_of(fragment) -> Atoms:
    return Atoms(numbers=fragment.numbers, positions=fragment.positions, cell=fragment.cell, pbc=fragment.pbc)


def rattled(crystal: Atoms, repeat: int, *, amplitude: float, seed: int = 0) -> Atoms:
    big = crystal * (repeat, repeat, repeat)
    big.positions += np.random.default_rng(seed).normal(scale=amplitude, size=big.positions.shape)
    return big


@pytest.mark.parametrize("name", LATTICES)
@pytest.mark.parametrize("seed", range(3))
def test_a_perfect_crystal_comes_back_exactly(name, seed):
    """Any rotation, strains to 5 %: the fragment is the ideal supercell, its atoms at 1e-6 Å."""
    crystal, in_radius = LATTICES[name]
    rng = np.random.default_rng(seed)
    strain = rng.uniform(-1, 1, (3, 3))
    strain = strain + strain.T
    strain *= 0.05 / np.abs(np.linalg.eigvalsh(strain)).max()
    turn = (np.eye(3) + strain) @ Rotation.random(random_state=seed).as_matrix()
    big = crystal * (8, 8, 8)
    big.set_cell(big.cell.array @ turn, scale_atoms=True)
    big.positions += rng.normal(size=3)
    limits = FragmentLimits(core_radius=in_radius - 3.0, buffer=3.0, max_atoms=250)
    fragment = carve(*arrays(big), 77, limits, completion="crystal", host=host_of(crystal))
    # an ideal crystal: every atom of one kind has the same surroundings as in the parent
    per_atom = big.get_volume() / len(big)
    assert abs(np.linalg.det(fragment.cell)) / len(fragment) == pytest.approx(per_atom, rel=1e-9)
    lattice = np.linalg.inv(crystal.cell.array @ turn)
    offsets = (big.positions[fragment.parent_atom] - big.positions[77] - fragment.positions) @ np.linalg.inv(big.cell)
    np.testing.assert_allclose(offsets, np.rint(offsets), atol=1e-9)
    # the cell is made of lattice vectors of the crystal, up to a symmetry operation of its lattice
    vectors = fragment.cell @ lattice
    np.testing.assert_allclose(vectors * 2, np.rint(vectors * 2), atol=1e-6)
    ideal = _matched(fragment, big)
    assert np.sqrt((ideal**2).sum(axis=1).mean()) < 1e-6


def _matched(fragment, big: Atoms) -> np.ndarray:
    """Distance vectors of each atom of the fragment, moved by each of its cell vectors, from an atom of the parent."""
    from aiida_mlip.kernel.fragments.neighbourhood import neighbourhood

    numbers, positions, cell, pbc = arrays(big)
    misses = []
    for vector in fragment.cell:
        for k in range(0, len(fragment), 7):
            point = positions[fragment.parent_atom[k]] + vector
            near = neighbourhood(numbers, positions, cell, pbc, point, 0.5)
            assert near.numbers[0] == fragment.numbers[k]
            misses.append(near.vectors[0])
    return np.array(misses)


@pytest.fixture(scope="module")
def copper():
    big = rattled(bulk("Cu", cubic=True), 12, amplitude=0.08)
    big.calc = EMT()
    return big, big.get_forces()


@pytest.mark.parametrize(("core", "buffer", "tolerance"), [(4.0, 3.0, 1e-4), (7.0, 5.0, 1e-10)])
def test_a_strictly_local_model_feels_the_same_force(copper, core, buffer, tolerance):
    """EMT ends within two shells: the force on the centre is that in the parent of 6912 atoms."""
    big, forces = copper
    limits = FragmentLimits(core_radius=core, buffer=buffer, max_atoms=2000)
    for centre in (0, 3333):
        fragment = carve(*arrays(big), centre, limits, completion="crystal", host=host_of(bulk("Cu", cubic=True)))
        atoms = atoms_of(fragment)
        atoms.calc = EMT()
        np.testing.assert_allclose(atoms.get_forces()[0], forces[centre], atol=tolerance)
        assert fragment.parent_atom[0] == centre
        assert (fragment.region[np.linalg.norm(fragment.positions, axis=1) <= core] == Region.CORE).all()
        assert set(fragment.region) == {0, 1, 2}


def test_silicon_vacancy_gives_exactly_63_atoms():
    crystal = bulk("Si", cubic=True)
    for seed in range(5):
        big = rattled(crystal, 3, amplitude=0.05, seed=seed)
        gone = 100
        neighbour = int(np.argsort(big.get_distances(gone, range(len(big)), mic=True))[1])
        centre = neighbour - (neighbour > gone)
        del big[gone]
        limits = FragmentLimits(core_radius=2.43, buffer=3.0)
        fragment = carve(*arrays(big), centre, limits, completion="crystal", host=host_of(crystal))
        assert len(fragment) == 63
        assert fragment.removed == 0
        assert len(np.unique(fragment.parent_atom)) == 63


@pytest.mark.parametrize("name", ["diamond", "rocksalt", "hcp"])
def test_order_and_origin_of_the_parent_do_not_matter(name):
    crystal, in_radius = LATTICES[name]
    big = rattled(crystal, 7, amplitude=0.1, seed=3)
    limits = FragmentLimits(core_radius=in_radius - 3, buffer=3.0, max_atoms=250)
    rng = np.random.default_rng(1)
    order = rng.permutation(len(big))
    other = big[order]
    other.positions += rng.normal(scale=20, size=3)
    other.wrap()
    for centre in (5, 200):
        first = carve(*arrays(big), centre, limits, completion="crystal", host=host_of(crystal))
        moved = int(np.flatnonzero(order == centre)[0])
        second = carve(*arrays(other), moved, limits, completion="crystal", host=host_of(crystal))
        np.testing.assert_array_equal(order[second.parent_atom], first.parent_atom)
        np.testing.assert_allclose(pdist(second.positions), pdist(first.positions), atol=1e-9)
        np.testing.assert_allclose(second.cell, first.cell, atol=1e-9)


@pytest.mark.parametrize(("cation", "anion", "constant"), [("Na", "Cl", 5.64), ("Mg", "O", 4.21)])
def test_ionic_fragments_are_neutral_and_keep_their_core(cation, anion, constant):
    """100 centres each in a crystal with vacancies of both kinds."""
    crystal = bulk(cation + anion, "rocksalt", a=constant, cubic=True)
    big = rattled(crystal, 6, amplitude=0.08, seed=4)
    rng = np.random.default_rng(5)
    del big[np.sort(rng.choice(len(big), 40, replace=False)).tolist()]
    limits = FragmentLimits(core_radius=0.9 * constant, buffer=3.0, max_atoms=600, oxidation_states=IONS)
    host = host_of(crystal)
    disturbed = 0
    for centre in rng.choice(len(big), 100, replace=False):
        fragment = carve(*arrays(big), int(centre), limits, completion="crystal", host=host)
        assert charge(fragment.numbers, IONS) == 0
        distance = big.get_distances(int(centre), range(len(big)), mic=True)
        core = np.flatnonzero(distance <= limits.core_radius)
        assert set(core) <= set(fragment.parent_atom.tolist())
        disturbed += fragment.removed > 0
    assert disturbed > 10  # charged vacancies were there to be balanced


def test_a_surface_stays_a_surface():
    """The sites above a free surface stay empty: nothing is filled in."""
    crystal = bulk("Cu", cubic=True)
    slab = crystal * (8, 8, 6)
    slab.positions += np.random.default_rng(0).normal(scale=0.05, size=slab.positions.shape)
    slab.center(vacuum=15.0, axis=2)
    top = int(np.argmax(slab.positions[:, 2]))
    limits = FragmentLimits(core_radius=4.5, buffer=3.0, max_atoms=500)
    fragment = carve(*arrays(slab), top, limits, completion="crystal", host=host_of(crystal))
    n_sites = round(abs(np.linalg.det(fragment.cell)) / (3.61**3 / 4))
    assert 0.4 < len(fragment) / n_sites < 0.7
    assert fragment.positions[:, 2].max() < 0.5


def test_a_liquid_is_cut_as_a_cube():
    """The atoms of the cube, minus those that come too close across its faces."""
    rng = np.random.default_rng(2)
    positions = np.zeros((0, 3))
    while len(positions) < 640:
        new = rng.uniform(0, 20, 3)
        apart = positions - new
        if not len(positions) or np.linalg.norm(apart - 20 * np.rint(apart / 20), axis=1).min() > 1.6:
            positions = np.vstack([positions, new])
    big = Atoms("Cu640", positions, cell=[20, 20, 20], pbc=True)
    limits = FragmentLimits(core_radius=4.0, buffer=3.0, min_distance_ang=1.5, max_atoms=400)
    fragment = carve(*arrays(big), 11, limits, completion="disordered")
    np.testing.assert_allclose(fragment.cell, 14 * np.eye(3))
    expected = 14**3 / big.get_volume() * len(big)
    assert abs(len(fragment) - expected) < 0.12 * expected
    distances = atoms_of(fragment).get_all_distances(mic=True)
    assert distances[np.triu_indices(len(fragment), 1)].min() >= 1.5


def test_molecules_are_taken_whole_and_chains_are_capped():
    box = Atoms(cell=[30, 30, 30], pbc=True)
    rng = np.random.default_rng(0)
    for x in np.arange(0, 30, 5):
        for y in np.arange(0, 30, 5):
            for z in np.arange(0, 30, 5):
                water = molecule("H2O")
                water.rotate(rng.uniform(0, 360), rng.normal(size=3))
                water.positions += [x, y, z]
                box += water
    limits = FragmentLimits(core_radius=4.0, buffer=3.0, max_atoms=120)
    fragment = carve(*arrays(box), 0, limits, completion="molecular")
    assert not fragment.pbc.any()
    assert np.count_nonzero(fragment.numbers == 1) == 2 * np.count_nonzero(fragment.numbers == 8)
    assert (fragment.region != Region.CAP).all()
    assert fragment.masked.any()

    diamond = bulk("C", cubic=True) * (6, 6, 6)
    limits = FragmentLimits(core_radius=2.0, buffer=2.0, trust_depth=2.0, max_atoms=150)
    fragment = carve(*arrays(diamond), 9, limits, completion="molecular")
    caps = fragment.region == Region.CAP
    assert caps.sum() > 10
    assert (fragment.numbers[caps] == 1).all()
    assert (fragment.parent_atom[caps] == -1).all()
    # every carbon has its four neighbours, carbon or cap
    atoms = atoms_of(fragment)
    distances = atoms.get_all_distances()
    carbon = fragment.numbers == 6
    bonded = ((distances < 1.7) & (distances > 0.1)).sum(axis=1)
    assert (bonded[carbon] == 4).all()


def test_centres_are_the_worst_and_keep_apart():
    big = rattled(bulk("Cu", cubic=True), 5, amplitude=0.05)
    grades = np.random.default_rng(0).gamma(1.0, 1.0, len(big))
    centres = choose_centres(grades, *arrays(big)[1:], threshold=2.0, separation=8.0)
    assert grades[centres[0]] == grades.max()
    assert (np.diff(grades[centres]) <= 0).all()
    everywhere = big.get_all_distances(mic=True)
    distances = everywhere[np.ix_(centres, centres)]
    assert distances[np.triu_indices(len(centres), 1)].min() >= 8.0
    # none is left that could have been a centre
    above = np.flatnonzero(grades > 2.0)
    assert (everywhere[np.ix_(above, centres)].min(axis=1) < 8.0).all()
    assert len(choose_centres(grades, *arrays(big)[1:], threshold=2.0, separation=8.0, limit=3)) == 3
    assert len(choose_centres(grades, *arrays(big)[1:], threshold=1e9, separation=8.0)) == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"core_radius": -1.0}, InvalidInputError, "core_radius: must be positive, got -1"),
        ({"buffer": 40.0, "max_atoms": 10**6}, InvalidInputError, r"smaller than the fragment: it repeats after 21"),
        ({"max_atoms": 20}, NoFragmentError, r"max_atoms: a fragment of in-radius 7.00 Å has \d+ sites, more than 20"),
        ({"host": "Fe"}, NoFragmentError, "no host found"),
        ({"host": None}, InvalidInputError, "host: missing"),
        ({"centre": 10**6}, InvalidInputError, "centre: the frame has atoms 0 to"),
        ({"oxidation_states": {"Na": 1}}, InvalidInputError, "oxidation_states: none for Cu"),
        ({"oxidation_states": {"Cu": 2}}, NoFragmentError, r"its charge is \+\d+, and no few atoms"),
        ({"min_distance_ang": 3.0}, NoFragmentError, "in the core Cu .* apart"),
    ],
)
def test_what_cannot_be_done_is_said(change, error, message):
    big = bulk("Cu", cubic=True) * (6, 6, 6)
    change = dict(change)
    host = change.pop("host", "Cu")
    centre = change.pop("centre", 0)
    cell = None if host is None else host_of(bulk("NaCl", "rocksalt", a=5.6) if host == "Fe" else bulk("Cu"))
    with pytest.raises(error, match=message):  # noqa: PT012 - either of the two refuses
        limits = FragmentLimits(**{"core_radius": 4.0, "buffer": 3.0, "max_atoms": 250, **change})
        carve(*arrays(big), centre, limits, completion="crystal", host=cell)
