"""Coverage: all of itself, little of something else, more with more."""

import numpy as np
import pytest
from ase.build import bulk
from scipy.spatial.transform import Rotation

from aiida_mlip.errors import InvalidInputError
from aiida_mlip.kernel.coverage import coverage, reference_space
from aiida_mlip.kernel.descriptors import SIZE, atomic_descriptors
from aiida_mlip.kernel.frames import Frames, concatenate, from_ase
from aiida_mlip.kernel.generators.rattle import displacements


def rattled(amplitude: float, count: int, seed: int = 0, name: str = "SiC") -> Frames:
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        atoms = bulk(name, "zincblende", a=4.36, cubic=True)
        atoms.positions += displacements(8, amplitude, rng)
        images.append(atoms)
    return from_ase(images)


REFERENCE = rattled(0.15, 40)
SPACE = reference_space([REFERENCE])


def test_a_set_covers_itself_in_any_blocks_and_order():
    whole = coverage([REFERENCE], SPACE)
    assert (whole.fraction, whole.novel) == (1.0, 0)
    assert whole.per_element == {"C": 1.0, "Si": 1.0}
    assert whole.volume == sum(len(space.cells) for space in SPACE.elements.values()) > 20
    rng = np.random.default_rng(0)
    blocks = [REFERENCE.take(rows) for rows in np.array_split(rng.permutation(40), 7)]
    assert coverage(blocks, SPACE) == whole
    again = reference_space(blocks)
    assert coverage([REFERENCE], again).fraction == 1.0


def test_monotonic_and_blind_to_what_is_the_same():
    few, more = (coverage([REFERENCE.take(np.arange(n))], SPACE) for n in (5, 20))
    assert 0 < few.fraction < more.fraction < 1
    atoms = REFERENCE.to_ase(0)
    turned = atoms * (2, 1, 1)
    turned.rotate(20, (1, 1, 0), rotate_cell=True)
    assert coverage([from_ase([turned])], SPACE) == coverage([from_ase([atoms])], SPACE)


def test_other_environments_are_novel():
    cold = coverage([rattled(0.01, 40, seed=1)], SPACE)
    hot = coverage([rattled(0.4, 40, seed=1)], SPACE)
    assert cold.fraction < 0.2
    assert hot.volume > 2 * SPACE_VOLUME
    assert hot.novel > 0.5 * hot.volume
    other = coverage([rattled(0.1, 5, name="GeC")], SPACE)
    assert other.per_element["Si"] == 0.0


SPACE_VOLUME = coverage([rattled(0.15, 40, seed=9)], SPACE).volume


def test_whitening_makes_unit_variance():
    values = np.concatenate(
        [
            atomic_descriptors(REFERENCE.numbers[p], REFERENCE.positions[p], REFERENCE.cell[k], REFERENCE.pbc[k])[
                REFERENCE.numbers[p] == 14
            ]
            for k, p in ((k, REFERENCE.atom_slice(k)) for k in range(40))
        ]
    )
    space = SPACE.elements[14]
    white = (values - space.mean) @ space.axes
    assert values.shape == (160, SIZE)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(3), atol=1e-8)


def test_descriptors_do_not_depend_on_orientation_and_fade_at_the_cutoff():
    part = [REFERENCE.numbers[:8], REFERENCE.positions[:8], REFERENCE.cell[0], REFERENCE.pbc[0]]
    rotation = Rotation.random(rng=1).as_matrix()
    before = atomic_descriptors(*part)
    part[1], part[2] = part[1] @ rotation.T + 0.3, part[2] @ rotation.T
    np.testing.assert_allclose(atomic_descriptors(*part), before, atol=1e-7)
    pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 4.9999]])
    numbers = np.array([14, 6], dtype=np.uint8)
    assert np.abs(atomic_descriptors(numbers, pair, np.zeros((3, 3)), np.zeros(3, dtype=bool))).max() < 1e-6


def test_perfect_crystals_have_one_environment():
    perfect = concatenate([from_ase([bulk("Cu", a=3.61)]), from_ase([bulk("Cu", a=3.61, cubic=True)])])
    space = reference_space([perfect])
    assert len(space.elements[29].cells) == 1
    assert coverage([perfect], space).fraction == 1.0


def test_bad_input():
    with pytest.raises(InvalidInputError, match="there are no frames"):
        reference_space([])
    with pytest.raises(InvalidInputError, match="width"):
        reference_space([REFERENCE], width=0.0)
