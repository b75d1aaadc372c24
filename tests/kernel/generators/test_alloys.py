"""Alloys: exact compositions, and special quasirandom structures as good as the published ones."""

from collections import Counter
from contextlib import suppress
from math import comb

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given, settings
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.distances import geometry
from aiida_mlip.kernel.frames import Frames, from_ase
from aiida_mlip.kernel.generators import GENERATORS
from aiida_mlip.kernel.generators.decoration import Decoration, composition_grid, site_counts
from aiida_mlip.kernel.generators.sqs import Sqs
from aiida_mlip.kernel.short_range_order import warren_cowley

CU = from_ase([bulk("Cu", a=4.0)])
ROCKSALT = from_ase([bulk("MgO", "rocksalt", a=4.2, cubic=True)])


def make(name: str, parents: Frames, parameters, seed: int = 0) -> Frames:
    return GENERATORS[name](parents, parameters, np.random.default_rng(seed))


def symbols(frames: Frames, row: int) -> Counter:
    return Counter(frames.to_ase(row).symbols)


class TestCounts:
    @given(
        st.lists(st.floats(0.01, 1.0), min_size=2, max_size=5),
        st.integers(5, 300),
    )
    @settings(max_examples=60, deadline=None)
    def test_whole_numbers_closest_to_the_shares(self, weights, n_sites):
        shares = {name: w / sum(weights) for name, w in zip("ABCDE", weights, strict=False)}
        if min(shares.values()) * n_sites < 1:
            with suppress(InvalidInputError):
                assert min(site_counts(shares, n_sites).values()) >= 1
            return
        counts = site_counts(shares, n_sites)
        assert sum(counts.values()) == n_sites
        assert all(abs(counts[name] - share * n_sites) < 1 for name, share in shares.items())
        assert min(counts.values()) >= 1
        # largest remainders: what is rounded up had no smaller a remainder than what is rounded down
        exact = {name: share * n_sites for name, share in shares.items()}
        up = [exact[name] % 1 for name in shares if counts[name] > exact[name] + 1e-9]
        down = [exact[name] % 1 for name in shares if counts[name] < exact[name] - 1e-9]
        assert not up or not down or min(up) >= max(down) - 1e-9

    @given(st.integers(2, 4), st.integers(1, 7))
    @settings(max_examples=20, deadline=None)
    def test_grid_has_all_compositions_once(self, n_species, steps):
        names = "ABCD"[:n_species]
        full = composition_grid(names, steps, pure=True)
        assert len(full) == comb(steps + n_species - 1, n_species - 1)
        inner = composition_grid(names, steps, pure=False)
        assert len(inner) == comb(steps - 1, n_species - 1)
        assert all(sum(entry.values()) == pytest.approx(1.0) for entry in full)
        assert len({tuple(entry.values()) for entry in full}) == len(full)


class TestDecoration:
    def test_every_composition_is_exact(self):
        parameters = Decoration(("Cu", "Au", "Ni"), grid=4, per_composition=2, min_image_distance_ang=8.0)
        frames = make("decoration", CU, parameters)
        n_sites = int(frames.natoms[0])
        assert len(frames) == parameters.per_parent == 6
        for row in range(6):
            expected = site_counts(parameters.compositions[row // 2], n_sites)
            assert symbols(frames, row) == Counter(expected)

    def test_only_the_sublattice_is_decorated(self):
        parameters = Decoration(("Mg", "Zn"), ({"Mg": 0.75, "Zn": 0.25},), sites=("Mg",), per_composition=3)
        frames = make("decoration", ROCKSALT, parameters)
        for row in range(3):
            part = frames.atom_slice(row)
            oxygen = ROCKSALT.numbers == 8
            np.testing.assert_array_equal(frames.numbers[part] == 8, oxygen)
            assert symbols(frames, row) == Counter({"O": 4, "Mg": 3, "Zn": 1})
        # one zinc on any of four equivalent sites: one structure, one group
        assert len({bytes(row) for row in frames.group_id}) == 1

    def test_arrangement_is_random(self):
        frames = make(
            "decoration", CU, Decoration(("Cu", "Au"), ({"Cu": 0.5, "Au": 0.5},), min_image_distance_ang=25.0)
        )
        order = warren_cowley(*geometry(frames, 0)).between("Cu", "Au")
        assert int(frames.natoms[0]) > 500
        assert np.abs(order).max() < 0.1

    def test_volume_follows_the_elements(self):
        parameters = Decoration(("Cu", "Au"), ({"Cu": 0.5, "Au": 0.5},), min_image_distance_ang=8.0, scale_volume=True)
        frames = make("decoration", from_ase([bulk("Cu", a=3.61)]), parameters)
        volume = np.linalg.det(frames.cell[0]) / frames.natoms[0]
        assert volume == pytest.approx((3.61**3 + 4.08**3) / 8, rel=0.01)

    def test_bad_input(self):
        for keys, message in (
            ({"species": ("Cu",)}, "species"),
            ({"species": ("Cu", "Cu")}, "species"),
            ({"species": ("Cu", "Foo")}, "species"),
            ({"species": ("Cu", "Au"), "fractions": ({"Cu": 0.7, "Au": 0.2},)}, "fractions"),
            ({"species": ("Cu", "Au"), "fractions": ({"Cu": 0.5, "Ni": 0.5},)}, "fractions"),
            ({"species": ("Cu", "Au", "Ni"), "grid": 2}, "grid"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                Decoration(**keys)
        with pytest.raises(InvalidInputError, match=r"fractions: .* no atom of"):
            make("decoration", CU, Decoration(("Cu", "Au")))
        with pytest.raises(InvalidInputError, match="min_distance_ang"):
            make("decoration", ROCKSALT, Decoration(("Cu", "Au"), grid=2, min_distance_ang=2.5))


class TestSqs:
    def test_sixteen_atoms_of_fcc_ab_reproduce_the_published_values(self):
        # SQS16 of Wei et al., doi:10.1103/PhysRevB.42.9622: no short-range order in the first seven shells
        parameters = Sqs({"Cu": 0.5, "Au": 0.5}, n_atoms=16, cutoffs_ang=(7.6,), n_steps=2000)
        frames = make("sqs", CU, parameters, 1)
        assert symbols(frames, 0) == Counter({"Cu": 8, "Au": 8})
        order = warren_cowley(*geometry(frames, 0), n_shells=7)
        np.testing.assert_allclose(order.between("Cu", "Au"), 0.0, atol=1e-9)

    def test_eight_atoms_by_enumeration(self):
        parameters = Sqs({"Cu": 0.5, "Au": 0.5}, n_atoms=8, cutoffs_ang=(5.0,))
        frames = make("sqs", CU, parameters)
        order = warren_cowley(*geometry(frames, 0), n_shells=3)
        # the best eight-atom cell has none in the first two shells, like SQS8-a and -b of the same paper
        np.testing.assert_allclose(order.between("Cu", "Au")[:2], 0.0, atol=1e-9)
        assert abs(order.between("Cu", "Au")[2]) <= 1 / 8

    def test_a_given_supercell_is_better_than_random(self):
        parameters = Sqs({"Mg": 0.5, "Zn": 0.5}, min_image_distance_ang=8.0, sites=("Mg",), n_steps=1000)
        frames = make("sqs", ROCKSALT, parameters)
        decorated = make(
            "decoration",
            ROCKSALT,
            Decoration(("Mg", "Zn"), ({"Mg": 0.5, "Zn": 0.5},), sites=("Mg",), per_composition=20,
                       min_image_distance_ang=8.0),
        )  # fmt: skip

        def first_shells(rows: Frames, row: int) -> float:
            numbers, positions, cell, pbc = geometry(rows, row)
            metal = numbers != 8
            order = warren_cowley(numbers[metal], positions[metal], cell, pbc, n_shells=2)
            return float(np.abs(order.between("Mg", "Zn")).sum())

        assert symbols(frames, 0) == symbols(decorated, 0)
        assert first_shells(frames, 0) <= np.median([first_shells(decorated, row) for row in range(20)]) / 2

    def test_global_random_numbers_are_left_alone(self):
        import random

        random.seed(5)
        np.random.seed(5)
        before = random.getstate(), np.random.get_state()[1].copy()
        make("sqs", CU, Sqs({"Cu": 0.5, "Au": 0.5}, n_atoms=4, cutoffs_ang=(4.5,), method="monte_carlo", n_steps=50))
        assert random.getstate() == before[0]
        np.testing.assert_array_equal(np.random.get_state()[1], before[1])

    def test_bad_input(self):
        half = {"Cu": 0.5, "Au": 0.5}
        for keys, message in (
            ({"fractions": {"Cu": 1.0}, "n_atoms": 8}, "species"),
            ({"fractions": {"Cu": 0.6, "Au": 0.6}, "n_atoms": 8}, "fractions"),
            ({"fractions": half}, "n_atoms: give either"),
            ({"fractions": half, "n_atoms": 8, "min_image_distance_ang": 8.0}, "n_atoms: give either"),
            ({"fractions": half, "min_image_distance_ang": 8.0, "method": "enumerate"}, "method"),
            ({"fractions": half, "n_atoms": 8, "cutoffs_ang": ()}, "cutoffs_ang"),
        ):
            with pytest.raises(InvalidInputError, match=message):
                Sqs(**keys)
        with pytest.raises(InvalidInputError, match=r"fractions: .* no whole numbers of atoms on 7 sites"):
            make("sqs", CU, Sqs(half, n_atoms=7))
        with pytest.raises(InvalidInputError, match="n_atoms: 9 atoms are no supercell"):
            make("sqs", ROCKSALT, Sqs({"Mg": 0.5, "Zn": 0.5}, n_atoms=9, sites=("Mg",)))
        with pytest.raises(InvalidInputError, match="three directions"):
            make("sqs", from_ase([molecule("H2O")]), Sqs(half, n_atoms=8))
