"""Labels of cluster fragments: what their parents know nothing of is NaN, and they count as labelled all the same."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from aiida_mlip.kernel.fragments.carve import carve
from aiida_mlip.kernel.fragments.fragment import FragmentLimits, Region
from aiida_mlip.kernel.frames import concatenate, from_ase
from aiida_mlip.kernel.labelling import attach_labels, labelled_ids, mask_clusters
from aiida_mlip.kernel.reference_energies import fit_reference_energies
from aiida_mlip.kernel.splits import usable_rows


@pytest.fixture(scope="module")
def cluster():
    """Nine ethanol molecules around the middle one of 27: whole ones, those at the rim are buffer."""
    one = molecule("CH3CH2OH")
    box = Atoms(cell=[21.0] * 3, pbc=True)
    for shift in np.ndindex(3, 3, 3):
        copy = one.copy()
        copy.positions += 7.0 * np.array(shift)
        box += copy
    limits = FragmentLimits(core_radius=2.5, buffer=3.0, trust_depth=2.0)
    numbers, centre = box.numbers.astype(np.uint8), 13 * len(one)
    fragment = carve(numbers, box.positions, box.cell.array, np.array(box.pbc), centre, limits, completion="molecular")
    assert set(fragment.region) >= {Region.CORE, Region.BUFFER}
    return fragment


def labelled(frames, energy=-3.0):
    n, a = len(frames), frames.n_atoms
    return frames.with_columns(
        energy=np.full(n, energy),
        forces=np.arange(3.0 * a).reshape(a, 3),
        stress=np.ones((n, 3, 3)),
        fidelity=np.zeros(n, dtype=np.int16),
        fidelities=("dft",),
    )


def test_a_cluster_keeps_the_forces_of_core_and_trust_only(cluster):
    bare = concatenate([cluster.to_frames(np.ones(16, np.uint8)), from_ase([bulk("Cu", cubic=True)])])
    source = labelled(bare)
    result, tally = attach_labels(bare, "dft", [(source, "dft")])
    assert (tally.labelled, tally.failed, tally.not_run) == (2, 0, 0)
    assert np.isnan(result.energy[0])
    assert np.isnan(result.stress[0]).all()
    mine = result.atom_slice(0)
    np.testing.assert_array_equal(np.isnan(result.forces[mine]).all(axis=1), cluster.masked)
    np.testing.assert_array_equal(result.forces[mine][~cluster.masked], source.forces[mine][~cluster.masked])
    # the other row, and everything but the labels, is as it was
    assert result.energy[1] == -3.0
    np.testing.assert_array_equal(result.forces[result.atom_slice(1)], source.forces[source.atom_slice(1)])
    np.testing.assert_array_equal(result.frame_id, bare.frame_id)
    # it counts as labelled: it is trained on, and not labelled again
    assert result.labelled.all()
    assert usable_rows(result, "dft").all()
    assert len(labelled_ids(result, "dft")) == 2
    # but its energy is none
    assert fit_reference_energies(result, ["H", "C", "O", "Cu"])["O"] == 0.0


def test_periodic_fragments_and_molecules_of_their_own_are_left_alone(cluster):
    """A molecule that was never cut out of anything is a label as a whole."""
    alone = labelled(from_ase([molecule("CH3CH2OH")]))
    assert mask_clusters(alone) is alone
    periodic = labelled(cluster.to_frames(np.ones(16, np.uint8))).with_columns(
        pbc=np.ones((1, 3), dtype=bool), cell=20.0 * np.eye(3)[None]
    )
    assert mask_clusters(periodic) is periodic
    both = mask_clusters(concatenate([alone, labelled(cluster.to_frames(np.ones(16, np.uint8)))]))
    assert np.isfinite(both.energy).tolist() == [True, False]
    assert np.isfinite(both.forces[both.atom_slice(0)]).all()


def test_a_failed_or_bare_row_is_not_labelled(cluster):
    bare = cluster.to_frames(np.ones(16, np.uint8))
    failed = bare.with_columns(failure=np.ones(1, np.uint8), fidelity=np.zeros(1, np.int16), fidelities=("dft",))
    assert not bare.labelled.any()
    result, tally = attach_labels(bare, "dft", [(failed, "dft")])
    assert tally.failed == 1
    assert not result.labelled.any()
