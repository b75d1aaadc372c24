"""Ladders: which runs there are, what they start from, and that their random numbers are their own."""

from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk, molecule
from hypothesis import given
from hypothesis import strategies as st

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.ladder import deformation_gradient, describe, ladder, starting_frame

NO_STRAIN = (0.0,) * 6


def test_a_ladder_has_every_combination_once_and_a_repeated_seed_once(si8):
    seeds = concatenate([si8, from_ase([bulk("Si")]), si8])
    rungs = ladder(seeds, [300, 600], [0.9, 1.0, 1.1], [NO_STRAIN, (0.01, 0, 0, 0, 0, 0)], replicas=2)
    assert len(rungs) == 2 * 2 * 3 * 2 * 2 == len(set(rungs))
    assert {rung.seed_row for rung in rungs} == {0, 1}


def test_random_numbers_of_a_run_do_not_depend_on_the_rest_of_the_ladder(si8):
    alone = ladder(si8, [600])[0]
    among = next(r for r in ladder(si8, [300, 600, 900], [1.0, 1.1], replicas=2) if r == alone)
    assert among.rng(3).normal() == alone.rng(3).normal()
    draws = {r.rng(seed).normal() for r in ladder(si8, [300, 600], replicas=2) for seed in (0, 1)}
    assert len(draws) == 8


@given(scale=st.floats(0.5, 2.0), seed=st.integers(0, 100))
def test_the_volume_is_scaled_and_fractional_positions_stay(scale, seed):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(0.2, seed=seed)
    seeds = from_ase([atoms])
    (rung,) = ladder(seeds, [300], [scale])
    frame = starting_frame(seeds, rung).to_ase(0)
    assert frame.get_volume() == pytest.approx(scale * atoms.get_volume(), rel=1e-12)
    np.testing.assert_allclose(
        frame.get_scaled_positions(wrap=False), atoms.get_scaled_positions(wrap=False), atol=1e-12
    )


def test_a_strain_is_what_it_says():
    gradient = deformation_gradient(1.0, (0.01, 0.02, 0.03, 0.004, 0.005, 0.006))
    np.testing.assert_allclose(gradient, gradient.T)
    np.testing.assert_allclose(np.diag(gradient), [1.01, 1.02, 1.03])
    assert gradient[1, 2] == 0.004
    assert gradient[0, 2] == 0.005
    assert gradient[0, 1] == 0.006


def test_a_supercell_repeats_the_seed(si8):
    (rung,) = ladder(si8, [300])
    frame = starting_frame(si8, rung, supercell=(2, 1, 3))
    expected = si8.to_ase(0).repeat((2, 1, 3))
    assert len(frame.numbers) == 48
    np.testing.assert_allclose(frame.cell[0], expected.cell.array)
    order = np.lexsort(np.round(frame.positions, 6).T)
    np.testing.assert_allclose(
        frame.positions[order], expected.positions[np.lexsort(np.round(expected.positions, 6).T)], atol=1e-12
    )
    assert (frame.parent_id == si8.frame_id).all()


def test_a_molecule_gets_a_box_and_cannot_be_strained_or_repeated():
    seeds = from_ase([molecule("H2O")])
    rung, strained = ladder(seeds, [300], [1.0, 1.1])
    frame = starting_frame(seeds, rung, padding=5.0)
    assert not frame.pbc.any()
    assert (np.linalg.norm(frame.cell[0], axis=1) >= 10.0).all()
    with pytest.raises(InvalidInputError, match="volume_scales"):
        starting_frame(seeds, strained)
    with pytest.raises(InvalidInputError, match="supercell"):
        starting_frame(seeds, rung, supercell=(2, 1, 1))


def test_a_cell_turned_inside_out_is_refused(si8):
    (rung,) = ladder(si8, [300], strains=[(-0.9, 0, 0, 0, 0.9, 0.9)])
    with pytest.raises(InvalidInputError, match="inside out"):
        starting_frame(si8, rung)


def test_a_single_atom_needs_a_supercell():
    seeds = from_ase([bulk("Cu")])
    (rung,) = ladder(seeds, [300])
    with pytest.raises(InvalidInputError, match="supercell: structures, frame 0 has one atom"):
        starting_frame(seeds, rung)
    assert len(starting_frame(seeds, rung, supercell=(1, 1, 2)).numbers) == 2


def test_a_run_is_described_by_what_sets_it_apart(si8):
    rung = ladder(si8, [300], [1.1], [(0.01, 0, 0, 0, 0, 0)], replicas=2)[1]
    assert all(word in describe(rung) for word in ("300 K", "V/V0 1.1", "strain", "replica 1"))
